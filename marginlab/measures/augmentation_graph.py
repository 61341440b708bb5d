"""The augmentation graph of a finite population whose images share views: its spectrum,
conductances, and how far views tell their label.

    w_xx' = E over images of A(x | image) A(x' | image)        w_x = sum over x' of w_xx'        A_bar = D^{-1/2} W D^{-1/2}, eigenvalues 1 - lambda_i
    phi(S) = w(S, S^c) / w(S)                                  rho_m = min over partitions of the views into m parts of max_i phi(S_i)
    y_hat(x) = the likeliest label of view x                   alpha = P[ y_hat(x) != y(image) ]

HaoChen, Wei, Gaidon and Ma, NeurIPS 2021, section 3. 0 = lambda_1 <= lambda_2 <= ... <= 1, as A_bar
is positive semidefinite.

Only a population written down has this graph. Of views drawn from a continuous augmentation no two
images ever share one: the graph of the draws falls into N components, one for each image, each of
conductance 0, and nothing of it estimates the graph of the augmentation.

rho_m is a search over all partitions, made for few views. For more it is held between two sides:
lambda_m / 2 <= rho_m, for the quadratic form of I - A_bar on functions constant on m disjoint sets
is at most 2 max phi (Lee, Oveis Gharan and Trevisan, Journal of the ACM 61, 2014); and any
partition found is at least rho_m. For m = 2 the sweep over the second eigenvector finds one within
Cheeger's side, rho_2 <= sqrt(2 lambda_2).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from scipy.sparse.csgraph import connected_components
from torch import Tensor

EXHAUSTIVE = 12  # views up to which rho_m is searched for: 3^12 / 2 pairs of a set and its part


class SmallestConductance(NamedTuple):
    """rho_m between `lower` and `upper` (equal where the search was exhaustive), and the partition
    (X,) of the views that attains `upper`.
    """

    lower: float
    upper: float
    partition: Int[Tensor, " X"]
    meaning: str


@dataclass(frozen=True, eq=False)
class AugmentationGraph:
    """The graph on X common views of N images: `draws` A(x | image) (N, X), each row a
    distribution, and probabilities of the images (equal if None).

    Holds (X, X) in float64. All quantities are exact for this population; none has a sampling
    error.

    Raises:
        ValueError: rows that are no distributions, a view that is never drawn, probabilities that
            are none.

    >>> graph = AugmentationGraph(torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]))
    >>> graph.mass.tolist(), round(graph.spectral_gap, 6), graph.components
    ([0.25, 0.5, 0.25], 0.5, 1)
    >>> graph.conductance(torch.tensor([True, True, False]))                                    # w(S, S^c) = 1/8, w(S) = 3/4
    0.16666666666666666
    """

    draws: Float[Tensor, "N X"]
    weights: Float[Tensor, " N"] | None = None

    def __post_init__(self) -> None:
        a = self.draws.detach().double()
        if a.ndim != 2 or 0 in a.shape:
            raise ValueError(f"draws hold A(x | image) in the shape (N, X), not {tuple(a.shape)}.")
        w = self.weights
        if w is not None and (
            w.shape != (len(a),) or not bool((w >= 0).all()) or not abs(float(w.sum()) - 1) <= 1e-6
        ):
            raise ValueError(
                f"{len(a)} images have as many probabilities, not negative, that sum to 1, "
                f"not {w.tolist()}."
            )
        if not bool((a >= 0).all()) or not float((a.sum(1) - 1).abs().max()) <= 1e-6:
            raise ValueError(
                f"Each row of draws {tuple(a.shape)} is a distribution over the views, not "
                f"one that sums to {a.sum(1).tolist()}."
            )
        if not bool((self.mass > 0).all()):
            raise ValueError(
                f"Views {(self.mass <= 0).nonzero()[:, 0].tolist()} are drawn of no image: "
                f"leave these columns out."
            )

    @classmethod
    def of_views(cls, views: Shaped[Tensor, "N V *P"]) -> "AugmentationGraph":
        """The graph of N images with V equally likely views each, told apart by their values (names
        as integers, pixels): equal ones are shared.

        The common views are numbered in the order of `torch.unique`. Raises ValueError where no two
        images share a view, as it is with draws of a continuous augmentation.

        >>> AugmentationGraph.of_views(torch.tensor([[7, 7, 3, 9], [9, 9, 9, 3]])).draws
        tensor([[0.2500, 0.5000, 0.2500],
                [0.2500, 0.0000, 0.7500]], dtype=torch.float64)
        """
        if views.ndim < 2 or 0 in views.shape:
            raise ValueError(
                f"views have the shape (N, V, ...), with at least one of each, not "
                f"{tuple(views.shape)}."
            )
        N, V = views.shape[:2]
        known, names = views.reshape(N * V, -1).unique(dim=0, return_inverse=True)
        draws = torch.zeros(N, len(known), dtype=torch.float64, device=views.device)
        draws.index_put_(
            (torch.arange(N, device=views.device).repeat_interleave(V), names),
            draws.new_full((N * V,), 1 / V),
            accumulate=True,
        )
        if N > 1 and int((draws > 0).sum(0).max()) == 1:
            raise ValueError(
                f"No two of the {N} images share a view, so their graph falls into {N} "
                f"components and says nothing: draws of a continuous "
                "augmentation never coincide. Give a finite population whose images have "
                "views in common."
            )
        return cls(draws)

    @cached_property
    def conditional(self) -> Float[Tensor, "N X"]:
        """P[view | image] in float64: rows that were written in float32 sum to 1 to its digits
        only, which would pass for an eigenvalue.
        """
        a = self.draws.detach().double()
        return a / a.sum(1, keepdim=True)

    @cached_property
    def joint(self) -> Float[Tensor, "N X"]:
        """P[image, view]."""
        a = self.conditional
        if self.weights is None:
            return a / len(a)
        w = self.weights.detach().double()
        return a * (w / w.sum())[:, None]

    @cached_property
    def mass(self) -> Float[Tensor, " X"]:
        """w_x, the probability of a view."""
        return self.joint.sum(0)

    @cached_property
    def adjacency(self) -> Float[Tensor, "X X"]:
        """w_xx', the probability that x and x' are the two views of one image."""
        return self.joint.T @ self.conditional

    @cached_property
    def normalized(self) -> Float[Tensor, "X X"]:
        """A_bar = D^{-1/2} W D^{-1/2}."""
        return self.adjacency / (self.mass[:, None] * self.mass).sqrt()

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.normalized)
        eigenvalues = (1 - values.flip(0)).clamp(min=0)
        eigenvalues[: self.components] = 0  # as many as that, and rounding does not say how many
        return eigenvalues, vectors.flip(1)

    @property
    def eigenvalues(self) -> Float[Tensor, " X"]:
        """lambda_1 <= lambda_2 <= ... of the Laplacian I - A_bar."""
        return self._spectrum[0]

    @property
    def eigenvectors(self) -> Float[Tensor, "X X"]:
        """Orthonormal columns in the order of `eigenvalues`."""
        return self._spectrum[1]

    @property
    def spectral_gap(self) -> float:
        """lambda_2, the gap between the two largest eigenvalues of A_bar: 0 if and only if the
        graph falls apart; 1 for a single view.
        """
        return float(self.eigenvalues[1]) if len(self.mass) > 1 else 1.0

    @cached_property
    def components(self) -> int:
        """Number of connected components, by the edges; lambda_1 to lambda_components are 0."""
        return int(
            connected_components(
                (self.adjacency > 0).cpu().numpy(), directed=False, return_labels=False
            )
        )

    def conductance(self, members: Bool[Tensor, " X"]) -> float:
        """phi(S) = w(S, S^c) / w(S) of a set of views, the Dirichlet conductance.

        ValueError for an empty set.
        """
        if members.shape != self.mass.shape or not bool(members.any()):
            raise ValueError(
                f"A conductance is of a set of some of the {len(self.mass)} views, not "
                f"{members.tolist()}."
            )
        return float(self.adjacency[members][:, ~members].sum() / self.mass[members].sum())

    def conductances(self, parts: Int[Tensor, " X"]) -> Float[Tensor, " m"]:
        """The conductance of each part of a partition, in the order of their names: those of label
        sets for `likeliest(labels)`.
        """
        return self.mass.new_tensor([self.conductance(parts == part) for part in parts.unique()])

    def by_label(self, labels: Int[Tensor, " N"]) -> Float[Tensor, "C X"]:
        """P[label, view], for the labels that occur, in increasing order."""
        if labels.shape != (len(self.draws),):
            raise ValueError(
                f"{len(self.draws)} images have as many labels, not {tuple(labels.shape)}."
            )
        known, index = labels.unique(return_inverse=True)
        return self.joint.new_zeros(len(known), len(self.mass)).index_add(0, index, self.joint)

    def likeliest(self, labels: Int[Tensor, " N"]) -> Int[Tensor, " X"]:
        """y_hat(x), the likeliest label of each view; of equally likely ones the smallest."""
        known: Tensor = labels.unique()
        return known[self.by_label(labels).argmax(0)]

    def alpha(self, labels: Int[Tensor, " N"]) -> float:
        """P[y_hat(x) != y(image)]: no classifier of views is right on more than 1 - alpha of them."""
        # summed, not 1 minus the rest: small ones keep their digits
        by_label = self.by_label(labels)
        return float(by_label.scatter(0, by_label.argmax(0, keepdim=True), 0.0).sum())

    def disagreement(self, parts: Int[Tensor, " X"]) -> float:
        """The sum of w_xx' over views in different parts, the mean of phi(S) weighted by w(S): for
        `likeliest(labels)` at most 2 alpha.
        """
        return float(self.adjacency[parts[:, None] != parts].sum())

    def smallest_conductance(self, m: int) -> SmallestConductance:
        """rho_m: exact up to EXHAUSTIVE = 12 views, else between its two sides.

        Raises ValueError unless 1 <= m <= X.
        """
        X = len(self.mass)
        if not 1 <= m <= X:
            raise ValueError(f"{X} views are partitioned into 1 to {X} parts, not {m}.")
        if X <= EXHAUSTIVE:
            value, found = _search(self.adjacency.cpu().numpy(), m)
            return SmallestConductance(
                value,
                value,
                torch.from_numpy(found).to(self.mass.device),
                f"rho_{m} by search over all partitions.",
            )
        parts = self._bisected(m)
        return SmallestConductance(
            float(self.eigenvalues[m - 1]) / 2,
            float(self.conductances(parts).max()),
            parts,
            f"rho_{m} lies between lambda_{m} / 2 and the conductance of a partition found "
            f"by sweeps over eigenvectors: {X} views are too many for a "
            f"search (at most {EXHAUSTIVE})"
            + ("; that is at most sqrt(2 lambda_2)." if m == 2 else "."),
        )

    def _bisected(self, m: int) -> Tensor:
        """A partition into m parts: again and again that cut of one part in two is made which
        leaves the largest conductance smallest.
        """
        parts = torch.zeros(len(self.mass), dtype=torch.int64, device=self.mass.device)
        for new in range(1, m):
            best, cut = torch.inf, parts
            for part in range(new):
                inside = (parts == part).nonzero()[:, 0]
                rest = max(
                    [self.conductance(parts == other) for other in range(new) if other != part],
                    default=0.0,
                )
                for moved in self._sweep(inside):
                    tried = parts.index_fill(0, moved, new)
                    worst = max(
                        rest, self.conductance(tried == part), self.conductance(tried == new)
                    )
                    if worst < best:
                        best, cut = worst, tried
            parts = cut
        return parts

    def _sweep(self, inside: Tensor) -> list[Tensor]:
        """The first 1, 2, ... of some views, in the order of the largest eigenvector of their part
        of A_bar beside the constant function.
        """
        if len(inside) < 2:
            return []
        # an eigenvector of the whole: equal eigenvalues would mix with it
        first = torch.nn.functional.normalize(self.mass[inside].sqrt(), dim=0)
        beside = (
            torch.eye(len(inside), dtype=first.dtype, device=first.device) - first[:, None] * first
        )
        vector = (
            torch.linalg.eigh(
                beside @ self.normalized[inside][:, inside] @ beside + beside
            ).eigenvectors[:, -1]
            / first
        )
        order = inside[vector.argsort()]
        return [order[:k] for k in range(1, len(order))]


def _search(w: np.ndarray, m: int) -> tuple[float, np.ndarray]:
    """The least over partitions of {0..X-1} into m parts of the largest phi, and one that attains
    it: dynamic programming over sets.

    best_m(S) = min over parts T of S that hold its lowest element of max(phi(T), best_{m-1}(S
    without T)).
    """
    X = len(w)
    bits = (np.arange(2**X)[:, None] >> np.arange(X)) & 1
    cut, mass = ((bits @ w) * (1 - bits)).sum(1), bits @ w.sum(1)
    phi = np.full(2**X, np.inf)
    phi[1:] = cut[1:] / mass[1:]
    best, chosen = phi, []
    for _ in range(m - 1):
        fewer, best, part = best, np.full(2**X, np.inf), np.zeros(2**X, dtype=int)
        for s in range(1, 2**X):
            rest = s & (s - 1)  # without its lowest element
            free = np.flatnonzero(bits[rest])
            own = (
                (bits[: 2 ** len(free), : len(free)] @ (1 << free)) | (s ^ rest)
                if len(free)
                else np.array([s])
            )
            values = np.maximum(phi[own], fewer[s ^ own])
            at = values.argmin()
            best[s], part[s] = values[at], own[at]
        chosen.append(part)
    parts, left = np.zeros(X, dtype=np.int64), 2**X - 1
    for name, part in enumerate(reversed(chosen)):
        parts[bits[part[left]] == 1] = name
        left ^= int(part[left])
    parts[bits[left] == 1] = m - 1
    return float(best[-1]), parts
