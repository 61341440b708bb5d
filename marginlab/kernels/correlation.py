"""Sum of squares off the diagonal of a covariance or correlation that is never held.

The covariance is over the rows of all ranks. For the features of two sets of N rows, with means m
and n and scales u and v,

    C_ij = (sum_b x_bi y_bj / N - m_i n_j) u_i v_j,   loss = sum_{i != j} C_ij^2.

Each block of sum_b x_bi y_bj is a product of a rank's own rows. It is summed over the ranks, used,
and forgotten. Backward it is computed and summed once more. With K_ij = C_ij / (u_i v_j), the
upstream gradient g and P_ij = 2 g K_ij u_i^2 v_j^2:

    dx_bi = sum_j P_ij y_bj / N,            dy_bj = sum_i P_ij x_bi / N,
    dm_i = -sum_j P_ij n_j,                 dn_j = -sum_i P_ij m_i,
    du_i = 2 g u_i sum_j K_ij^2 v_j^2,      dv_j = 2 g v_j sum_i K_ij^2 u_i^2.

At D = 8,192 features the matrix takes 256 MiB, of which one block is held. No rank sees the rows of
another.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from marginlab import ranks
from marginlab.kernels.function import one_by_one, unlowered
from marginlab.kernels.walk import BUDGET, walk


def off_diagonal_squares(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "B D"],
    means: tuple[Float[Tensor, " D"], Float[Tensor, " D"]],
    scales: tuple[Float[Tensor, " D"], Float[Tensor, " D"]],
    *,
    rows: int,
    half: bool = False,
    group: dist.ProcessGroup | None = None,
    budget: int = BUDGET,
) -> Float[Tensor, ""]:
    """Return the sum over i != j of the squares of the scaled covariance.

    It is the same on every rank, and differentiable in x, y, means and scales.

    Args:
        x, y: This rank's rows (B, D), float32 or float64; a rank may have none (0, D). Rows far
            from the origin lose digits: subtract a common origin first.
        means, scales: (m, n) and (u, v), the same numbers on every rank, such as results of
            `ranks.all_reduce`.
        rows: N, the number of rows of all ranks.
        half: The caller's promise that y, n and v are x, m and u, up to one factor of all scales.
            The matrix is then symmetric, and each unordered pair is computed once.
        group: Process group; None means the default group, or one rank.
        budget: Bytes of the block that is held with its square, in either pass.

    Raises:
        ValueError: Shapes that differ, or a budget that is not positive.
        RuntimeError: A second derivative is asked for (create_graph=True).

    Example:
        >>> x, zero, one = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2), torch.ones(2)
        >>> # twice (1 * 2 + 3 * 4)^2 / 4
        >>> off_diagonal_squares(x, x, (zero, zero), (one, one), rows=2)
        tensor(98.)
    """
    if x.ndim != 2 or x.shape != y.shape or any(v.shape != x.shape[1:] for v in (*means, *scales)):
        raise ValueError(
            "Both sides are matrices (B, D) of one shape, with D means and scales each, not "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    over = _Over(rows, half, group, budget)
    out: Tensor = _Squares.apply(*_apart(x, y, *means, *scales), over)
    return out


def _apart(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors, repeated ones as views: torch.compile takes no tensor twice."""
    before = [any(t is other for other in tensors[:i]) for i, t in enumerate(tensors)]
    return [t.view_as(t) if again else t for t, again in zip(tensors, before, strict=True)]


@dataclass(frozen=True)
class _Over:
    """Rows of all ranks, whether half of the blocks suffice, the group, and the budget."""

    rows: int
    half: bool
    group: dist.ProcessGroup | None
    budget: int


class _Squares(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, y: Tensor, m: Tensor, n: Tensor, u: Tensor, v: Tensor, over: _Over
    ) -> Tensor:
        value = x.new_zeros(())
        for i, j, block in _blocks(x, y, m, n, over):
            square = block.mul_(u[i, None]).mul_(v[j]).square_()
            value += _times(over.half, i, j) * square.sum()
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.over = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_SquaresSlopes.apply(grad, *ctx.saved_tensors, ctx.over), None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return one_by_one(_Squares, info, in_dims, arguments)


class _SquaresSlopes(torch.autograd.Function):
    @staticmethod
    def forward(
        grad: Tensor,
        x: Tensor,
        y: Tensor,
        m: Tensor,
        n: Tensor,
        u: Tensor,
        v: Tensor,
        over: _Over,
    ) -> tuple[Tensor, ...]:
        to = [torch.zeros_like(t) for t in (x, y, m, n, u, v)]
        for i, j, block in _blocks(x, y, m, n, over):
            slope = 2 * _times(over.half, i, j) * grad
            with unlowered(x):
                square = block.square()
                to[4][i] += slope * u[i] * (square @ v[j].square())
                to[5][j] += slope * v[j] * (square.T @ u[i].square())
                block.mul_((slope * u[i].square())[:, None]).mul_(v[j].square())
                to[2][i] -= block @ n[j]
                to[3][j] -= block.T @ m[i]
                to[0][:, i].addmm_(y[:, j], block.T, alpha=1 / over.rows)
                to[1][:, j].addmm_(x[:, i], block, alpha=1 / over.rows)
        return tuple(to)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "The blockwise covariance has no second derivative: call backward or grad without "
            "create_graph=True, or give a budget that holds the whole covariance."
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return one_by_one(_SquaresSlopes, info, in_dims, arguments)


def _times(half: bool, i: slice, j: slice) -> float:
    return 2.0 if half and i != j else 1.0


def _blocks(
    x: Tensor, y: Tensor, m: Tensor, n: Tensor, over: _Over
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the blocks of the covariance, with 0 on the diagonal of the whole.

    One buffer is used again for each block.
    """
    width = x.shape[1]
    buffer: Tensor | None = None
    for i, j in walk(width, width, entry=2 * x.element_size(), budget=over.budget, upper=over.half):
        shape = i.stop - i.start, j.stop - j.start
        if buffer is None:
            buffer = x.new_empty(shape[0] * shape[1])  # the first block is the largest
        block = buffer[: shape[0] * shape[1]].view(shape)
        with unlowered(x):
            torch.mm(x[:, i].T, y[:, j], out=block)
            if ranks.size(over.group) > 1:
                dist.all_reduce(block, group=over.group)
            block.div_(over.rows).addr_(m[i], n[j], alpha=-1)
        if -shape[0] < i.start - j.start < shape[1]:
            block.diagonal(i.start - j.start).zero_()
        yield i, j, block
