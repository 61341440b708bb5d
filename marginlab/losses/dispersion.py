"""The dispersion of a class's K sub-centers: the mean cosine between two of them.

    d_c = 1 / (K (K - 1)) sum_{k != l} cos(w_ck, w_cl) = (|sum_k u_ck|^2 - K) / (K (K - 1))

u_ck is the direction of w_ck. A positive weight of d drives the sub-centers of a class apart, a
negative one together. A row has the term of its class, so that only the classes of a batch are
moved, and weights, ignored rows and windows act on it as on the rest of the loss.

Source: table 3 of Deng et al. 2022 (ArcFace, TPAMI) has a regulariser of sub-centers, without its
formula here; this one is the lab's own.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.recomputation import transformed

_LEAST = 1e-35  # a shorter center has no direction


def dispersion(
    centers: Float[Tensor, "C K D"], labels: Int[Tensor, " B"], *, sparse: bool = False
) -> Float[Tensor, " B"]:
    """Return the mean cosine between two sub-centers of each row's class.

    Args:
        centers: (C, K, D), K of 2 or more.
        labels: (B,); the value of a row whose label is no class is 0.
        sparse: Make the gradient of the centers sparse.

    Example:
        >>> centers = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [3.0, 0.0]]])
        >>> dispersion(centers, torch.tensor([1, 0, -1]))
        tensor([1., 0., 0.])
    """
    C, K, _ = centers.shape
    here = (labels >= 0) & (labels < C)
    if not C:
        return centers.new_zeros(len(labels), dtype=torch.promote_types(centers.dtype, torch.float))
    rows = torch.where(here, labels, 0)
    plain = not sparse or transformed() or torch.compiler.is_exporting()
    own = centers[rows] if plain else _SparseRows.apply(centers, rows, here)
    own = own.to(torch.promote_types(own.dtype, torch.float32))
    directions = own / own.norm(dim=2, keepdim=True).clamp_min(_LEAST)
    squares = directions.pow(2).sum((1, 2))  # K, and less where a center has no direction
    mean = (directions.sum(1).pow(2).sum(1) - squares) / (K * (K - 1))
    return torch.where(here, mean, 0.0)


class _SparseRows(torch.autograd.Function):
    """Rows of the centers, whose gradient is sparse."""

    @staticmethod
    def forward(ctx: Any, centers: Tensor, rows: Tensor, here: Tensor) -> Tensor:
        ctx.save_for_backward(rows, here)
        ctx.shape = centers.shape
        return centers[rows]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, here = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient with derivatives of its own is dense
            return grad.new_zeros(ctx.shape).index_add(0, rows, grad), None, None
        own, index = grad[here], rows[here]
        found = torch.sparse_coo_tensor(index[None], own, ctx.shape, check_invariants=False)
        return found, None, None
