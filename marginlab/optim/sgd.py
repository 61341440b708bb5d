"""SGD with momentum, as a value that makes torch's optimizer, or its row-sparse twin.

The value is called with parameters.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from marginlab.optim.lazy_sgd import LazySGD
from marginlab.optim.optimizer import OptimizerSettings


@dataclass(frozen=True)
class SGD(OptimizerSettings):
    """Settings of torch.optim.SGD; the defaults are Huang et al. 2023's for SimCLR at batch 512.

    Args:
        lr: Learning rate at the schedule's factor 1, for the recipe's own batch size. It is not
            scaled by the batch size.
        momentum, weight_decay, nesterov: As torch.optim.SGD; momentum is in [0, 1).

    Raises:
        ValueError: A value outside its range.

    Example:
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
        """Make the row-sparse optimizer with these values, for class centers with sparse gradients.

        Rows without gradient stay as they are.

        Args:
            parameters: The parameters, or one shard of a matrix.
            first_row: Number of the shard's first row in the whole matrix.

        Example:
            >>> optimizer = SGD(lr=0.1).lazy([torch.nn.Parameter(torch.zeros(3, 2))])
            >>> optimizer.param_groups[0]["momentum"]
            0.9
        """
        shard = {"params": list(parameters), "first_row": first_row}
        return LazySGD(
            [shard], self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )
