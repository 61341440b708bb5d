"""Sum of a heavy-tailed kernel over a matrix that is never held.

The sum is l_i = log sum_j q_ij, with q_ij = 1 / (1 + |x_i - y_j|^2). Forward, over the blocks of
the walk: S_i = sum_j q_ij. It needs no running maximum, because q is at most 1 and falls only as a
square. Backward: every block is computed once more, and with w_ij = q_ij^2, the upstream gradient g
and h_i = g_i / S_i,

    dx_i = -2 h_i (x_i sum_j w_ij - sum_j w_ij y_j),
    dy_j = 2 (sum_i h_i w_ij x_i - y_j sum_i h_i w_ij).

Rows and columns are centred first, which changes no distance. Up to 8 features, squared distances
are sums of squared differences. Beyond, they come from one product, |x|^2 + |y|^2 - 2 x.y. Its
rounding is some 1e-7 (|x| + |y|)^2 in float32. At the lengths that embeddings have, the added 1
hides it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels.function import Needs, Point, Saved, blockwise, unlowered
from marginlab.kernels.logsumexp import leave_out
from marginlab.kernels.shapes import check_excluded, check_matrices
from marginlab.kernels.walk import BUDGET, walk

FEW = 8  # features up to which differences cost no more than a product


def log_cauchy_sum(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "M D"],
    *,
    exclude: Int[Tensor, "B E"] | None = None,
    budget: int = BUDGET,
) -> Float[Tensor, " B"]:
    """For each row of x, return log sum_j 1 / (1 + |x_i - y_j|^2) over the rows of y.

    The sum leaves out the rows of y that the row of x excludes. It is differentiable in x and y.

    Args:
        x, y: Rows and columns of the matrix, of one dtype, float32 or float64.
        exclude: Columns that row i leaves out (itself, its positive); a number outside 0..M-1
            excludes nothing.
        budget: Bytes of the block that is held, in either pass.

    Returns:
        (B,); -inf (without gradient) where a row excludes every column.

    Raises:
        ValueError: Shapes that do not fit, or a budget that is not positive.
        RuntimeError: A third derivative is asked for.

    Example:
        >>> x = torch.tensor([[0.0], [3.0]])
        >>> itself = torch.tensor([[0], [1]])
        >>> log_cauchy_sum(x, x, exclude=itself).exp()  # the other row only, at distance 3
        tensor([0.1000, 0.1000])
    """
    check_matrices(x, y)
    check_excluded(x, exclude)
    # The median of each feature: a mean would follow one far row and take the others' digits with
    # it
    center = y.detach().sort(0).values[len(y) // 2] if len(y) else 0.0
    index = None if exclude is None else exclude.long()
    return blockwise(_LogCauchySum(budget), x - center, y - center, x.new_ones(()), index)


@dataclass(frozen=True)
class _LogCauchySum:
    budget: int

    def value(self, point: Point, index: Tensor | None) -> Saved:
        x, y, _ = point
        total = x.new_zeros(len(x))
        for rows, _, block in _shares(x, y, index, self.budget):
            total[rows] += block.sum(1)
        return total.log(), total

    def slopes(
        self, grad: Tensor, point: Point, index: Tensor | None, saved: Saved, needs: Needs
    ) -> Point:
        (x, y, scale), (_, total) = point, saved
        weight = torch.where(total > 0, 2 * grad / total, 0.0)  # log 0 has no slope
        to_rows, to_columns = torch.zeros_like(x), torch.zeros_like(y)
        row_sum, column_sum = x.new_zeros(len(x)), x.new_zeros(len(y))
        for rows, columns, block in _shares(x, y, index, self.budget):
            block.square_().mul_(weight[rows, None])
            row_sum[rows] += block.sum(1)
            column_sum[columns] += block.sum(0)
            with unlowered(x):
                to_rows[rows].addmm_(block, y[columns])
                to_columns[columns].addmm_(block.T, x[rows])
        to_rows = to_rows - x * row_sum[:, None]
        return to_rows, to_columns - y * column_sum[:, None], torch.zeros_like(scale)

    def curvature(
        self, tangents: Point, grad: Tensor, point: Point, index: Tensor | None, saved: Saved
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Second derivatives as in second.py, with logits u_ij = -log(1 + |d|^2), d = x_i - y_j.

        Along (A, C), u changes by t = -2 q d . (A_i - C_j); with p = q / S, V = g p and
        W = V (t - sum_j p t), the derivative with respect to d is -2 q ((W + t V) d + V (A - C)).
        """
        (x, y, scale), (a, c, _), total = point, tangents, saved[1]
        inverse = torch.where(total > 0, 1 / total, 0.0)
        moment = torch.zeros_like(grad)
        of_row, of_column = (x * a).sum(1), (y * c).sum(1)

        def turned(rows: slice, columns: slice, q: Tensor) -> Tensor:
            product = x[rows] @ c[columns].T + a[rows] @ y[columns].T
            return product.sub_(of_row[rows, None]).sub_(of_column[columns]).mul_(q).mul_(2)

        copies = 4  # the block and what is made of it
        for rows, columns, q in _shares(x, y, index, self.budget, copies):
            moment[rows] += (turned(rows, columns, q) * q).sum(1) * inverse[rows]
        weight = grad * inverse
        to_rows, to_columns = torch.zeros_like(x), torch.zeros_like(y)
        for rows, columns, q in _shares(x, y, index, self.budget, copies):
            t = turned(rows, columns, q)
            v = q.square_().mul_(weight[rows, None]).mul_(-2)  # -2 q V
            k = t.mul_(2).sub_(moment[rows, None]).mul_(v)  # -2 q (W + t V)
            to_rows[rows] += x[rows] * k.sum(1)[:, None] - k @ y[columns]
            to_rows[rows] += a[rows] * v.sum(1)[:, None] - v @ c[columns]
            to_columns[columns] += y[columns] * k.sum(0)[:, None] - k.T @ x[rows]
            to_columns[columns] += c[columns] * v.sum(0)[:, None] - v.T @ a[rows]
        return moment, to_rows, to_columns, torch.zeros_like(scale)


def _shares(
    x: Tensor, y: Tensor, exclude: Tensor | None, budget: int, copies: int = 2
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the blocks of 1 / (1 + squared distance), with 0 at the excluded columns.

    One buffer is used again for each block.
    """
    square = x.square().sum(1), y.square().sum(1)
    buffer: Tensor | None = None
    # two: the block, and one feature's differences
    for rows, columns in walk(len(x), len(y), entry=copies * x.element_size(), budget=budget):
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
