"""Softmax sums of cosines at several nested widths, from one product, over rows and over columns.

At the width m the cosine of x_i and y_j is that of their first m features. With 1/r_im and 1/c_jm
the lengths of these, P_m the product of the first m features and the scale s:

    z_ijm = s r_im c_jm P_ijm,   P_m grows from width to width by the features in between,
    l_im = log sum_{j != own_i} e^{z_ijm},   and over the columns k_jm = log sum_{i : own_i != j}

So all widths cost one product of the widest. Backward, each block is computed once more. With
p_ijm = g_im e^{z_ijm - l_im} + h_jm e^{z_ijm - k_jm}, where g and h are upstream gradients, the
features between two widths get their gradient from all wider ones at once:

    dx_i = s sum_j (sum_{m above} p_ijm r_im c_jm) y_j - s x_i sum_{m above} r_im^2 a_im,
    a_im = sum_j p_ijm cos_ijm,   ds = sum_ijm p_ijm cos_ijm.

Both passes hold one block for each width. A block of rows is finished before the next begins, and
the sums over columns are added in one order: equal calls give equal bits.

Source: nested widths are those of Kusupati et al. 2022 (Matryoshka representation learning), eq. 1;
the online softmax is Milakov and Gimelshein 2018.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from marginlab.kernels.directions import inverse
from marginlab.kernels.function import unlowered
from marginlab.kernels.logsumexp import finite, leave_out
from marginlab.kernels.walk import BUDGET, walk

SHORTEST = 1e-12  # shorter features have no direction: a cosine of 0 with everything, no gradient


def nested_logsumexp(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "M D"],
    own: Int[Tensor, " B"],
    *,
    widths: tuple[int, ...],
    scale: Float[Tensor, ""],
    budget: int = BUDGET,
) -> tuple[Float[Tensor, "W B"], Float[Tensor, "W M"]]:
    """Return log sum_j exp(scale cos(x_i, y_j)) at each width, over the columns and over the rows.

    Each row leaves out its own column, in both sums. They are differentiable once, in x, y and
    scale.

    Args:
        x, y: Rows and columns of one dtype, float32 or float64.
        own: The column that each row leaves out; a number outside 0..M-1 leaves out nothing.
        widths: Numbers of features, rising, up to D.
        scale: 1/temperature.
        budget: Bytes of the blocks that are held, in either pass.

    Returns:
        (W, B) and (W, M); -inf, without gradient, where there is nothing to sum.

    Raises:
        RuntimeError: A second derivative is asked for.

    Example:
        >>> eye, own = torch.eye(2), torch.arange(2)
        >>> rows, _ = nested_logsumexp(eye, eye, own, widths=(1, 2), scale=torch.tensor(1.0))
        >>> rows  # one other column, at a right angle or without a direction
        tensor([[0., 0.],
                [0., 0.]])
    """
    out: tuple[Tensor, Tensor] = _Nested.apply(x, y, scale, own, widths, budget)
    return out


class _Sides(NamedTuple):
    """Rows and columns, and 1 / length of each at each width, (W, B) and (W, M)."""

    x: Tensor
    y: Tensor
    of_rows: Tensor
    of_columns: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, widths: tuple[int, ...]) -> "_Sides":
        def of_prefixes(z: Tensor) -> Tensor:
            norms = [torch.linalg.vector_norm(z[:, :m], dim=1, dtype=torch.float64) for m in widths]
            return torch.stack([inverse(norm, SHORTEST).to(z.dtype) for norm in norms])

        return cls(x, y, of_prefixes(x), of_prefixes(y))


class _Nested(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        own: Tensor,
        widths: tuple[int, ...],
        budget: int,
    ) -> tuple[Tensor, Tensor]:
        W = len(widths)
        sums = [(z.new_full((W, len(z)), -math.inf), z.new_zeros(W, len(z))) for z in (x, y)]
        with unlowered(x):
            sides = _Sides.of(x, y, widths)
            for rows, columns, blocks in _blocks(sides, own, widths, budget, copies=3):
                for k, cosine in enumerate(blocks):
                    z = cosine * scale
                    _add(sums[0], k, rows, z, 1)
                    _add(sums[1], k, columns, z, 0)
        out = tuple(finite(highest, 0.0) + total.log() for highest, total in sums)
        ctx.save_for_backward(x, y, scale, own, *out)
        ctx.widths, ctx.budget = widths, budget
        return out[0], out[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, own, *out = ctx.saved_tensors
        widths: tuple[int, ...] = ctx.widths
        # log 0 has no slope: whatever comes from above would make NaN of it
        grads = [g.masked_fill(o == -math.inf, 0.0) for g, o in zip(upstream, out, strict=True)]
        origins = [finite(o, math.inf) for o in out]
        dx, dy = torch.zeros_like(x), torch.zeros_like(y)
        along = [torch.zeros_like(g) for g in grads]  # a, over the columns and over the rows
        with unlowered(x):
            sides = _Sides.of(x, y, widths)
            for rows, columns, blocks in _blocks(sides, own, widths, ctx.budget, len(widths) + 4):
                shares = []
                for k, cosine in enumerate(blocks):
                    z = cosine * scale
                    p = (z - origins[0][k, rows, None]).exp_().mul_(grads[0][k, rows, None])
                    p += z.sub_(origins[1][k, columns]).exp_().mul_(grads[1][k, columns])
                    part = torch.mul(p, cosine.clamp_(min=-2.0), out=z)  # 0 times -inf is no number
                    along[0][k, rows] += part.sum(1)
                    along[1][k, columns] += part.sum(0)
                    p *= sides.of_rows[k, rows, None]
                    shares.append(p.mul_(sides.of_columns[k, columns]))
                _spread(shares, widths, sides, (rows, columns), (dx, dy))
            for z, d, short, a in zip(
                (x, y), (dx, dy), (sides.of_rows, sides.of_columns), along, strict=True
            ):
                radial = (short.square() * a).flip(0).cumsum(0).flip(0)  # of all wider ones
                for k, features in enumerate(_between(widths)):
                    d[:, features].addcmul_(z[:, features], radial[k, :, None], value=-1)
        return dx * scale, dy * scale, along[0].sum(), None, None, None


def _spread(
    shares: list[Tensor],
    widths: tuple[int, ...],
    sides: _Sides,
    place: tuple[slice, slice],
    into: tuple[Tensor, Tensor],
) -> None:
    """Add a block's gradients, from the widest features to the narrowest; shares are used up."""
    rows, columns = place
    gathered = torch.zeros_like(shares[0])
    for share, features in zip(reversed(shares), reversed(list(_between(widths))), strict=True):
        gathered += share
        into[0][rows, features].addmm_(gathered, sides.y[columns, features])
        into[1][columns, features].addmm_(gathered.T, sides.x[rows, features])


def _between(widths: tuple[int, ...]) -> Iterator[slice]:
    """Yield the features between a width and the one before."""
    for low, high in zip((0, *widths), widths, strict=False):
        yield slice(low, high)


def _blocks(
    sides: _Sides, own: Tensor, widths: tuple[int, ...], budget: int, copies: int
) -> Iterator[tuple[slice, slice, Iterator[Tensor]]]:
    """Yield blocks of cosines, one for each width in turn, with -inf at the own columns.

    A width's block is only there until the next is asked for.
    """
    x, y = sides.x, sides.y
    for rows, columns in walk(len(x), len(y), entry=copies * x.element_size(), budget=budget):

        def cosines(rows: slice = rows, columns: slice = columns) -> Iterator[Tensor]:
            product = x.new_zeros(rows.stop - rows.start, columns.stop - columns.start)
            for k, features in enumerate(_between(widths)):
                product.addmm_(x[rows, features], y[columns, features].T)
                cosine = product * sides.of_rows[k, rows, None]
                cosine *= sides.of_columns[k, columns]
                leave_out(cosine, own[rows, None] - columns.start, -math.inf)
                yield cosine

        yield rows, columns, cosines()


def _add(sums: tuple[Tensor, Tensor], k: int, part: slice, z: Tensor, dim: int) -> None:
    """Add a block of logits to the running largest and sum of its rows (dim 1) or columns (0)."""
    highest, total = sums
    before = highest[k, part]
    now = torch.maximum(before, z.amax(dim))
    origin = finite(now, 0.0)  # -inf minus -inf is no number
    more = (z - origin.unsqueeze(dim)).exp_().sum(dim)
    total[k, part] = total[k, part] * (before - origin).exp() + more
    highest[k, part] = now
