"""RankMe: the effective rank of a matrix of features, as an entropy of its singular values.

    RankMe(Z) = exp( - sum_k p_k log p_k ),        p_k = sigma_k(Z) / sum_j sigma_j(Z) + epsilon

Garrido, Balestriero, Najman and LeCun, ICML 2023, eq. 2. Z (rows, D) has one row for each view,
neither centered nor normalised, and their epsilon is 1e-7.

Here sigma_k are the square roots of the eigenvalues of Z^T Z, a sum of (D, D) matrices in float64.
So singular values below sqrt(max(D, 100)) 1.5e-8 of the largest are taken as 0 (3e-7 for D = 512,
some ulps of float32 features). The default is epsilon = 0. RankMe is between 1 and min(rows, D). It
compares runs of one method on equally many rows; the paper takes 25,600.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.measures.measure import result_of
from marginlab.measures.spectrum.spectrum import SecondMoments, effective_rank, resolved


class EffectiveRankResult(NamedTuple):
    """RankMe of n images with V views each, and its jackknife error over images (NaN for one).

    `singular_values` (D,) are those of Z / sqrt(n V), largest first.
    """

    RankMe: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    singular_values: Float[Tensor, " D"]
    n: int
    V: int
    meaning: str


def rankme(
    features: Float[Tensor, "N V D"],
    *,
    epsilon: float = 0.0,
    normalize: bool = False,
    groups: int = 10,
) -> EffectiveRankResult:
    """Compute `EffectiveRank` of the given features.

    Args:
        features: Features of V views of N images.
        epsilon: Added to each p_k.
        normalize: Scale features to length 1 first.
        groups: Number of groups of images for the jackknife.

    Example:
        >>> z = torch.eye(3)[:, None]
        >>> round(float(rankme(z).RankMe), 6), round(float(rankme(torch.ones(3, 1, 3)).RankMe), 6)
        (3.0, 1.0)
    """
    measure = EffectiveRank(
        features.shape[-1],
        epsilon=epsilon,
        normalize=normalize,
        groups=groups,
        sync_on_compute=False,
    )
    result: EffectiveRankResult = result_of(measure, features)
    return result


class EffectiveRank(SecondMoments):
    """RankMe from features (N, V, D); streams, merges and reduces over ranks.

    It holds (groups, D, D) sums in float64: 21 MB for D = 512. `compute` takes groups + 1 spectra
    of (D, D) matrices.

    Args:
        dim: Dimension D.
        normalize: Scale features to length 1 first (the paper does not).
        epsilon: Added to each of the min(rows, D) p_k. The paper has 1e-7, which adds at most
            1.6e-6 D to the entropy.
        groups: Number of groups of images for the jackknife. Images join the groups in turn, in
            order of arrival. So the order of the images, and the ranks they are on, change the
            noise of the standard error and nothing else.
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: Features have another dimension or another number of views than before, values
            are not finite, epsilon is negative or not below 1, or there is no image at all.

    Example:
        >>> measure = EffectiveRank(dim=3)
        >>> measure.update(torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]))
        >>> round(float(measure.compute().RankMe), 6)
        2.0
    """

    def __init__(
        self,
        dim: int,
        normalize: bool = False,
        *,
        epsilon: float = 0.0,
        groups: int = 10,
        **kwargs: Any,
    ):
        super().__init__(dim, normalize, groups, **kwargs)
        if not 0 <= epsilon < 1:
            raise ValueError(
                "epsilon is added to probabilities: it is small and not negative (the paper has "
                f"1e-7), not {epsilon}."
            )
        self.epsilon = epsilon

    def compute(self) -> EffectiveRankResult:
        """Return the result, over all ranks under a process group."""
        n, total = self.checked(), self.moment.sum(0)
        sigma = _singular_values(total / n)
        rows = n * int(self.views)
        value = effective_rank(sigma[:rows], self.epsilon)

        def without(g: int) -> Tensor:
            """Return RankMe without a group of images, from as many singular values as rows."""
            left = _singular_values(total - self.moment[g])
            return effective_rank(left[: rows - int(self.n[g]) * int(self.views)], self.epsilon)

        lean = (
            " It leans downwards, for a sample's spectrum is less even than that of what it is "
            f"drawn from{', and these are few' * (rows < 10 * self.dim)}: its standard error makes "
            "no interval of the population's."
        )
        return EffectiveRankResult(
            RankMe=value,
            standard_error=self.error(value, without),
            singular_values=sigma,
            n=n,
            V=int(self.views),
            meaning=(
                f"Effective rank of {rows} rows ({n} images, {int(self.views)} views each) in "
                f"{self.dim} dimensions, at most {min(rows, self.dim)}.{lean} Only RankMes of "
                "equally many rows are to be compared. Standard error: jackknife over "
                f"{self.groups} groups of images, too large by up to sqrt 2 near the maximum."
            ),
        )


def _singular_values(moment: Tensor) -> Tensor:
    eigenvalues = torch.linalg.eigvalsh(moment)
    return resolved(eigenvalues, eigenvalues[-1]).sqrt()
