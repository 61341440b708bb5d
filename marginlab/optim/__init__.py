"""Optimizers and schedules.

`SGD`, `AdamW`, `LARS` and the schedules are values in call notation. The row-sparse optimizers are
made with their parameters, as torch's are.
"""

from marginlab.optim.adamw import AdamW as AdamW
from marginlab.optim.lars import LARS as LARS
from marginlab.optim.lazy_adamw import LazyAdamW as LazyAdamW
from marginlab.optim.lazy_sgd import LazySGD as LazySGD
from marginlab.optim.optimizer import OptimizerSettings as OptimizerSettings
from marginlab.optim.schedules import Constant as Constant
from marginlab.optim.schedules import Schedule as Schedule
from marginlab.optim.schedules import WarmupCosine as WarmupCosine
from marginlab.optim.schedules import WarmupPolynomial as WarmupPolynomial
from marginlab.optim.sgd import SGD as SGD

__all__ = [
    "LARS",
    "SGD",
    "AdamW",
    "Constant",
    "LazyAdamW",
    "LazySGD",
    "WarmupCosine",
    "WarmupPolynomial",
]
