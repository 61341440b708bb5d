"""Image sets from npz files, checked from headers and labels before the first pixel is read.

    PATH.npz holds one of
        images, labels [, classes]
        train_images, train_labels, test_images, test_labels [, classes]
        PART_images, PART_labels, PART_classes      a part with classes of its own

    images: N x H x W x 3, N x 3 x H x W, or N x H x W in grey; uint8, or floats in [0, 1], which
        become round(255 x)

Nothing is unpickled. Every array is read as a stream of blocks, and images are cut to their size
as they are read. Memory holds the result and one block, whatever the file's size. The sizes that
a file claims are first compared with its length, and every array's checksum is verified as the
array is read.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from marginlab.data.images import ImageSet
from marginlab.data.labels import check_labels, in_split
from marginlab.data.npy import Header, read_blocks, read_header
from marginlab.data.pixels import afford, afford_beside, afford_one, resized
from marginlab.files.untrusted import DamagedError, Entries

_BLOCK = 32 * 2**20  # bytes
_NAME = 64  # bytes of a string in Python beside its characters


def read_npz(path: Path, split: str, name: str, *, size: int, budget: int) -> ImageSet:
    """Read a split of an npz file; without splits in it, one fifth of each class is the test."""
    with _opened(path, name) as archive:
        return _filled(archive, _of_split(archive, split, name, budget), name, size, budget)


def read_part(path: Path, part: str, name: str, *, size: int, budget: int) -> ImageSet:
    """Read all images of a part of an npz file that numbers and names its own classes."""
    with _opened(path, name) as archive:
        return _filled(archive, _of_part(archive, part, path, name, budget), name, size, budget)


class Chosen(NamedTuple):
    """Images of a stored array that a split holds.

    It has the key of the array, the labels of the chosen images, a mask over all images of the
    array, and the names of the classes.
    """

    key: str
    labels: Tensor
    mask: Tensor
    classes: tuple[str, ...]


class NpzStream:
    """A split of an npz file that is read a block at a time, from its first image to its last.

    Args:
        path: The npz file.
        split: `train`, `test` or `unseen`.
        name: The spec, for messages.
        size: Pixels that images are brought to; 0 keeps their own.
        budget: Bytes that labels and names, and one image, may take.

    Raises:
        FileNotFoundError, TypeError, ValueError: As `load`; all but the pixels is checked at once.
    """

    def __init__(self, path: Path, split: str, name: str, *, size: int, budget: int):
        self.path, self.name, self.size, self.budget = path, name, size, budget
        with _opened(path, name) as archive:
            if split == "unseen":
                self.chosen = _of_part(archive, split, path, name, budget)
            else:
                self.chosen = _of_split(archive, split, name, budget)
            stored = _pixels(archive, self.chosen.key, name)
        whole = stored.height, stored.width
        afford_one(*whole, size, budget, f"{name}: each image")
        self.shape = (len(self.chosen.labels), 3, *((size, size) if size else whole))

    def parts(self) -> Iterator[UInt8[Tensor, "M 3 H W"]]:
        """Yield the images in their order, some at a time."""
        with _opened(self.path, self.name) as archive:
            yield from _parts(archive, self.chosen, self.name, self.size, self.budget)


def has_part(path: Path, part: str) -> bool:
    """Return whether an npz file holds the images of this part; False for other files."""
    with contextlib.suppress(DamagedError, OSError), Entries(path) as archive:
        return f"{part}_images.npy" in archive.names
    return False


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[Entries]:
    if not path.exists():
        remedy = f"Write one with numpy.savez({str(path)!r}, images=..., labels=...)."
        raise FileNotFoundError(f"{name}: there is no file {path}. {remedy}")
    try:
        with Entries(path) as archive:
            yield archive
    except DamagedError as error:
        said = f"{name}: {path} is no whole npz file: {error}. Write it again with numpy.savez."
        raise ValueError(said) from error
    except OSError as error:
        said = f"{name}: {path} cannot be read: {error}. Give an npz file."
        raise ValueError(said) from error


def _keys(archive: Entries) -> list[str]:
    return [key.removesuffix(".npy") for key in archive.names]


def _of_part(archive: Entries, part: str, path: Path, name: str, budget: int) -> Chosen:
    keys = _keys(archive)
    for key in (f"{part}_images", f"{part}_labels", f"{part}_classes"):
        if key not in keys:
            raise ValueError(
                f"{name}: {path} has no {key!r}; its keys are: {', '.join(keys) or 'none'}."
            )
    _one_each(archive, part, name)
    labels = _labels(archive, f"{part}_labels", name, budget)
    classes = _names(archive, f"{part}_classes", name, budget)
    check_labels(labels, len(classes), name)
    return Chosen(f"{part}_images", labels, torch.ones_like(labels, dtype=torch.bool), classes)


def _of_split(archive: Entries, split: str, name: str, budget: int) -> Chosen:
    keys = _keys(archive)
    own = any(f"{side}_images" in keys for side in ("train", "test"))
    prefix = f"{split}_" if own else ""
    for key in (f"{prefix}images", f"{prefix}labels"):
        if key not in keys:
            raise ValueError(
                f"{name} has no {key!r}; its keys are: {', '.join(keys) or 'none'}. Save `images` "
                "and `labels`, or both with `train_` and with `test_` before them."
            )
    _one_each(archive, split if own else "", name)
    # classes are numbered over both splits
    sides: tuple[str, ...] = ("train_labels", "test_labels") if own else ("labels",)
    every = {key: _labels(archive, key, name, budget) for key in sides if key in keys}
    labels = every[f"{prefix}labels"]
    numbers = [found for found in every.values() if len(found)]
    classes = _classes(archive, keys, numbers, name, budget)
    check_labels(labels, len(classes), name)
    chosen = torch.ones_like(labels, dtype=torch.bool) if own else in_split(labels, split)
    if not bool(chosen.any()):
        raise ValueError(
            f"{name}: no class has two images, so none is left for the {split} split. Save "
            f"{split}_images and {split}_labels."
        )
    check_labels(labels[chosen], len(classes), f"{name} ({split})")
    return Chosen(f"{prefix}images", labels[chosen], chosen, classes)


class _Stored(NamedTuple):
    """Header, order of axes, height and width of stored images."""

    header: Header
    layout: str
    height: int
    width: int


def _pixels(archive: Entries, key: str, name: str) -> _Stored:
    """Look at stored images; refuse other arrays."""
    header = read_header(archive, key)
    if header.dtype != np.uint8 and header.dtype.kind != "f":
        raise TypeError(
            f"{name}: {key} are of dtype {header.dtype}. Save bytes as uint8, or floats in [0, 1]."
        )
    layout = _layout(header.shape, name)
    height, width = (header.shape[layout.index(axis)] for axis in "HW")
    return _Stored(header, layout, height, width)


def _one_each(archive: Entries, part: str, name: str) -> None:
    """Refuse a part whose headers give different numbers of images and labels."""
    prefix = f"{part}_" if part else ""
    shape = _pixels(archive, f"{prefix}images", name).header.shape
    labels = read_header(archive, f"{prefix}labels")
    _is_of_labels(labels, f"{prefix}labels", name)
    if labels.shape != shape[:1]:
        raise ValueError(
            f"{name}: {shape[0]} images of shape {shape} and {labels.shape[0]} labels. One label "
            "for each of at least two images."
        )


def _filled(archive: Entries, chosen: Chosen, name: str, size: int, budget: int) -> ImageSet:
    """Read the chosen images of an array, block by block."""
    stored = _pixels(archive, chosen.key, name)
    height, width = (size, size) if size else (stored.height, stored.width)
    afford(len(chosen.labels), height, width, budget, name)
    images = torch.empty(len(chosen.labels), 3, height, width, dtype=torch.uint8)
    filled = 0
    for part in _parts(archive, chosen, name, size, budget):
        images[filled : filled + len(part)] = part
        filled += len(part)
    return ImageSet(images, chosen.labels, chosen.classes, name)


def _parts(archive: Entries, chosen: Chosen, name: str, size: int, budget: int) -> Iterator[Tensor]:
    """Yield the chosen images of an array, a block of the file at a time."""
    header, layout, *whole = _pixels(archive, chosen.key, name)
    height, width = (size, size) if size else whole
    afford_one(whole[0], whole[1], size, budget, f"{name}: each image")
    if header.fortran:  # its images are not contiguous in the file
        told = f"{name}: {chosen.key}, stored in Fortran's order,"
        afford_beside(header.bytes, budget, told, "Save numpy.ascontiguousarray of them.")
    one = max(header.bytes // header.shape[0], 3 * height * width)
    start = 0
    for block in read_blocks(archive, chosen.key, max(_BLOCK // one, 1)):
        kept = chosen.mask[start : start + len(block)]
        if bool(kept.any()):
            yield resized(_bytes(block, layout, name, start)[kept], size)
        start += len(block)


def _layout(shape: tuple[int, ...], name: str) -> str:
    if 0 in shape:
        raise ValueError(f"{name}: there are no images, but an array of shape {shape}.")
    if len(shape) == 4 and shape[3] == 3:
        return "NHWC"
    if len(shape) == 4 and shape[1] == 3:
        return "NCHW"
    if len(shape) == 3:
        return "NHW"
    raise ValueError(
        f"{name}: images of shape {shape}. Save them as N x H x W x 3, N x 3 x H x W, or N x H x W "
        "in grey."
    )


def _is_of_labels(header: Header, key: str, name: str) -> None:
    shape, _, dtype = header
    if dtype.kind not in "iu":
        raise TypeError(
            f"{name}: {key} are of dtype {dtype}. Labels are integers from 0: numpy.unique(labels, "
            "return_inverse=True)[1] makes them."
        )
    if len(shape) != 1:
        raise ValueError(
            f"{name}: {key} are of shape {shape}. Labels are one integer for each image, of shape "
            "(N,)."
        )


def _integers(archive: Entries, key: str, name: str, budget: int) -> Tensor:
    """Read an array of integers of any shape as int64."""
    header = read_header(archive, key)
    if header.dtype.kind not in "iu":
        raise TypeError(f"{name}: {key} are of dtype {header.dtype}. Save integers.")
    needed = 8 * math.prod(header.shape)
    told = f"{name}: {key} of shape {header.shape}"
    afford_beside(needed, budget, told, "Use fewer images.")
    found = torch.empty(header.shape, dtype=torch.int64)
    start = 0
    for block in read_blocks(archive, key, max(_BLOCK * header.shape[0] // max(needed, 1), 1)):
        if block.size and (wrong := int(block.max())) >= 2**31:
            told = f"{name}: the label {wrong} in {key} is out of range"
            raise ValueError(f"{told}. Number the classes from 0.")
        found[start : start + len(block)] = torch.from_numpy(block.astype(np.int64))
        start += len(block)
    return found


def _labels(archive: Entries, key: str, name: str, budget: int) -> Tensor:
    _is_of_labels(read_header(archive, key), key, name)
    return _integers(archive, key, name, budget)


def _classes(
    archive: Entries, keys: list[str], labels: list[Tensor], name: str, budget: int
) -> tuple[str, ...]:
    if "classes" in keys:
        return _names(archive, "classes", name, budget)
    highest, n = max(int(found.max()) for found in labels), sum(len(found) for found in labels)
    if highest >= max(n, 2):
        raise ValueError(
            f"{name}: the label {highest} is out of range for {n} images. Number the classes from "
            "0, or save their names as `classes`."
        )
    return tuple(str(number) for number in range(highest + 1))


def _names(archive: Entries, key: str, name: str, budget: int) -> tuple[str, ...]:
    shape, _, dtype = read_header(archive, key)
    width = dtype.itemsize  # numpy stores the longest name's length for each of them
    if dtype.kind not in "US" or len(shape) != 1 or not width:
        told = f"{name}: {key} are of dtype {dtype} and shape {shape}"
        raise TypeError(f"{told}. Save them as numpy.array([...], dtype=str), or leave them out.")
    step = max(_BLOCK // width, 1)
    told = f"{name}: {shape[0]:,} names of up to {width:,} bytes in {key}"
    afford_beside(shape[0] * _NAME + step * width, budget, told, "Shorten them.")
    found: list[str] = []
    held = shape[0] * _NAME
    for block in read_blocks(archive, key, step):
        some = [_text(block[k : k + 1], len(found) + k, key, name) for k in range(len(block))]
        held += sum(len(text.encode()) for text in some)
        afford_beside(held, budget, told, "Shorten them.")
        found += some
    return tuple(found)


def _text(one: NDArray[Any], number: int, key: str, name: str) -> str:
    """Read one name, which numpy stores as bytes or as code points."""
    try:
        text = str(one.item().decode() if one.dtype.kind == "S" else one.item())
        text.encode()  # halves of a surrogate pair have no bytes
    except (UnicodeError, ValueError, SystemError) as error:  # the last of numbers beyond unicode
        raise ValueError(
            f"{name}: class {number} in {key}, {one.tobytes()[:40]!r}, is no text in UTF-8. Decode "
            f"the names: numpy.char.decode({key}, 'latin-1'), or what they were written in."
        ) from error
    return text


def _bytes(block: NDArray[Any], layout: str, name: str, start: int) -> Tensor:
    """Convert a block of any layout and dtype to (N, 3, H, W) uint8."""
    if block.dtype != np.uint8:
        with np.errstate(invalid="ignore"):
            wrong = ~((block >= 0) & (block <= 1))  # true for nan as well
        if wrong.any():
            place = np.unravel_index(int(wrong.argmax()), wrong.shape)
            raise ValueError(
                f"{name}: image {start + int(place[0])} holds the value {block[place]}. Floats are "
                "finite and in [0, 1]; divide by 255?"
            )
        block = np.rint(block.astype(np.float32) * 255).astype(np.uint8)
    if layout == "NHW":
        return torch.from_numpy(np.repeat(block[:, None], 3, axis=1))
    return torch.from_numpy(
        np.array(block if layout == "NCHW" else block.transpose(0, 3, 1, 2), order="C")
    )
