"""Spectra of features from their second moments, and the effective rank of a spectrum.

    M    = E z z^T,   z a view's feature (each image with equal weight)
    rank = exp( - sum_j p_j log p_j ),   p_j = s_j / sum_k s_k

Effective rank: Roy and Vetterli, EUSIPCO 2007. M is a sum, so it streams. An eigenvalue of such a
sum in float64 is known to about max(D, 100) 2^-52 of the largest one. A value below that may be
rounding, and counts as zero. Errors come from a delete-a-group jackknife over groups of images. It
is too large by up to sqrt 2 where a rank is near its maximum, D, because the rank has no slope
there.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from marginlab.measures.measure import Measure, check_features, constant, prepared, same_views
from marginlab.statistics.jackknife import jackknife_variance

EPS = 2.0**-52  # float64's
_TERMS = 100  # terms whose rounding a moment carries, even if D is small


def effective_rank(values: Float[Tensor, " J"], epsilon: float = 0.0) -> Float[Tensor, ""]:
    """Return the exponential of the entropy of a nonnegative spectrum.

    It lies between 1 (one value, or none) and the number of values that are not zero.

    Args:
        values: The spectrum.
        epsilon: Added to every p_j, as RankMe's authors do with 1e-7. Each missing dimension then
            has 1.6e-6 of entropy.

    Example:
        >>> float(effective_rank(torch.tensor([2.0, 2.0, 0.0]).double()))
        2.0
        >>> float(effective_rank(torch.zeros(3).double()))
        1.0
    """
    total = values.sum()
    p = (values / total if float(total) > 0 else torch.zeros_like(values)) + epsilon
    entropy: Tensor = torch.special.entr(p).sum()
    return entropy.exp()


class SecondMoments(Measure):
    """Second moments of features in groups of images, for measures of a spectrum.

    They stream, merge and reduce. It holds (groups, D, D) in float64.
    """

    moment: Tensor
    sums: Tensor
    n: Tensor
    views: Tensor

    def __init__(
        self, dim: int, normalize: bool, groups: int, fewest_views: int = 1, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if dim < 1 or groups < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 1 dimension and 2 groups of images, not "
                f"{dim} and {groups}."
            )
        self.dim, self.normalize, self.groups, self.fewest_views = (
            dim,
            normalize,
            groups,
            fewest_views,
        )
        self.add_state(
            "moment",
            default=torch.zeros(groups, dim, dim, dtype=torch.float64),
            dist_reduce_fx="sum",
        )
        self.add_state(
            "sums", default=torch.zeros(groups, dim, dtype=torch.float64), dist_reduce_fx="sum"
        )
        self.add_state("n", default=torch.zeros(groups, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("views", default=torch.zeros(1, dtype=torch.int64), dist_reduce_fx=constant)

    def update(
        self, features: Float[Tensor, "N V D"], labels: Shaped[Tensor, " N"] | None = None
    ) -> None:
        """Take V views' features of N more images.

        Args:
            features: The features.
            labels: Ignored; accepted so that all measures may be called alike.
        """
        self.add(*self.taken(features))

    def taken(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return checked features (N, V, D) in float64, and the group of each image.

        The groups are filled in turn.

        Raises:
            ValueError: The features do not fit.
        """
        check_features(features, self.fewest_views, dim=self.dim)
        self.views = same_views(features, self.views)
        group = (torch.arange(len(features), device=features.device) + self.n.sum()) % self.groups
        return prepared(features, self.normalize), group

    def add(self, z: Tensor, group: Tensor) -> None:
        """Take the second moments and means of more images."""
        self.moment = self.moment + moments(z, group, self.groups)
        self.sums = self.sums.index_add(0, group, z.mean(1))
        self.n = self.n.index_add(0, group, torch.ones_like(group))

    def checked(self) -> int:
        """Return the number of images, at least 1.

        Raises:
            ValueError: There is no image.
        """
        n = int(self.n.sum())
        if n == 0:
            raise ValueError(
                f"{type(self).__name__} has seen no image yet: call update(features) with features "
                f"of shape (N, V, {self.dim}) first."
            )
        return n

    def error(self, estimate: Tensor, without: Callable[[int], Tensor]) -> Tensor:
        """Return the jackknife error of an estimate; NaN if only one group has any images.

        Args:
            estimate: The estimate from all images.
            without: Gives the estimate without a group of images.
        """
        sizes = self.n.double()
        left = [
            without(g)[None] if int(self.n[g]) not in (0, int(self.n.sum())) else estimate[None]
            for g in range(self.groups)
        ]
        return (
            jackknife_variance(left, estimate[None], sizes.sum()[None], sizes[None])[0]
            .clamp(min=0)
            .sqrt()
        )


def moments(z: Float[Tensor, "N V D"], group: Tensor, groups: int) -> Float[Tensor, "G D D"]:
    """Return, for each group, the sum over its images of the mean over views of z z^T."""
    parts = (z[group == g].flatten(0, 1) for g in range(groups))
    return torch.stack([part.mT @ part for part in parts]) / max(z.shape[1], 1)


def resolved(eigenvalues: Float[Tensor, " D"], scale: Float[Tensor, ""]) -> Float[Tensor, " D"]:
    """Return the eigenvalues of a moment of this scale, largest first, with rounding set to 0."""
    falling = eigenvalues.flip(0)
    return torch.where(falling > max(len(falling), _TERMS) * EPS * scale, falling, 0.0)
