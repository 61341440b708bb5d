"""Neural collapse: features to class means, means to a simplex, classifier weights to the means.

    NC1  =  tr(S_W pinv(S_B)) / C
            S_W = mean over samples of (f - mu_y)(f - mu_y)^T
            S_B = 1/C sum_c m_c m_c^T,   m_c = mu_c - mu_G
    NC2  =  || M M^T / ||M M^T||_F  -  (I - 1 1^T / C) / sqrt(C - 1) ||_F
            of the matrix M (C, D) of rows m_c;  in parts:
            equinorm  = std_c ||m_c|| / mean_c ||m_c||
            equiangle = mean over c != c' of | cos(m_c, m_c') + 1/(C - 1) |
    NC3  =  || W / ||W||_F  -  M / ||M||_F ||_F^2,   of weights W (C, D)

Papyan, Han and Donoho, PNAS 2020. NC4 is a second pass, `NearestCenterMismatch`.

Let M have the singular vectors v_j and values s_j. Then S_B = sum_j s_j^2 / C v_j v_j^T, so
NC1 = sum over j <= rank of v_j^T S_W v_j / s_j^2. The pseudo-inverse has the rank that M has, at
most min(C - 1, D). The authors' notebook leaves out the 1/C and takes C - 1 singular vectors
whatever the rank is. Its number is C times this one where the rank is C - 1.

mu_G is the mean of the class means, even if classes are of unequal size, so that sum m_c = 0 as in
a simplex. The standard deviation of equinorm divides by C; with C - 1 it is larger by
sqrt(C / (C - 1)).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.measures.measure import (
    Measure,
    check_features,
    check_labels,
    constant,
    prepared,
    result_of,
    same_views,
)
from marginlab.measures.spectrum.spectrum import EPS, moments
from marginlab.statistics import index_within_group
from marginlab.statistics.jackknife import jackknife_variance


class NeuralCollapseResult(NamedTuple):
    """NC1 to NC3 of the classes that have images, each 0 at collapse.

    All are NaN where the centers of these classes coincide, and NC3 without weights. `rank` is the
    rank of the centered class means. `error_*` are jackknife errors (NaN where a class has too few
    images). `centers` (C, D) are the class means (NaN rows without an image), the input of
    `NearestCenterMismatch`. `n` (C,) are the numbers of images.
    """

    NC1: Float[Tensor, ""]
    equinorm: Float[Tensor, ""]
    equiangle: Float[Tensor, ""]
    NC2: Float[Tensor, ""]
    NC3: Float[Tensor, ""]
    error_NC1: Float[Tensor, ""]  # noqa: N815
    error_equinorm: Float[Tensor, ""]
    error_equiangle: Float[Tensor, ""]
    error_NC2: Float[Tensor, ""]  # noqa: N815
    error_NC3: Float[Tensor, ""]  # noqa: N815
    centers: Float[Tensor, "C D"]
    n: Int[Tensor, " C"]
    rank: int
    V: int
    meaning: str


def neural_collapse(
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    weights: Float[Tensor, "C D"] | None = None,
    *,
    normalize: bool = False,
    groups: int = 10,
) -> NeuralCollapseResult:
    """Compute `NeuralCollapse` of the given features.

    Args:
        features: Features of V views of N images.
        labels: The images' classes.
        num_classes: Number C of classes.
        weights: Weights of the classifier, for NC3.
        normalize: Scale features to length 1 first.
        groups: Number of groups of a class's images for the jackknife.

    Example:
        >>> f = torch.eye(3).repeat(2, 1)[:, None]
        >>> result = neural_collapse(f, torch.arange(6) % 3, 3, weights=torch.eye(3) - 1 / 3)
        >>> [round(float(x), 6) for x in (result.NC1, result.NC2, result.NC3)], result.rank
        ([0.0, 0.0, 0.0], 2)
    """
    dim = features.shape[-1]
    measure = NeuralCollapse(
        num_classes, dim, weights, normalize=normalize, groups=groups, sync_on_compute=False
    )
    result: NeuralCollapseResult = result_of(measure, features, labels)
    return result


class NeuralCollapse(Measure):
    """NC1, NC2 (and equinorm, equiangle) and NC3, from features (N, V, D) and labels (N,).

    Every view is a sample. It streams, merges and reduces. It holds (groups, C, D) and (groups, D,
    D) sums in float64. S_W is a difference of sums, so NC1 below about 1e-13 is rounding.

    Args:
        num_classes: Number C of classes.
        dim: Dimension D.
        weights: Weights (C, D) of the classifier, for NC3; for features without a classifier those
            of a linear probe.
        normalize: Scale features to length 1 first (the paper does not).
        groups: Number of groups of a class's images for the jackknife. Images join the groups in
            turn, in order of arrival. So the order of the images, and the ranks they are on, change
            the noise of the standard errors and nothing else.
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: Features or weights have another shape or are not finite, weights are all 0,
            labels are out of range, the number of views differs from before, measures with
            different weights are merged, or there is no image at all.

    Example:
        Classes vary, but not along the line between them.

        >>> measure = NeuralCollapse(num_classes=2, dim=2)
        >>> f = torch.tensor([[[1.0, 0.1]], [[1.0, -0.1]], [[-1.0, 0.1]], [[-1.0, -0.1]]])
        >>> measure.update(f, torch.tensor([0, 0, 1, 1]))
        >>> result = measure.compute()
        >>> round(float(result.NC1), 6), round(float(result.NC2), 6)
        (0.0, 0.0)
    """

    h: Tensor
    moment: Tensor
    n: Tensor
    views: Tensor
    weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        dim: int,
        weights: Float[Tensor, "C D"] | None = None,
        *,
        normalize: bool = False,
        groups: int = 10,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if num_classes < 1 or dim < 1 or groups < 2:
            raise ValueError(
                "NeuralCollapse needs at least 1 class, 1 dimension and 2 groups, not "
                f"{num_classes} classes, {dim} dimensions, {groups} groups."
            )
        if weights is not None and (
            weights.shape != (num_classes, dim)
            or not bool(weights.isfinite().all())
            or not bool(weights.any())
        ):
            raise ValueError(
                f"weights are finite, not all 0, and of shape ({num_classes}, {dim}), a row for "
                f"each class, not {tuple(weights.shape)}."
            )
        self.num_classes, self.dim, self.normalize, self.groups = (
            num_classes,
            dim,
            normalize,
            groups,
        )
        self.register_buffer(
            "weights",
            None if weights is None else prepared(weights, False).clone(),
            persistent=False,
        )
        self.add_state(
            "h",
            default=torch.zeros(groups, num_classes, dim, dtype=torch.float64),
            dist_reduce_fx="sum",
        )
        self.add_state(
            "moment",
            default=torch.zeros(groups, dim, dim, dtype=torch.float64),
            dist_reduce_fx="sum",
        )
        self.add_state(
            "n", default=torch.zeros(groups, num_classes, dtype=torch.int64), dist_reduce_fx="sum"
        )
        self.add_state("views", default=torch.zeros(1, dtype=torch.int64), dist_reduce_fx=constant)

    def update(self, features: Float[Tensor, "N V D"], labels: Int[Tensor, " N"]) -> None:
        """Take V views' features of N more images and their labels."""
        check_features(features, fewest_views=1, dim=self.dim)
        check_labels(labels, len(features), self.num_classes)
        self.views = same_views(features, self.views)
        z, labels = prepared(features, self.normalize), labels.long()
        group = (index_within_group(labels) + self.n.sum(0)[labels]) % self.groups
        at = group * self.num_classes + labels
        self.h = self.h.flatten(0, 1).index_add(0, at, z.mean(1)).view_as(self.h)
        self.n = self.n.flatten().index_add(0, at, torch.ones_like(at)).view_as(self.n)
        self.moment = self.moment + moments(z, group, self.groups)

    def compute(self) -> NeuralCollapseResult:
        """Return the result, over all ranks under a process group."""
        h, moment, n = self.h.sum(0), self.moment.sum(0), self.n.sum(0)
        total = int(n.sum())
        if total == 0:
            raise ValueError(
                "NeuralCollapse has seen no image of any class: call update(features, labels) "
                "first."
            )
        present = n > 0
        weights = None if self.weights is None else self.weights[present]
        values, rank = _collapse(h[present], moment, n[present], weights)
        sizes = self.n.sum(1).double()
        left = []
        for g in range(self.groups):
            rest = (n - self.n[g])[present]
            if not int(self.n[g].sum()):
                left.append(values)
            # without this group a class is missing, and the rest gives another quantity
            elif bool((rest == 0).any()):
                left.append(torch.full_like(values, torch.nan))
            else:
                left.append(
                    _collapse((h - self.h[g])[present], moment - self.moment[g], rest, weights)[0]
                )
        errors = (
            jackknife_variance(left, values, sizes.sum().expand(5), sizes.expand(5, -1))
            .clamp(min=0)
            .sqrt()
        )
        C = int(present.sum())
        short = f" of {C - 1}" if rank < C - 1 else ""
        return NeuralCollapseResult(
            NC1=values[0],
            equinorm=values[1],
            equiangle=values[2],
            NC2=values[3],
            NC3=values[4],
            error_NC1=errors[0],
            error_equinorm=errors[1],
            error_equiangle=errors[2],
            error_NC2=errors[3],
            error_NC3=errors[4],
            centers=h / n[:, None],
            n=n,
            rank=rank,
            V=int(self.views),
            meaning=(
                f"Neural collapse of {C} classes (of {self.num_classes}), {total} images with "
                f"{int(self.views)} views each, in {self.dim} dimensions; centered means of rank "
                f"{rank}{short}. Plug-in estimates as published: NC1 leans downwards, by the order "
                "of one over the images of a class, and NC2, NC3 and their parts upwards near 0, "
                "for noise is a deviation too: no intervals of the population's follow from their "
                f"errors. Standard errors: jackknife over {self.groups} groups of images of each "
                "class, too large for classes with fewer images than groups."
            ),
        )


def _collapse(h: Tensor, moment: Tensor, n: Tensor, weights: Tensor | None) -> tuple[Tensor, int]:
    """Return NC1, equinorm, equiangle, NC2 and NC3, and the rank of the centered class means.

    They come from the sums of C classes that all have images.
    """
    C, D = h.shape
    means = h / n[:, None]
    M = means - means.mean(0)
    rounding = max(C, D, 100) * EPS * means.norm()
    _, s, v = torch.linalg.svd(M, full_matrices=False)
    rank = int((s > rounding).sum())
    values = M.new_full((5,), torch.nan)
    if rank == 0:
        return values, 0
    v, s = v[:rank], s[:rank]
    total, share = n.sum(), (n.double() / n.sum()).sqrt()
    # v_j^T S_W v_j
    along = torch.einsum("jd,de,je->j", v, moment / total, v) - (
        means @ v.T * share[:, None]
    ).square().sum(0)
    values[0] = (along.clamp(min=0) / s.square()).sum()
    lengths = M.norm(dim=1)
    values[1] = lengths.std(correction=0) / lengths.mean()
    gram = M @ M.T
    units = M / torch.where(lengths > rounding, lengths, torch.nan)[:, None]
    apart = (units @ units.T + 1 / (C - 1)).abs().fill_diagonal_(0)
    values[2] = apart.sum() / (C * (C - 1))
    simplex = torch.eye(C, dtype=M.dtype, device=M.device) - 1 / C
    values[3] = (gram / gram.norm() - simplex / (C - 1) ** 0.5).norm()
    if weights is not None and bool(weights.any()):
        values[4] = (weights / weights.norm() - M / M.norm()).square().sum()
    return values, rank
