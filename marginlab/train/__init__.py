"""Training: one noun, `Recipe`, and one verb, `fit`; `load` gives a trained method back."""

from marginlab.train.checkpoint import load as load
from marginlab.train.fit import Fitted as Fitted
from marginlab.train.fit import check as check
from marginlab.train.fit import fit as fit
from marginlab.train.monitor import Monitor as Monitor
from marginlab.train.monitor import Row as Row
from marginlab.train.recipe import Recipe as Recipe

__all__ = ["Fitted", "Monitor", "Recipe", "Row", "check", "fit", "load"]
