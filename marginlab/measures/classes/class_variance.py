"""Variance within classes against the distance of their centers: V_k, its mean, and CDNV.

    V_k        = E_{C_k} || f - mu_k ||^2
    Var(f | y) = sum_k p_k V_k
    CDNV_kl    = (V_k + V_l) / ( 2 || mu_k - mu_l ||^2 )

CDNV is the class-distance normalized variance (Galanti, Gyorgy and Hutter, ICLR 2022). V_k bounds
Delta_mu (Huang et al., ICLR 2023). Var(f | y) is the variance of Wang, Zhang, Wang, Yang and Lin,
ICLR 2022. All of them come from the sums of `ClassDivergence`. With its Gram matrix G of unbiased
inner products and lengths,

    || mu_k - mu_l ||^2  ~  G_kk + G_ll - 2 G_kl.

This is unbiased. The squared distance of sampled means is too large by V_k/n_k + V_l/n_l.

Errors come from the same delete-a-group jackknife, one class at a time. The images of a class are
independent of those of the other classes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.measures.classes.divergence import (
    ClassDivergence,
    DivergenceResult,
    GroupSums,
    squared_lengths,
)
from marginlab.measures.measure import result_of
from marginlab.statistics.jackknife import jackknife_variance

# a squared distance of centers in float64 is rounding below this share of the mean squared norms
# of the two classes
_NONE = 1e-13


class ClassVarianceResult(NamedTuple):
    """V_k of C classes and CDNV of their pairs.

    Values are NaN where a class has too few images: V_k and CDNV need 2, their errors 3 (see `n`).

    `within` is V_k. `variance` is the mean of V_k over the classes that have one, with the weights
    p_k = n_k / n. `distances` (C, C) are squared distances of centers; they are unbiased, so they
    may be negative. `CDNV_kl` (C, C) is infinite where a distance is estimated at 0 or below (NaN
    if nothing varies either), and NaN on the diagonal. `CDNV` is its mean over pairs of different
    classes. It leaves out pairs that are NaN, and is infinite if one of the others is. `error_*`
    are standard errors.
    """

    within: Float[Tensor, " C"]
    variance: Float[Tensor, ""]
    distances: Float[Tensor, "C C"]
    CDNV_kl: Float[Tensor, "C C"]
    CDNV: Float[Tensor, ""]
    error_within: Float[Tensor, " C"]
    error_variance: Float[Tensor, ""]
    error_CDNV_kl: Float[Tensor, "C C"]  # noqa: N815
    error_CDNV: Float[Tensor, ""]  # noqa: N815
    n: Int[Tensor, " C"]
    V: int
    meaning: str


def class_distances(
    divergence: DivergenceResult,
) -> tuple[Float[Tensor, "C C"], Float[Tensor, "C C"]]:
    """Return squared distances of class centers, and CDNV, both (C, C), without their errors.

    Args:
        divergence: The result of `ClassDivergence`.

    Example:
        V_0 = 1/2 and V_1 = 0. The squared distance of the centers (1, 1/2) and (5, 0) is 16.25,
        and V_0 / 2 is taken off it.

        >>> from marginlab.measures.functional import class_divergence
        >>> f = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[5.0, 0.0]], [[5.0, 0.0]]])
        >>> found = class_divergence(f, torch.tensor([0, 0, 1, 1]), 2, normalize=False)
        >>> distances, cdnv = class_distances(found)
        >>> float(distances[0, 1]), float(cdnv[0, 1])
        (16.0, 0.015625)
    """
    lengths, within = divergence.gram.diagonal(), divergence.within
    return _distances(lengths, lengths, divergence.gram).fill_diagonal_(0), _cdnv(
        (lengths, within), (lengths, within), divergence.gram
    )


def class_variance(
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    *,
    normalize: bool = True,
    groups: int = 20,
) -> ClassVarianceResult:
    """Compute `ClassVariance` of the given features.

    Args:
        features: Features of V views of N images.
        labels: The images' classes.
        num_classes: Number C of classes.
        normalize: Scale features to length 1 first.
        groups: Number of groups of a class's images for the jackknife.

    Example:
        >>> f = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[5.0, 0.0]], [[5.0, 0.0]]])
        >>> class_variance(f, torch.tensor([0, 0, 1, 1]), 2, normalize=False).within
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    measure = ClassVariance(
        num_classes, features.shape[-1], normalize, groups=groups, sync_on_compute=False
    )
    result: ClassVarianceResult = result_of(measure, features, labels)
    return result


class ClassVariance(ClassDivergence):
    """V_k, Var(f | y) and CDNV, from features (N, V, D) and labels (N,).

    It streams, merges and reduces over ranks. Parameters, state and errors are those of
    `ClassDivergence`: (C, groups, D) sums in float64. The errors of CDNV take `groups` products of
    (C, D) with (D, C); only a few (C, C) arrays are held. CDNV does not change with the scale of
    the features if `normalize=False`.

    Example:
        >>> measure = ClassVariance(num_classes=2, dim=2)
        >>> f = torch.tensor([[[1.0, 0.0]], [[0.8, 0.6]], [[0.0, 1.0]], [[0.0, 1.0]]])
        >>> measure.update(f, torch.tensor([0, 0, 1, 1]))
        >>> result = measure.compute()
        >>> round(float(result.variance), 4), round(float(result.CDNV), 4)
        (0.1, 0.0833)
    """

    intervals = ("variance",)

    # the same sums, another result
    def compute(self) -> ClassVarianceResult:  # type: ignore[override]
        """Return the result, over all ranks under a process group."""
        parts = GroupSums(self.h, self.squares, self.norms, self.n)
        whole = GroupSums(*(part.sum(1) for part in parts))
        if int(whole.n.sum()) == 0:
            raise ValueError(
                "ClassVariance has seen no image of any class: call update(features, labels) first."
            )
        centers, (lengths, within) = whole.h / whole.n[:, None], _spread(whole)
        gram = centers @ centers.T
        cdnv = _cdnv((lengths, within), (lengths, within), gram)
        rest = GroupSums(*(total[:, None] - part for total, part in zip(whole, parts, strict=True)))
        error_within = jackknife_variance(
            list(_spread(rest)[1].T), within, whole.n.double(), parts.n.double()
        ).sqrt()
        error_cdnv_kl, error_cdnv = self._errors_of_cdnv(
            parts, rest, centers, (lengths, within), cdnv
        )
        known = ~within.isnan()
        # NaN if no class has a V_k
        weights = torch.where(known, whole.n, 0).double() / whole.n[known].sum()
        pairs = cdnv[~cdnv.isnan()]
        infinite = int(cdnv.isinf().sum()) // 2
        return ClassVarianceResult(
            within=within,
            variance=(weights * within.nan_to_num()).sum(),
            distances=_distances(lengths, lengths, gram).fill_diagonal_(0),
            CDNV_kl=cdnv,
            CDNV=pairs.mean(),
            error_within=error_within,
            error_variance=torch.where(known, weights * error_within, weights).norm(),
            error_CDNV_kl=error_cdnv_kl,
            error_CDNV=error_cdnv,
            n=whole.n,
            V=int(self.views),
            meaning=(
                f"V_k and squared distances of centers are unbiased ({int(self.views)} views of "
                "each image). CDNV, a ratio of such estimates, leans upwards by the order of the "
                "squared relative error of the distance, and its error makes no interval. Of "
                f"{len(pairs) // 2} pairs of classes {infinite} have centers that are not told "
                f"apart (CDNV infinite). Standard errors: jackknife over {self.groups} groups of "
                "images of a class."
            ),
        )

    @staticmethod
    def _errors_of_cdnv(
        parts: GroupSums,
        rest: GroupSums,
        centers: Tensor,
        spread: tuple[Tensor, Tensor],
        cdnv: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return jackknife errors of CDNV_kl and of its mean over pairs.

        Deleting a group of class k changes row k; this is done for all k at once. With d_g the
        change of an estimate and h_g = n / m_g, its pseudo-values differ from their mean by
        S - (h_g - 1) d_g, where S = sum (1 - 1/h_g) d_g.
        """
        sizes = parts.n.double()
        groups = (sizes > 0).sum(1, keepdim=True).double()
        lengths, within = _spread(rest)
        of_pairs, of_mean = (
            [torch.zeros_like(cdnv) for _ in range(3)],
            [torch.zeros_like(cdnv[:, :1]) for _ in range(3)],
        )
        inverse = torch.zeros_like(groups)
        known = ~cdnv.isnan()
        for g in (sizes > 0).any(0).nonzero().flatten().tolist():
            here = sizes[:, g, None] > 0
            # any ratio above 1 serves a group without images: its changes are 0
            ratio = torch.where(here, sizes.sum(1, keepdim=True) / sizes[:, g, None], 2.0)
            gram = (rest.h[:, g] / rest.n[:, g, None]) @ centers.T
            change = torch.where(
                here, _cdnv((lengths[:, g], within[:, g]), spread, gram) - cdnv, 0.0
            )
            # row k and column k
            total = 2 * torch.where(known, change, 0.0).sum(1, keepdim=True) / known.sum()
            for sums, d in ((of_pairs, change), (of_mean, total)):
                sums[0] += (ratio - 1) * d.square()
                sums[1] += d
                sums[2] += (1 - 1 / ratio) * d
            inverse += torch.where(here, 1 / (ratio - 1), 0.0)
        enough = groups > 1
        pairs, mean = (
            torch.where(enough, squares - 2 * shift * sums + shift.square() * inverse, torch.nan)
            / groups
            for squares, sums, shift in (of_pairs, of_mean)
        )
        answering = known.any(1)
        of_all = mean[answering].sum() if bool(answering.any()) else mean.new_tensor(torch.nan)
        return (pairs + pairs.T).clamp(min=0).sqrt(), of_all.clamp(min=0).sqrt()


def _spread(sums: GroupSums) -> tuple[Tensor, Tensor]:
    """Return ||mu_k||^2 and V_k, unbiased; NaN below two images."""
    lengths = squared_lengths(sums)
    return lengths, sums.norms / sums.n - lengths


def _distances(one: Tensor, two: Tensor, gram: Tensor) -> Tensor:
    """Return squared distances from squared lengths (rows, columns) and inner products."""
    return one[:, None] + two - 2 * gram


def _cdnv(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor], gram: Tensor) -> Tensor:
    """Return CDNV of each class in `one` (lengths, V) with each class in `two`.

    It is NaN of a class with itself.
    """
    distances = _distances(one[0], two[0], gram)
    spread = one[1][:, None] + two[1]
    rounding = _NONE * (one[0][:, None] + two[0] + spread)  # of r_k^2 + r_l^2
    nothing = torch.where(spread > rounding, torch.inf, torch.nan)
    missing = distances.isnan() | torch.eye(len(gram), dtype=torch.bool, device=gram.device)
    return torch.where(distances > rounding, spread / (2 * distances), nothing).masked_fill(
        missing, torch.nan
    )
