"""LiDAR: effective rank of the spread between images, in units of the spread among their views.

    LiDAR = exp( - sum_k p_k log p_k )
    p     = eigenvalues of  S_w^{-1/2} S_b S_w^{-1/2}  divided by their sum
    S_b   = Cov of nu(x) over images
    S_w   = E_x Cov of f over the views of x + delta I
    nu(x) = mean of f over the views of x

Thilak et al., "LiDAR: Sensing linear probing performance in joint embedding SSL architectures",
ICLR 2024. It is linear discriminant analysis whose classes are images, with delta = 1e-4.

S_w is taken without bias (its sum over V views divided by V - 1). S_b is the covariance of means
over V views, as the authors take it, and is too large by S_w / V. So every eigenvalue is too large
by about 1/V, p is more even, and LiDAR leans upwards. It leans less with more views (the paper has
50 of 1,000 images). It lies between 1 and min(N - 1, D). For features that do not differ at all it
is 1.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from marginlab.measures.measure import result_of
from marginlab.measures.spectrum.spectrum import SecondMoments, effective_rank, moments, resolved


class LiDARResult(NamedTuple):
    """LiDAR of n images with V views each, its jackknife error over images, and the eigenvalues.

    The error is NaN for one image. The eigenvalues are in order, largest first.
    """

    LiDAR: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    eigenvalues: Float[Tensor, " D"]
    n: int
    V: int
    meaning: str


def lidar(
    features: Float[Tensor, "N V D"],
    *,
    delta: float = 1e-4,
    normalize: bool = False,
    groups: int = 10,
) -> LiDARResult:
    """Compute `LiDAR` of the given features.

    Args:
        features: Features of V >= 2 views of N images.
        delta: Added to the eigenvalues of S_w.
        normalize: Scale features to length 1 first.
        groups: Number of groups of images for the jackknife.

    Example:
        Images differ along one axis, views along the other.

        >>> f = torch.tensor([[[1.0, 0.1], [1.0, -0.1]], [[-1.0, 0.1], [-1.0, -0.1]]])
        >>> round(float(lidar(f).LiDAR), 6)
        1.0
    """
    measure = LiDAR(
        features.shape[-1], delta=delta, normalize=normalize, groups=groups, sync_on_compute=False
    )
    result: LiDARResult = result_of(measure, features)
    return result


class LiDAR(SecondMoments):
    """LiDAR from features (N, V, D) of V >= 2 views; streams, merges and reduces over ranks.

    It holds 2 (groups, D, D) sums in float64: 42 MB for D = 512.

    Args:
        dim: Dimension D.
        normalize: Scale features to length 1 first (the paper does not).
        delta: Added to the eigenvalues of S_w, in squared units of the features. If the features
            are scaled by c and delta by c^2, nothing changes.
        groups: Number of groups of images for the jackknife (see `EffectiveRank`).
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: There are fewer than 2 views, features have another dimension or another number
            of views than before, values are not finite, delta is not positive, or there is no image
            at all.

    Example:
        >>> measure = LiDAR(dim=2)
        >>> measure.update(torch.tensor([[[1.0, 0.1], [1.0, -0.1]], [[-1.0, 0.1], [-1.0, -0.1]]]))
        >>> round(float(measure.compute().LiDAR), 6)
        1.0
    """

    within: Tensor

    def __init__(
        self,
        dim: int,
        normalize: bool = False,
        *,
        delta: float = 1e-4,
        groups: int = 10,
        **kwargs: Any,
    ):
        super().__init__(dim, normalize, groups, fewest_views=2, **kwargs)
        if not 0 < delta < float("inf"):
            raise ValueError(
                "delta keeps S_w invertible: it is positive and finite (the paper has 1e-4), not "
                f"{delta}."
            )
        self.delta = delta
        self.add_state(
            "within",
            default=torch.zeros(groups, dim, dim, dtype=torch.float64),
            dist_reduce_fx="sum",
        )

    def update(
        self, features: Float[Tensor, "N V D"], labels: Shaped[Tensor, " N"] | None = None
    ) -> None:
        """Take V views' features of N more images.

        Args:
            features: The features.
            labels: Ignored, because here the images are the classes.
        """
        z, group = self.taken(features)
        mean = z.mean(1, keepdim=True)
        V = features.shape[1]
        self.within = self.within + moments(z - mean, group, self.groups) * (V / (V - 1))
        self.add(mean, group)

    def compute(self) -> LiDARResult:
        """Return the result, over all ranks under a process group."""
        n, between, within, sums = (
            self.checked(),
            self.moment.sum(0),
            self.within.sum(0),
            self.sums.sum(0),
        )
        eigenvalues = self._spectrum(between, within, sums, n)
        value = effective_rank(eigenvalues)

        def without(g: int) -> Tensor:
            return effective_rank(
                self._spectrum(
                    between - self.moment[g],
                    within - self.within[g],
                    sums - self.sums[g],
                    n - int(self.n[g]),
                )
            )

        V = int(self.views)
        return LiDARResult(
            LiDAR=value,
            standard_error=self.error(value, without),
            eigenvalues=eigenvalues,
            n=n,
            V=V,
            meaning=(
                f"Effective rank of S_b in units of S_w + {self.delta:g} I, {n} images with {V} "
                f"views each in {self.dim} dimensions, at most {max(min(n - 1, self.dim), 1)}. "
                f"Means over {V} views add about 1/{V} to every eigenvalue, so it leans upwards; "
                "with few images for the dimensions, downwards: no interval of the population's. "
                f"Standard error: jackknife over {self.groups} groups of images, up to sqrt 2 too "
                "large near the maximum."
            ),
        )

    def _spectrum(self, between: Tensor, within: Tensor, sums: Tensor, n: int) -> Tensor:
        """Return the eigenvalues of S_w^{-1/2} S_b S_w^{-1/2}, largest first.

        They are 0 where S_b, a difference of moments, does not resolve them.
        """
        mean = sums / n
        spread, axes = torch.linalg.eigh(within / n)
        spread = spread.clamp(min=0) + self.delta
        whitening = axes / spread.sqrt()  # up to a rotation, which changes no eigenvalue
        eigenvalues = torch.linalg.eigvalsh(
            whitening.T @ (between / n - mean[:, None] * mean) @ whitening
        )
        # S_b errs by EPS of its moment, and whitening enlarges that by 1 / spread at most
        rounding = between.trace() / n / spread[0]
        return resolved(eigenvalues, torch.maximum(eigenvalues[-1], rounding))
