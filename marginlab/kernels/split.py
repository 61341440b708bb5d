"""Two softmax sums for each row of a matrix that is never held: over the columns of an interval of the row's own, and over all others.

    inside_i = log sum_{first_i <= j < stop_i} exp(scale x_i . y_j),   outside_i = the same over the other columns; column own_i is in neither.

With the columns sorted by label, the columns of a row's own class are such an interval, so both sums of a supervised loss come from one walk.
Each is summed by itself: the difference of two sums that share large terms would have rounded the small ones away. With the rows sorted too, few
blocks cross an interval; only those need a mask. Forward and backward as in logsumexp.py, with the origin and the upstream gradient of the part
that a column is in.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels.logsumexp import blocks, finite, unlowered
from marginlab.kernels.walk import BUDGET


def split_logsumexp(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "M D"],
    first: Int[Tensor, " B"],
    stop: Int[Tensor, " B"],
    own: Int[Tensor, " B"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    budget: int = BUDGET,
) -> Float[Tensor, "B 2"]:
    """The softmax sums inside and outside each row's interval of columns; differentiable in x, y and scale.

    Parameters
    ----------
    x, y: rows and columns of the matrix, of one dtype, float32 or float64. Products and sums have it, also inside autocast.
    first, stop: row i's interval is the columns first_i to stop_i - 1. Rows whose intervals are near each other should be neighbours.
    own: a column that row i leaves out of both; a number outside 0..M-1 leaves out nothing.
    scale: 1/temperature; a tensor without dimensions may learn.
    budget: bytes of the block that is held with its masks, in either pass.

    Returns
    -------
    (B, 2): inside, outside; -inf (without gradient) where there is no column.

    Raises
    ------
    ValueError: shapes that do not fit, or a budget that is not positive.
    RuntimeError: a second derivative is asked for (create_graph=True).

    >>> x, own = torch.eye(3), torch.arange(3)
    >>> split_logsumexp(x, x, torch.tensor([0, 0, 2]), torch.tensor([2, 2, 3]), own)  # rows 0 and 1 are of one class
    tensor([[0.0000, 0.0000],
            [0.0000, 0.0000],
            [  -inf, 0.6931]])

    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.dtype != y.dtype:
        raise ValueError(f"Rows and columns are matrices of one width and dtype, not {tuple(x.shape)} {x.dtype} and {tuple(y.shape)} {y.dtype}.")
    if not len(first) == len(stop) == len(own) == len(x):
        raise ValueError(f"Each of the {len(x)} rows has one interval and one column of its own, not {len(first)}, {len(stop)} and {len(own)}.")
    factor = scale.to(x) if isinstance(scale, Tensor) else x.new_full((), scale)
    out: Tensor = _Split.apply(x, y, factor, torch.stack((first, stop, own)).long(), budget)
    return out


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, places: Tensor, budget: int) -> Tensor:
        highest, total = x.new_full((2, len(x)), -math.inf), x.new_zeros(2, len(x))

        def add(part: int, rows: slice, block: Tensor) -> None:
            before = highest[part, rows]
            now = torch.maximum(before, block.amax(1))
            origin = finite(now, 0.0)  # -inf minus -inf is no number
            total[part, rows] = total[part, rows] * (before - origin).exp() + block.sub_(origin[:, None]).exp_().sum(1)
            highest[part, rows] = now

        for rows, _, block, inside in _masked(x * scale, y, places, budget):
            if inside is not None:
                add(0, rows, torch.where(inside, block, -math.inf))
                block.masked_fill_(inside, -math.inf)
            add(1, rows, block)
        out = (finite(highest, 0.0) + total.log()).T.contiguous()
        ctx.budget = budget
        ctx.save_for_backward(x, y, scale, places, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        if torch.is_grad_enabled():  # the blocks below are made in place: their own derivative would be silently missing
            raise RuntimeError("The blockwise softmax sum has no second derivative: call backward or grad without create_graph=True.")
        x, y, scale, places, out = ctx.saved_tensors
        grad = grad.masked_fill(out == -math.inf, 0.0)  # log 0 has no slope: whatever comes from above would make NaN of it
        origin = finite(out, math.inf)
        scaled = x * scale
        to_rows, to_columns = torch.zeros_like(x), torch.zeros_like(y)
        for rows, columns, block, inside in _masked(scaled, y, places, ctx.budget):
            block.sub_(_chosen(origin[rows], inside)).exp_().mul_(_chosen(grad[rows], inside))
            with unlowered(x):
                to_rows[rows].addmm_(block, y[columns])
                to_columns[columns].addmm_(block.T, scaled[rows])
        return to_rows * scale, to_columns, (to_rows * x).sum() if ctx.needs_input_grad[2] else None, None, None


def _chosen(values: Tensor, inside: Tensor | None) -> Tensor:
    """Of a row's two numbers the one for the part that a column is in."""
    return values[:, 1:] if inside is None else torch.where(inside, values[:, :1], values[:, 1:])


def _masked(x: Tensor, y: Tensor, places: Tensor, budget: int) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """The blocks with what of them is inside: a mask, or None where nothing is."""
    first, stop, own = places
    low, high = first.cpu(), stop.cpu()  # once, not a wait for the device at each block
    for rows, columns, block in blocks(x, y, own[:, None], budget, entry=3 * x.element_size()):  # the block, a masked copy, and three masks
        inside = None
        if int(low[rows].min()) < columns.stop and int(high[rows].max()) > columns.start:
            index = torch.arange(columns.start, columns.stop, device=x.device)
            inside = (index >= first[rows, None]) & (index < stop[rows, None])
        yield rows, columns, block, inside
