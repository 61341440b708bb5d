"""Training: `Recipe` says what is trained, `fit` trains it, `load` gives a trained method back.

A training loop of your own writes the same checkpoints with `save`, and continues from them with
`restore`. A cell of a study that trains calls `train_cell`.
"""

from marginlab.train.angles import CollapseWarning as CollapseWarning
from marginlab.train.callback import Callback as Callback
from marginlab.train.cell import Trained as Trained
from marginlab.train.cell import once_trained as once_trained
from marginlab.train.cell import train_cell as train_cell
from marginlab.train.checkpoint import load as load
from marginlab.train.checkpoint import prune as prune
from marginlab.train.checkpoint import restore as restore
from marginlab.train.checkpoint import save as save
from marginlab.train.fit import Fitted as Fitted
from marginlab.train.fit import fit as fit
from marginlab.train.images import check as check
from marginlab.train.monitor import Monitor as Monitor
from marginlab.train.recipe import Recipe as Recipe
from marginlab.train.replay import SampledStep as SampledStep
from marginlab.train.replay import sampled_steps as sampled_steps
from marginlab.train.rows import Row as Row
from marginlab.train.rows import read_rows as read_rows

__all__ = [
    "Callback",
    "CollapseWarning",
    "Fitted",
    "Monitor",
    "Recipe",
    "Row",
    "SampledStep",
    "Trained",
    "check",
    "fit",
    "load",
    "once_trained",
    "prune",
    "read_rows",
    "restore",
    "sampled_steps",
    "save",
    "train_cell",
]
