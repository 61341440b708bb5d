"""Distances of sampled views: d_A of two images, and the spread of all views around their mean.

    d_A(x_1, x_2) = min over views of both || x_1' - x_2' ||
    spread        = sqrt( mean over all views x' of || x' - mean ||^2 )

Huang et al., ICLR 2023, eq. 1.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.kernels import BUDGET, minimum
from marginlab.kernels.minimum import Minimum


def augmented_distances(
    views: Float[Tensor, "N V *P"], levels: Sequence[int] | None = None, *, budget: int = BUDGET
) -> Minimum:
    """Return d_A over the sampled views for all pairs of images.

    `distance` is (L, N, N) and the realising `views` are (L, N, N, 2); see kernels.minimum. It is
    an UPPER estimate of the theory's d_A, which takes the minimum over all views. It falls with the
    number of views.

    Args:
        views: Pixels or features.
        levels: Increasing numbers of views; by default all views.
        budget: Bytes of a block.

    Raises:
        ValueError: Views have fewer than three dimensions.

    Example:
        >>> views = torch.tensor([[[[0.0]], [[0.5]]], [[[0.75]], [[1.0]]]])
        >>> augmented_distances(views).distance[0, 0, 1]
        tensor(0.2500, dtype=torch.float64)
    """
    if views.ndim < 3:
        raise ValueError(
            f"views have the shape (N, V, ...), not {tuple(views.shape)}: images, their views, and "
            "the numbers of a view."
        )
    return minimum(views.flatten(2), levels=levels, budget=budget)


def spread_of(views: Float[Tensor, "N V *P"]) -> float:
    """Return the root mean square distance of all views from their mean.

    It is computed in float64, one image at a time.
    """
    flat = views.flatten(2)
    total, squares = (
        flat.new_zeros(flat.shape[2], dtype=torch.float64),
        flat.new_zeros((), dtype=torch.float64),
    )
    for image in flat:
        total += image.double().sum(0)
    mean = total / (len(flat) * flat.shape[1])
    for image in flat:
        squares += (image.double() - mean).square().sum()
    return float((squares / (len(flat) * flat.shape[1])).sqrt())
