"""Image sets from folders of image files: PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or PATH/CLASS/*.png without a
split; PATH/unseen/CLASS/*.png are of classes that are in neither.


    bytes needed = 3 x height x width x number of images, from the files' headers; above the budget they are refused, or decoded when asked for,
                   before one is decoded
    fingerprint  = 64 bits of (length, first 4 KiB, last 4 KiB) of a file: other pixels change the checksum at the end of a PNG, and rarely leave the
                   length of a JPEG
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from marginlab.data.images import ImageSet, check_labels, in_split
from marginlab.data.pixels import afford, resized
from marginlab.data.streaming import Streamed

_END = 4096  # bytes of a file's beginning and of its end that tell it from others


def read_folder(path: Path, split: str, name: str, *, size: int, budget: int, workers: int | None = None) -> ImageSet:
    """The split of a folder; where the folder has none, one fifth of each class is its test. Every file's header is read, also of a streamed one."""
    if not path.is_dir():
        raise FileNotFoundError(f"{name}: there is no folder {path}. Give one with a subfolder of images for each class.")
    sides = () if split == "unseen" else ("train", "test")  # those have their classes in common
    splits = {side: path / side for side in sides if (path / side).is_dir() and _subfolders(path / side)}
    if splits and split not in splits:
        there = next(iter(splits.values()))
        raise FileNotFoundError(f"{name} has class folders in {there} but none in {path / split}. Add them, or put all classes into {path}.")
    parents = splits or {split: path if sides else path / split}
    classes = sorted({folder.name for parent in parents.values() for folder in _subfolders(parent)})
    files: list[Path] = []
    numbers: list[int] = []
    for folder in _subfolders(parents[split]):
        if not (own := _images(folder)):
            raise ValueError(f"{name}: the class folder {folder} holds no images. Put some into it ({_endings()}), or remove it.")
        files += own
        numbers += [classes.index(folder.name)] * len(own)
    if not files:
        raise ValueError(f"{name}: {path} holds no class folders. Make one for each class, with its images in it ({_endings()}).")
    labels = torch.tensor(numbers)
    check_labels(labels, len(classes), name)
    if sides and not splits:
        chosen = in_split(labels, split)
        files, labels = [file for file, wanted in zip(files, chosen.tolist(), strict=True) if wanted], labels[chosen]
        if not files:
            raise ValueError(f"{name}: no class has two images, so none is left for the {split} split. Add images, or folders train and test.")
        check_labels(labels, len(classes), f"{name} ({split})")
    return image_files(
        files, labels, tuple(classes), name, size=size, budget=budget, workers=workers
    )


def image_files(
    files: Sequence[Path],
    labels: Int64[Tensor, " N"],
    classes: tuple[str, ...],
    name: str,
    *,
    size: int,
    budget: int,
    workers: int | None,
) -> ImageSet:
    """Make an image set of files, held or streamed; every header is read, also of streamed ones.

    Args:
        files: The N files.
        labels: (N,) in [0, C).
        classes: The C class names.
        name: The spec.
        size: Pixels that images are brought to; 0 keeps their own, which are then alike.
        budget: Bytes that the images may take in memory.
        workers: Processes that decode a set of more bytes; None refuses such a set.

    Raises:
        ValueError: A file that is no image, sizes that differ, or more bytes than the budget.

    """
    looked = _looked(files, name, size)
    source = ImageFiles(files, looked.height, looked.width, size, name)
    images = Streamed(source, torch.arange(len(files)), budget, workers or 0)
    if workers is None:
        afford(len(files), looked.height, looked.width, budget, name)
    return ImageSet(images.at(images.rows), labels, classes, name, looked.fingerprints)


class ImageFiles:
    """Image files as a source: each is decoded, brought to its size and cut when it is asked for. Raises ValueError for one that cannot be."""

    def __init__(self, files: Sequence[Path], height: int, width: int, size: int, name: str):
        paths = [os.fsencode(file) for file in files]
        # of tensors, a worker shares the memory; of a million strings it would make its own
        self.paths = torch.frombuffer(bytearray(b"".join(paths)), dtype=torch.uint8)
        self.ends = torch.tensor([len(path) for path in paths]).cumsum(0)
        self.shape, self.size, self.name = torch.Size((len(files), 3, height, width)), size, name

    def __getitem__(self, rows: Int64[Tensor, " M"], /) -> UInt8[Tensor, "M 3 H W"]:
        images = torch.empty(len(rows), *self.shape[1:], dtype=torch.uint8)
        for place, row in enumerate(rows.tolist()):
            file = Path(os.fsdecode(self.paths[int(self.ends[row - 1]) if row else 0 : int(self.ends[row])].numpy().tobytes()))
            image = resized(_decoded(file, self.name), self.size)[0]
            if image.shape != self.shape[1:]:
                old, new = (f"{shape[-2]} x {shape[-1]}" for shape in (self.shape, image.shape))
                raise ValueError(f"{self.name}: {file} was of {old} when the work began, and is now of {new}. Leave the files as they are.")
            images[place] = image
        return images


def _subfolders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _endings() -> str:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return ", ".join(IMG_EXTENSIONS)


def _images(folder: Path) -> list[Path]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return sorted(child for child in folder.iterdir() if child.suffix.lower() in IMG_EXTENSIONS and not child.name.startswith("."))


class _Looked(NamedTuple):
    """What a first look at the files says: the common height and width, or that asked for, and what tells the files apart."""

    height: int
    width: int
    fingerprints: Tensor


def _looked(files: Sequence[Path], name: str, size: int) -> _Looked:
    """Every header is read, so that a bad file is known before the work starts."""
    from PIL import Image

    common: tuple[int, int] | None = None
    prints = torch.empty(len(files), dtype=torch.int64)
    for place, file in enumerate(files):
        try:
            with file.open("rb") as stream:
                prints[place] = _fingerprint(stream)
                with Image.open(stream) as image:
                    width, height, mode = *image.size, image.mode
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{name}: {file} cannot be read as an image: {error}. Remove it, or save it again.") from error
        if mode.startswith(("I", "F")):
            raise ValueError(f"{name}: {file} holds values of more than 8 bits (mode {mode}), which would be clipped. Save it with 8 bits a channel.")
        common = common or (height, width)
        if not size and common != (height, width):
            raise ValueError(
                f"{name}: images of mixed sizes, {files[0]} of {common[0]} x {common[1]} and {file} of {height} x {width}. "
                "Give size=... to bring them to one."
            )
    assert common is not None
    return _Looked(*((size, size) if size else common), prints)


def _fingerprint(stream: BinaryIO) -> int:
    length = os.fstat(stream.fileno()).st_size
    found = hashlib.blake2b(b"%d:" % length + stream.read(_END), digest_size=8)
    stream.seek(max(length - _END, _END))  # of a short file all is read, and nothing twice
    found.update(stream.read(_END))
    stream.seek(0)
    return int.from_bytes(found.digest(), "little", signed=True)


def _decoded(file: Path, name: str) -> Tensor:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    except (OSError, SyntaxError, ValueError) as error:  # PIL's ways to say that a file is broken
        raise ValueError(f"{name}: {file} cannot be read as an image: {error}. Remove it, or save it again.") from error
