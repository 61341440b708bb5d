"""Stochastic gradient descent with momentum, as a value that makes torch's optimizer, or its
row-sparse twin, when it is given parameters.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from marginlab.optim.lazy_sgd import LazySGD


@dataclass(frozen=True)
class SGD:
    """Settings of torch.optim.SGD; the defaults are those of Huang et al. 2023 for SimCLR at batch
    512.

    lr: learning rate at the schedule's factor 1, for the batch size of the recipe as it is (it is
        not scaled by it).

    >>> SGD(lr=0.1)(torch.nn.Linear(2, 2).parameters()).param_groups[0]["lr"]
    0.1
    """

    lr: float = 0.06
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False

    def __post_init__(self) -> None:
        if (
            not 0 < self.lr < math.inf
            or not 0 <= self.momentum < 1
            or not 0 <= self.weight_decay < math.inf
        ):
            raise ValueError(
                f"{self} wants a finite lr > 0, momentum in [0, 1) and weight_decay >= 0."
            )

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        return torch.optim.SGD(
            parameters,
            self.lr,
            self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )

    def lazy(self, parameters: Iterable[nn.Parameter], *, first_row: int = 0) -> LazySGD:
        """Make the row-sparse optimizer with these values, for class centers whose gradient has few
        rows; rows without gradient stay as they are.

        first_row: number of the first row in the whole matrix of which the parameters are a shard.

        >>> SGD(lr=0.1).lazy([torch.nn.Parameter(torch.zeros(3, 2))]).param_groups[0]["momentum"]
        0.9
        """
        shard = {"params": list(parameters), "first_row": first_row}
        return LazySGD(
            [shard], self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )
