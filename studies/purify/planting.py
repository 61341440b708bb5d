"""The training images of a cell: classes chosen by the seed, and faults planted in their labels.

uniform     the label of another class, any of them alike
alphabet    the label of another character of the same alphabet: the part of a class's name
            before the slash
outliers    the image of a class that is not among the chosen ones
twins       a share of the classes is cut into two classes each; no label is wrong
tail        a share of the classes keeps a few images each; no label is wrong
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from marginlab import data
from marginlab.data import ImageSet
from marginlab.rng import Key
from marginlab.settings import SettingsError

WRONG = ("uniform", "alphabet", "outliers")  # labels are wrong
CONFLICT = ("twins", "tail")  # labels are right, and classes are at odds


@dataclass(frozen=True)
class Planting:
    """Everything that decides the training images of a cell."""

    data: str
    image_size: int
    classes: int
    noise: str
    share: float
    tail_images: int
    seed: int


class Planted(NamedTuple):
    """The training images of a cell, and the truth about them.

    Attributes:
        images: The images under the labels that a training sees.
        wrong: (N,) whether an image is not of its class.
        origin: (C,) the identity of each class.
        whole: (C,) whether a class is neither split nor cut short.
    """

    images: ImageSet
    wrong: Bool[Tensor, " N"]
    origin: Int64[Tensor, " C"]
    whole: Bool[Tensor, " C"]


def planted(asked: Planting) -> Planted:
    """Load the images, choose the classes, and plant the faults.

    Raises:
        SettingsError: The data have too few classes, or their names no alphabets.
    """
    every = data.load(asked.data, "train", size=asked.image_size)
    inside = _chosen(every, asked)
    if asked.noise == "outliers":
        found = data.plant_outliers(every, asked.share, outside=~inside, seed=asked.seed)
        return _of(found.images, found.planted)
    images = every.where(inside[every.labels], dense=True)
    if asked.noise == "uniform":
        noisy = data.flip_labels(images, asked.share, seed=asked.seed)
        return _of(noisy.images, noisy.flipped)
    if asked.noise == "alphabet":
        groups = alphabets(images.classes, asked.data)
        noisy = data.flip_labels(images, asked.share, seed=asked.seed, groups=groups)
        return _of(noisy.images, noisy.flipped)
    if asked.noise == "twins":
        split = data.split_identities(images, asked.share, seed=asked.seed)
        alone = torch.bincount(split.origin)[split.origin] == 1
        none = torch.zeros(len(images), dtype=torch.bool)
        return Planted(split.images, none, split.origin, alone)
    if asked.noise == "tail":
        C = len(images.classes)
        left = round((1 - asked.share) * C)
        cut = data.long_tail(images, left, asked.tail_images, seed=asked.seed)
        return _of(cut.images, torch.zeros(len(cut.images), dtype=torch.bool), cut.head)
    return _of(images, torch.zeros(len(images), dtype=torch.bool))


def alphabets(classes: tuple[str, ...], name: str) -> Int64[Tensor, " C"]:
    """Return the number of each class's alphabet; lonely characters share one with their neighbour.

    Raises:
        SettingsError: A name without an alphabet.
    """
    if odd := [one for one in classes if "/" not in one]:
        raise SettingsError(
            f"{name} has no alphabets: the class {odd[0]!r} is not named ALPHABET/CHARACTER. Plant "
            "uniform flips."
        )
    names = sorted({one.partition("/")[0] for one in classes})
    groups = torch.tensor([names.index(one.partition("/")[0]) for one in classes])
    lonely = torch.bincount(groups, minlength=len(names))[groups] == 1
    before = torch.where(groups > 0, groups - 1, groups + 1)
    return torch.where(lonely, before, groups)


def _chosen(images: ImageSet, asked: Planting) -> Bool[Tensor, " C"]:
    """Mark the classes inside: all, or so many as the seed draws."""
    C, n = len(images.classes), asked.classes
    if n > C or (asked.noise == "outliers" and n in (0, C)):
        raise SettingsError(
            f"{asked.data} has {C} classes, and {n} are to be inside with {asked.noise}. Choose "
            "fewer."
        )
    inside = torch.zeros(C, dtype=torch.bool)
    inside[Key(asked.seed).named("purify", "classes").permutation(C)[: n or C]] = True
    return inside


def _of(images: ImageSet, wrong: Tensor, whole: Tensor | None = None) -> Planted:
    C = len(images.classes)
    every = torch.ones(C, dtype=torch.bool)
    return Planted(images, wrong, torch.arange(C), every if whole is None else whole)
