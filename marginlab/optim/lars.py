"""LARS: every layer's step is a fraction of the length of its weights, for large batches.

    r = trust |w| / (|g| + wd |w|),      v <- mu v + r (g + wd w),      w <- w - lr v

So large batches do not need a learning rate for each layer.

A parameter with at most one dimension (biases, scales of norms, temperatures) has r = 1 and wd = 0.
A weight or gradient of length 0 has r = 1. The rate multiplies v and is not in it, so that a
schedule acts at once, as in torch.optim.SGD. You et al. have it inside v, which is the same at a
constant rate.

ratio="published" has the length of the sum in place of the sum of lengths,

    r = trust |w| / |g + wd w|,

as the code that Barlow Twins and VICReg were trained with. The sum of lengths is the longer one, so
the published step is larger by a factor of

    (|g| + wd |w|) / |g + wd w| >= 1.

The factor is 1 where gradient and weight point the same way, sqrt 2 where they are orthogonal and
wd |w| = |g|, and without bound where they cancel. With wd = 1e-6 and gradients of a thousandth of
the weight's length it is at most 1.001 / 0.999, below 1.0021.

Sources: You, Gitman and Ginsburg 2017, algorithm 1. Parameters that are left out: Chen et al. 2020
(SimCLR), Zbontar et al. 2021 (Barlow Twins).
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from marginlab.optim.optimizer import OptimizerSettings
from marginlab.settings import nearest

Ratio = Literal["you", "published"]


@dataclass(frozen=True)
class LARS(OptimizerSettings):
    """Settings of LARS, as a value that is called with parameters; the defaults are for batch 512.

    The defaults are SimCLR's.

    Args:
        lr: Learning rate at the schedule's factor 1, for the recipe's own batch size. Published
            rates are 0.3 (SimCLR) and 0.2 (Barlow Twins, VICReg) times batch / 256. Biases and
            norms step by it without adaptation.
        momentum, weight_decay: The mu and wd of the update.
        trust: The fraction of its length that a layer may move by at rate 1.
        ratio: The denominator of r: "you" for |g| + wd |w|, or "published" for |g + wd w|, as
            Barlow Twins' and VICReg's code.

    Raises:
        ValueError: A value outside its range.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2, 2))
        >>> optimizer = LARS(lr=1.0, weight_decay=0.0, trust=0.1)([w])
        >>> w.grad = torch.full((2, 2), 7.0)
        >>> optimizer.step()  # by a tenth of its length, however long its gradient
        >>> w.detach()
        tensor([[0.9000, 0.9000],
                [0.9000, 0.9000]])
    """

    lr: float = 0.6
    momentum: float = 0.9
    weight_decay: float = 1e-6
    trust: float = 1e-3
    ratio: Ratio = "you"

    def __post_init__(self) -> None:
        if self.ratio not in ("you", "published"):
            raise ValueError(
                f"ratio is not {self.ratio!r}: {nearest(self.ratio, ('you', 'published'))}"
            )
        if (
            not 0 < self.lr < math.inf
            or not 0 <= self.momentum < 1
            or not 0 <= self.weight_decay < math.inf
            or not 0 < self.trust < math.inf
        ):
            raise ValueError(
                f"{self} wants a finite lr > 0, momentum in [0, 1), weight_decay >= 0 and trust > "
                "0."
            )

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters."""
        return _LARS(parameters, asdict(self))


class _LARS(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: Any = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self._move(w, w.grad, group)
        return loss

    def _move(self, w: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        if w.ndim > 1:
            long, steep = torch.linalg.vector_norm(w), torch.linalg.vector_norm(g)
            g = g.add(w, alpha=group["weight_decay"])
            # states saved before there was a choice have none
            if group.get("ratio", "you") == "you":
                below = steep + group["weight_decay"] * long
            else:
                below = steep = torch.linalg.vector_norm(g)
            adapted = group["trust"] * long / below
            g = g * torch.where((long > 0) & (steep > 0), adapted, 1.0)
        if group["momentum"]:
            state = self.state[w]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(w)
            g = state["momentum_buffer"].mul_(group["momentum"]).add_(g)
        w.sub_(g, alpha=float(group["lr"]))
