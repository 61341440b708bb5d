"""The anchor form of the concentration: how much of a class has a view within delta / 2 of one
fixed point.

    main part of class k = { x in C_k : min over views || x' - b_k || <= delta / 2 }               sigma_k = its share of the class

For any fixed point b_k (pixels or features) this is a main part in the sense of Huang et al., ICLR
2023, Definition 1: two members have a view each within delta / 2 of b_k, so by one triangle
inequality their d_A is at most delta. It may be smaller than the largest such part, but membership
is decided image by image: with b_k and delta chosen on other images, members among n held-out
images are binomial, and sigma_k has an exact (Clopper-Pearson) interval, which the share of a
largest clique (concentration.py) has not.
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
    """One point b_k for each of C classes (`classes` increase), of the shape of a view, and the
    delta that they were chosen for.
    """

    classes: Int[Tensor, " C"]
    points: Float[Tensor, "C *P"]
    delta: float


class AnchorCurve(NamedTuple):
    """sigma of the anchor form at each delta, for fixed points b_k, and its interval, which holds
    at each delta taken by itself.
    """

    deltas: Float[Tensor, " T"]
    sigma: Float[Tensor, " T"]
    lower: Float[Tensor, " T"]
    upper: Float[Tensor, " T"]


class AnchorResult(NamedTuple):
    """Concentration around fixed points on n (C,) held-out images of C classes.

    All intervals are for `confidence`, each taken by itself.

    Of a class: `members` (C,), `sigma_k` their share, and its exact binomial interval from `lower`
    to `upper`. `together` (C,) are lower bounds that hold for all classes at once (Bonferroni:
    one-sided, each class with a C-th of the risk). `sigma` is the least over classes. `sigma_lower`
    is the least of `lower`: it exceeds the least sigma_k only if `lower` of that one class does, so
    it needs no correction; `sigma_upper` is the least of upper ends with a C-th of the risk each
    (Bonferroni), as it must hold for all. The estimate itself leans downwards, being a minimum of
    estimates. `mean` is the share of members among all images, sum_k p_k sigma_k where images are
    drawn from the population, so that the classes have the shares of the sample; its interval is
    then exact. (With numbers of images fixed beforehand, p_k is their share, and members vary
    less.) `distances` (N,) are those of each image to its point, min over V views, and `labels` its
    class, in order of arrival.
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
        """The least sigma_k at another delta for the same points, and its interval: (estimate,
        lower, upper).
        """
        curve = self.curve([delta])
        return float(curve.sigma), float(curve.lower), float(curve.upper)

    def curve(
        self, deltas: Deltas, reduce: Literal["min", "mean"] = "min", label: int | None = None
    ) -> AnchorCurve:
        """Over delta, for the same points: the least sigma_k, their mean weighted by p_k, or that
        of one class, if `label` is given.

        Intervals hold at each delta by itself: a delta picked from the curve for what it shows has
        none. Raises ValueError for a negative delta or a class that is not there.
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
    """Distance of each image to the point of its class, the minimum over its V views, by
    differences in float64: (N,).

    An UPPER estimate of the minimum over all views, falling with V. Views are pixels in [0, 1] or
    features, as the points are. `budget` is in bytes. Raises ValueError for views, labels or
    anchors that do not fit each other, or values that are not finite.

    >>> anchors = Anchors(torch.tensor([0, 1]), torch.tensor([[0.0, 0.0], [1.0, 0.0]]), delta=1.0)
    >>> anchor_distances(torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[1.0, 0.5], [9.0, 9.0]]]), torch.tensor([0, 1]), anchors)
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
    """sigma of the anchor form on held-out images, with intervals, from views (N, V, ...) and
    labels (N,); streams, merges, reduces over ranks.

    Args:
        anchors: points and delta, chosen on other images (`choose_anchors`) or known before; one
            for each class that will come.
        confidence: of the intervals.
        kwargs: torchmetrics.Metric's.

    The intervals are for V sampled views of an image, drawn independently of the choice of the
    anchors. The theory's views are all views, more of which can only come nearer: sigma of V views
    is a LOWER estimate of it. One float64 distance is kept of each image, so that a curve over
    delta comes from the same pass.

    >>> anchors = Anchors(torch.tensor([0, 1]), torch.tensor([[0.0], [1.0]]), delta=0.5)
    >>> measure = AnchorConcentration(anchors)
    >>> measure.update(torch.tensor([[[0.2], [0.9]], [[0.6], [0.4]], [[1.2], [5.0]]]), torch.tensor([0, 0, 1]))
    >>> result = measure.compute()
    >>> result.members.tolist(), result.sigma_k.tolist(), float(result.sigma), result.sigma_at(1.0)[0]
    ([1, 1], [0.5, 1.0], 0.5, 1.0)

    Raises:
        ValueError: views of another shape than the points or with another number of views than
            before, not finite or pixels outside [0, 1], labels without an anchor, an anchor's class
            without image, measures of other anchors merged, nothing measured.
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
        """Take V views of N more held-out images and their labels."""
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
        """The result; over all ranks under a process group."""
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
        # its lower tail is the whole of a class's risk
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
    """Images of each class within each delta / 2 of their point: (C, T)."""
    return torch.stack(
        [
            torch.searchsorted(distances[labels == label].sort().values, deltas / 2, right=True)
            for label in classes
        ]
    )


def _binomial(members: Tensor, n: Tensor, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Share of members, (C, T), and the lower and upper ends of its exact interval."""
    ends = [
        clopper_pearson(row, int(all_), confidence) for row, all_ in zip(members, n, strict=True)
    ]
    lower, upper = (torch.stack(part) for part in zip(*ends, strict=True))
    return members.double() / n[:, None], lower, upper


def _least(members: Tensor, n: Tensor, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """The least share over classes, (T,), and its interval; see AnchorResult for the corrections."""
    sigma_k, lower, _ = _binomial(members, n, confidence)
    upper = _binomial(members, n, 1 - (1 - confidence) / len(n))[2]
    return sigma_k.amin(0), lower.amin(0), upper.amin(0)


def nearest(
    views: Tensor, images: Tensor, points: Tensor, at: Tensor, budget: int
) -> tuple[Tensor, Tensor]:
    """Smallest distance of the views of each of some images to points[at], and the view, both like
    `images`; differences in float64.
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
