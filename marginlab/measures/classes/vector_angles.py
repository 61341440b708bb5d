"""Angles between vectors in degrees: of two vectors, and of a class's to those of other classes.

    angle(a, b) = 2 atan2( ||a - b||, ||a + b|| )     for unit vectors a and b

Kahan 2006. It is exact near 0 and 180 degrees, where the arc cosine loses half its digits.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.kernels import BUDGET, top_k
from marginlab.measures.measure import prepared


def angle(a: Float[Tensor, "*S D"], b: Float[Tensor, "*S D"]) -> Float[Tensor, "*S"]:
    """Return the angle between vectors of length 1, in degrees.

    Args:
        a: Vectors (..., D) of length 1.
        b: Vectors of the same shape.

    Example:
        >>> east, north = torch.eye(2)
        >>> float(angle(east, north)), float(angle(east, -east))
        (90.0, 180.0)
    """
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1)))


def nearest_class_angles(
    vectors: Float[Tensor, "C K D"], *, budget: int = BUDGET
) -> Float[Tensor, " C"]:
    """Return the smallest angle of each class's vectors to another class's vectors, in degrees.

    The result is (C,) float64, and NaN for one class. Vectors are scaled to length 1. The C K by C
    K products are made in blocks.

    Args:
        vectors: K vectors of each of C classes.
        budget: Bytes of a block.

    Example:
        >>> nearest_class_angles(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]]))
        tensor([90., 90., 90.], dtype=torch.float64)
    """
    C, K, _ = vectors.shape
    if C < 2:
        return vectors.new_full((C,), torch.nan, dtype=torch.float64)
    units = prepared(vectors, True).flatten(0, 1)
    # at most K - 1 of the K nearest are of the same class
    found = top_k(units, units, k=K, exclude_self=True, budget=budget).indices
    own = torch.arange(C * K, device=units.device) // K
    first = (found // K != own[:, None]).int().argmax(1, keepdim=True)
    other = found.gather(1, first)[:, 0]
    return angle(units, units[other]).view(C, K).amin(1)
