"""AdamW, as a value that makes torch's optimizer, or its row-sparse twin, when it is given
parameters: the usual choice for transformers.

Loshchilov and Hutter 2019: the decay of weights is decoupled from the gradient.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from marginlab.optim.lazy_adamw import LazyAdamW


@dataclass(frozen=True)
class AdamW:
    """Settings of torch.optim.AdamW.

    lr: learning rate at the schedule's factor 1, for the batch size of the recipe as it is (it is
        not scaled by it).
    weight_decay: of all parameters alike, also of biases and norms.

    Raises ValueError for a value outside its range.

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
                f"{self} wants a finite lr > 0, two betas in [0, 1), such as (0.9, 0.999), "
                f"eps > 0 and weight_decay >= 0."
            )

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        return torch.optim.AdamW(
            parameters, self.lr, self.betas, self.eps, weight_decay=self.weight_decay
        )

    def lazy(self, parameters: Iterable[nn.Parameter], *, first_row: int = 0) -> LazyAdamW:
        """Make the row-sparse optimizer with these values, for class centers whose gradient has few
        rows; rows without gradient stay as they are.

        first_row: number of the first row in the whole matrix of which the parameters are a shard.

        >>> AdamW(lr=0.01).lazy([torch.nn.Parameter(torch.zeros(3, 2))]).param_groups[0]["weight_decay"]
        0.05
        """
        shard = {"params": list(parameters), "first_row": first_row}
        return LazyAdamW([shard], self.lr, self.betas, self.eps, weight_decay=self.weight_decay)
