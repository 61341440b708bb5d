"""Lists in npz files: pairs, people and paths, read under the same checks as images are.

images, labels, classes, and arrays of integers of any shape      a set with its protocol
columns of words and of integers, one entry for each image        an index of files
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from marginlab.data.arrays import (
    Chosen,
    _filled,
    _integers,
    _keys,
    _labels,
    _names,
    _one_each,
    _opened,
)
from marginlab.data.images import ImageSet
from marginlab.data.labels import check_labels
from marginlab.data.npy import read_header
from marginlab.files.untrusted import Entries


def read_all(
    path: Path, name: str, lists: Sequence[str], *, size: int, budget: int
) -> tuple[ImageSet, dict[str, Tensor]]:
    """Read all images of an npz file, with further arrays of integers.

    Args:
        path: The file, with `images`, `labels`, `classes` and these arrays.
        name: The spec, for messages.
        lists: The keys of the further arrays.
        size: Pixels that images are brought to; 0 keeps their own.
        budget: Bytes that the images may take in memory.

    Raises:
        TypeError: Labels or lists that are no integers, or class names that are no words.
        ValueError: A key that is not there, or an array that does not fit the others.

    """
    with _opened(path, name) as archive:
        _have(archive, ("images", "labels", "classes", *lists), path, name)
        _one_each(archive, "", name)
        labels = _labels(archive, "labels", name, budget)
        classes = _names(archive, "classes", name, budget)
        check_labels(labels, len(classes), name)
        found = {key: _integers(archive, key, name, budget) for key in lists}
        every = torch.ones_like(labels, dtype=torch.bool)
        chosen = Chosen("images", labels, every, classes)
        return _filled(archive, chosen, name, size, budget), found


def read_columns(
    path: Path, name: str, needed: Sequence[str], optional: Sequence[str], *, budget: int
) -> dict[str, tuple[str, ...]]:
    """Read columns of words, or of integers, which come as their digits.

    Args:
        path: The npz file.
        name: The spec, for messages.
        needed: Keys of arrays of shape (N,) that the file has.
        optional: Keys of more of them, left out where the file has none.
        budget: Bytes that the words may take in memory.

    Raises:
        TypeError: An array of neither words nor integers, or of another shape.
        ValueError: No whole npz file, a key that is not there, or columns of different lengths.

    """
    found: dict[str, tuple[str, ...]] = {}
    with _opened(path, name) as archive:
        _have(archive, needed, path, name)
        there = _keys(archive)
        for key in (*needed, *(key for key in optional if key in there)):
            if read_header(archive, key).dtype.kind in "iu":
                numbers = _integers(archive, key, name, budget)
                found[key] = tuple(str(number) for number in numbers.flatten().tolist())
            else:
                found[key] = _names(archive, key, name, budget)
            if len(found[key]) != len(found[needed[0]]):
                told = f"{path} has {len(found[needed[0]])} {needed[0]}"
                raise ValueError(f"{name}: {told} and {len(found[key])} {key}. Give one for each.")
    return found


def _have(archive: Entries, needed: Sequence[str], path: Path, name: str) -> None:
    keys = _keys(archive)
    for key in needed:
        if key not in keys:
            there = ", ".join(keys) or "none"
            raise ValueError(f"{name}: {path} has no {key!r}; its keys are: {there}.")
