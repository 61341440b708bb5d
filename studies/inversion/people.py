"""The parts of a data set: who is trained by whom, whose images are targets, and what is public.

    own      one half of each identity's images: the inverted network is trained on it
    judge    the other half: the judge is trained on it
    known    targets of the open set, and the gallery that they are looked up in
    public   images of identities that are neither trained on nor targets

Identities are numbered by how many images they have, the most first. Where the data have a split
`unseen`, `known` is every other identity of it, and `public` the others: no network has seen one of
them. LFW has too few images of too few people for that: there `known` is the judge's half, which
the inverted network has not seen, and `public` are the people of two or more images who have fewer
than the trained ones.
"""

import csv
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from marginlab import data
from marginlab.data import ImageSet
from marginlab.rng import Key
from marginlab.settings import SettingsError
from marginlab.statistics import index_within_group


class Parts(NamedTuple):
    """The four parts; labels of own and judge are the same identities."""

    own: ImageSet
    judge: ImageSet
    known: ImageSet
    public: ImageSet
    unseen: bool


def parts_of(name: str, size: int, least: int, per_unseen: int, most: int = 0) -> Parts:
    """Split a data set.

    Args:
        name: "lfw", or a name of `marginlab.data.load` with a split `unseen`.
        size: Side of the images.
        least: Fewest images of a trained identity.
        per_unseen: Images that are taken of each unseen identity; 0 takes all.
        most: Trained identities at most, those with most images; 0 takes all.
    """
    if name == "lfw":
        everyone = data.lfw_protocol(size=size).images
    else:
        train, test = (data.load(name, split, size=size) for split in ("train", "test"))
        everyone = _together(train, test)
    counts = torch.bincount(everyone.labels, minlength=len(everyone.classes))
    trained = _by_number(everyone.where(counts[everyone.labels] >= least, dense=True))
    trained = trained.where(trained.labels < (most or len(trained.classes)), dense=True)
    half = index_within_group(trained.labels) % 2
    own, judge = trained.where(half == 0), trained.where(half == 1)
    if name == "lfw":
        few = (counts >= 2) & (counts < least)
        if int(few.sum()) < 2:
            raise SettingsError(f"least = {least} leaves nobody of 2 to {least - 1} images.")
        public = everyone.where(few[everyone.labels], dense=True)
        return Parts(own, judge, judge, public, unseen=False)
    unseen = data.load(name, "unseen", size=size)
    unseen = unseen.where(index_within_group(unseen.labels) < (per_unseen or len(unseen)))
    even = unseen.labels % 2 == 0
    known, public = (unseen.where(mask, dense=True) for mask in (even, ~even))
    return Parts(own, judge, known, public, unseen=True)


def _together(one: ImageSet, other: ImageSet) -> ImageSet:
    """Join two splits of the same classes, sorted by class."""
    labels = torch.cat([one.labels, other.labels])
    order = labels.argsort(stable=True)
    return replace(one, images=torch.cat([one.images, other.images])[order], labels=labels[order])


def _by_number(images: ImageSet) -> ImageSet:
    """Number identities anew, those with most images first; sort images by them."""
    order = torch.bincount(images.labels).argsort(descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    classes = tuple(images.classes[k] for k in order.tolist())
    sort = place[images.labels].argsort(stable=True)
    return images.with_labels(place[images.labels], classes).rows(sort)


def chosen(pool: int, n: int, seed: int) -> Tensor:
    """Draw n identities of a pool; neighbouring seeds take others, as long as there are any."""
    order = Key(0).named("targets").permutation(pool)
    return order[(torch.arange(n) + seed * n) % pool]


def one_image(labels: Tensor, identities: Tensor, seed: int) -> Tensor:
    """Return the number of one image of each identity, drawn by the seed."""
    first, counts = _runs(labels)
    draw = Key(seed).named("image").at(identities).uniform()
    return first[identities] + (draw * counts[identities]).long()


def next_image(labels: Tensor, taken: Tensor) -> Tensor:
    """Return another image of the same identity for each image; its own where there is none."""
    first, counts = _runs(labels)
    whose = labels[taken]
    return first[whose] + (taken - first[whose] + 1) % counts[whose]


def _runs(labels: Tensor) -> tuple[Tensor, Tensor]:
    counts = torch.bincount(labels)
    return counts.cumsum(0) - counts, counts


def attributes_of(images: ImageSet, file: str) -> list[str]:
    """Name the attribute of each image; nothing where there are none.

    Args:
        images: Whose attributes.
        file: A csv with the columns class and attribute. Without it the attribute is what stands
            before the slash in the name of a class, such as the alphabet of a character.
    """
    if file:
        with Path(file).open(newline="", encoding="utf-8") as stream:
            told = {row["class"]: row["attribute"] for row in csv.DictReader(stream)}
        if missing := [name for name in images.classes if name not in told]:
            raise SettingsError(f"{file} names no attribute of {missing[0]!r}.")
    else:
        told = {name: name.split("/")[0] for name in images.classes if "/" in name}
        if len(told) < len(images.classes):
            return []
    return [told[images.classes[k]] for k in images.labels.tolist()]
