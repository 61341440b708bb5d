"""Image sets from folders of image files: PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or PATH/CLASS/*.png without a split.

    bytes needed = 3 x height x width x number of images, from the files' headers, refused above the budget before one is decoded
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from marginlab.data.images import ImageSet, check_labels, in_split
from marginlab.data.pixels import afford, resized


def read_folder(path: Path, split: str, name: str, *, size: int, budget: int) -> ImageSet:
    """The split of a folder; where the folder has none, one fifth of each class is its test."""
    if not path.is_dir():
        raise FileNotFoundError(f"{name}: there is no folder {path}. Give one with a subfolder of images for each class.")
    splits = {side: path / side for side in ("train", "test") if (path / side).is_dir() and _subfolders(path / side)}
    if splits and split not in splits:
        there = next(iter(splits.values()))
        raise FileNotFoundError(f"{name} has class folders in {there} but none in {path / split}. Add them, or put all classes into {path}.")
    parents = splits or {split: path}
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
    if not splits:
        chosen = in_split(labels, split)
        files, labels = [file for file, wanted in zip(files, chosen.tolist(), strict=True) if wanted], labels[chosen]
        if not files:
            raise ValueError(f"{name}: no class has two images, so none is left for the {split} split. Add images, or folders train and test.")
        check_labels(labels, len(classes), f"{name} ({split})")
    height, width = _measured(files, name, size)
    afford(len(files), height, width, budget, name)
    images = torch.empty(len(files), 3, height, width, dtype=torch.uint8)
    for place, file in enumerate(files):
        images[place] = resized(_decoded(file, name), size)[0]
    return ImageSet(images, labels, tuple(classes), name)


def _subfolders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _endings() -> str:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return ", ".join(IMG_EXTENSIONS)


def _images(folder: Path) -> list[Path]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return sorted(child for child in folder.iterdir() if child.suffix.lower() in IMG_EXTENSIONS and not child.name.startswith("."))


def _measured(files: Sequence[Path], name: str, size: int) -> tuple[int, int]:
    """The common height and width of the files, or `size`; every header is read, so that a bad file is known before the work starts."""
    from PIL import Image

    common: tuple[int, int] | None = None
    for file in files:
        try:
            with Image.open(file) as image:
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
    return (size, size) if size else common


def _decoded(file: Path, name: str) -> Tensor:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    except (OSError, SyntaxError, ValueError) as error:  # PIL's ways to say that a file is broken
        raise ValueError(f"{name}: {file} cannot be read as an image: {error}. Remove it, or save it again.") from error
