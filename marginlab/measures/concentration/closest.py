"""The pairs of different images of a class with the smallest d_A, and the views that realise it."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Pair(NamedTuple):
    """Two images of a class, the views u and v that realise their d_A, and d_A.

    The images are indices in order of arrival; i stands before j in `images`.
    """

    label: int
    i: int
    j: int
    u: int
    v: int
    distance: float


def closest_pairs(
    k: int,
    label: int,
    d_A: Float[Tensor, "n n"],
    views: Int[Tensor, "n n 2"],
    images: Int[Tensor, " n"],
) -> list[Pair]:
    """Return the k closest pairs of one class, closest first; fewer where fewer exist.

    Args:
        k: Number of pairs.
        label: Name of the class.
        d_A: The distances.
        views: The views that realise them.
        images: Indices of the images in order of arrival.
    """
    i, j = torch.triu_indices(len(images), len(images), 1, device=images.device)
    nearest, order = d_A[i, j].sort(stable=True)
    i, j = i[order[:k]], j[order[:k]]
    columns = images[i], images[j], *views[i, j].unbind(1), nearest[:k]
    return [
        Pair(label, *entries)
        for entries in zip(*(column.tolist() for column in columns), strict=True)
    ]
