"""What d_A matrices say of sigma: bounds from both sides, curves of 1 - sigma over delta, and the pairs of images that lie closest.

For a graph d_A <= delta of a class, greedy clique / n <= sigma_k <= colours / n. A clique for a smaller delta or fewer views is one for a larger
delta or more views, so each bound takes the best of those that imply it, and curves move one way in delta and in the number of views.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels import BUDGET
from marginlab.measures.graphs import colouring, greedy_clique

Reduce = Literal["min", "mean"]
Deltas = Float[Tensor, " T"] | Float[np.ndarray, " T"] | Sequence[float]


class Curve(NamedTuple):
    """1 - sigma lies between `lower` and `upper` at each delta, for the sampled graph; `views` of each image were used."""

    deltas: Float[Tensor, " T"]
    lower: Float[Tensor, " T"]
    upper: Float[Tensor, " T"]
    views: int


class Pair(NamedTuple):
    """Two images i < j of a class (indices in order of arrival), the view of each, u and v, that realises their d_A, and d_A itself."""

    label: int
    i: int
    j: int
    u: int
    v: int
    distance: float


class ConcentrationResult(NamedTuple):
    """d_A within each class, and what follows from it. C classes, L levels (numbers of views used), n_k images of class k.

    `d_A` are C matrices (L, n_k, n_k), `views` the realising views (L, n_k, n_k, 2), `images` (n_k,) the indices of the images in order
    of arrival; `n` (C,) images used and `seen` (C,) images given. `meaning` says which estimates are one-sided.
    """

    classes: Int[Tensor, " C"]
    d_A: tuple[Float[Tensor, "L n n"], ...]  # noqa: N815  # its name
    views: tuple[Int[Tensor, "L n n 2"], ...]
    images: tuple[Int[Tensor, " n"], ...]
    n: Int[Tensor, " C"]
    seen: Int[Tensor, " C"]
    levels: tuple[int, ...]
    V: int
    deltas: Float[Tensor, " T"] | None
    subsampled: bool
    meaning: str

    def sigma(self, delta: float, level: int | None = None) -> tuple[float, float]:
        """Bounds of the concentration at delta, lower and upper: the least over classes, with `level` views of each image (default: the most)."""
        lower, upper = self.sigma_per_class(delta, level)
        return float(lower.min()), float(upper.min())

    def sigma_per_class(self, delta: float, level: int | None = None) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """Bounds of each class's concentration at delta, lower and upper, (C,) each."""
        lower, upper = self._bounds(torch.tensor([delta], dtype=torch.float64))
        at = self._level(level)
        return lower[at, :, 0], upper[at, :, 0]

    def curve(self, deltas: Deltas | None = None, level: int | None = None, reduce: Reduce = "min") -> Curve:
        """The band of 1 - sigma over delta, with `level` views; `reduce="mean"` weighs classes by the images given instead of taking the worst.

        A curve's bound at a delta also uses its other deltas, so it may be closer than `sigma` there.
        """
        return self.curves(deltas, reduce)[self._level(level)]

    def curves(self, deltas: Deltas | None = None, reduce: Reduce = "min") -> tuple[Curve, ...]:
        """`curve` for every level, at the price of one."""
        if reduce not in ("min", "mean"):
            raise ValueError(f"Classes are reduced by 'min' (the theory's sigma) or 'mean' (weighted by p_k), not {reduce!r}.")
        given = self._default_deltas() if deltas is None else torch.as_tensor(deltas, dtype=torch.float64).reshape(-1)
        lower, upper = self._bounds(given)
        if reduce == "min":
            lower, upper = lower.amin(1), upper.amin(1)
        else:
            weight = self.seen.double() / self.seen.sum()
            lower, upper = (bound.transpose(1, 2) @ weight for bound in (lower, upper))
        return tuple(Curve(given, 1 - up, 1 - low, views) for low, up, views in zip(lower, upper, self.levels, strict=True))

    def distances(self, level: int | None = None) -> tuple[Float[Tensor, "n n"], ...]:
        """The d_A matrix of each class, with `level` views of each image (default: the most)."""
        return tuple(matrix[self._level(level)] for matrix in self.d_A)

    def closest(self, k: int, label: int | None = None, level: int | None = None) -> list[Pair]:
        """The k pairs of different images with the smallest d_A (fewer where there are fewer), of all classes or of one, closest first."""
        at, found = self._level(level), []
        if label is not None and label not in self.classes.tolist():
            raise ValueError(f"No class has the label {label}: there are {self.classes.tolist()}.")
        for name, d_A, views, images in zip(self.classes.tolist(), self.d_A, self.views, self.images, strict=True):
            if label is None or name == label:
                i, j = torch.triu_indices(len(images), len(images), 1, device=images.device)
                nearest, order = d_A[at, i, j].sort(stable=True)
                i, j = i[order[:k]], j[order[:k]]
                columns = images[i], images[j], *views[at, i, j].unbind(1), nearest[:k]
                found += [Pair(name, *entries) for entries in zip(*(column.tolist() for column in columns), strict=True)]
        return sorted(found, key=lambda pair: pair.distance)[:k]

    def _level(self, level: int | None) -> int:
        if level is not None and level not in self.levels:
            raise ValueError(f"There is no level of {level} views: there are {self.levels}. Name it when the measure is made.")
        return len(self.levels) - 1 if level is None else self.levels.index(level)

    def _default_deltas(self) -> Tensor:
        if self.deltas is not None:
            return self.deltas
        return torch.linspace(0, 1, 61, dtype=torch.float64) * max(float(d.max()) for d in self.d_A)

    def _bounds(self, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """(L, C, T) bounds of sigma_k from below and above."""
        if not len(deltas) or not bool((deltas >= 0).all()):
            raise ValueError(f"delta is a distance, at least 0, not {deltas.tolist()}.")
        device = self.d_A[0].device
        ascending, order = deltas.to(device).sort()
        low, high = [], []
        for distance in self.d_A:
            clique, colours = bounds(distance, ascending)
            # what holds for fewer views and smaller deltas below, for more views and larger deltas above
            low.append(clique.cummax(0).values.cummax(1).values)
            high.append(colours.flip(0, 1).cummin(0).values.cummin(1).values.flip(0, 1))
        back = order.argsort()
        lower, upper = torch.stack(low, 1)[..., back], torch.stack(high, 1)[..., back]
        return lower, upper


def bounds(
    distance: Float[Tensor, "L n n"], deltas: Float[Tensor, " T"], *, budget: int = BUDGET
) -> tuple[Float[Tensor, "L T"], Float[Tensor, "L T"]]:
    """Greedy clique and greedy colouring, as fractions of n, of the graphs d_A <= delta, (L, T) each.

    Equal candidates are told apart by the distances of a vertex to all others, so that the answer does not depend on the order of images.

    >>> bounds(torch.tensor([[[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]]), torch.tensor([1.5]))
    (tensor([[0.6667]], dtype=torch.float64), tensor([[0.6667]], dtype=torch.float64))
    """
    L, n, _ = distance.shape
    step = max(budget // (4 * n * n), 1)
    cliques, colours = [], []
    for matrix in distance:
        order = matrix.sort(1).values.sum(1).argsort(descending=True, stable=True)  # sorted before the sum: it rounds alike in every order
        matrix = matrix[order][:, order]
        for part in deltas.split(step):
            graph = matrix <= part[:, None, None]
            cliques.append(greedy_clique(graph).sum(1))
            colours.append(colouring(graph).amax(1) + 1)
    lower, upper = (torch.cat(parts).view(L, len(deltas)).double() / n for parts in (cliques, colours))
    return lower, upper
