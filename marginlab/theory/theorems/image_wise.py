"""Corollaries image by image: all views of an image are read rightly, without delta and epsilon.

    near(x) = min over views || f(x_v) - c_k ||          concentration
    diam(x) = max over views || f(x_u) - f(x_v) ||       alignment
    h_k     = min over l != k of || c_k - c_l || / 2     divergence

    image-wise   near(x) + diam(x) < h_k
    prototypes   for some view v:  d_other(f(x_v)) - d_k(f(x_v)) > 2 diam(x)
                 with d_k the distance to the nearest of the points of class k, and d_other that
                 to the nearest point of any other class

Under either condition every view of x, the image among them, is nearest to a point of its class k.
The first implies the second where each class has the one point c_k. The form with fixed centers
(`fixed_centers`) implies the first, whatever its delta_k and epsilon_k. Ours: the quantities are
those of Huang et al. 2023, the conditions are derived in docs/derivations.md, 2.9 and 2.10.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.measures.views.alignment import alignment
from marginlab.statistics import to_nearest_other
from marginlab.statistics.distances import EXACTLY
from marginlab.theory.bound import SLACK


def image_wise(
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    centers: Float[Tensor, "C D"],
    diameters: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, " N"]:
    """Return the slack 2 (h_k - near(x) - diam(x)) of each image.

    All views of an image with a slack above `SLACK` are nearer to c_k than to any other center.

    Args:
        features: Features of the views, in float64.
        labels: The class of each image, 0..C-1.
        centers: c_k, any points that do not depend on these images.
        diameters: diam(x), where it is known.

    Example:
        >>> views = torch.tensor([[[0.9], [1.1]], [[0.6], [1.4]]]).double()
        >>> image_wise(views, torch.tensor([0, 0]), torch.tensor([[0.0], [4.0]])).round(decimals=6)
        tensor([1.8000, 1.2000], dtype=torch.float64)
    """
    diameters = _diameters(features) if diameters is None else diameters
    near = (features - centers[labels, None]).norm(dim=-1).amin(1)
    slack: Tensor = to_nearest_other(centers.double())[labels] - 2 * (near + diameters)
    return slack


def prototype_margin(
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    prototypes: Sequence[Float[Tensor, "_ D"]],
    diameters: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, " N"]:
    """Return max over views of d_other - d_k, less 2 diam(x), for each image.

    All views of an image with a margin above `SLACK` are nearest to a prototype of its class.

    Args:
        features: Features of the views, in float64.
        labels: The class of each image, 0..C-1.
        prototypes: The points of each class, at least one, which do not depend on these images.
        diameters: diam(x), where it is known.

    Example:
        >>> points = [torch.tensor([[0.0], [9.0]]), torch.tensor([[4.0]])]
        >>> views = torch.tensor([[[0.5], [0.75]], [[7.0], [6.0]]]).double()
        >>> prototype_margin(views, torch.tensor([0, 0]), points)
        tensor([ 2.5000, -1.0000], dtype=torch.float64)
    """
    diameters = _diameters(features) if diameters is None else diameters
    nearest = class_distances(features.flatten(0, 1), prototypes).view(*features.shape[:2], -1)
    own = nearest.gather(2, labels[:, None, None].expand(-1, features.shape[1], 1))[..., 0]
    classes = torch.arange(nearest.shape[2], device=labels.device)
    other = nearest.masked_fill(classes == labels[:, None, None], math.inf).amin(2)
    return (other - own).amax(1) - 2 * diameters


def class_distances(
    points: Float[Tensor, "M D"], prototypes: Sequence[Float[Tensor, "_ D"]]
) -> Float[Tensor, "M C"]:
    """Return the distance of each point from the nearest prototype of each class.

    Example:
        >>> one, two = torch.tensor([[0.0], [9.0]]), torch.tensor([[4.0]])
        >>> class_distances(torch.tensor([[8.0]]).double(), [one, two])
        tensor([[1., 4.]], dtype=torch.float64)
    """
    return torch.stack(
        [torch.cdist(points, own.double(), compute_mode=EXACTLY).amin(1) for own in prototypes], 1
    )


def read_by_prototypes(
    features: Float[Tensor, "N D"], prototypes: Sequence[Float[Tensor, "_ D"]]
) -> Int[Tensor, " N"]:
    """Return the class of the nearest prototype of each point; of equally near ones the smallest.

    Example:
        >>> points = [torch.tensor([[0.0], [9.0]]), torch.tensor([[4.0]])]
        >>> read_by_prototypes(torch.tensor([[8.0], [3.0]]).double(), points)
        tensor([0, 1])
    """
    return class_distances(features, prototypes).argmin(1)


def certain(slack: Float[Tensor, " N"]) -> Tensor:
    """Return where a strict inequality holds by more than `SLACK`.

    Example:
        >>> certain(torch.tensor([0.1, 0.0, -0.1]))
        tensor([ True, False, False])
    """
    return slack > SLACK


def _diameters(features: Tensor) -> Tensor:
    if features.shape[1] == 1:
        return features.new_zeros(len(features))
    return alignment(features, normalize=False)[1]
