"""The base class of optimizers as values: settings, which are called with parameters.

SGD(lr=0.1)(model.parameters())    ->    torch.optim.SGD
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import nn


class OptimizerSettings(ABC):
    """Settings of an optimizer, which make it when they are called with parameters.

    Settings of your own override `__call__`. A method `lazy` makes the row-sparse optimizer of
    class centers, where there is one.
    """

    @abstractmethod
    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
