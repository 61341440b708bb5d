"""Classes that are one identity: pairs whose dominant centers are near, and their union.

    angle(c, d) = acos(W_c . W_d / (|W_c| |W_d|)) < max_angle

W_c is the dominant sub-center of class c. Cosines are computed for a block of classes at a time, so
memory is that of a block and of the pairs that are found. A union follows pairs on: if a is b and b
is c, all three become one class.

Source: An et al. 2022 (Partial FC, CVPR) names such inter-class conflict as a fault of large sets.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from marginlab.data import ImageSet
from marginlab.statistics import unit_vectors

BUDGET = 2**26  # bytes of a block of cosines


class Conflicts(NamedTuple):
    """Pairs of classes that may be one identity, the nearest pair first.

    Attributes:
        first: (M,) the smaller class number of each pair.
        second: (M,) the larger one.
        angle: (M,) angle in degrees between their centers.
    """

    first: Int64[Tensor, " M"]
    second: Int64[Tensor, " M"]
    angle: Float64[Tensor, " M"]


class PairsFound(NamedTuple):
    """Precision and recall of pairs that were found; NaN where there are no pairs to count."""

    precision: float
    recall: float


def conflicts(
    centers: Float[Tensor, "C D"], *, max_angle: float, budget: int = BUDGET
) -> Conflicts:
    """Find the pairs of classes whose centers are nearer than an angle.

    Args:
        centers: (C, D) the dominant center of each class, of any length.
        max_angle: Largest angle in degrees, which is not reached.
        budget: Bytes of a block of cosines.

    Raises:
        ValueError: Centers that are not finite, an angle outside (0, 180), or a budget below 1.

    Example:
        >>> centers = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
        >>> found = conflicts(centers, max_angle=30)
        >>> found.first.tolist(), found.second.tolist()
        ([0], [2])
    """
    if not 0 < max_angle < 180 or budget < 1:
        raise ValueError(
            f"max_angle is between 0 and 180 degrees and budget at least 1 byte, not {max_angle} "
            f"and {budget}."
        )
    if not bool(centers.isfinite().all()):
        wrong = int((~centers.isfinite()).any(1).sum())
        raise ValueError(
            f"Centers are finite, and {wrong} of these {len(centers)} are not. The training that "
            "made them failed: train again with a lower rate."
        )
    directions = unit_vectors(centers.detach().double())
    C, limit = len(directions), math.cos(math.radians(max_angle))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows in torch.arange(C, device=centers.device).split(max(1, budget // (8 * max(C, 1)))):
        later = directions[int(rows[0]) :]
        cosines = directions[rows] @ later.T
        near = (cosines > limit).triu(1).nonzero()
        found = cosines[near[:, 0], near[:, 1]]
        parts.append((rows[near[:, 0]], near[:, 1] + rows[0], found))
    first, second, cosine = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    order = cosine.argsort(descending=True, stable=True)
    angle = torch.rad2deg(cosine[order].clamp(-1, 1).acos())
    return Conflicts(first[order], second[order], angle)


def unions(found: Conflicts, num_classes: int) -> Int64[Tensor, " C"]:
    """Return the smallest class of the union that each class is in.

    Raises:
        ValueError: A pair of a class that does not exist.

    Example:
        >>> pairs = Conflicts(torch.tensor([0, 2]), torch.tensor([2, 3]), torch.zeros(2).double())
        >>> unions(pairs, 5).tolist()
        [0, 1, 0, 0, 4]
    """
    pairs = torch.stack((found.first, found.second))
    if pairs.numel() and (int(pairs.min()) < 0 or int(pairs.max()) >= num_classes):
        raise ValueError(
            f"Classes of pairs are from 0 to {num_classes - 1}, not {int(pairs.min())} to "
            f"{int(pairs.max())}. Give the pairs of these classes."
        )
    edges = (np.ones(pairs.shape[1]), tuple(pairs.numpy()))
    graph = coo_array(edges, shape=(num_classes, num_classes))
    _, member = connected_components(graph, directed=False)
    number = torch.from_numpy(member).long()
    smallest = torch.full((num_classes,), num_classes)
    smallest.scatter_reduce_(0, number, torch.arange(num_classes), "amin")
    return smallest[number]


def merged(images: ImageSet, found: Conflicts) -> ImageSet:
    """Join the classes that are one identity, under the name of the first, numbered anew.

    Args:
        images: The images of the classes. The set stays as it is.
        found: The pairs.

    Raises:
        ValueError: A pair of a class that does not exist, or only one class is left.

    Example:
        >>> from marginlab.data import load
        >>> digits = load("digits")
        >>> pairs = Conflicts(torch.tensor([0]), torch.tensor([9]), torch.zeros(1).double())
        >>> joined = merged(digits, pairs)
        >>> joined.classes, len(joined) == len(digits)
        (('0', '1', '2', '3', '4', '5', '6', '7', '8'), True)
    """
    left, number = unions(found, len(images.classes)).unique(return_inverse=True)
    names = tuple(images.classes[c] for c in left.tolist())
    return images.with_labels(number[images.labels.cpu()], names)


def pairs_found(found: Conflicts, origin: Int64[Tensor, " C"]) -> PairsFound:
    """Compare pairs with planted splits.

    Args:
        found: The pairs.
        origin: (C,) the identity of each class, as `marginlab.data.split_identities` gives it.

    Example:
        >>> pairs = Conflicts(torch.tensor([0, 1]), torch.tensor([2, 2]), torch.zeros(2).double())
        >>> pairs_found(pairs, torch.tensor([0, 1, 0]))
        PairsFound(precision=0.5, recall=1.0)
    """
    right = int((origin[found.first] == origin[found.second]).sum())
    sizes = torch.bincount(origin)
    there = int((sizes * (sizes - 1) // 2).sum())
    precision = right / len(found.first) if len(found.first) else math.nan
    return PairsFound(precision, right / there if there else math.nan)
