"""Controls for a concentration: groups unrelated to the classes, and distances between classes.

    control_g      =  images drawn from all classes, n_g of them
    between(k, l)  =  { d_A(x, y) : x in class k, y in class l },  k != l

Assumption (ii) of Huang et al. (ICLR 2023), section 2, is that views of different classes never
coincide: the smallest distance between classes is above 0. And if groups across the classes are as
concentrated as the classes, the concentration says nothing about the classes.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels import between
from marginlab.rng import Key


class Between(NamedTuple):
    """d_A over pairs of images of different classes, at every level.

    It holds the smallest distance, the median, and the smallest of each two classes (inf: k = l).
    There are `pairs` pairs. The median is over `sampled` of them, the same proportion of each two
    classes, drawn by a fixed seed if the byte budget does not hold all. The smallest distances are
    over all pairs. They are upper estimates, as every d_A over sampled views is.
    """

    smallest: Float[Tensor, " L"]
    median: Float[Tensor, " L"]
    by_class: Float[Tensor, "L C C"]
    pairs: int
    sampled: int


def null_groups(
    classes: Sequence[Int[Tensor, " _"]], labels: Sequence[int]
) -> tuple[Int[Tensor, " _"], ...]:
    """Return as many groups as classes, of the same sizes, that mix the classes.

    Together they hold each image once. Each group holds each class in proportion, as nearly as
    whole images allow. The group of an image is a function of its class and its place in the class.
    A group lists its images so that any first part of the list also has each class in proportion.

    Args:
        classes: The images of each class.
        labels: The names of the classes.

    Example:
        >>> null_groups((torch.arange(0, 2), torch.arange(2, 4)), (0, 1))
        (tensor([0, 3]), tensor([1, 2]))
    """
    sizes = [len(images) for images in classes]
    held, dealt = [0] * len(sizes), 0
    groups: list[list[Tensor]] = [[] for _ in sizes]
    for images, label in zip(classes, labels, strict=True):
        drawn = images[
            Key(0)
            .named("concentration", "control", label)
            .permutation(len(images))
            .to(images.device)
        ]
        dealt += len(images)
        shares = _shares(len(images), dealt, sizes, held)
        held = [before + share for before, share in zip(held, shares, strict=True)]
        for group, part in zip(groups, drawn.split(shares), strict=True):
            group.append(part)
    return tuple(
        torch.cat(group)[_evenly([len(part) for part in group]).to(group[0].device)]
        for group in groups
    )


def _shares(n: int, dealt: int, sizes: Sequence[int], held: Sequence[int]) -> list[int]:
    """Return how many images of a class of n each group gets.

    The shares bring each group nearest to its part of all images dealt, these included.
    """
    N = sum(sizes)
    # what each group lacks, in N-ths of an image; these add up to n images
    lacks = [size * dealt - N * has for size, has in zip(sizes, held, strict=True)]
    shares = [max(lack // N - 1, 0) for lack in lacks]
    # most lacking first
    gains = sorted(
        (N * j - lack, j, g)
        for g, lack in enumerate(lacks)
        for j in range(shares[g], shares[g] + 3)
    )
    for _, _, group in gains[: n - sum(shares)]:
        shares[group] += 1
    return shares


def _evenly(sizes: Sequence[int]) -> Tensor:
    """Return an order of concatenated parts of these sizes that spreads every part evenly."""
    return torch.cat(
        [(torch.arange(size, dtype=torch.float64) + 0.5) / size for size in sizes]
    ).argsort(stable=True)


def between_classes(
    views: Float[Tensor, "N V *P"],
    classes: Sequence[Int[Tensor, " _"]],
    labels: Sequence[int],
    levels: Sequence[int],
    *,
    most: int,
) -> Between:
    """Return the distances between images of different classes, computed two classes at a time.

    Args:
        views: Views of all images.
        classes: The images of each class.
        labels: The names of the classes.
        levels: Numbers of views.
        most: About the largest number of distances of each level that are held for the median.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 5.0])[:, None, None]
        >>> between_classes(x, (torch.arange(0, 2), torch.arange(2, 3)), (0, 1), (1,), most=9)[:2]
        (tensor([4.], dtype=torch.float64), tensor([4.5000], dtype=torch.float64))
    """
    C, flat = len(classes), views.flatten(2)
    sizes = {
        (a, b): len(classes[a]) * len(classes[b]) for a, b in itertools.combinations(range(C), 2)
    }
    pairs = sum(sizes.values())
    shares = (
        sizes
        if pairs <= most
        else {both: max(size * most // pairs, 1) for both, size in sizes.items()}
    )
    by_class = torch.full((len(levels), C, C), torch.inf, dtype=torch.float64, device=views.device)
    held = by_class.new_empty(len(levels), sum(shares.values()))
    start = 0
    for a in range(C - 1):
        own = flat[classes[a]]
        for b in range(a + 1, C):
            found = between(own, flat[classes[b]], levels=levels).distance.flatten(1)
            by_class[:, a, b] = by_class[:, b, a] = found.amin(1)
            share = shares[a, b]
            if share < sizes[a, b]:
                key = Key(0).named("concentration", "between", labels[a], labels[b])
                found = found[:, key.permutation(sizes[a, b])[:share].to(found.device)]
            held[:, start : start + share] = found
            start += share
    middle = [
        torch.stack([row.kthvalue(place).values for row in held])
        for place in ((start + 1) // 2, start // 2 + 1)
    ]
    return Between(by_class.amin((1, 2)), (middle[0] + middle[1]) / 2, by_class, pairs, start)
