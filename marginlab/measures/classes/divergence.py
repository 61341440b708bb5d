"""Divergence of the class centers: inner products, lengths, spread around them, and Delta_mu.

    mu_k     = E_{x in C_k} E_view f(x_view)
    V_k      = E_{C_k} ||f - mu_k||^2 = r_k^2 - ||mu_k||^2
    Delta_mu = 1 - min_k ||mu_k||^2 / r^2

Huang et al., ICLR 2023, section 3. Theorem 1 asks that mu_k . mu_l be small. Let h_i be the mean of
image i's features over its views. An inner product of two classes is the product of the means of h,
which is unbiased. A squared length is the U-statistic over different images,

    ||mu_k||^2 ~ ( ||sum_i h_i||^2 - sum_i ||h_i||^2 ) / (n (n-1)),

because the squared length of a sampled mean is too large by the variance of a mean. Only sums are
kept, so it streams. Errors come from a delete-a-group jackknife (jackknife.py).
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
from marginlab.statistics import index_within_group
from marginlab.statistics.extremes import Extreme, largest, least
from marginlab.statistics.jackknife import jackknife_variance


class DivergenceResult(NamedTuple):
    """Centers of C classes, with their inner products, lengths and errors.

    Estimates are unbiased where a mean allows it, and NaN where a class has too few images (see
    `n`).

    `gram` (C, C) has mu_k . mu_l off the diagonal (NaN without an image of either class) and
    ||mu_k||^2 on it (NaN below 2 images; it may be slightly negative). `norms` are the square roots
    of the diagonal. `within` is V_k. `r2` is the mean squared norm of the features over all images,
    and `r2_k` that of each class. `Delta_mu` takes the least of estimated lengths, so its own
    estimate leans upwards. `error_*` are standard errors (NaN below 3 images). The error of
    Delta_mu takes the class with the shortest center as given.
    """

    gram: Float[Tensor, "C C"]
    norms: Float[Tensor, " C"]
    within: Float[Tensor, " C"]
    Delta_mu: Float[Tensor, ""]
    r2: Float[Tensor, ""]
    r2_k: Float[Tensor, " C"]
    centers: Float[Tensor, "C D"]
    error_gram: Float[Tensor, "C C"]
    error_within: Float[Tensor, " C"]
    error_Delta_mu: Float[Tensor, ""]  # noqa: N815  # Delta_mu is its name
    n: Int[Tensor, " C"]
    V: int
    groups: int
    meaning: str

    def largest_product(self, confidence: float = 0.95) -> Extreme:
        """Return the largest mu_k . mu_l of different classes that have images, and its interval.

        The estimate leans upwards, because it is the largest of estimates. The interval allows for
        that.

        Args:
            confidence: Confidence of the interval.
        """
        filled = self.n.clamp(max=self.groups)
        known = ~self.gram.isnan()
        known.fill_diagonal_(False)
        known &= torch.ones_like(known).triu()
        fewest = torch.minimum(filled[:, None], filled[None])
        return largest(self.gram[known], self.error_gram[known], fewest[known], confidence)

    def shortest_center(self, confidence: float = 0.95) -> Extreme:
        """Return the least ||mu_k||^2 of the classes that have two images, and its interval.

        The estimate leans downwards, because it is the least of estimates. The interval allows for
        that.

        Args:
            confidence: Confidence of the interval.
        """
        lengths, errors = self.gram.diagonal(), self.error_gram.diagonal()
        known = ~lengths.isnan()
        filled = self.n.clamp(max=self.groups)
        return least(lengths[known], errors[known], filled[known], confidence)


class GroupSums(NamedTuple):
    """Sums over some images of each class, and the number of these images.

    The sums are of h, of ||h||^2, and of the mean squared norm over an image's views.
    """

    h: Tensor
    squares: Tensor
    norms: Tensor
    n: Tensor


def class_divergence(
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    *,
    normalize: bool = True,
    groups: int = 20,
) -> DivergenceResult:
    """Compute `ClassDivergence` of the given features.

    Args:
        features: Features of V views of N images.
        labels: The images' classes.
        num_classes: Number C of classes.
        normalize: Scale features to length 1 first.
        groups: Number of groups of a class's images for the jackknife.

    Example:
        The two images of class 0 are orthogonal.

        >>> f = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]], [[1.0, 0.0]]])
        >>> class_divergence(f, torch.tensor([0, 0, 1, 1]), 2).gram
        tensor([[0.0000, 0.5000],
                [0.5000, 1.0000]], dtype=torch.float64)
    """
    measure = ClassDivergence(
        num_classes, features.shape[-1], normalize, groups=groups, sync_on_compute=False
    )
    result: DivergenceResult = result_of(measure, features, labels)
    return result


class ClassDivergence(Measure):
    """Inner products and lengths of class centers, V_k and Delta_mu.

    It takes features (N, V, D) and labels (N,), and holds (C, groups, D) sums in float64.

    Args:
        num_classes: Number C of classes.
        dim: Dimension D.
        normalize: Scale features to length 1 first (the theory's r = 1).
        groups: Number of groups of a class's images for the jackknife. Images join the groups in
            turn, in order of arrival. So the order of the images, and the ranks they are on, change
            the noise of the standard errors and nothing else.
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: Features have another dimension or are not finite, labels are out of range, the
            number of views differs from before, or there is no image at all.

    Example:
        >>> measure = ClassDivergence(num_classes=2, dim=2)
        >>> f = torch.tensor([[[3.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
        >>> measure.update(f, torch.tensor([0, 0, 1, 1]))
        >>> result = measure.compute()
        >>> result.gram.tolist(), float(result.Delta_mu)
        ([[1.0, 0.0], [0.0, 1.0]], 0.0)
    """

    h: Tensor
    squares: Tensor
    norms: Tensor
    n: Tensor
    views: Tensor

    def __init__(
        self, num_classes: int, dim: int, normalize: bool = True, *, groups: int = 20, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if num_classes < 1 or dim < 1 or groups < 2:
            raise ValueError(
                "ClassDivergence needs at least 1 class, 1 dimension and 2 groups, not "
                f"{num_classes} classes, {dim} dimensions, {groups} groups."
            )
        self.num_classes, self.dim, self.normalize, self.groups = (
            num_classes,
            dim,
            normalize,
            groups,
        )
        self.add_state(
            "h",
            default=torch.zeros(num_classes, groups, dim, dtype=torch.float64),
            dist_reduce_fx="sum",
        )
        for name in ("squares", "norms"):
            self.add_state(
                name,
                default=torch.zeros(num_classes, groups, dtype=torch.float64),
                dist_reduce_fx="sum",
            )
        self.add_state(
            "n", default=torch.zeros(num_classes, groups, dtype=torch.int64), dist_reduce_fx="sum"
        )
        self.add_state("views", default=torch.zeros(1, dtype=torch.int64), dist_reduce_fx=constant)

    def update(self, features: Float[Tensor, "N V D"], labels: Int[Tensor, " N"]) -> None:
        """Take V views' features of N more images and their labels.

        Args:
            features: The features, (N, V, D).
            labels: The images' classes, (N,).
        """
        check_features(features, fewest_views=1, dim=self.dim)
        check_labels(labels, len(features), self.num_classes)
        self.views = same_views(features, self.views)
        z, labels = prepared(features, self.normalize), labels.long()
        h = z.mean(1)
        group = (index_within_group(labels) + self.n.sum(1)[labels]) % self.groups
        at = labels * self.groups + group
        self.h = self.h.flatten(0, 1).index_add(0, at, h).view_as(self.h)
        self.squares = (
            self.squares.flatten().index_add(0, at, h.square().sum(1)).view_as(self.squares)
        )
        self.norms = (
            self.norms.flatten().index_add(0, at, z.square().sum(2).mean(1)).view_as(self.norms)
        )
        self.n = self.n.flatten().index_add(0, at, torch.ones_like(at)).view_as(self.n)

    def compute(self) -> DivergenceResult:
        """Return the result, over all ranks under a process group."""
        parts = GroupSums(self.h, self.squares, self.norms, self.n)
        whole = GroupSums(*(part.sum(1) for part in parts))
        if int(whole.n.sum()) == 0:
            raise ValueError(
                "ClassDivergence has seen no image of any class: call update(features, labels) "
                "first."
            )
        centers = whole.h / whole.n[:, None]
        lengths, r2_k = squared_lengths(whole), whole.norms / whole.n
        r2 = whole.norms.sum() / whole.n.sum()
        gram = (centers @ centers.T).fill_diagonal_(0) + lengths.diag()
        shortest = int(lengths.nan_to_num(nan=torch.inf).argmin())
        gram_error, within_error, delta_error = self._errors(parts, whole, centers, shortest)
        return DivergenceResult(
            gram=gram,
            norms=lengths.clamp(min=0).sqrt(),
            within=r2_k - lengths,
            Delta_mu=1 - lengths[shortest] / r2,
            r2=r2,
            r2_k=r2_k,
            centers=centers,
            error_gram=gram_error,
            error_within=within_error,
            error_Delta_mu=delta_error,
            n=whole.n,
            V=int(self.views),
            groups=self.groups,
            meaning=(
                "Inner products, squared lengths and V_k are unbiased (U-statistics over "
                f"different images; {int(self.views)} views each). {int((whole.n > 0).sum())} of "
                f"{self.num_classes} classes have images. Delta_mu takes the least of estimated "
                "lengths and leans upwards: `shortest_center` has an interval that allows for it. "
                f"Standard errors: jackknife over {self.groups} groups of images of a class."
            ),
        )

    def _errors(
        self, parts: GroupSums, whole: GroupSums, centers: Tensor, shortest: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return jackknife errors of the Gram matrix, of V_k, and of Delta_mu.

        They are computed group by group, so that no (C, groups, C) array is held.
        """
        n, m = whole.n.double(), parts.n.double()  # (C,), (C, G)
        rest = GroupSums(*(total[:, None] - part for total, part in zip(whole, parts, strict=True)))
        products = _products(parts, whole, centers)
        lengths, spreads = squared_lengths(rest), rest.norms / rest.n
        length, spread = squared_lengths(whole), whole.norms / whole.n
        own = jackknife_variance(list(lengths.T), length, n, m)
        within = jackknife_variance(list((spreads - lengths).T), spread - length, n, m)
        r2 = whole.norms.sum() / whole.n.sum()
        shares = 1 - lengths[shortest] / (
            (whole.norms.sum() - parts.norms[shortest]) / (whole.n.sum() - parts.n[shortest])
        )
        delta = jackknife_variance(
            list(shares[:, None]),
            (1 - length[shortest] / r2)[None],
            n[shortest, None],
            m[shortest, None],
        )
        gram = products + products.T
        gram.diagonal().copy_(own)
        return gram.sqrt(), within.sqrt(), delta[0].sqrt()


def squared_lengths(sums: GroupSums) -> Tensor:
    """Return the U-statistic of ||mu||^2; NaN below two images."""
    pairs = (sums.n * (sums.n - 1)).double()
    return (sums.h.square().sum(-1) - sums.squares) / torch.where(pairs > 0, pairs, torch.nan)


def _products(parts: GroupSums, whole: GroupSums, centers: Tensor) -> Tensor:
    """Return the part of the jackknife variance of mu_k . mu_l that comes from class k, (C, C).

    It is NaN where k fills fewer than 2 groups, or l has no image. An inner product is linear in
    the sums h. So a group's pseudo-value is the product of its own mean h_g / m_g, and the mean of
    the pseudo-values is that of the center:

        variance = 1/G sum over g of ((h_g / m_g - mu_k) . mu_l)^2 m_g / (n - m_g).

    No more than two (C, C) arrays are held.
    """
    n, m = whole.n[:, None].double(), parts.n.double()
    groups = (m > 0).sum(1, keepdim=True)
    counted = (m > 0) & (groups > 1)
    weights = torch.where(counted, m / (n - m) / groups, 0.0).sqrt()
    deviations = torch.where(
        counted[..., None], (parts.h / m[..., None] - centers[:, None]) * weights[..., None], 0.0
    )
    total = torch.where(groups > 1, 0.0, torch.nan).to(centers).expand(-1, len(centers)).clone()
    for g in counted.any(0).nonzero().flatten().tolist():
        total += (deviations[:, g] @ centers.T).square_()
    return total
