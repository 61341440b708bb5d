"""Distances within a set of points."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# by differences: the form by products loses small distances of long vectors
EXACTLY = "donot_use_mm_for_euclid_dist"


def to_nearest_other(points: Float[Tensor, "C D"]) -> Float[Tensor, " C"]:
    """Return the distance of each point from the nearest other one; infinity if there is no other.

    Example:
        >>> to_nearest_other(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]]))
        tensor([5., 1., 1.])
    """
    apart: Tensor = torch.cdist(points, points, compute_mode=EXACTLY).fill_diagonal_(math.inf)
    return apart.amin(1)
