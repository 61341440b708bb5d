"""Optimizers and learning-rate schedules as small values in call notation; they are given parameters, or steps, when training begins."""

from marginlab.optim.schedules import Constant as Constant
from marginlab.optim.schedules import WarmupCosine as WarmupCosine
from marginlab.optim.sgd import SGD as SGD

__all__ = ["SGD", "Constant", "WarmupCosine"]
