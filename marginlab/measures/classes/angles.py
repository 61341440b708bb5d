"""Angles of a margin classifier, in degrees, between weights, centers and embeddings.

    W-EC     mean over classes of the angle between W_k and the embedding center c_k
    W-Inter  mean over classes of the smallest angle between W_k and another class's weight
    Inter    mean over classes of the smallest angle between c_k and another class's center
    Intra    mean over embeddings x of the angle between x and the center of its class

Deng et al., ArcFace, CVPR 2019, Table 3. c_k is the direction of the sum of the embeddings of class
k, each of length 1. W-EC, W-Inter and Inter come from sums. Intra does not, because the centers are
unknown until the last embedding has been seen. `IntraAngle` is a second pass for it.

With K sub-centers W_k1 .. W_kK (the paper's table has K = 1), the angle to W_k is the angle to the
nearest of them. vector_angles.py has the angle of two vectors.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.measures.classes.vector_angles import angle, nearest_class_angles
from marginlab.measures.measure import (
    Measure,
    check_features,
    check_labels,
    constant,
    prepared,
    result_of,
    same_views,
)

_NONE = 1e-12  # a mean of unit vectors of at most this length has no direction


class AngleResult(NamedTuple):
    """W-EC, W-Inter and Inter in degrees, with standard errors over classes.

    Each is given as a mean over classes and for each class (`*_k`, (C,)). A value is NaN where it
    is undefined: without weights, with one class, for a class without an image, or for a class
    whose embeddings cancel. Means are over the other classes. `centers` (C, D) have length 1 (NaN
    rows where undefined) and are the input of `IntraAngle`. `n` (C,) are the numbers of images
    seen.
    """

    W_EC: Float[Tensor, ""]
    W_Inter: Float[Tensor, ""]
    Inter: Float[Tensor, ""]
    W_EC_k: Float[Tensor, " C"]  # the paper's names, for each class
    W_Inter_k: Float[Tensor, " C"]
    Inter_k: Float[Tensor, " C"]
    error_W_EC: Float[Tensor, ""]  # noqa: N815
    error_W_Inter: Float[Tensor, ""]  # noqa: N815
    error_Inter: Float[Tensor, ""]  # noqa: N815
    centers: Float[Tensor, "C D"]
    n: Int[Tensor, " C"]
    K: int
    meaning: str


class IntraResult(NamedTuple):
    """Intra in degrees, its standard error over images, and the same mean in each class.

    The standard error takes the centers as given. It is NaN for one image.
    """

    Intra: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    Intra_k: Float[Tensor, " C"]
    n: Int[Tensor, " C"]
    meaning: str


def angle_statistics(
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    weights: Float[Tensor, "C *K D"] | None = None,
) -> tuple[AngleResult, IntraResult]:
    """Compute `AngleStatistics` and then `IntraAngle` of the given features.

    Args:
        features: Features of V views of N images.
        labels: The images' classes.
        num_classes: Number C of classes.
        weights: Weights of the classifier, (C, D) or, with K sub-centers, (C, K, D).

    Returns:
        The results of the first and of the second pass.

    Example:
        >>> f = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]], [[-1.0, 0.0]]])
        >>> weights = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
        >>> angles, intra = angle_statistics(f, torch.tensor([0, 0, 1, 1]), 2, weights)
        >>> [round(float(v), 3) for v in (angles.W_EC, angles.W_Inter, angles.Inter, intra.Intra)]
        [45.0, 45.0, 135.0, 22.5]
    """
    first = AngleStatistics(num_classes, features.shape[-1], weights, sync_on_compute=False)
    result: AngleResult = result_of(first, features, labels)
    second = IntraAngle(result.centers, sync_on_compute=False)
    return result, result_of(second, features, labels)


class AngleStatistics(Measure):
    """W-EC, W-Inter and Inter from features (N, V, D) and labels (N,); every view is an embedding.

    It holds (C, D) sums in float64.

    Args:
        num_classes: Number C of classes.
        dim: Dimension D.
        weights: Weights of the classifier, (C, D) or, with K sub-centers, (C, K, D). Without them
            only Inter is computed.
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: Features or weights have another shape or are not finite, labels are out of
            range, the number of views differs from before, or there is no image at all.

    Example:
        >>> measure = AngleStatistics(2, 2, weights=torch.eye(2))
        >>> measure.update(torch.tensor([[[1.0, 1.0]], [[0.0, 2.0]]]), torch.tensor([0, 1]))
        >>> result = measure.compute()
        >>> [round(float(v), 3) for v in (result.W_EC, result.W_Inter, result.Inter)]
        [22.5, 90.0, 45.0]
    """

    sums: Tensor
    n: Tensor
    views: Tensor
    weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        dim: int,
        weights: Float[Tensor, "C *K D"] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if num_classes < 1 or dim < 1:
            raise ValueError(
                f"AngleStatistics needs at least 1 class and 1 dimension, not {num_classes} and "
                f"{dim}."
            )
        if weights is not None:
            if (
                weights.ndim not in (2, 3)
                or (weights.shape[0], weights.shape[-1]) != (num_classes, dim)
                or not bool(weights.isfinite().all())
            ):
                raise ValueError(
                    f"Weights of {num_classes} classes in {dim} dimensions are finite, of shape "
                    f"({num_classes}, {dim}) or ({num_classes}, K, {dim}), not "
                    f"{tuple(weights.shape)}. A class-major (C K, D) matrix is viewed as such."
                )
            weights = prepared(weights, True).view(num_classes, -1, dim)
        self.num_classes, self.dim = num_classes, dim
        self.register_buffer("weights", weights, persistent=False)
        self.add_state(
            "sums", default=torch.zeros(num_classes, dim, dtype=torch.float64), dist_reduce_fx="sum"
        )
        self.add_state(
            "n", default=torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum"
        )
        self.add_state("views", default=torch.zeros(1, dtype=torch.int64), dist_reduce_fx=constant)

    def update(self, features: Float[Tensor, "N V D"], labels: Int[Tensor, " N"]) -> None:
        """Take V views' embeddings of N more images and their labels."""
        _check(features, labels, self.num_classes, self.dim)
        self.views = same_views(features, self.views)
        self.sums = self.sums.index_add(0, labels.long(), prepared(features, True).mean(1))
        self.n = self.n.index_add(0, labels.long(), torch.ones_like(labels, dtype=torch.int64))

    def compute(self) -> AngleResult:
        """Return the result, over all ranks under a process group."""
        if int(self.n.sum()) == 0:
            raise ValueError(
                "AngleStatistics has seen no image yet: call update(features, labels) first."
            )
        means = self.sums / self.n[:, None]
        lengths = means.norm(dim=1, keepdim=True)
        centers = torch.where(lengths > _NONE, means / lengths, torch.nan)
        known = (lengths > _NONE)[:, 0]
        undefined = torch.full_like(lengths[:, 0], torch.nan)
        inter = undefined.index_put((known,), nearest_class_angles(centers[known][:, None]))
        to_center = between = undefined
        if self.weights is not None:
            to_center = angle(self.weights, centers[:, None].expand_as(self.weights)).amin(1)
            between = nearest_class_angles(self.weights)
        K = 1 if self.weights is None else self.weights.shape[1]
        (w_ec, error_w_ec), (w_inter, error_w_inter), (between_centers, error_inter) = map(
            _mean, (to_center, between, inter)
        )
        return AngleResult(
            W_EC=w_ec,
            W_Inter=w_inter,
            Inter=between_centers,
            W_EC_k=to_center,
            W_Inter_k=between,
            Inter_k=inter,
            error_W_EC=error_w_ec,
            error_W_Inter=error_w_inter,
            error_Inter=error_inter,
            centers=centers,
            n=self.n.clone(),
            K=K,
            meaning=(
                f"Angles in degrees over {int(known.sum())} of {self.num_classes} classes that "
                f"have a center, {int(self.views)} views of each image, {K} weight(s) of a class. "
                "W-Inter is exact. With few images of a class its center is noisy: W-EC leans "
                "upwards. Standard errors are over classes, as if their angles were independent."
            ),
        )


class IntraAngle(Measure):
    """Intra, from features (N, V, D) and labels (N,), to given centers: the second pass.

    It runs over the same images as the first pass, or over others. It streams, merges and reduces.
    If the centers are of the same images, Intra leans downwards, by the order of 1/n_k, because
    each image has drawn its center towards itself.

    Args:
        centers: Centers (C, D), those of `AngleStatistics` or others. NaN rows are classes without
            a center; their images are left out.
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: Features or labels do not fit the centers, values are not finite, measures to
            different centers are merged, or no image has a center.

    Example:
        >>> measure = IntraAngle(torch.eye(2))
        >>> measure.update(torch.tensor([[[1.0, 1.0]], [[0.0, 2.0]]]), torch.tensor([0, 1]))
        >>> round(float(measure.compute().Intra), 3)
        22.5
    """

    centers: Tensor
    sums: Tensor
    squares: Tensor
    n: Tensor

    def __init__(self, centers: Float[Tensor, "C D"], **kwargs: Any):
        super().__init__(**kwargs)
        if centers.ndim != 2 or 0 in centers.shape:
            raise ValueError(f"Centers have the shape (C, D), not {tuple(centers.shape)}.")
        self.register_buffer("centers", prepared(centers, True), persistent=False)
        for name in ("sums", "squares"):
            self.add_state(
                name, default=torch.zeros(len(centers), dtype=torch.float64), dist_reduce_fx="sum"
            )
        self.add_state(
            "n", default=torch.zeros(len(centers), dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, features: Float[Tensor, "N V D"], labels: Int[Tensor, " N"]) -> None:
        """Take V views' embeddings of N more images and their labels."""
        _check(features, labels, *self.centers.shape)
        own = self.centers[labels.long()]
        kept = ~own.isnan().any(1)
        z, own, at = prepared(features, True)[kept], own[kept], labels.long()[kept]
        angles = angle(z, own[:, None].expand_as(z)).mean(1)
        self.sums = self.sums.index_add(0, at, angles)
        self.squares = self.squares.index_add(0, at, angles.square())
        self.n = self.n.index_add(0, at, torch.ones_like(at))

    def compute(self) -> IntraResult:
        """Return the result, over all ranks under a process group."""
        n = int(self.n.sum())
        if n == 0:
            raise ValueError(
                "IntraAngle has seen no image of a class with a center yet: call update(features, "
                "labels) first."
            )
        mean = self.sums.sum() / n
        variance = (self.squares.sum() / n - mean.square()).clamp(min=0) * (
            n / (n - 1) if n > 1 else torch.nan
        )
        return IntraResult(
            mean,
            (variance / n).sqrt(),
            self.sums / self.n,
            self.n.clone(),
            f"Mean angle in degrees of {n} images' embeddings to the given center of their class. "
            "If the centers are of the same images it leans downwards, by the order of one over "
            "the images of a class. The standard error is over images, with the centers taken as "
            "given.",
        )


def _check(features: Tensor, labels: Tensor, num_classes: int, dim: int) -> None:
    check_features(features, fewest_views=1, dim=dim)
    check_labels(labels, len(features), num_classes)


def _mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the classes whose angle is defined, and its standard error."""
    known = values[~values.isnan()]
    return known.mean(), known.std() / len(known) ** 0.5 if len(known) > 1 else torch.full_like(
        values[0], torch.nan
    )
