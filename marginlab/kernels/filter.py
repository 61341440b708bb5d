"""Lower bounds on the distances between views, from d + 1 numbers of each view.

With them, most pairs of views need no product of all P numbers.

    z = Q'x,  r = |x - Q z|,  h = ||Q'Q - I||:
    |z_x - z_y|^2 + (r_x - r_y)^2  <=  (1 + h)^2 |x - y|^2

for any Q (P, d) with h <= 1. Proof: the linear map A x = (Q'x, x - QQ'x) has |A x|^2 = |x|^2 +
z'(Q'Q - I) z <= (1 + h + h^2) |x|^2, and norms of the second parts differ by at most the norm of
their difference. The left side is again a squared distance, of (z, r), so a matrix product with d +
1 terms gives it for a block of pairs. It is sharp where views lie near the space of Q, the first
directions of the views' variance. With 127 of 3,072 directions it leaves about one pair of views in
4,000 for most augmentations of CIFAR-10, and every pair for white noise.

The computed (z, r) differs from the exact one by at most (12 sqrt(P d) + 8) w |x|, in arithmetic of
unit roundoff w. z contributes 4 w sqrt(P d) |x| (d inner products of P terms, with the factor of
minimum.py for the tail). r contributes as much again for z, and 4 w d |x| for the product Q z. The
rest (centring, the norm itself) is of order w sqrt(P) |x|. r is the norm of x - Q z, not sqrt(|x|^2
- |z|^2), which would cancel.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from marginlab.rng import Key

# d: one number more, r, makes 128. On CIFAR-10 63 leave 2 to 5 pairs of views for a pair of images,
# 127 hardly more than 1
_DIRECTIONS = 127
# views that choose the directions; all views instead lower the variance that is left by a tenth
_SAMPLE = 1024
# share of the sample's variance below which a few directions do not do; >= 0.94 on CIFAR-10,
# 0.18 for white noise
_SHARE = 0.5
_LEAST = 8  # the filter is tried if a view has this many times d + 1 numbers ...
# ... and the whole product takes this many times the operations of preparing it, which are slower
# (100 images: from 30 views on)
_GAIN = 3.5


class Filter(NamedTuple):
    """A basis Q (P, d) of few directions, and an error bound.

    `error` bounds |error of (z, r)| / |x|, together with h, which stretches as much.
    """

    basis: Tensor
    error: float

    def short(self, flat: Tensor) -> Tensor:
        """Return (z, r) of centred views (n, P), as rows of d + 1 numbers."""
        z = flat @ self.basis
        rest = torch.linalg.vector_norm(
            torch.addmm(flat, z, self.basis.T, alpha=-1), dim=1, keepdim=True
        )
        return torch.cat([z, rest], 1)


class Rows(NamedTuple):
    """Rows of a block of images (I*V, K); their distances bound those between the views.

    To rounding, squared distances between rows are at most those between the views.

    `squares` (I, V) are their squared norms, infinite where a view need not be looked at; `radius`
    (I,) is the largest norm of a view, and a distance between rows exceeds that between the views
    by at most the `slack` (I,) of both images.
    """

    flat: Tensor
    squares: Tensor
    radius: Tensor
    slack: Tensor

    def of(self, images: slice) -> "Rows":
        """Return the rows of some of these images."""
        V = self.squares.shape[1]
        return Rows(
            self.flat[images.start * V : images.stop * V],
            self.squares[images],
            self.radius[images],
            self.slack[images],
        )


class Views:
    """Views of a group of images, and the rows of its blocks, made on first use.

    The rows are the centred views, or short ones.
    """

    def __init__(self, x: Tensor, center: Tensor, spread: float, filter: Filter | None):
        self.x, self.center, self.spread, self.filter = x, center, spread, filter
        self.made: dict[tuple[int, bool], Rows] = {}

    def rows(self, images: slice, short: bool) -> Rows:
        if (images.start, short) not in self.made:
            self.made[images.start, short] = self._short(images) if short else self._full(images)
        return self.made[images.start, short]

    def _full(self, images: slice) -> Rows:
        x = self.x[images]
        flat = (x - self.center).flatten(0, 1)
        # a third of the time of vecdot, which writes the squares
        squares = torch.linalg.vector_norm(flat, dim=1).square_().view(x.shape[:2])
        radius = squares.amax(1).sqrt()
        if not bool(radius.isfinite().all()):
            raise ValueError(
                "Views hold a value that is not finite (NaN or infinity), or too large to square. "
                "Look for what made it."
            )
        return Rows(flat, squares, radius, torch.zeros_like(radius))

    def _short(self, images: slice) -> Rows:
        assert self.filter is not None
        flat, squares, radius, _ = self._full(images)
        flat = self.filter.short(flat)
        squares = flat.square().sum(1).view(squares.shape)
        slack = self.filter.error * radius
        near = 4 * (slack.square() + self.spread * radius.square())  # of a view and its copy
        twice = copies(self.x[images], flat.view(*squares.shape, -1), squares, near)
        return Rows(flat, squares.masked_fill(twice, torch.inf), radius, slack)


def prepare(x: Tensor, y: Tensor | None, center: Tensor, roundoff: float) -> Filter | None:
    """Build the filter for views x (N, V, P) with one another, or with y (M, V, P).

    Return None where the filter would not pay: few views, or small ones.

    Q spans C R, with C the covariance and R a basis of the first d views of a sample. This is one
    step of a power iteration, which finds nearly the variance of the d best directions (Halko,
    Martinsson and Tropp, SIAM Review 53, 2011, section 4.5).
    """
    P, d = x.shape[2], _DIRECTIONS
    rows, columns = (g.shape[0] * g.shape[1] for g in (x, x if y is None else y))
    pairs = rows * columns / (2 if y is None else 1)
    if _LEAST * (d + 1) > P or pairs < _GAIN * 2 * d * (
        rows + (0 if y is None else columns) + 2 * _SAMPLE
    ):
        return None
    groups = (x,) if y is None else (x, y)
    sample = (
        torch.cat([_drawn(g, _SAMPLE // len(groups), at) for at, g in enumerate(groups)]) - center
    )
    start = torch.linalg.qr(sample[torch.arange(d, device=x.device) * len(sample) // d].T).Q
    inner = sample @ start
    if not float(inner.square().sum()) >= _SHARE * float(sample.square().sum()):
        return None
    basis = torch.linalg.qr(sample.T @ inner).Q
    wide = basis.double()
    stretch = float(
        torch.linalg.matrix_norm(wide.T @ wide - torch.eye(d, dtype=torch.float64, device=x.device))
    )
    error = roundoff * (12 * (P * d) ** 0.5 + 8) + stretch
    # 1: products of few bits. NaN: views that are refused where their rows are made
    return Filter(basis, error) if error < 1 else None


def _drawn(views: Tensor, n: int, group: int) -> Tensor:
    """Draw n views of a group (N, V, P), the same ones at every call."""
    N, V, _ = views.shape
    place = Key(0).named("filter", group).at(torch.arange(n)).integers(N * V).to(views.device)
    return views[place // V, place % V]


def copies(x: Tensor, short: Tensor, squares: Tensor, limit: Tensor) -> Tensor:
    """Mark the views (I, V) that equal an earlier view of their image in x (I, V, P).

    Nothing is nearer to such a view, and the earlier one is named first. `short` is (I, V, d + 1)
    and `squares` (I, V) are its squared norms. `limit` (I,) is the largest value that a squared
    distance of zero may be computed as. Only views that are that near to an earlier one are
    compared. Operations that a coin decides on, such as grey scale, make copies by the dozen.
    """
    near = (
        torch.baddbmm(squares[:, None], short, short.mT, alpha=-2).add_(squares[..., None])
        <= limit[:, None, None]
    )
    first, earlier = near.tril_(-1).to(torch.uint8).max(2)
    i, u = first.nonzero(as_tuple=True)
    same = (x[i, u] == x[i, earlier[i, u]]).all(1)
    found = torch.zeros_like(squares, dtype=torch.bool)
    found[i[same], u[same]] = True
    return found
