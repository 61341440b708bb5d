"""Anchors: one point for each class, and the distances of images' views to them.

distance(x) = min over views || x' - b_k ||     for an image x of class k
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels import BUDGET
from marginlab.measures.measure import check_labels


class Anchors(NamedTuple):
    """One point b_k for each of C classes, and the delta that the points were chosen for.

    `classes` increase. A point has the shape of a view.
    """

    classes: Int[Tensor, " C"]
    points: Float[Tensor, "C *P"]
    delta: float


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
    check_anchors(anchors)
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


def check_anchors(anchors: Anchors) -> None:
    """Raise a ValueError for anchors that do not fit each other, or are not finite."""
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
            f"Anchors of {len(classes)} classes are as many finite points, not {points.dtype} "
            f"{tuple(points.shape)} or not finite."
        )
    if not 0 <= delta < float("inf"):
        raise ValueError(f"delta is a distance, at least 0, not {delta}.")


def check_views(views: Tensor, labels: Tensor) -> None:
    """Raise a ValueError for views or labels of a wrong shape, or numbers out of their range."""
    if views.ndim < 3 or 0 in views.shape[1:] or not views.is_floating_point():
        raise ValueError(
            "views are floating-point numbers of shape (N, V, ...), at least one view, not "
            f"{views.dtype} {tuple(views.shape)}."
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
                f"views of shape {tuple(views.shape)} range from {low:g} to {high:g} (nan: not "
                f"finite), but {allowed}."
            )
