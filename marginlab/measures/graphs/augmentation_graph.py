"""Augmentation graph of a finite population whose images share views.

    w_xx'    = E over images of A(x | image) A(x' | image)        w_x = sum over x' of w_xx'
    A_bar    = D^{-1/2} W D^{-1/2}, with eigenvalues 1 - lambda_i
    phi(S)   = w(S, S^c) / w(S)
    rho_m    = min over partitions of the views into m parts of max_i phi(S_i)
    y_hat(x) = the likeliest label of view x
    alpha    = P[ y_hat(x) != y(image) ]

These are the graph, its spectrum, its conductances, and how far views tell their label. HaoChen,
Wei, Gaidon and Ma, NeurIPS 2021, section 3. 0 = lambda_1 <= lambda_2 <= ... <= 1, because A_bar is
positive semidefinite.

Only a population written down has this graph. No two images ever share a view drawn from a
continuous augmentation. The graph of such draws falls into N components, one for each image, each
of conductance 0. Nothing of it estimates the graph of the augmentation.

rho_m is found by a search over all partitions if there are few views. For more views it lies
between two sides. From below, lambda_m / 2 <= rho_m, because the quadratic form of I - A_bar on
functions constant on m disjoint sets is at most 2 max phi (Lee, Oveis Gharan and Trevisan, Journal
of the ACM 61, 2014). From above, any partition found is at least rho_m. For m = 2 the sweep over
the second eigenvector finds one within Cheeger's side, rho_2 <= sqrt(2 lambda_2).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from marginlab.measures.graphs.partitions import best_partition, bisected, set_conductance

EXHAUSTIVE = 12  # most views for an exhaustive search: 3^12 / 2 pairs of a set and its part


class SmallestConductance(NamedTuple):
    """rho_m between `lower` and `upper`, and the partition (X,) of the views that attains `upper`.

    The two are equal where the search was exhaustive.
    """

    lower: float
    upper: float
    partition: Int[Tensor, " X"]
    meaning: str


@dataclass(frozen=True, eq=False)
class AugmentationGraph:
    """The graph on X common views of N images.

    It holds (X, X) in float64. All quantities are exact for this population; none has a sampling
    error.

    Args:
        draws: A(x | image) (N, X), each row a distribution.
        weights: Probabilities of the images; equal if None.

    Raises:
        ValueError: Rows are not distributions, a view is never drawn, or the weights are not
            probabilities.

    Example:
        For the set of the first two views, w(S, S^c) = 1/8 and w(S) = 3/4.

        >>> graph = AugmentationGraph(torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]))
        >>> graph.mass.tolist(), round(graph.spectral_gap, 6), graph.components
        ([0.25, 0.5, 0.25], 0.5, 1)
        >>> graph.conductance(torch.tensor([True, True, False]))
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
                f"{len(a)} images have as many probabilities, not negative, that sum to 1, not "
                f"{w.tolist()}."
            )
        if not bool((a >= 0).all()) or not float((a.sum(1) - 1).abs().max()) <= 1e-6:
            raise ValueError(
                f"Each row of draws {tuple(a.shape)} is a distribution over the views, not one "
                f"that sums to {a.sum(1).tolist()}."
            )
        if not bool((self.mass > 0).all()):
            raise ValueError(
                f"Views {(self.mass <= 0).nonzero()[:, 0].tolist()} are drawn of no image: leave "
                "these columns out."
            )

    @classmethod
    def of_views(cls, views: Shaped[Tensor, "N V *P"]) -> "AugmentationGraph":
        """Return the graph of N images with V equally likely views each.

        Views are told apart by their values (names as integers, or pixels); equal ones are shared.
        The common views are numbered in the order of `torch.unique`.

        Args:
            views: The views of each image.

        Raises:
            ValueError: No two images share a view, as is the case with draws of a continuous
                augmentation.

        Example:
            >>> AugmentationGraph.of_views(torch.tensor([[7, 7, 3, 9], [9, 9, 9, 3]])).draws
            tensor([[0.2500, 0.5000, 0.2500],
                    [0.2500, 0.0000, 0.7500]], dtype=torch.float64)
        """
        if views.ndim < 2 or 0 in views.shape:
            raise ValueError(
                "views have the shape (N, V, ...), with at least one of each, not "
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
                f"No two of the {N} images share a view, so their graph falls into {N} components "
                "and says nothing: draws of a continuous augmentation never coincide. Give a "
                "finite population whose images have views in common."
            )
        return cls(draws)

    @cached_property
    def conditional(self) -> Float[Tensor, "N X"]:
        """P[view | image] in float64, each row divided by its sum.

        Rows written in float32 sum to 1 only to float32 digits. The difference would pass for an
        eigenvalue.
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
        eigenvalues[: self.components] = 0  # known from the edges; rounding hides how many
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
        """lambda_2, the gap between the two largest eigenvalues of A_bar.

        It is 0 if and only if the graph is not connected. It is 1 for a single view.
        """
        return float(self.eigenvalues[1]) if len(self.mass) > 1 else 1.0

    @cached_property
    def components(self) -> int:
        """Number of connected components, counted from the edges.

        lambda_1 to lambda_components are 0.
        """
        return int(
            connected_components(
                (self.adjacency > 0).cpu().numpy(), directed=False, return_labels=False
            )
        )

    def conductance(self, members: Bool[Tensor, " X"]) -> float:
        """Return the Dirichlet conductance phi(S) = w(S, S^c) / w(S) of a set of views.

        Args:
            members: Marks the views of the set.

        Raises:
            ValueError: The set is empty, or the mask has another shape.
        """
        if members.shape != self.mass.shape or not bool(members.any()):
            raise ValueError(
                f"A conductance is of a set of some of the {len(self.mass)} views, not "
                f"{members.tolist()}."
            )
        return set_conductance(self.adjacency, self.mass, members)

    def conductances(self, parts: Int[Tensor, " X"]) -> Float[Tensor, " m"]:
        """Return the conductance of each part of a partition, in increasing order of their names.

        For `likeliest(labels)` they are the conductances of the label sets.

        Args:
            parts: The part of each view, a whole number.
        """
        return self.mass.new_tensor([self.conductance(parts == part) for part in parts.unique()])

    def by_label(self, labels: Int[Tensor, " N"]) -> Float[Tensor, "C X"]:
        """Return P[label, view], for the labels that occur, in increasing order.

        Args:
            labels: The label of each image.

        Raises:
            ValueError: The labels have another shape than (N,).
        """
        if labels.shape != (len(self.draws),):
            raise ValueError(
                f"{len(self.draws)} images have as many labels, not {tuple(labels.shape)}."
            )
        known, index = labels.unique(return_inverse=True)
        return self.joint.new_zeros(len(known), len(self.mass)).index_add(0, index, self.joint)

    def likeliest(self, labels: Int[Tensor, " N"]) -> Int[Tensor, " X"]:
        """Return y_hat(x), the likeliest label of each view; of equal ones the smallest.

        Args:
            labels: The label of each image.
        """
        known: Tensor = labels.unique()
        return known[self.by_label(labels).argmax(0)]

    def alpha(self, labels: Int[Tensor, " N"]) -> float:
        """Return P[y_hat(x) != y(image)].

        No classifier of views is right on more than 1 - alpha of them.

        Args:
            labels: The label of each image.
        """
        # summed, not 1 minus the rest, so that small values keep their digits
        by_label = self.by_label(labels)
        return float(by_label.scatter(0, by_label.argmax(0, keepdim=True), 0.0).sum())

    def disagreement(self, parts: Int[Tensor, " X"]) -> float:
        """Return the sum of w_xx' over views in different parts.

        It is the mean of phi(S) weighted by w(S). For `likeliest(labels)` it is at most 2 alpha.

        Args:
            parts: The part of each view.
        """
        return float(self.adjacency[parts[:, None] != parts].sum())

    def smallest_conductance(self, m: int) -> SmallestConductance:
        """Return rho_m: exact up to EXHAUSTIVE = 12 views, otherwise between its two sides.

        Args:
            m: Number of parts.

        Raises:
            ValueError: m is not between 1 and the number X of views.
        """
        X = len(self.mass)
        if not 1 <= m <= X:
            raise ValueError(f"{X} views are partitioned into 1 to {X} parts, not {m}.")
        if X <= EXHAUSTIVE:
            value, found = best_partition(self.adjacency.cpu().numpy(), m)
            return SmallestConductance(
                value,
                value,
                torch.from_numpy(found).to(self.mass.device),
                f"rho_{m} by search over all partitions.",
            )
        parts = bisected(self.adjacency, self.mass, self.normalized, m)
        return SmallestConductance(
            float(self.eigenvalues[m - 1]) / 2,
            float(self.conductances(parts).max()),
            parts,
            f"rho_{m} lies between lambda_{m} / 2 and the conductance of a partition found by "
            f"sweeps over eigenvectors: {X} views are too many for a search (at most {EXHAUSTIVE})"
            + ("; that is at most sqrt(2 lambda_2)." if m == 2 else "."),
        )
