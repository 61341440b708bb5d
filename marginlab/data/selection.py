"""A choice of classes and images by the number of images a class has, written behind a spec.

    SPEC?min_per_class=A&max_per_class=B

    kept classes = those with at least A images to train on, renumbered in their old order
    kept images  = at most B of each class and split

The kept images are the same whenever they are loaded, and a larger B keeps a superset of them.
Train and test keep the same classes. The classes of `unseen` are its own and are counted in it.
"""

from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

import torch
from jaxtyping import Int64
from torch import Tensor

from marginlab.data.images import ImageSet
from marginlab.data.labels import places
from marginlab.rng import Key
from marginlab.settings import SettingsError, nearest


class Selection(NamedTuple):
    """The least and the largest number of images of a class; 0 sets no limit."""

    min_per_class: int = 0
    max_per_class: int = 0

    def of(self, images: ImageSet, counted: Int64[Tensor, " C"]) -> ImageSet:
        """Select from a split.

        Args:
            images: The split, of C classes.
            counted: The images to train on of each class.

        Raises:
            SettingsError: Fewer than two classes are left.

        """
        kept = counted >= self.min_per_class
        if int(kept.sum()) < 2:
            raise SettingsError(
                f"{images.name}: min_per_class={self.min_per_class} leaves {int(kept.sum())} "
                f"classes; the second largest has {int(counted.sort().values[-2])} images. Ask for "
                "fewer."
            )
        labels = images.labels.cpu()
        mask = kept[labels]
        if self.max_per_class:
            mask &= places(labels, Key(0).named("per_class")) < self.max_per_class
        classes = tuple(images.classes[k] for k in kept.nonzero()[:, 0].tolist())
        number = kept.cumsum(0) - 1
        some = images.where(mask)
        return some.with_labels(number[some.labels], classes)


def selection_of(spec: str) -> tuple[str, Selection]:
    """Split a spec into the source and the choice behind it.

    Raises:
        SettingsError: An unknown option, or a number that makes no sense.

    Example:
        >>> selection_of("folder:faces?min_per_class=20")
        ('folder:faces', Selection(min_per_class=20, max_per_class=0))
    """
    source, mark, options = spec.rpartition("?")
    _, colon, path = spec.partition(":")
    if not mark or (colon and Path(path).expanduser().exists()):  # a path may have one too
        return spec, Selection()
    try:
        asked = dict(parse_qsl(options, keep_blank_values=True, strict_parsing=True))
    except ValueError as error:
        raise SettingsError(
            f"{spec}: {options!r} is no choice of images. Write it as {source}?min_per_class=20."
        ) from error
    for key, value in asked.items():
        if key not in Selection._fields:
            raise SettingsError(f"{spec}: no option {key!r}: {nearest(key, Selection._fields)}")
        if not (value.isascii() and value.isdigit() and 0 < int(value[:10]) < 2**31):
            raise SettingsError(f"{spec}: {key} is a whole number above 0, not {value!r}.")
    return source, Selection(**{key: int(value) for key, value in asked.items()})


def counts(images: ImageSet) -> Int64[Tensor, " C"]:
    """Count the images of each class."""
    return torch.bincount(images.labels.cpu(), minlength=len(images.classes))
