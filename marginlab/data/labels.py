"""Labels of image sets: their check, places within classes, and the split of a source without one.

place(i) = number of images of i's class with a draw below i's
"""

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from marginlab.rng import Key


def check_labels(labels: Int[Tensor, "N"], classes: int, name: str) -> None:
    """Refuse labels outside [0, classes) and sets that hold one class only."""
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise ValueError(
            f"{name}: the label {wrong} is out of range: {classes} classes are numbered from 0 to "
            f"{classes - 1}. Renumber the labels."
        )
    if low == high:
        raise ValueError(
            f"{name}: all {len(labels)} images are of class {low}, and a set has at least two "
            "classes. Add another."
        )


def places(labels: Int[Tensor, "N"], key: Key) -> Int64[Tensor, "N"]:
    """Return the place of each image in a random order of its own class, from 0."""
    order = key.at(torch.arange(len(labels))).bits().argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    found = torch.empty_like(order)
    found[order] = torch.arange(len(labels)) - starts[labels[order]]
    return found


def in_split(labels: Int[Tensor, "N"], split: str) -> Bool[Tensor, "N"]:
    """Mark the images of `train` or `test` for a source without a split; one fifth is the test.

    The fifth of each class is rounded, but a class of two or more images always has some on each
    side. A class of one image is for training.
    """
    counts = torch.bincount(labels)
    fifth = torch.minimum(((counts + 2) // 5).clamp(min=1), counts - 1)
    test = places(labels, Key(0).named("split")) < fifth[labels]
    return test if split == "test" else ~test
