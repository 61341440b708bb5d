"""Two softmax sums for each row of a matrix that is never held: inside and outside an interval.

The interval is of columns, and each row has its own.

    inside_i = log sum_{first_i <= j < stop_i} exp(scale x_i . y_j),
    outside_i = the same over the other columns; column left_out_i is in neither.

With the columns sorted by label, the columns of a row's own class are such an interval, so both
sums of a supervised loss come from one walk. Each is summed by itself: the difference of two sums
that share large terms would have rounded the small ones away. With the rows sorted too, few blocks
cross an interval, and only those need a mask. Forward and backward are as in logsumexp.py, with the
origin and the upstream gradient of the part that a column is in.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels.function import Needs, Point, Saved, blockwise, readable, unlowered
from marginlab.kernels.logsumexp import blocks, finite
from marginlab.kernels.second import Curvature, chosen, curvature
from marginlab.kernels.shapes import check_intervals, check_matrices
from marginlab.kernels.walk import BUDGET


def split_logsumexp(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "M D"],
    first: Int[Tensor, " B"],
    stop: Int[Tensor, " B"],
    left_out: Int[Tensor, " B"],
    *,
    end: Int[Tensor, ""] | None = None,
    scale: float | Float[Tensor, ""] = 1.0,
    budget: int = BUDGET,
) -> Float[Tensor, "B 2"]:
    """Return the softmax sums inside and outside each row's interval of columns.

    They are differentiable in x, y and scale.

    Args:
        x, y: Rows and columns of the matrix, of one dtype, float32 or float64. Products and sums
            have it, also inside autocast.
        first, stop: Row i's interval is the columns first_i to stop_i - 1. Rows whose intervals are
            near each other should be neighbours.
        left_out: A column that row i leaves out of both; a number outside 0..M-1 leaves out
            nothing.
        end: Columns from this one on are left out of all sums.
        scale: 1/temperature; a tensor without dimensions may learn.
        budget: Bytes of the block that is held with its masks, in either pass.

    Returns:
        (B, 2): inside, outside; -inf (without gradient) where there is no column.

    Raises:
        ValueError: Shapes that do not fit, or a budget that is not positive.
        RuntimeError: A third derivative is asked for.

    Example:
        >>> x, left_out = torch.eye(3), torch.arange(3)
        >>> first, stop = torch.tensor([0, 0, 2]), torch.tensor([2, 2, 3])
        >>> split_logsumexp(x, x, first, stop, left_out)  # rows 0 and 1 are of one class
        tensor([[0.0000, 0.0000],
                [0.0000, 0.0000],
                [  -inf, 0.6931]])
    """
    check_matrices(x, y)
    check_intervals(x, first, stop, left_out)
    factor = scale.to(x) if isinstance(scale, Tensor) else x.new_full((), scale)
    ends = [] if end is None else [end.expand_as(left_out)]
    places = torch.stack((first, stop, left_out, *ends)).long()
    return blockwise(_Split(budget), x, y, factor, places)


@dataclass(frozen=True)
class _Split:
    budget: int

    def value(self, point: Point, index: Tensor | None) -> Saved:
        x, y, scale = point
        highest, total = x.new_full((2, len(x)), -math.inf), x.new_zeros(2, len(x))

        def add(part: int, rows: slice, block: Tensor) -> None:
            before = highest[part, rows]
            now = torch.maximum(before, block.amax(1))
            origin = finite(now, 0.0)  # -inf minus -inf is no number
            share = block.sub_(origin[:, None]).exp_().sum(1)
            total[part, rows] = total[part, rows] * (before - origin).exp() + share
            highest[part, rows] = now

        for rows, _, block, inside in _masked(x * scale, y, index, self.budget):
            if inside is not None:
                add(0, rows, torch.where(inside, block, -math.inf))
                block.masked_fill_(inside, -math.inf)
            add(1, rows, block)
        return (finite(highest, 0.0) + total.log()).T.contiguous(), x.new_zeros(())

    def slopes(
        self, grad: Tensor, point: Point, index: Tensor | None, saved: Saved, needs: Needs
    ) -> Point:
        (x, y, scale), (out, _) = point, saved
        # log 0 has no slope: whatever comes from above would make NaN of it
        grad = grad.masked_fill(out == -math.inf, 0.0)
        origin = finite(out, math.inf)
        scaled = x * scale
        to_rows, to_columns = torch.zeros_like(x), torch.zeros_like(y)
        for rows, columns, block, inside in _masked(scaled, y, index, self.budget):
            block.sub_(chosen(origin[rows], inside)).exp_().mul_(chosen(grad[rows], inside))
            with unlowered(x):
                to_rows[rows].addmm_(block, y[columns])
                to_columns[columns].addmm_(block.T, scaled[rows])
        return to_rows * scale, to_columns, (to_rows * x).sum()

    def curvature(
        self, tangents: Point, grad: Tensor, point: Point, index: Tensor | None, saved: Saved
    ) -> Curvature:
        def walk_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor, Any]]:
            return _masked(x, y, index, self.budget, copies=6)

        return curvature(walk_blocks, point, tangents, saved[0], grad)


def _masked(
    x: Tensor, y: Tensor, places: Tensor | None, budget: int, copies: int = 3
) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Yield the blocks, each with a mask of its entries inside an interval, or None for none.

    Args:
        copies: Number of blocks that are held at once: this one, a masked copy and three masks of
            bytes. The caller may hold more.
    """
    assert places is not None
    first, stop, left_out, *ends = places
    # On a CPU most blocks are seen to need no mask; elsewhere seeing it would have to be waited for
    low, high = (first, stop) if readable(first) else (None, None)
    entry = copies * x.element_size()
    for rows, columns, block in blocks(x, y, left_out[:, None], budget, entry=entry):
        inside = None
        index = torch.arange(columns.start, columns.stop, device=x.device)
        if ends:
            block.masked_fill_(index >= ends[0][rows, None], -math.inf)
        if (
            low is None
            or high is None
            or (int(low[rows].min()) < columns.stop and int(high[rows].max()) > columns.start)
        ):
            inside = (index >= first[rows, None]) & (index < stop[rows, None])
        yield rows, columns, block, inside
