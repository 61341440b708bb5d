"""Training: one noun, `Recipe`, and one verb, `fit`; `load` gives a trained method back."""

from marginlab.train.callback import Callback as Callback
from marginlab.train.checkpoint import load as load
from marginlab.train.fit import Fitted as Fitted
from marginlab.train.fit import fit as fit
from marginlab.train.images import check as check
from marginlab.train.monitor import Monitor as Monitor
from marginlab.train.recipe import Recipe as Recipe
from marginlab.train.rows import Row as Row

__all__ = ["Callback", "Fitted", "Monitor", "Recipe", "Row", "check", "fit", "load"]
