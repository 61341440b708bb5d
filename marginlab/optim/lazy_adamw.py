"""AdamW on the rows that have a gradient, for the centers of sampled classes.

    w <- (1 - lr wd) w,    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
    w <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Loshchilov and Hutter 2019, as torch.optim.AdamW. Each row has its own count of steps t. Under
"lazy" t counts the updates of the row: a row first met late takes a first step of lr. With the
count of the whole parameter the corrections would have run out, and that step would be (1 - b1) /
sqrt(1 - b2) = 3.2 lr.

Under "decayed" t counts all steps. The k steps skipped after step t are made up for together:

    m <- b1^k m,   v <- b2^k v,   w <- d^k w - lr S m / (sqrt(v) + eps),      d = 1 - lr wd,
    S = sum_{j=1..k} d^(k-j) (b1 / sqrt(b2))^j sqrt(1 - b2^(t+j)) / (1 - b1^(t+j))

This is the sum of the k steps, with m and v as they were, except for eps: in step j eps has the
weight b2^(j/2) / sqrt(1 - b2^(t+j)). So it is exact for eps = 0, and otherwise off by some eps /
sqrt(v) of the way. S is one number a row.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from marginlab.optim.rowsparse import RowSparse

_TERMS = 256  # of the sum S in hand at once


class LazyAdamW(RowSparse):
    """AdamW that visits only the rows of a sparse gradient.

    Args:
        params: Parameters (C, ...), or groups of them, as torch's optimizers take. Parameters in
            bfloat16 are computed in float32 and rounded at random. Their moments are float32: in
            bfloat16 a second moment that changes by a thousandth at a step would wander by some
            percent.
        lr: Learning rate; schedules set it in `param_groups`.
        betas, eps, weight_decay: As torch.optim.AdamW; the decay is decoupled from the gradient.
        semantics: The treatment of rows without gradient. "lazy": nothing. "dense": the step that
            torch.optim.AdamW would take, at once. "decayed": the same step, made up for when the
            row returns, at the learning rate of that time; see `catch_up`. "decayed" needs beta1**2
            < beta2.
        seed: The seed of the rounding.

    Raises:
        ValueError: A value outside its range, unknown semantics (the message names the nearest),
            float16 parameters.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(3, 2))
        >>> optimizer = LazyAdamW([w], lr=0.1, weight_decay=0.0)
        >>> row, values = torch.tensor([[2]]), torch.tensor([[5.0, -7.0]])
        >>> w.grad = torch.sparse_coo_tensor(row, values, (3, 2), check_invariants=True)
        >>> optimizer.step()
        >>> w.detach()
        tensor([[1.0000, 1.0000],
                [1.0000, 1.0000],
                [0.9000, 1.1000]])
        >>> optimizer.state[w]["step"]
        tensor([0, 0, 1], dtype=torch.int32)
    """

    _rows_count = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        semantics: str = "lazy",
        seed: int = 0,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "semantics": semantics,
                "seed": seed,
            },
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        b1, b2 = group["betas"]
        if not 0 <= b1 < 1 or not 0 <= b2 < 1 or not group["eps"] >= 0:
            raise ValueError(
                "betas are two numbers in [0, 1) and eps is one from 0, not "
                f"betas={group['betas']} and eps={group['eps']}."
            )
        if group["semantics"] == "decayed" and b1 and not b1**2 < b2:
            raise ValueError(
                f"Without gradient, steps with betas={group['betas']} would not die out. Take "
                "beta1**2 < beta2, or other semantics."
            )

    def _moments(self, group: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.dtype]:
        return dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.promote_types(dtype, torch.float32))

    def _update(
        self,
        group: dict[str, Any],
        w: Tensor,
        moments: list[Tensor],
        gradient: Tensor,
        step: Tensor,
    ) -> None:
        (m, v), (b1, b2), lr = moments, group["betas"], float(group["lr"])
        w.mul_(1 - lr * group["weight_decay"])
        m.lerp_(gradient, 1 - b1)
        v.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        rate, correction = (lr / (1 - b1**step)).to(w.dtype), (1 - b2**step).sqrt().to(w.dtype)
        w.addcdiv_(m * rate, v.sqrt().div_(correction).add_(group["eps"]), value=-1)

    def _skip(
        self,
        group: dict[str, Any],
        w: Tensor,
        moments: list[Tensor],
        since: Tensor,
        skipped: Tensor,
    ) -> None:
        (m, v), (b1, b2), lr = moments, group["betas"], float(group["lr"])
        decay = 1 - lr * group["weight_decay"]
        # at one step few: those of rows last met together
        pairs, place = torch.stack([since, skipped]).unique(dim=1, return_inverse=True)
        k = pairs[1].double()
        kept, mean, square, way = (
            factor[place, None].to(w.dtype)
            for factor in (decay**k, b1**k, b2**k, lr * _drift(b1, b2, decay, pairs[0], pairs[1]))
        )
        w.mul_(kept)
        # a row that was never met has m = v = 0, and eps may be 0
        w.sub_(torch.where(m == 0, m, way * m / v.sqrt().add_(group["eps"])))
        m.mul_(mean)
        v.mul_(square)


def _drift(
    b1: float, b2: float, decay: float, since: Int[Tensor, " n"], skipped: Int[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """Return S of the file's head for each row, without the terms below float64's precision."""
    t, k = since[:, None].double(), skipped[:, None].double()
    total = torch.zeros(len(since), dtype=torch.float64, device=since.device)
    if not b1:
        return total
    ratio = b1 / math.sqrt(b2)
    terms = min(int(skipped.max()), math.ceil(math.log(1e-20) / math.log(ratio)))
    for first in range(1, terms + 1, _TERMS):
        j = torch.arange(
            first, min(first + _TERMS, terms + 1), dtype=torch.float64, device=since.device
        )
        term = (
            decay ** (k - j).clamp(min=0)
            * ratio**j
            * (1 - b2 ** (t + j)).sqrt()
            / (1 - b1 ** (t + j))
        )
        total += term.masked_fill_(j > k, 0.0).sum(1)
    return total
