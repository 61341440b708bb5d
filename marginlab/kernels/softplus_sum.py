"""Sum of softplus over an interval of columns of a matrix that is never held.

    l_i = sum_{first_i <= j < stop_i, j != own_i} softplus(u_ij),
    u_ij = x_i . y_j,   softplus' = sigmoid.

With the upstream gradient g and V_ij = g_i sigmoid(u_ij): dx_i = sum_j V_ij y_j, dy_j = sum_i V_ij
x_i. Along tangents (A, C) of (x, y), u changes by t_ij = A_i . y_j + x_i . C_j, and the derivatives
of <tangents, slopes> are

    d/dg_i = sum_j sigmoid(u_ij) t_ij,   d/dx_i = sum_j W_ij y_j + V_ij C_j,
    W_ij = V_ij (1 - sigmoid(u_ij)) t_ij,

and d/dy_j likewise. With rows sorted by their intervals, a CPU passes over those columns alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels.function import Needs, Point, Saved, blockwise, readable, unlowered
from marginlab.kernels.shapes import check_intervals, check_matrices
from marginlab.kernels.walk import BUDGET

ROWS = 128  # rows of a block where intervals are read: their columns together are few


def softplus_sum(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "M D"],
    first: Int[Tensor, " B"],
    stop: Int[Tensor, " B"],
    left_out: Int[Tensor, " B"],
    *,
    budget: int = BUDGET,
) -> Float[Tensor, " B"]:
    """Return the sum of softplus(x_i . y_j) over each row's interval of columns.

    It is differentiable in x and y.

    Args:
        x: Rows, float32 or float64. Products and sums have their dtype, also inside autocast.
        y: Columns, of the same dtype.
        first: The first column of row i. Rows whose intervals are near each other should be
            neighbours.
        stop: The column after the last one of row i.
        left_out: A column that row i leaves out; a number outside 0..M-1 leaves out nothing.
        budget: Bytes of the block that is held with its copies, in either pass.

    Returns:
        (B,); 0 (without gradient) over no columns.

    Raises:
        ValueError: Shapes or dtypes that do not fit, or a budget that is not positive.
        RuntimeError: A third derivative is asked for.

    Example:
        >>> x, stop = torch.zeros(2, 3), torch.tensor([2, 2])
        >>> first, left_out = torch.zeros_like(stop), torch.tensor([0, -1])
        >>> softplus_sum(x, x, first, stop, left_out)  # log 2, twice
        tensor([0.6931, 1.3863])
    """
    check_matrices(x, y)
    check_intervals(x, first, stop, left_out)
    if budget <= 0:
        raise ValueError(f"A block needs a positive byte budget, not {budget}.")
    places = torch.stack((first, stop, left_out)).long()
    return blockwise(_SoftplusSum(budget), x, y, x.new_ones(()), places)


@dataclass(frozen=True)
class _SoftplusSum:
    budget: int

    def value(self, point: Point, index: Tensor | None) -> Saved:
        x, y, _ = point
        total = x.new_zeros(len(x))
        for rows, _, block in _blocks(x, y, index, self.budget, copies=4):
            total[rows] += F.softplus(block, threshold=40.0).sum(1)  # 20 leaves an error of 2e-9
        return total, x.new_zeros(())

    def slopes(
        self, grad: Tensor, point: Point, index: Tensor | None, saved: Saved, needs: Needs
    ) -> Point:
        x, y, scale = point
        to_rows, to_columns = torch.zeros_like(x), torch.zeros_like(y)
        for rows, columns, block in _blocks(x, y, index, self.budget, copies=3):
            block.sigmoid_().mul_(grad[rows, None])
            with unlowered(x):
                to_rows[rows].addmm_(block, y[columns])
                to_columns[columns].addmm_(block.T, x[rows])
        return to_rows, to_columns, torch.zeros_like(scale)

    def curvature(
        self, tangents: Point, grad: Tensor, point: Point, index: Tensor | None, saved: Saved
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (x, y, scale), (a, c, _) = point, tangents
        moment, to_rows, to_columns = (torch.zeros_like(z) for z in (grad, x, y))
        for rows, columns, block in _blocks(x, y, index, self.budget, copies=7):
            share = block.sigmoid_()
            turned = (a[rows] @ y[columns].T + x[rows] @ c[columns].T).mul_(share)
            moment[rows] += turned.sum(1)
            w = turned.mul_(1 - share).mul_(grad[rows, None])
            v = share.mul_(grad[rows, None])
            to_rows[rows] += w @ y[columns] + v @ c[columns]
            to_columns[columns] += w.T @ x[rows] + v.T @ a[rows]
        return moment, to_rows, to_columns, torch.zeros_like(scale)


def _blocks(
    x: Tensor, y: Tensor, places: Tensor | None, budget: int, copies: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the blocks that meet an interval, with -inf outside of it.

    `copies` blocks fit the budget.
    """
    assert places is not None
    first, stop, left_out = places
    entries = max(budget // (copies * x.element_size()), 1)
    read = readable(first)
    high = max(1, min(len(x), int(entries**0.5), ROWS if read else len(x)))
    wide = max(1, entries // high)
    for top in range(0, len(x), high):
        rows = slice(top, min(top + high, len(x)))
        left, end = (int(first[rows].min()), int(stop[rows].max())) if read else (0, len(y))
        for start in range(left, end, wide):
            columns = slice(start, min(start + wide, end))
            index = torch.arange(columns.start, columns.stop, device=x.device)
            inside = (index >= first[rows, None]) & (index < stop[rows, None])
            inside &= index != left_out[rows, None]
            with unlowered(x):
                block = x[rows] @ y[columns].T
            yield rows, columns, block.masked_fill_(inside.logical_not_(), -torch.inf)
