"""Sum of a heavy-tailed kernel over a matrix that is never held: l_i = log sum_j q_ij, q_ij = 1 / (1 + |x_i - y_j|^2).

Forward, over the blocks of the walk: S_i = sum_j q_ij, which needs no running maximum, for q is at most 1 and falls only as a square. Backward:
every block is computed once more, and with w_ij = q_ij^2, the upstream gradient g and h_i = g_i / S_i,

    dx_i = -2 h_i (x_i sum_j w_ij - sum_j w_ij y_j),   dy_j = 2 (sum_i h_i w_ij x_i - y_j sum_i h_i w_ij).

Rows and columns are centred first, which changes no distance. Up to 8 features squared distances are sums of squared differences; beyond, one
product |x|^2 + |y|^2 - 2 x.y, whose rounding, some 1e-7 (|x| + |y|)^2 in float32, the added 1 hides at the lengths that embeddings have.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels.logsumexp import leave_out, unlowered
from marginlab.kernels.walk import BUDGET, walk

FEW = 8  # features up to which differences cost no more than a product


def log_cauchy_sum(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "M D"],
    *,
    exclude: Int[Tensor, "B E"] | None = None,
    budget: int = BUDGET,
) -> Float[Tensor, " B"]:
    """For each row of x, log sum_j 1 / (1 + |x_i - y_j|^2) over the rows of y that it does not exclude; differentiable in x and y.

    Parameters
    ----------
    x, y: rows and columns of the matrix, of one dtype, float32 or float64.
    exclude: columns that row i leaves out (itself, its positive); a number outside 0..M-1 excludes nothing.
    budget: bytes of the block that is held, in either pass.

    Returns
    -------
    (B,); -inf (without gradient) where a row excludes every column.

    Raises
    ------
    ValueError: shapes that do not fit, or a budget that is not positive.
    RuntimeError: a second derivative is asked for (create_graph=True).

    >>> x = torch.tensor([[0.0], [3.0]])
    >>> log_cauchy_sum(x, x, exclude=torch.tensor([[0], [1]])).exp()  # the other row only, at distance 3
    tensor([0.1000, 0.1000])

    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.dtype != y.dtype:
        raise ValueError(f"Rows and columns are matrices of one width and dtype, not {tuple(x.shape)} {x.dtype} and {tuple(y.shape)} {y.dtype}.")
    if exclude is not None and (exclude.ndim != 2 or len(exclude) != len(x)):
        raise ValueError(f"Excluded columns are a (B, E) matrix with one row for each of the {len(x)} rows of x, not {tuple(exclude.shape)}.")
    # The median of each feature: a mean would follow one far row and take the others' digits with it
    center = y.detach().sort(0).values[len(y) // 2] if len(y) else 0.0
    out: Tensor = _LogCauchySum.apply(x - center, y - center, None if exclude is None else exclude.long(), budget)
    return out


class _LogCauchySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, exclude: Tensor | None, budget: int) -> Tensor:
        total = x.new_zeros(len(x))
        for rows, _, block in _shares(x, y, exclude, budget):
            total[rows] += block.sum(1)
        ctx.budget = budget
        ctx.save_for_backward(x, y, exclude, total)
        return total.log()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if torch.is_grad_enabled():  # the blocks below are made in place: their own derivative would be silently missing
            raise RuntimeError("The blockwise sum has no second derivative: call backward or grad without create_graph=True.")
        x, y, exclude, total = ctx.saved_tensors
        weight = torch.where(total > 0, 2 * grad / total, 0.0)  # log 0 has no slope
        to_rows, to_columns = torch.zeros_like(x), torch.zeros_like(y)
        row_sum, column_sum = x.new_zeros(len(x)), x.new_zeros(len(y))
        for rows, columns, block in _shares(x, y, exclude, ctx.budget):
            block.square_().mul_(weight[rows, None])
            row_sum[rows] += block.sum(1)
            column_sum[columns] += block.sum(0)
            with unlowered(x):
                to_rows[rows].addmm_(block, y[columns])
                to_columns[columns].addmm_(block.T, x[rows])
        return to_rows - x * row_sum[:, None], to_columns - y * column_sum[:, None], None, None


def _shares(x: Tensor, y: Tensor, exclude: Tensor | None, budget: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """The blocks of 1 / (1 + squared distance), in one buffer used again for each, with 0 at the excluded columns."""
    square = x.square().sum(1), y.square().sum(1)
    buffer: Tensor | None = None
    for rows, columns in walk(len(x), len(y), entry=2 * x.element_size(), budget=budget):  # the block, and one feature's differences
        shape = rows.stop - rows.start, columns.stop - columns.start
        if buffer is None:
            buffer = x.new_empty(shape[0] * shape[1])  # the first block is the largest
        block = buffer[: shape[0] * shape[1]].view(shape)
        if x.shape[1] <= FEW:
            block.zero_()
            for one, other in zip(x[rows].T, y[columns].T, strict=True):
                difference = one[:, None] - other
                block.addcmul_(difference, difference)
        else:
            with unlowered(x):
                torch.mm(x[rows], y[columns].T, out=block)
            block.mul_(-2).add_(square[0][rows, None]).add_(square[1][columns]).clamp_min_(0)
        block.add_(1).reciprocal_()
        if exclude is not None:
            leave_out(block, exclude[rows] - columns.start, 0.0)
        yield rows, columns, block
