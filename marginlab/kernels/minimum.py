"""The smallest distance between the views of two images, for all pairs of images.

It is the augmented distance of sampled views,

    d(i, j) = min over u, v of || x_i^u - x_j^v ||

(Huang et al., ICLR 2023, eq. 1), over V views of each image instead of all. Squared distances of a
block of pairs are one matrix product, ||x||^2 + ||y||^2 - 2 x.y, reduced while it is in cache. The
product alone would not do. It cancels, so that a distance of 1e-3 between images of norm 10 drowns.
It only names candidates. The distance of the views with the smallest entry is computed by
differences in float64. So is the distance of all others whose entry, less its rounding, does not
exceed it. The minimum and its (u, v) are therefore those of exact arithmetic, to float64 rounding,
near zero too. A pair of images costs hardly more than one exact distance.

The product need not be of the views. Any numbers that never exceed their distance name candidates
as safely. filter.py makes rows of 128 numbers of smooth views, which takes a fifth of the time or
less. If these leave too many candidates in a block, the block is done again with the views
themselves. After a few such blocks, all others are done with the views too.

The bound: an inner product of P terms in arithmetic of unit roundoff w errs by about w sqrt(P)
|x||y| (Higham and Mary, SIAM J. Sci. Comput. 41, 2019). With a factor of 4 for the tail, |x||y| <=
(|x|+|y|)^2 / 4, and centring and norms added, an entry errs by (2 sqrt(P) + 8) w (|x|+|y|)^2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels.filter import Rows, Views, prepare
from marginlab.kernels.walk import BUDGET, walk

# bytes of a block on a CPU: what a core's second-level cache keeps between product and reduction
_CACHE = 3 * 2**19
# bytes of float64 rows differenced at a time: those of most blocks at once, for waking threads
# costs more than memory
_GATHERED = 9 * 2**20
# bytes of a block below which its calls cost more than half its product
_SMALL = 2**18
# candidates of a filter, as a share of all pairs of views, beyond which the whole product takes
# less time (measured: 1/36)
_WORTH = 1 / 32
# candidates are listed for this fraction of the rows of a block at a time: their lists are wider
# than the entries
_PARTS = 8


class Minimum(NamedTuple):
    """Smallest distances at each level, and the views (u, v) that realise them.

    u is a view of the row's image, v of the column's.
    """

    distance: Float[Tensor, "L N M"]  # float64
    views: Int[Tensor, "L N M 2"]  # int16


def minimum(
    views: Float[Tensor, "N V P"], *, levels: Sequence[int] | None = None, budget: int = BUDGET
) -> Minimum:
    """Smallest distance between views for all pairs of images, each unordered pair computed once.

    Args:
        views: V views of N images, P numbers each; float32, float64, or half precision, which is
            computed in float32.
        levels: Increasing numbers of views; at level l the minimum is over the first l views of
            both images. Default: (V,). All levels come from the same products, and a distance never
            grows from one level to the next.
        budget: Bytes of a block of the product.

    Returns:
        `distance` (L, N, N) in float64, symmetric with zero diagonal; `views` (L, N, N, 2). Among
        equal distances the pair of views is the first: of the lowest level, then of the smallest u,
        then of the smallest v. It is (0, 0) on the diagonal.

    Raises:
        ValueError: A value is not finite, or levels do not increase within 1..V.

    Example:
        >>> x = torch.tensor([[[0.0], [5.0]], [[3.0], [9.0]]])  # 2 images with 2 views of 1 pixel
        >>> minimum(x, levels=(1, 2)).distance[:, 0, 1], minimum(x).views[0, 0, 1]
        (tensor([3., 2.], dtype=torch.float64), tensor([1, 0], dtype=torch.int16))
    """
    return _minimum(views, None, levels, budget)


def between(
    x: Float[Tensor, "N V P"],
    y: Float[Tensor, "M V P"],
    *,
    levels: Sequence[int] | None = None,
    budget: int = BUDGET,
) -> Minimum:
    """Smallest distance between views for all pairs of an image of x and one of y.

    The arguments and errors are those of `minimum`.

    Returns:
        `distance` (L, N, M) and `views` (L, N, M, 2), as `minimum`.

    Example:
        >>> between(torch.tensor([[[0.0], [5.0]]]), torch.tensor([[[3.0], [9.0]]])).distance
        tensor([[[2.]]], dtype=torch.float64)
    """
    return _minimum(x, y, levels, budget)


def _minimum(x: Tensor, y: Tensor | None, levels: Sequence[int] | None, budget: int) -> Minimum:
    other = x if y is None else y
    (N, V, P), M = x.shape, len(other)
    levels = (V,) if levels is None else tuple(levels)
    if (
        not levels
        or any(low >= high for low, high in zip((0, *levels), levels, strict=False))
        or levels[-1] > V
    ):
        raise ValueError(
            f"levels are numbers of views that increase from 1 to at most V = {V}, not {levels}."
        )
    distance = x.new_zeros(len(levels), N, M, dtype=torch.float64)
    chosen = x.new_zeros(len(levels), N, M, 2, dtype=torch.int16)
    if N == 0 or M == 0:
        return Minimum(distance, chosen)
    exact = x.double if x.dtype == torch.float64 else x.float
    x, other = exact(), (exact() if y is None else other.to(exact().dtype))
    center = x.mean((0, 1)) if y is None else (x.mean((0, 1)) + other.mean((0, 1))) / 2
    if x.device.type == "cpu":
        budget = min(budget, _CACHE)
    entry = x.element_size()
    # at least 8 blocks a side, unless they are small: on the diagonal half a block is wasted
    budget = min(budget, max(entry * (-(-max(N, M) // 8) * V) ** 2, _SMALL))
    # error of an entry, and of the exact distance and the limit that it is compared with
    spread = 2 * (2 * P**0.5 + 8) * _roundoff(x)
    filter = prepare(x, None if y is None else other, center, _roundoff(x))
    exactly = _Differences(x)
    left = Views(x, center, spread, filter)
    right = left if y is None else Views(other, center, spread, filter)
    tried = failed = 0
    for rows, columns in walk(
        N * V, M * V, entry=entry, budget=budget, unit=(V, V), upper=y is None
    ):
        i, j = (slice(s.start // V, s.stop // V) for s in (rows, columns))
        diagonal = y is None and i == j
        for p, q in (
            _halves(i.stop - i.start)
            if diagonal
            else ((slice(0, i.stop - i.start), slice(0, j.stop - j.start)),)
        ):
            block = _Block(
                x[i][p],
                other[j][q],
                diagonal and p == q,
                distance[:, i, j][:, p, q],
                chosen[:, i, j][:, p, q],
            )
            pays = filter is not None and failed <= 1 + tried // 4
            tried += pays
            for short in (True, False) if pays else (False,):
                a, b = left.rows(i, short).of(p), right.rows(j, short).of(q)
                most = _WORTH if short else torch.inf
                if _write_minima(block, a, b, levels, spread, exactly, most):
                    break
                failed += 1
    if y is None:
        upper = torch.triu(torch.ones(N, N, dtype=torch.bool, device=x.device), 1)
        distance = torch.where(upper, distance, distance.mT)
        chosen = torch.where(upper[..., None], chosen, chosen.transpose(1, 2).flip(-1))
    return Minimum(distance, chosen)


def _halves(n: int) -> tuple[tuple[slice, slice], ...]:
    """Split a diagonal block of n images, and drop its lower left quarter.

    Less of the product is wasted.
    """
    first, second = slice(0, n // 2), slice(n // 2, n)
    return (
        ((first, first), (first, second), (second, second))
        if n > 1
        else ((slice(0, n), slice(0, n)),)
    )


def _roundoff(x: Tensor) -> float:
    """Unit roundoff of the matrix product of this dtype; users may have allowed it fewer bits."""
    if x.dtype == torch.float64:
        return 2.0**-53
    backends: Any = torch.backends  # typeshed knows no mkldnn.matmul
    backend = backends.cuda.matmul if x.is_cuda else backends.mkldnn.matmul
    return {"tf32": 2.0**-11, "bf16": 2.0**-8}.get(str(backend.fp32_precision), 2.0**-24)


class _Block(NamedTuple):
    """A block of image pairs: their views, and where their minima go.

    Attributes:
        x, y: Views (I, V, P) and (J, V, P).
        diagonal: x and y are the same images, and each unordered pair is looked at once.
        distance: (L, I, J).
        chosen: (L, I, J, 2), the views that are nearest.
    """

    x: Tensor
    y: Tensor
    diagonal: bool
    distance: Tensor
    chosen: Tensor


def _write_minima(
    block: _Block,
    a: Rows,
    b: Rows,
    levels: Sequence[int],
    spread: float,
    exactly: "_Differences",
    most: float,
) -> bool:
    """Write the minima of one block of image pairs, at every level, into the block.

    Return False if more than the share `most` of the pairs of views remain as candidates; the
    minima are then not reliable.
    """
    x, y, diagonal, distance, chosen = block
    (I, V, _), J = x.shape, len(y)  # noqa: E741
    # without the norm of the row, added below
    product = torch.addmm(b.squares.flatten(), a.flat, b.flat.T, alpha=-2).view(I, V, J, V)
    wanted = torch.ones(I, J, dtype=torch.bool, device=x.device)
    if diagonal:
        wanted = wanted.triu(1)
    slack = (a.slack[:, None] + b.slack).double()
    margin = spread * (a.radius[:, None] + b.radius).double().square()

    def limit(distance: Tensor) -> Tensor:
        """Largest value that the entry of two views at this distance may be computed as."""
        return (
            ((distance.view(I, J) + slack).square_() + margin)
            .masked_fill_(~wanted, -torch.inf)
            .to(x.dtype)
        )

    best = torch.full((I * J,), torch.inf, dtype=torch.float64, device=x.device)
    code = torch.zeros(I * J, dtype=torch.int64, device=x.device)  # views (u, v) as u * V + v
    exact = partial(exactly, x, y)
    before, count, step = 0, 0, max(I * J * V // _PARTS, 1)
    # only what this level adds: new views of the column's image, then of the row's
    for at, level in enumerate(levels):
        fresh = [product[:, before:level, :, :level].amin(3)]
        if before:
            fresh.insert(0, product[:, :before, :, before:level].amin(3))
        smallest = torch.cat(fresh, 1) + a.squares[:, :level, None]
        lowest, where = smallest.min(1)
        i, j = (lowest <= limit(best)).nonzero(as_tuple=True)
        u, pair = where[i, j], i * J + j
        row = product[i, u, j, :level]
        row[:, :before].masked_fill_((u < before)[:, None], torch.inf)
        likely = torch.full_like(code, -1)
        likely[pair] = u * V + row.argmin(1)
        known = torch.full_like(best, torch.inf)
        known[pair] = exact(pair, likely[pair])
        bound = limit(torch.minimum(best, known))
        rows = (smallest <= bound[:, None]).nonzero()
        for i, u, j in (part.unbind(1) for part in rows.split(step)):
            near = product[i, u, j, :level] + a.squares[i, u, None] <= bound[i, j, None]
            near[:, :before] &= (u >= before)[:, None]
            row, v = near.nonzero(as_tuple=True)
            count += len(row)
            if count - I * J > most * I * J * V**2:
                return False
            _elect((i * J + j)[row], u[row] * V + v, best, code, likely, known, exact)
        distance[at] = best.view(I, J)
        chosen[at] = torch.stack([code // V, code % V], 1).view(I, J, 2)
        before = level
    if diagonal:
        distance.masked_fill_(~wanted, 0.0)
    return True


def _elect(
    pair: Tensor,
    code: Tensor,
    best: Tensor,
    chosen: Tensor,
    likely: Tensor,
    known: Tensor,
    exactly: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Lower `best` and set `chosen` at each pair of images for which a candidate is nearer.

    `best` holds exact distances. A pair of images is numbered i * J + j, a candidate u * V + v. The
    distance of the candidate `likely` is `known`. Of a pair's candidates in several calls, those of
    earlier calls have smaller u.
    """
    none = torch.iinfo(torch.int64).max
    first = code == torch.full_like(chosen, none).scatter_reduce(0, pair, code, "amin")[pair]
    # most pairs have one candidate; where the first is at distance zero (flat views), the others
    # need no look
    for part in (first, ~first):
        tried = part & (best[pair] > 0)
        p, c = pair[tried], code[tried]
        if not len(p):
            continue
        found, new = known[p], c != likely[p]
        found[new] = exactly(p[new], c[new])
        lower = best.scatter_reduce(0, p, found, "amin")
        wins = (found == lower[p]) & (found < best[p])
        nearer = torch.full_like(chosen, none).scatter_reduce(0, p[wins], c[wins], "amin")
        chosen.copy_(torch.where(nearer < none, nearer, chosen))
        best.copy_(lower)


class _Differences:
    """Distances between views of two blocks by differences in float64.

    A few rows are done at a time, in buffers made once.
    """

    def __init__(self, x: Tensor):
        rows = max(_GATHERED // (8 * x.shape[-1]), 1)
        self.given = x.new_empty(2, rows, x.shape[-1])
        self.wide = x.new_empty(2, rows, x.shape[-1], dtype=torch.float64)

    def __call__(self, x: Tensor, y: Tensor, pair: Tensor, code: Tensor) -> Tensor:
        V = x.shape[1]
        out = pair.new_empty(len(pair), dtype=torch.float64)
        left = torch.div(pair, len(y), rounding_mode="floor") * V + torch.div(
            code, V, rounding_mode="floor"
        )
        right = pair % len(y) * V + code % V
        x, y = x.flatten(0, 1), y.flatten(0, 1)
        for start in range(0, len(pair), self.given.shape[1]):
            part = slice(start, min(start + self.given.shape[1], len(pair)))
            given, wide = self.given[:, : part.stop - start], self.wide[:, : part.stop - start]
            torch.index_select(x, 0, left[part], out=given[0])
            torch.index_select(y, 0, right[part], out=given[1])
            out[part] = torch.linalg.vector_norm(wide.copy_(given)[0].sub_(wide[1]), dim=1)
        return out
