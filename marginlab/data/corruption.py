"""Planted faults of labels, whose truth is known: flips, outliers, split identities, a long tail.

    flip_labels        round(share N) images get the label of another class
    plant_outliers     round(share N) images make way for images of classes outside the set
    split_identities   round(share C) classes are cut into parts, each with a label of its own
    long_tail          all but `head` classes keep at most k images

Every draw is a counter (`marginlab.rng`) of the seed and of the image or the class. So the same
arguments plant the same faults, and a larger share plants those of a smaller one and others. Pixels
are shared with the set that is given, which stays as it is.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from marginlab.data.images import ImageSet
from marginlab.data.labels import places
from marginlab.rng import Key


class Flipped(NamedTuple):
    """Images some of whose labels are wrong.

    Attributes:
        images: The images under the labels that a training sees.
        truth: (N,) the labels before the flips.
        flipped: (N,) whether the label is wrong.
    """

    images: ImageSet
    truth: Int64[Tensor, " N"]
    flipped: Bool[Tensor, " N"]


class Outliers(NamedTuple):
    """Images some of which are of no class of the set.

    Attributes:
        images: The images under the labels that a training sees; its classes are those inside.
        rows: (N',) their numbers in the set that was given.
        planted: (N',) whether an image is of a class outside.
    """

    images: ImageSet
    rows: Int64[Tensor, " N"]
    planted: Bool[Tensor, " N"]


class SplitIdentities(NamedTuple):
    """Images some of whose classes are one identity.

    Attributes:
        images: The images under C' classes, of which the first C are the old ones.
        origin: (C',) the old class of each class: two classes of one origin are one identity.
    """

    images: ImageSet
    origin: Int64[Tensor, " C"]


class LongTail(NamedTuple):
    """Images most of whose classes are small.

    Attributes:
        images: The images that are left, under the same classes.
        rows: (N',) their numbers in the set that was given.
        head: (C,) whether a class kept all of its images.
    """

    images: ImageSet
    rows: Int64[Tensor, " N"]
    head: Bool[Tensor, " C"]


def flip_labels(
    images: ImageSet,
    share: float,
    *,
    seed: int = 0,
    groups: Int[Tensor, " C"] | None = None,
) -> Flipped:
    """Give a share of the images the label of another class, uniform among the others.

    Args:
        images: A set whose labels are taken as true.
        share: Share of the images, in [0, 1]; their number is round(share N).
        seed: Seed of the choice and of the new labels.
        groups: (C,) group of each class. A flipped label stays within its group, as a character of
            Omniglot within its alphabet. By default all classes are one group.

    Raises:
        ValueError: A share outside [0, 1], groups that are not one for each class, a group of one
            class with images, or flips that leave one class only.

    Example:
        >>> from marginlab.data import load
        >>> noisy = flip_labels(load("digits"), 0.4)
        >>> int(noisy.flipped.sum()), len(noisy.truth)
        (575, 1438)
        >>> torch.equal(noisy.flipped, noisy.images.labels != noisy.truth)
        True
    """
    _check_share(share)
    truth, C = images.labels.cpu(), len(images.classes)
    groups = torch.zeros(C, dtype=torch.int64) if groups is None else groups.cpu().long()
    if groups.shape != (C,):
        raise ValueError(f"Groups are ({C},), one for each class, not {tuple(groups.shape)}.")
    _, group, sizes = groups.unique(return_inverse=True, return_counts=True)
    lonely = (sizes[group] == 1) & (torch.bincount(truth, minlength=C) > 0)
    if bool(lonely.any()):
        name = images.classes[int(lonely.int().argmax())]
        raise ValueError(
            f"{images.name}: the class {name!r} is alone in its group, so its labels cannot be "
            "flipped within it. Join it to another group."
        )
    order = group.argsort(stable=True)  # classes, group by group
    starts = sizes.cumsum(0) - sizes
    place = torch.empty_like(order)
    place[order] = torch.arange(C) - starts[group[order]]
    key, numbers = Key(seed).named("flip_labels"), torch.arange(len(truth))
    flipped = torch.zeros(len(truth), dtype=torch.bool)
    chosen = key.at(numbers).bits().argsort(stable=True)[: round(share * len(truth))]
    flipped[chosen] = True
    old = truth[chosen]
    step = key.named("label").at(chosen).bits() % (sizes[group[old]] - 1)
    new = step + (step >= place[old])  # the places of a group without the old one
    labels = truth.clone()
    labels[chosen] = order[starts[group[old]] + new]
    return Flipped(images.with_labels(labels), truth, flipped)


def plant_outliers(
    images: ImageSet, share: float, *, outside: Bool[Tensor, " C"], seed: int = 0
) -> Outliers:
    """Take some classes out of a set, and put their images under labels of the other classes.

    A class keeps its number of images: each outlier replaces an image of the class.

    Args:
        images: A set whose labels are taken as true.
        share: Share of the images inside that are replaced, in [0, 1). Their number is rounded.
        outside: (C,) whether a class is taken out. The others are numbered anew, in their order.
        seed: Seed of the images that are replaced, and of the images that replace them.

    Raises:
        ValueError: A share outside [0, 1), a mask of another length, fewer than two classes inside,
            or fewer images outside than are asked for.

    Example:
        >>> from marginlab.data import load
        >>> noisy = plant_outliers(load("digits"), 0.2, outside=torch.arange(10) >= 6)
        >>> noisy.images.classes, int(noisy.planted.sum()), len(noisy.planted)
        (('0', '1', '2', '3', '4', '5'), 173, 867)
    """
    _check_share(share)
    labels, C = images.labels.cpu(), len(images.classes)
    outside = outside.cpu()
    if outside.shape != (C,) or int((~outside).sum()) < 2:
        raise ValueError(
            f"{images.name}: outside marks some of the {C} classes and leaves two or more, so it "
            f"is ({C},) with two False, not {tuple(outside.shape)} with {int((~outside).sum())}."
        )
    out = outside[labels]
    rows, others = (~out).nonzero()[:, 0], out.nonzero()[:, 0]
    n = round(share * len(rows))
    if n > len(others) or n == len(rows):
        raise ValueError(
            f"{images.name}: a share of {share} replaces {n} of {len(rows)} images, and there are "
            f"{len(others)} images of classes outside. Mark more classes, or lower the share."
        )
    number = (~outside).cumsum(0) - 1
    new = number[labels[rows]]
    key = Key(seed).named("plant_outliers")
    replaced = key.at(rows).bits().argsort(stable=True)[:n]
    rows[replaced] = others[key.named("image").at(others).bits().argsort(stable=True)[:n]]
    planted = torch.zeros(len(rows), dtype=torch.bool)
    planted[replaced] = True
    names = tuple(images.classes[c] for c in (~outside).nonzero()[:, 0].tolist())
    return Outliers(images.rows(rows).with_labels(new, names), rows, planted)


def split_identities(
    images: ImageSet, share: float, *, parts: int = 2, seed: int = 0
) -> SplitIdentities:
    """Cut a share of the classes into parts of nearly equal size, each under a label of its own.

    Args:
        images: A set whose classes are taken as identities.
        share: Share of the classes that have at least `parts` images, in [0, 1]. Their number is
            rounded.
        parts: Number of classes that one identity becomes.
        seed: Seed of the choice of classes and of images.

    Returns:
        The images and the old class of each new one. The first part of a class keeps its number and
        its name; the others follow the old classes, and are called "NAME (2)" and so on.

    Raises:
        ValueError: A share outside [0, 1], fewer than two parts, or a new name that is taken.

    Example:
        >>> from marginlab.data import load
        >>> split = split_identities(load("digits"), 0.2)
        >>> len(split.images.classes), split.origin[10:].unique().numel()
        (12, 2)
    """
    _check_share(share)
    if parts < 2:
        raise ValueError(f"An identity is split into 2 parts or more, not {parts}.")
    labels, C = images.labels.cpu(), len(images.classes)
    key = Key(seed).named("split_identities")
    order = key.named("class").permutation(C)
    able = order[torch.bincount(labels, minlength=C)[order] >= parts]
    chosen = able[: round(share * len(able))].sort().values
    number = torch.full((C,), -1)
    number[chosen] = torch.arange(len(chosen))
    part = places(labels, key) % parts
    moved = (number[labels] >= 0) & (part > 0)
    new = C + number[labels] * (parts - 1) + part - 1
    names = [f"{images.classes[c]} ({p})" for c in chosen.tolist() for p in range(2, parts + 1)]
    if taken := set(names) & set(images.classes):
        raise ValueError(f"{images.name} has a class {min(taken)!r} already. Rename it.")
    origin = torch.cat([torch.arange(C), chosen.repeat_interleave(parts - 1)])
    labels = torch.where(moved, new, labels)
    return SplitIdentities(images.with_labels(labels, (*images.classes, *names)), origin)


def long_tail(images: ImageSet, head: int, k: int, *, seed: int = 0) -> LongTail:
    """Keep all images of `head` classes, and at most k images of each other class.

    Args:
        images: The set.
        head: Number of classes that keep all of their images.
        k: Images that each other class keeps at most.
        seed: Seed of the choice of classes and of images.

    Raises:
        ValueError: A head outside 0 to C, or k below 1.

    Example:
        >>> from marginlab.data import load
        >>> tail = long_tail(load("digits"), head=2, k=5)
        >>> torch.bincount(tail.images.labels).sort().values[:8].tolist()
        [5, 5, 5, 5, 5, 5, 5, 5]
    """
    labels, C = images.labels.cpu(), len(images.classes)
    if not 0 <= head <= C or k < 1:
        raise ValueError(
            f"{images.name}: head is from 0 to {C} classes and k at least 1 image, not {head} and "
            f"{k}."
        )
    key = Key(seed).named("long_tail")
    whole = torch.zeros(C, dtype=torch.bool)
    whole[key.named("class").permutation(C)[:head]] = True
    rows = (whole[labels] | (places(labels, key) < k)).nonzero()[:, 0]
    return LongTail(images.rows(rows), rows, whole)


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"A share is in [0, 1], not {share}.")
