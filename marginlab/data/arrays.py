"""Image sets from npz files: everything is checked from headers and labels before the first pixel is read, and nothing is unpickled.

    PATH.npz: images, labels [, classes]     or     train_images, train_labels, test_images, test_labels [, classes]
              or parts with classes of their own: PART_images, PART_labels, PART_classes
    images: N x H x W x 3, N x 3 x H x W, or N x H x W in grey; uint8, or floats in [0, 1], which become round(255 x)

Images are read as a stream of blocks, cut to their size as they come, so memory holds the result and one block, whatever the file's size.
"""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marginlab.data.images import ImageSet, check_labels, in_split
from marginlab.data.pixels import afford, resized

_BLOCK = 32 * 2**20  # bytes


def read_npz(path: Path, split: str, name: str, *, size: int, budget: int) -> ImageSet:
    """The split of an npz file; where the file has none, one fifth of each class is its test."""
    with _opened(path, name) as archive:
        return _read(archive, split, name, size, budget)


def read_part(path: Path, part: str, name: str, *, size: int, budget: int) -> ImageSet:
    """All images of a part of an npz file that numbers and names its own classes."""
    with _opened(path, name) as archive:
        keys = _keys(archive)
        for key in (f"{part}_images", f"{part}_labels", f"{part}_classes"):
            if key not in keys:
                raise ValueError(f"{name}: {path} has no {key!r}; its keys are: {', '.join(keys) or 'none'}.")
        labels = _labels(archive, f"{part}_labels", name)
        classes = _names(archive, f"{part}_classes", name)
        return _filled(archive, f"{part}_images", labels, torch.ones_like(labels, dtype=torch.bool), classes, name, size, budget)


def has_part(path: Path, part: str) -> bool:
    """Whether an npz file holds the images of such a part."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return f"{part}_images" in _keys(archive)


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise FileNotFoundError(f"{name}: there is no file {path}. Write one with numpy.savez({str(path)!r}, images=..., labels=...).")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: {path} is no whole npz file: {error}. Write it again with numpy.savez.") from error


def _keys(archive: zipfile.ZipFile) -> list[str]:
    return [key.removesuffix(".npy") for key in archive.namelist()]


def _read(archive: zipfile.ZipFile, split: str, name: str, size: int, budget: int) -> ImageSet:
    keys = _keys(archive)
    own = any(f"{side}_images" in keys for side in ("train", "test"))
    prefix = f"{split}_" if own else ""
    for key in (f"{prefix}images", f"{prefix}labels"):
        if key not in keys:
            raise ValueError(
                f"{name} has no {key!r}; its keys are: {', '.join(keys) or 'none'}. "
                "Save `images` and `labels`, or both with `train_` and with `test_` before them."
            )
    _pixels(archive, f"{prefix}images", name)
    # classes are numbered over both splits
    sides: tuple[str, ...] = ("train_labels", "test_labels") if own else ("labels",)
    every = {key: _labels(archive, key, name) for key in sides if key in keys}
    labels = every[f"{prefix}labels"]
    _one_each(archive, f"{prefix}images", labels, name)
    classes = _classes(archive, keys, [found for found in every.values() if len(found)], name)
    check_labels(labels, len(classes), name)
    chosen = torch.ones_like(labels, dtype=torch.bool) if own else in_split(labels, split)
    if not bool(chosen.any()):
        raise ValueError(f"{name}: no class has two images, so none is left for the {split} split. Save {split}_images and {split}_labels.")
    check_labels(labels[chosen], len(classes), f"{name} ({split})")
    return _filled(archive, f"{prefix}images", labels, chosen, classes, name, size, budget)


def _pixels(archive: zipfile.ZipFile, key: str, name: str) -> tuple["_Header", str]:
    """The header of stored images and the order of their axes, refused where they are none."""
    header = _header(archive, key)
    if header.dtype != np.uint8 and header.dtype.kind != "f":
        raise TypeError(f"{name}: {key} are of dtype {header.dtype}. Save bytes as uint8, or floats in [0, 1].")
    return header, _layout(header.shape, name)


def _one_each(archive: zipfile.ZipFile, key: str, labels: Tensor, name: str) -> None:
    shape = _header(archive, key).shape
    if len(labels) != shape[0] or not len(labels):
        raise ValueError(f"{name}: {shape[0]} images of shape {shape} and {len(labels)} labels. One label for each of at least two images.")


def _filled(
    archive: zipfile.ZipFile, key: str, labels: Tensor, chosen: Tensor, classes: tuple[str, ...], name: str, size: int, budget: int
) -> ImageSet:
    """The chosen images of an array, read block by block."""
    header, layout = _pixels(archive, key, name)
    _one_each(archive, key, labels, name)
    labels = labels[chosen]
    height, width = (size, size) if size else (header.shape[layout.index("H")], header.shape[layout.index("W")])
    afford(len(labels), height, width, budget, name)
    images = torch.empty(len(labels), 3, height, width, dtype=torch.uint8)
    filled = start = 0
    for block in _blocks(archive, key, header):
        kept = chosen[start : start + len(block)]
        part = resized(_bytes(block, layout, name, start)[kept], size) if bool(kept.any()) else images[:0]
        images[filled : filled + len(part)] = part
        filled, start = filled + len(part), start + len(block)
    return ImageSet(images, labels, classes, name)


class _Header(NamedTuple):
    """What the header of a stored array says, and where its data begin."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int


def _header(archive: zipfile.ZipFile, key: str) -> _Header:
    with archive.open(f"{key}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        if version > (2, 0):  # 3.0 is for field names of structured arrays, which are no images
            raise ValueError(f"The array {key!r} is stored in npy version {version}: it is a structured array. Save plain numbers.")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return _Header(*read(stream), stream.tell())


def _layout(shape: tuple[int, ...], name: str) -> str:
    if 0 in shape:
        raise ValueError(f"{name}: there are no images, but an array of shape {shape}.")
    if len(shape) == 4 and shape[3] == 3:
        return "NHWC"
    if len(shape) == 4 and shape[1] == 3:
        return "NCHW"
    if len(shape) == 3:
        return "NHW"
    raise ValueError(f"{name}: images of shape {shape}. Save them as N x H x W x 3, N x 3 x H x W, or N x H x W in grey.")


def _array(archive: zipfile.ZipFile, key: str) -> NDArray[Any]:
    with archive.open(f"{key}.npy") as stream:
        found: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return found


def _labels(archive: zipfile.ZipFile, key: str, name: str) -> Tensor:
    shape, _, dtype, _ = _header(archive, key)
    if dtype.kind not in "iu":
        raise TypeError(f"{name}: {key} are of dtype {dtype}. Labels are integers from 0: numpy.unique(labels, return_inverse=True)[1] makes them.")
    if len(shape) != 1:
        raise ValueError(f"{name}: {key} are of shape {shape}. Labels are one integer for each image, of shape (N,).")
    found = _array(archive, key)
    if len(found) and (wrong := int(found.max())) >= 2**31:
        raise ValueError(f"{name}: the label {wrong} in {key} is out of range. Number the classes from 0.")
    return torch.from_numpy(found.astype(np.int64))


def _classes(archive: zipfile.ZipFile, keys: list[str], labels: list[Tensor], name: str) -> tuple[str, ...]:
    if "classes" in keys:
        return _names(archive, "classes", name)
    highest, n = max(int(found.max()) for found in labels), sum(len(found) for found in labels)
    if highest >= max(n, 2):
        raise ValueError(f"{name}: the label {highest} is out of range for {n} images. Number the classes from 0, or save their names as `classes`.")
    return tuple(str(number) for number in range(highest + 1))


def _names(archive: zipfile.ZipFile, key: str, name: str) -> tuple[str, ...]:
    shape, _, dtype, _ = _header(archive, key)
    if dtype.kind not in "US" or len(shape) != 1:
        raise TypeError(f"{name}: {key} are of dtype {dtype} and shape {shape}. Save them as numpy.array([...], dtype=str), or leave them out.")
    return tuple(str(text) for text in _array(archive, key).astype(str))


def _blocks(archive: zipfile.ZipFile, key: str, header: _Header) -> Iterator[NDArray[Any]]:
    shape, fortran, dtype, begin = header
    image = dtype.itemsize * int(np.prod(shape[1:]))
    step = max(_BLOCK // image, 1)
    if fortran:  # its images are not contiguous in the file: there is no stream of them
        whole = _array(archive, key)
        yield from (whole[start : start + step] for start in range(0, shape[0], step))
        return
    with archive.open(f"{key}.npy") as stream:
        stream.seek(begin)
        for start in range(0, shape[0], step):
            n = min(step, shape[0] - start)
            data = stream.read(n * image)
            if len(data) < n * image:
                raise EOFError(f"{key} ends after {start + len(data) // image} of {shape[0]} images")
            yield np.frombuffer(data, dtype).reshape(n, *shape[1:])


def _bytes(block: NDArray[Any], layout: str, name: str, start: int) -> Tensor:
    """A block of any layout and dtype as (N, 3, H, W) uint8."""
    if block.dtype != np.uint8:
        wrong = ~((block >= 0) & (block <= 1))  # true for nan as well
        if wrong.any():
            place = np.unravel_index(int(wrong.argmax()), wrong.shape)
            raise ValueError(f"{name}: image {start + int(place[0])} holds the value {block[place]}. Floats are finite and in [0, 1]; divide by 255?")
        block = np.rint(block.astype(np.float32) * 255).astype(np.uint8)
    if layout == "NHW":
        return torch.from_numpy(np.repeat(block[:, None], 3, axis=1))
    return torch.from_numpy(np.array(block if layout == "NCHW" else block.transpose(0, 3, 1, 2), order="C"))
