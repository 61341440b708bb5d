"""Softmax sum of a matrix that is never held.

The sum is l_i = log sum_j exp(scale x_i . y_j), over the columns j that row i does not exclude.
Forward, over the blocks of the walk, with the logits s_ij = scale x_i . y_j, the running maximum m
and the running sum S = sum_j exp(s_ij - m):

    m' = max(m, max_j s_ij),  S' = S exp(m - m') + sum_j exp(s_ij - m'),
    and at the end  l = m + log S

(the online softmax of Milakov and Gimelshein 2018). Backward, every block is computed once more,
and with p_ij = exp(s_ij - l_i) and the upstream gradient g:

    dx_i = scale g_i sum_j p_ij y_j,   dy_j = scale sum_i g_i p_ij x_i,
    dscale = sum_i g_i x_i . sum_j p_ij y_j.

Both passes hold one block, whatever the number of rows and columns.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels.function import Needs, Point, Saved, blockwise, unlowered
from marginlab.kernels.second import Curvature, curvature
from marginlab.kernels.shapes import check_excluded
from marginlab.kernels.walk import BUDGET, walk


def logsumexp(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "M D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    exclude: Int[Tensor, "B E"] | None = None,
    budget: int = BUDGET,
) -> Float[Tensor, " B"]:
    """For each row of x, return log sum_j exp(scale x_i . y_j) over the rows of y.

    The sum leaves out the rows of y that the row of x excludes. It is differentiable in x, y and
    scale.

    Args:
        x, y: Rows and columns of the matrix. Products and sums are float32, or float64 where an
            operand is, also inside autocast.
        scale: 1/temperature; a tensor without dimensions may learn.
        exclude: Columns that row i leaves out (itself, its positive); a number outside 0..M-1
            excludes nothing.
        budget: Bytes of the one block that is held, in either pass.

    Returns:
        (B,), float32 or float64; -inf (without gradient) where a row excludes every column.

    Raises:
        ValueError: Shapes that do not fit, or a budget that is not positive.
        RuntimeError: A third derivative is asked for.

    Example:
        >>> x = torch.eye(2)
        >>> logsumexp(x, x, exclude=torch.tensor([[0], [1]]))  # the other row only: a product of 0
        tensor([0., 0.])
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"Rows and columns are matrices (B, D) and (M, D) of the same D, not {tuple(x.shape)} "
            f"and {tuple(y.shape)}."
        )
    check_excluded(x, exclude)
    wide = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(wide), y.to(wide)
    factor = scale.to(x) if isinstance(scale, Tensor) else x.new_full((), scale)
    kernel = Softmax(budget)
    return blockwise(kernel, x, y, factor, None if exclude is None else exclude.long())


@dataclass(frozen=True)
class Softmax:
    """The kernel of `logsumexp`."""

    budget: int

    def value(self, point: Point, index: Tensor | None) -> Saved:
        x, y, scale = point
        highest, total = x.new_full((len(x),), -math.inf), x.new_zeros(len(x))
        for rows, _, block in blocks(x * scale, y, index, self.budget):
            before = highest[rows]
            now = torch.maximum(before, block.amax(1))
            origin = finite(now, 0.0)  # -inf minus -inf is no number
            share = block.sub_(origin[:, None]).exp_().sum(1)
            total[rows] = total[rows] * (before - origin).exp() + share
            highest[rows] = now
        return finite(highest, 0.0) + total.log(), x.new_zeros(())

    def slopes(
        self, grad: Tensor, point: Point, index: Tensor | None, saved: Saved, needs: Needs
    ) -> Point:
        (x, y, scale), (out, _) = point, saved
        for_rows, for_columns, for_scale = needs
        # log 0 has no slope: whatever comes from above would make NaN of it
        grad = grad.masked_fill(out == -math.inf, 0.0)
        origin = finite(out, math.inf)
        scaled = x * scale
        # The row weights enter here and after the walk, so a block is passed over once less
        upstream = scaled * grad[:, None]
        expected = torch.zeros_like(x)  # sum_j p_ij y_j
        to_columns = torch.zeros_like(y) if for_columns else x.new_zeros(())
        for rows, columns, block in blocks(scaled, y, index, self.budget):
            block.sub_(origin[rows, None]).exp_()
            with unlowered(x):
                if for_rows or for_scale:
                    expected[rows].addmm_(block, y[columns])
                if for_columns:
                    to_columns[columns].addmm_(block.T, upstream[rows])
        expected.mul_(grad[:, None])
        return expected * scale, to_columns, (expected * x).sum()

    def curvature(
        self, tangents: Point, grad: Tensor, point: Point, index: Tensor | None, saved: Saved
    ) -> Curvature:
        def walk_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor, None]]:
            entry = 4 * x.element_size()  # the block and three products
            for rows, columns, block in blocks(x, y, index, self.budget, entry=entry):
                yield rows, columns, block, None

        turned = curvature(walk_blocks, point, tangents, saved[0][:, None], grad[:, None])
        return turned._replace(grad=turned.grad[:, 0])


def blocks(
    x: Tensor,
    y: Tensor,
    exclude: Tensor | None,
    budget: int,
    *,
    entry: int | None = None,
    upper: bool = False,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the blocks of x @ y.T, with -inf at the excluded columns.

    One buffer is used again for each block. `entry` and `upper` are as in `walk`.
    """
    buffer: Tensor | None = None
    for rows, columns in walk(
        len(x), len(y), entry=entry or x.element_size(), budget=budget, upper=upper
    ):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if buffer is None:
            buffer = x.new_empty(height * width)  # the first block is the largest
        block = buffer[: height * width].view(height, width)
        with unlowered(x):
            torch.mm(x[rows], y[columns].T, out=block)
        if exclude is not None:
            leave_out(block, exclude[rows] - columns.start, -math.inf)
        yield rows, columns, block


def leave_out(block: Tensor, here: Tensor, smallest: float) -> None:
    """Set the columns `here` (rows, E) of a block to the smallest possible entry, in place.

    Columns outside the block exclude nothing.
    """
    width = block.shape[1]
    # Only a minimum with the smallest changes an entry, one with +inf does not: nothing of the
    # block's size, no index list that a GPU has to wait for
    bound = block.new_full(here.shape, math.inf).masked_fill_(
        (here >= 0) & (here < width), smallest
    )
    block.scatter_reduce_(1, here.clamp(0, width - 1), bound, "amin")


def finite(x: Tensor, instead: float) -> Tensor:
    """Return the tensor with another number in place of -inf."""
    return x.masked_fill(x == -math.inf, instead)
