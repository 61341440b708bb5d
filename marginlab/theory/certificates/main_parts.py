"""Main parts C_k^0 of classes: sets of images with augmented distances of at most delta.

The images of a part are of one class. Parts are found in two ways:

    clique form:    a largest set with d_A(x, y) <= delta for all pairs
                    d_A(x, y) = min over views ||x_u - y_v||
    anchor form:    { x in C_k : min over views ||x_v - b_k|| <= delta / 2 }
                    for any fixed point b_k

Source: Huang et al. 2023, Definition 1, and for the anchor form one triangle inequality: ||x_u -
y_v|| <= ||x_u - b_k|| + ||b_k - y_v|| at the nearest views. d_A itself obeys no triangle
inequality, so "within delta/2 of an image of the class", in d_A, would not do. Views are pixels
(then Theorem 1 needs L delta) or features (then delta itself). An anchor decides image by image, so
on new images its share has an exact binomial interval.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from marginlab.kernels import BUDGET
from marginlab.kernels.minimum import minimum
from marginlab.measures.anchors.anchor_points import Anchors, anchor_distances
from marginlab.measures.graphs.cliques import largest_clique


@dataclass(frozen=True, eq=False)
class MainPart:
    """The images of all main parts, and the size of the parts.

    Attributes:
        members: Mask (N,) of the images.
        delta: The largest augmented distance within a part, at most the delta that was asked for.
    """

    members: Bool[Tensor, " N"]
    delta: float


def clique_part(
    views: Float[Tensor, "N V *P"],
    labels: Int[Tensor, " N"],
    delta: float,
    *,
    nodes: int = 100_000,
    budget: int = BUDGET,
) -> MainPart:
    """Return main parts with the most images, by the largest clique of each class.

    The search (`largest_clique`) has at most `nodes` steps. If they do not suffice, a part may be
    smaller.

    Raises:
        ValueError: delta is negative, or shapes do not fit.

    Example:
        >>> x = torch.tensor([[[0.0]], [[1.0]], [[2.0]], [[9.0]]])
        >>> clique_part(x, torch.tensor([0, 0, 0, 1]), delta=1.0)
        MainPart(members=tensor([False,  True,  True,  True]), delta=1.0)
    """
    _check(views, labels, delta)
    members, size = torch.zeros(len(labels), dtype=torch.bool, device=labels.device), 0.0
    for label in labels.unique():
        images = (labels == label).nonzero()[:, 0]
        distance = minimum(views[images].flatten(2), budget=budget).distance[0]
        part = largest_clique(distance <= delta, nodes=nodes).vertices
        members[images[part]] = True
        size = max(size, float(distance[part][:, part].max()))
    return MainPart(members, size)


def anchor_part(
    views: Float[Tensor, "N V *P"],
    labels: Int[Tensor, " N"],
    points: Float[Tensor, "C *P"],
    delta: float,
    *,
    budget: int = BUDGET,
) -> MainPart:
    """Return main parts around a fixed point of each class 0..C-1.

    Raises:
        ValueError: delta is negative, or shapes do not fit.

    Example:
        >>> x = torch.tensor([[[0.0]], [[1.0]], [[2.0]], [[9.0]]])
        >>> anchor_part(x, torch.tensor([0, 0, 0, 1]), torch.tensor([[1.5], [9.0]]), delta=1.0)
        MainPart(members=tensor([False,  True,  True,  True]), delta=1.0)
    """
    _check(views, labels, delta)
    classes = torch.arange(len(points), device=labels.device)
    members = (
        anchor_distances(views, labels, Anchors(classes, points, delta), budget=budget) <= delta / 2
    )
    return MainPart(members, _size(views, labels, members, budget))


def observed_stretch(
    views: Float[Tensor, "N V *P"],
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    members: Bool[Tensor, " N"],
    *,
    budget: int = BUDGET,
) -> float:
    """Return the largest || f(x_u) - f(y_v) || over pairs x, y of a main part.

    (u, v) are the nearest views of the pair in pixels. In Theorem 1, L delta bounds this distance.

    Example:
        >>> x = torch.tensor([[[0.0], [5.0]], [[1.0], [9.0]]])
        >>> f = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [0.0, 1.0]]])
        >>> round(observed_stretch(x, f, torch.tensor([0, 0]), torch.tensor([True, True])), 4)
        0.6325
    """
    if features.shape[:2] != views.shape[:2]:
        raise ValueError(
            f"Features (N, V, D) are of the same views as the pixels {tuple(views.shape)}, not "
            f"{tuple(features.shape)}."
        )
    parts = _parts(labels, members)
    return max(
        (
            float(nearest_views(views[images], features[images], budget=budget)[1].max())
            for images in parts
        ),
        default=0.0,
    )


def nearest_views(
    views: Float[Tensor, "N V *P"], features: Float[Tensor, "N V D"], *, budget: int = BUDGET
) -> tuple[Float[Tensor, "N N"], Float[Tensor, "N N"]]:
    """Return d_A of each pair of images of a class, and the distance of their features.

    The features are those of the two views that are nearest. Both matrices are float64, with 0 on
    the diagonal.

    Example:
        >>> x = torch.tensor([[[0.0], [5.0]], [[1.0], [9.0]]])
        >>> f = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [0.0, 1.0]]])
        >>> [round(float(matrix[0, 1]), 4) for matrix in nearest_views(x, f)]
        [1.0, 0.6325]
    """
    found = minimum(views.flatten(2), budget=budget)
    f, here = features.double(), torch.arange(len(features), device=features.device)
    rows = []
    for i in here.split(max(budget // (16 * f.shape[2] * max(len(f), 1)), 1)):
        u, v = found.views[0, i].long().unbind(-1)
        rows.append((f[i[:, None], u] - f[here, v]).norm(dim=-1))
    return found.distance[0], torch.cat(rows).fill_diagonal_(0)


def _parts(labels: Tensor, members: Tensor) -> list[Tensor]:
    """Return indices of the images of each main part of at least two."""
    parts = [((labels == label) & members).nonzero()[:, 0] for label in labels.unique()]
    return [images for images in parts if len(images) > 1]


def _size(views: Tensor, labels: Tensor, members: Tensor, budget: int) -> float:
    return max(
        (
            float(minimum(views[images].flatten(2), budget=budget).distance[0].max())
            for images in _parts(labels, members)
        ),
        default=0.0,
    )


def _check(views: Tensor, labels: Tensor, delta: float) -> None:
    if views.ndim < 3 or labels.shape != (len(views),):
        raise ValueError(
            f"Views are (N, V, ...) and labels (N,), not {tuple(views.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if not delta >= 0:
        raise ValueError(f"delta is a distance, not {delta}.")
