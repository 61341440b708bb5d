"""AdamW as a value that makes torch's optimizer, or its row-sparse twin; usual for transformers.

Loshchilov and Hutter 2019: the decay of weights is decoupled from the gradient. The value is called
with parameters.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from marginlab.optim.lazy_adamw import LazyAdamW
from marginlab.optim.optimizer import OptimizerSettings


@dataclass(frozen=True)
class AdamW(OptimizerSettings):
    """Settings of torch.optim.AdamW.

    Args:
        lr: Learning rate at the schedule's factor 1, for the recipe's own batch size. It is not
            scaled by the batch size.
        betas: As torch.optim.AdamW.
        eps: As torch.optim.AdamW.
        weight_decay: The decay of all parameters alike, also of biases and norms.

    Raises:
        ValueError: A value outside its range.

    Example:
        >>> AdamW(lr=0.01)(torch.nn.Linear(2, 2).parameters()).param_groups[0]["betas"]
        (0.9, 0.999)
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        two = (
            isinstance(self.betas, tuple | list)
            and len(self.betas) == 2
            and all(0 <= beta < 1 for beta in self.betas)
        )
        if (
            not two
            or not 0 < self.lr < math.inf
            or not 0 < self.eps < math.inf
            or not 0 <= self.weight_decay < math.inf
        ):
            raise ValueError(
                f"{self} wants a finite lr > 0, two betas in [0, 1), such as (0.9, 0.999), eps > 0 "
                "and weight_decay >= 0."
            )

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        return torch.optim.AdamW(
            parameters, self.lr, self.betas, self.eps, weight_decay=self.weight_decay
        )

    def lazy(self, parameters: Iterable[nn.Parameter], *, first_row: int = 0) -> LazyAdamW:
        """Make the row-sparse optimizer with these values, for class centers with sparse gradients.

        Rows without gradient stay as they are.

        Args:
            parameters: The parameters, or one shard of a matrix.
            first_row: Number of the shard's first row in the whole matrix.

        Example:
            >>> optimizer = AdamW(lr=0.01).lazy([torch.nn.Parameter(torch.zeros(3, 2))])
            >>> optimizer.param_groups[0]["weight_decay"]
            0.05
        """
        shard = {"params": list(parameters), "first_row": first_row}
        return LazyAdamW([shard], self.lr, self.betas, self.eps, weight_decay=self.weight_decay)
