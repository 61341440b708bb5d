"""SGD with momentum on the rows that have a gradient, for the centers of sampled classes.

    G = g + wd w,      v <- mu v + G,      w <- w - lr v          (nesterov: w <- w - lr (G + mu v))

This is torch.optim.SGD without dampening (Sutskever et al. 2013). A step without gradient is linear
in (w, v), so k of them are a power of a matrix:

    (w, v) <- M^k (w, v),     M = [[1 - lr wd, -lr mu], [wd, mu]]
                              (nesterov: [[1 - lr wd (1 + mu), -lr mu^2], [wd, mu]])

Without decay M^k is v <- mu^k v and w <- w - lr mu (1 - mu^k) / (1 - mu) v: a row that was away for
long has gone all the way of its momentum.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from marginlab.optim.rowsparse import RowSparse


class LazySGD(RowSparse):
    """SGD with momentum that visits only the rows of a sparse gradient.

    Args:
        params: Parameters (C, ...), or groups of them, as torch's optimizers take. Parameters in
            bfloat16 are computed in float32 and rounded at random.
        lr: Learning rate; schedules set it in `param_groups`.
        momentum, weight_decay, nesterov: As torch.optim.SGD; momentum is in [0, 1).
        semantics: The treatment of rows without gradient. "lazy": nothing. "dense": the step that
            torch.optim.SGD would take, at once. "decayed": the same step, made up for when the row
            returns, at the learning rate of that time; see `catch_up`.
        momentum_dtype: The dtype of the momentum: float32 or bfloat16 (rounded at random); None for
            the parameter's own.
        seed: The seed of the rounding.

    Raises:
        ValueError: A value outside its range, unknown semantics (the message names the nearest),
            nesterov without momentum, float16 parameters.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(3, 2))
        >>> optimizer = LazySGD([w], lr=0.1, weight_decay=0.5)
        >>> rows, values = torch.tensor([[2, 2]]), torch.ones(2, 2)  # twice row 2
        >>> w.grad = torch.sparse_coo_tensor(rows, values, (3, 2), check_invariants=True)
        >>> optimizer.step()
        >>> w.detach()
        tensor([[1.0000, 1.0000],
                [1.0000, 1.0000],
                [0.7500, 0.7500]])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        semantics: str = "lazy",
        momentum_dtype: torch.dtype | None = None,
        seed: int = 0,
    ):
        values = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "semantics": semantics,
        }
        super().__init__(params, {**values, "momentum_dtype": momentum_dtype, "seed": seed})

    def _check_group(self, group: dict[str, Any]) -> None:
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum is in [0, 1), not {group['momentum']}.")
        if group["nesterov"] and not group["momentum"]:
            raise ValueError(
                "Nesterov's step looks ahead along the momentum, and momentum=0. Give a momentum, "
                "or nesterov=False."
            )
        if group["momentum_dtype"] not in (None, torch.float32, torch.bfloat16):
            raise ValueError(
                "Momentum is kept in float32, in bfloat16 or, with None, in the parameter's "
                f"dtype, not in {group['momentum_dtype']}."
            )

    def _moments(self, group: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.dtype]:
        return {"momentum_buffer": group["momentum_dtype"] or dtype} if group["momentum"] else {}

    def _update(
        self,
        group: dict[str, Any],
        w: Tensor,
        moments: list[Tensor],
        gradient: Tensor,
        step: Tensor,
    ) -> None:
        mu = group["momentum"]
        if group["weight_decay"]:
            gradient = gradient.add(w, alpha=group["weight_decay"])
        for v in moments:
            v.mul_(mu).add_(gradient)
            gradient = gradient.add(v, alpha=mu) if group["nesterov"] else v
        w.sub_(gradient, alpha=float(group["lr"]))

    def _skip(
        self,
        group: dict[str, Any],
        w: Tensor,
        moments: list[Tensor],
        since: Tensor,
        skipped: Tensor,
    ) -> None:
        distinct, place = skipped.unique(return_inverse=True)
        matrix = _zero_gradient_step(
            float(group["lr"]), group["momentum"], group["weight_decay"], group["nesterov"]
        )
        # each (n, 1)
        (a, b), (c, d) = (
            _powers(matrix.to(w.device), distinct)[place].to(w.dtype)[..., None].permute(1, 2, 0, 3)
        )
        if not moments:
            w.mul_(a)
        for v in moments:
            before = w.clone()
            w.mul_(a).addcmul_(b, v)
            v.mul_(d).addcmul_(c, before)


def _zero_gradient_step(
    lr: float, mu: float, decay: float, nesterov: bool
) -> Float64[Tensor, "2 2"]:
    """Return M of the file's head: the effect of a step without gradient on (w, v)."""
    ahead = 1 + mu if nesterov else 1.0
    return torch.tensor(
        [[1 - lr * decay * ahead, -lr * mu * (mu if nesterov else 1.0)], [decay, mu]],
        dtype=torch.float64,
    )


def _powers(
    matrix: Float64[Tensor, "2 2"], exponents: Int[Tensor, " n"]
) -> Float64[Tensor, "n 2 2"]:
    """Return the powers of a matrix, by squaring."""
    out = torch.eye(2, dtype=matrix.dtype, device=matrix.device).expand(len(exponents), 2, 2)
    for bit in range(int(exponents.max()).bit_length()):
        out = torch.where((exponents >> bit & 1).bool()[:, None, None], out @ matrix, out)
        matrix = matrix @ matrix
    return out
