"""Anchor form of the concentration: the share of a class near one fixed point.

An image is near the point if one of its views lies within delta / 2.

    main part of class k  =  { x in C_k : min over views || x' - b_k || <= delta / 2 }
    sigma_k               =  its share of the class

For any fixed point b_k (pixels or features) this is a main part in the sense of Huang et al., ICLR
2023, Definition 1. Each of two members has a view within delta / 2 of b_k, so by one triangle
inequality their d_A is at most delta. This main part may be smaller than the largest one, but
membership is decided image by image. If b_k and delta are chosen on other images, the number of
members among n held-out images is binomial. So sigma_k has an exact (Clopper-Pearson) interval. The
share of a largest clique (concentration.py) has none.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels import BUDGET
from marginlab.measures.alignment import clopper_pearson
from marginlab.measures.measure import Measure, check_labels, constant, rows
from marginlab.measures.sigma import Deltas


class Anchors(NamedTuple):
    """One point b_k for each of C classes, and the delta that the points were chosen for.

    `classes` increase. A point has the shape of a view.
    """

    classes: Int[Tensor, " C"]
    points: Float[Tensor, "C *P"]
    delta: float


class AnchorCurve(NamedTuple):
    """sigma of the anchor form at each delta, for fixed points b_k, and its interval.

    The interval holds at each delta taken by itself.
    """

    deltas: Float[Tensor, " T"]
    sigma: Float[Tensor, " T"]
    lower: Float[Tensor, " T"]
    upper: Float[Tensor, " T"]


class AnchorResult(NamedTuple):
    """Concentration around fixed points on n (C,) held-out images of C classes.

    All intervals have the confidence `confidence`, each taken by itself.

    For each class: `members` (C,) counts its members, `sigma_k` is their share, and `lower` to
    `upper` is the exact binomial interval of the share. `together` (C,) are lower bounds that hold
    for all classes at once (Bonferroni: one-sided, each class with a C-th of the risk).

    `sigma` is the least sigma_k over classes. `sigma_lower` is the least of `lower`. It exceeds the
    least sigma_k only if `lower` of that one class does, so it needs no correction. `sigma_upper`
    is the least of upper ends with a C-th of the risk each (Bonferroni), because all of them must
    hold. The estimate `sigma` itself leans downwards, because it is a minimum of estimates.

    `mean` is the share of members among all images. It estimates sum_k p_k sigma_k if images are
    drawn from the population, so that the classes have the shares of the sample. Its interval is
    then exact. (If the numbers of images are fixed beforehand, p_k is their share, and the number
    of members varies less.)

    `distances` (N,) are the distances of the images to the points of their classes, the minimum
    over V views. `labels` (N,) are their classes. Both are in order of arrival.
    """

    classes: Int[Tensor, " C"]
    delta: float
    n: Int[Tensor, " C"]
    members: Int[Tensor, " C"]
    sigma_k: Float[Tensor, " C"]
    lower: Float[Tensor, " C"]
    upper: Float[Tensor, " C"]
    together: Float[Tensor, " C"]
    sigma: Float[Tensor, ""]
    sigma_lower: Float[Tensor, ""]
    sigma_upper: Float[Tensor, ""]
    mean: Float[Tensor, ""]
    mean_lower: Float[Tensor, ""]
    mean_upper: Float[Tensor, ""]
    distances: Float[Tensor, " N"]
    labels: Int[Tensor, " N"]
    V: int
    confidence: float
    meaning: str

    def sigma_at(self, delta: float) -> tuple[float, float, float]:
        """Return the least sigma_k at another delta, as (estimate, lower, upper).

        The points stay the same.

        Args:
            delta: The distance.
        """
        curve = self.curve([delta])
        return float(curve.sigma), float(curve.lower), float(curve.upper)

    def curve(
        self, deltas: Deltas, reduce: Literal["min", "mean"] = "min", label: int | None = None
    ) -> AnchorCurve:
        """Return sigma over delta for the same points, with its intervals.

        The intervals hold at each delta by itself. A delta picked from the curve for the value it
        shows has no valid interval.

        Args:
            deltas: Where the curve is taken.
            reduce: "min" for the least sigma_k, "mean" for their mean weighted by p_k.
            label: Return the curve of this one class, if it is given.

        Raises:
            ValueError: A delta is negative, the class is not there, or `reduce` is unknown.
        """
        if reduce not in ("min", "mean"):
            raise ValueError(
                f"Classes are reduced by 'min' (the theory's sigma) or 'mean' (weighted by "
                f"p_k), not {reduce!r}."
            )
        if label is not None and label not in self.classes.tolist():
            raise ValueError(f"No class has the label {label}: there are {self.classes.tolist()}.")
        given = torch.as_tensor(deltas, dtype=torch.float64, device=self.distances.device).reshape(
            -1
        )
        if not len(given) or not bool((given >= 0).all()):
            raise ValueError(f"delta is a distance, at least 0, not {given.tolist()}.")
        counted = _members(self.distances, self.labels, self.classes, given)
        if label is not None:
            found = self.classes == label
            return AnchorCurve(
                given,
                *(end[0] for end in _binomial(counted[found], self.n[found], self.confidence)),
            )
        if reduce == "mean":
            return AnchorCurve(
                given,
                *(
                    end[0]
                    for end in _binomial(
                        counted.sum(0, keepdim=True), self.n.sum()[None], self.confidence
                    )
                ),
            )
        return AnchorCurve(given, *_least(counted, self.n, self.confidence))


def anchor_distances(
    views: Float[Tensor, "N V *P"],
    labels: Int[Tensor, " N"],
    anchors: Anchors,
    *,
    budget: int = BUDGET,
) -> Float[Tensor, " N"]:
    """Return each image's distance to the point of its class, as the minimum over its V views.

    The result is (N,). Distances are taken by differences in float64. They are an UPPER estimate of
    the minimum over all views, and fall with V.

    Args:
        views: Pixels in [0, 1] or features, as the points are.
        labels: The images' classes.
        anchors: The points.
        budget: Bytes of a block of differences.

    Raises:
        ValueError: Views, labels or anchors do not fit each other, or values are not finite.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> anchors = Anchors(torch.tensor([0, 1]), points, delta=1.0)
        >>> views = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[1.0, 0.5], [9.0, 9.0]]])
        >>> anchor_distances(views, torch.tensor([0, 1]), anchors)
        tensor([2.0000, 0.5000], dtype=torch.float64)
    """
    _check_anchors(anchors)
    check_views(views, labels)
    if views.shape[2:] != anchors.points.shape[1:]:
        raise ValueError(
            f"Views of shape {tuple(views.shape[2:])} have no distance to points of shape "
            f"{tuple(anchors.points.shape[1:])}."
        )
    classes = anchors.classes.to(labels.device)
    at = torch.searchsorted(classes, labels.to(classes.dtype)).clamp(max=len(classes) - 1)
    absent = labels[classes[at] != labels]
    if len(absent):
        raise ValueError(
            f"Labels {absent.unique().tolist()} have no anchor, which were chosen for "
            f"{classes.tolist()}: leave these images out."
        )
    images = torch.arange(len(views), device=views.device)
    return nearest(views, images, anchors.points.to(views.device), at.to(views.device), budget)[0]


class AnchorConcentration(Measure):
    """sigma of the anchor form on held-out images, with intervals.

    It takes views (N, V, ...) and labels (N,); streams, merges and reduces over ranks. The
    intervals are for V sampled views of an image, drawn independently of the choice of the anchors.
    The theory takes all views, and more views can only come nearer. So sigma of V views is a LOWER
    estimate of the theory's sigma. One float64 distance is kept of each image, so a curve over
    delta comes from the same pass.

    Args:
        anchors: Points and delta, chosen on other images (`choose_anchors`) or known before; one
            for each class that will come.
        confidence: Confidence of the intervals.
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: Views have another shape than the points or another number of views than before,
            are not finite or are pixels outside [0, 1]; a label has no anchor; an anchor's class
            has no image; measures of other anchors are merged; or nothing was measured.

    Example:
        >>> anchors = Anchors(torch.tensor([0, 1]), torch.tensor([[0.0], [1.0]]), delta=0.5)
        >>> measure = AnchorConcentration(anchors)
        >>> views = torch.tensor([[[0.2], [0.9]], [[0.6], [0.4]], [[1.2], [5.0]]])
        >>> measure.update(views, torch.tensor([0, 0, 1]))
        >>> result = measure.compute()
        >>> result.members.tolist(), result.sigma_k.tolist()
        ([1, 1], [0.5, 1.0])
        >>> float(result.sigma), result.sigma_at(1.0)[0]
        (0.5, 1.0)
    """

    distance: list[Tensor]
    label: list[Tensor]
    n_views: Tensor
    classes: Tensor
    points: Tensor

    def __init__(self, anchors: Anchors, confidence: float = 0.95, **kwargs: Any):
        super().__init__(**kwargs)
        _check_anchors(anchors)
        if not 0 < confidence < 1:
            raise ValueError(
                f"The confidence of an interval lies between 0 and 1, not at {confidence}."
            )
        self.delta, self.confidence = float(anchors.delta), confidence
        self.register_buffer("classes", anchors.classes.long().clone(), persistent=False)
        self.register_buffer("points", anchors.points.detach().double().clone(), persistent=False)
        for name in ("distance", "label"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        none = torch.zeros(1, dtype=torch.int64)
        self.add_state("n_views", default=none, dist_reduce_fx=constant)

    def update(self, views: Float[Tensor, "N V *P"], labels: Int[Tensor, " N"]) -> None:
        """Take V views of N more held-out images and their labels.

        Args:
            views: The views, (N, V, ...).
            labels: The images' classes, (N,).
        """
        distance = anchor_distances(views, labels, Anchors(self.classes, self.points, self.delta))
        if int(self.n_views) not in (0, views.shape[1]):
            raise ValueError(
                f"Images have {views.shape[1]} views, those before had "
                f"{int(self.n_views)}: sigma of both together has no meaning."
            )
        if len(views):
            self.n_views = torch.full_like(self.n_views, views.shape[1])
            self.distance.append(distance)
            self.label.append(labels.long().clone())  # a caller may use its buffer again

    def compute(self) -> AnchorResult:
        """Return the result, over all ranks under a process group."""
        empty = self.points.new_zeros(0)
        distances, labels = rows(self.distance, empty), rows(self.label, empty.long())
        if not len(distances):
            raise ValueError(
                "AnchorConcentration has seen no image yet: call update(views, labels) "
                "with views of shape (N, V, ...) first."
            )
        n = (labels == self.classes[:, None]).sum(1)
        if not bool(n.all()):
            raise ValueError(
                f"Classes {self.classes[n == 0].tolist()} have an anchor and no held-out "
                f"image, so nothing is known of the least sigma over "
                "classes: give images of them, or anchors without them."
            )
        members = _members(distances, labels, self.classes, distances.new_tensor([self.delta]))
        sigma_k, lower, upper = _binomial(members, n, self.confidence)
        # the lower tail takes the whole risk of a class
        together = _binomial(members, n, 1 - 2 * (1 - self.confidence) / len(n))[1]
        sigma, sigma_lower, sigma_upper = _least(members, n, self.confidence)
        mean, mean_lower, mean_upper = _binomial(
            members.sum(0, keepdim=True), n.sum()[None], self.confidence
        )
        V, certain = int(self.n_views), f"{self.confidence:.0%}"
        return AnchorResult(
            classes=self.classes.clone(),
            delta=self.delta,
            n=n,
            members=members[:, 0],
            sigma_k=sigma_k[:, 0],
            lower=lower[:, 0],
            upper=upper[:, 0],
            together=together[:, 0],
            sigma=sigma[0],
            sigma_lower=sigma_lower[0],
            sigma_upper=sigma_upper[0],
            mean=mean[0, 0],
            mean_lower=mean_lower[0, 0],
            mean_upper=mean_upper[0, 0],
            distances=distances,
            labels=labels,
            V=V,
            confidence=self.confidence,
            meaning=(
                f"sigma of the anchor form at delta = {self.delta:g}: an image is a member "
                f"if one of its {V} sampled views lies within delta / 2 of "
                f"the point of its class; a LOWER estimate of the same over all views, "
                f"growing with V. The {certain} intervals are exact binomial "
                f"ones for {V} views, drawn independently of the choice of points and "
                f"delta, on {int(n.min())} to {int(n.max())} other images a "
                f"class. Least sigma: Bonferroni over {len(n)} classes in its upper end, "
                f"none needed in its lower; mean: pooled over classes, with "
                "the class shares of these images."
            ),
        )


def _members(distances: Tensor, labels: Tensor, classes: Tensor, deltas: Tensor) -> Tensor:
    """Count the images of each class within each delta / 2 of their point: (C, T)."""
    return torch.stack(
        [
            torch.searchsorted(distances[labels == label].sort().values, deltas / 2, right=True)
            for label in classes
        ]
    )


def _binomial(members: Tensor, n: Tensor, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the share of members, (C, T), and the lower and upper ends of its exact interval."""
    ends = [
        clopper_pearson(row, int(all_), confidence) for row, all_ in zip(members, n, strict=True)
    ]
    lower, upper = (torch.stack(part) for part in zip(*ends, strict=True))
    return members.double() / n[:, None], lower, upper


def _least(members: Tensor, n: Tensor, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the least share over classes, (T,), and its interval.

    `AnchorResult` explains the corrections.
    """
    sigma_k, lower, _ = _binomial(members, n, confidence)
    upper = _binomial(members, n, 1 - (1 - confidence) / len(n))[2]
    return sigma_k.amin(0), lower.amin(0), upper.amin(0)


def nearest(
    views: Tensor, images: Tensor, points: Tensor, at: Tensor, budget: int
) -> tuple[Tensor, Tensor]:
    """Return the smallest distance of each image's views to points[at], and the index of that view.

    Both are shaped like `images`. Distances are taken by differences in float64.
    """
    points = points.double().flatten(1)
    distances, nearest_views = [views.new_zeros(0, dtype=torch.float64)], [images[:0]]
    step = max(budget // (16 * max(views[:1].numel(), 1)), 1)
    for image, point in zip(images.split(step), at.split(step), strict=True):
        apart = views.detach()[image].double().flatten(2).sub_(points[point][:, None])
        distance, view = torch.linalg.vector_norm(apart, dim=2).min(1)
        distances.append(distance)
        nearest_views.append(view)
    return torch.cat(distances), torch.cat(nearest_views)


def _check_anchors(anchors: Anchors) -> None:
    classes, points, delta = anchors
    if (
        classes.ndim != 1
        or not len(classes)
        or classes.is_floating_point()
        or not bool((classes[1:] > classes[:-1]).all())
    ):
        raise ValueError(
            f"The classes of anchors are whole numbers that increase, not {classes.dtype} "
            f"{classes.tolist()}."
        )
    if (
        points.ndim < 2
        or len(points) != len(classes)
        or not points.is_floating_point()
        or not bool(points.isfinite().all())
    ):
        raise ValueError(
            f"Anchors of {len(classes)} classes are as many finite points, not "
            f"{points.dtype} {tuple(points.shape)} or not finite."
        )
    if not 0 <= delta < float("inf"):
        raise ValueError(f"delta is a distance, at least 0, not {delta}.")


def check_views(views: Tensor, labels: Tensor) -> None:
    if views.ndim < 3 or 0 in views.shape[1:] or not views.is_floating_point():
        raise ValueError(
            f"views are floating-point numbers of shape (N, V, ...), at least one view, "
            f"not {views.dtype} {tuple(views.shape)}."
        )
    check_labels(labels, len(views))
    if views.numel():
        low, high = (float(bound) for bound in views.detach().aminmax())
        pixels = views.ndim == 5 and views.shape[2] == 3
        if not (0 <= low <= high <= 1 if pixels else low - low == high - high == 0):
            allowed = (
                "lie in [0, 1]: give pixels before mean and deviation"
                if pixels
                else "are finite: look for what made them"
            )
            raise ValueError(
                f"views of shape {tuple(views.shape)} range from {low:g} to {high:g} (nan: "
                f"not finite), but {allowed}."
            )
