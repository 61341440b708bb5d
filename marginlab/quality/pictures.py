"""A user's own images: files of a folder that are decoded when needed, or a set by its spec.

Files that are no readable image are noted with the reason, and left out. A name is the path below
the folder, or CLASS/NUMBER in a set.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from marginlab.data import ImageSet, load
from marginlab.data.decoding import decoded
from marginlab.data.pixels import BUDGET, resized
from marginlab.files.untrusted import shown
from marginlab.settings import SettingsError


class Read(NamedTuple):
    """Pictures that were read: their numbers, native sizes (height, width), and bytes."""

    numbers: list[int]
    sizes: list[tuple[int, int]]
    images: UInt8[Tensor, "n 3 S S"]


class Pictures(ABC):
    """N pictures with names.

    Attributes:
        names: Their names.
        unreadable: (name, reason) of those that could not be read so far.
    """

    names: list[str]
    unreadable: list[tuple[str, str]]

    @abstractmethod
    def read(self, numbers: Sequence[int]) -> Read | None:
        """Return those of some pictures that can be read; None if none can."""


class FolderPictures(Pictures):
    """All files anywhere below a folder, but hidden ones, resized to squares.

    Args:
        folder: The folder.
        size: Side S in pixels: the shorter side is resized, and the centre cut out.

    Raises:
        SettingsError: The folder holds no files, or there is none.
    """

    def __init__(self, folder: Path, size: int):
        if not folder.is_dir():
            raise SettingsError(f"There is no folder {shown(folder)} of images. Give another path.")
        found = (path for path in folder.rglob("*") if path.is_file())
        self.files = sorted(
            path
            for path in found
            if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
        if not self.files:
            raise SettingsError(f"{shown(folder)} holds no files. Put images into it.")
        self.size = size
        self.names = [shown(path.relative_to(folder)) for path in self.files]
        self.unreadable = []

    def read(self, numbers: Sequence[int]) -> Read | None:
        """Decode some files; a file that is no image is noted and left out."""
        kept, sizes, images = [], [], []
        for number in numbers:
            try:
                image = decoded(self.files[number], self.names[number], self.size, BUDGET)
            except (ValueError, OSError) as error:
                self.unreadable.append((self.names[number], str(error)))
                continue
            kept.append(number)
            sizes.append((image.shape[1], image.shape[2]))
            images.append(resized(image[None], self.size))
        return Read(kept, sizes, torch.cat(images)) if kept else None


class SetPictures(Pictures):
    """The pictures of an image set."""

    def __init__(self, images: ImageSet):
        self.images = images.images
        labels = images.labels.tolist()
        self.names = [f"{images.classes[c]}/{number}" for number, c in enumerate(labels)]
        self.unreadable = []

    def read(self, numbers: Sequence[int]) -> Read | None:
        """Return some pictures of the set."""
        images = self.images[torch.tensor(numbers)].cpu()
        return Read(list(numbers), [(images.shape[2], images.shape[3])] * len(numbers), images)


def pictures_of(text: str, split: str | None, root: str | None, size: int) -> Pictures:
    """Return the pictures of a folder, or of a split of a spec.

    Args:
        text: A folder, or a spec of `marginlab.data.load`. `folder:PATH` without a split is all
            files below PATH.
        split: The split of a spec; None is "train".
        root: Folder of the published sets.
        size: Side of the images in pixels.

    Raises:
        SettingsError: There is no such folder or spec.
        ValueError: As `load`.
    """
    path = Path(text.removeprefix("folder:")).expanduser()
    if split is None and "?" not in text and (text.startswith("folder:") or path.is_dir()):
        return FolderPictures(path, size)
    try:
        images = load(text, split or "train", root, size=size, workers=_workers(text))
    except ValueError as error:
        other = "A folder's unreadable files are left out if you give the folder without --split."
        raise SettingsError(f"{error} {other}") from error
    return SetPictures(images)


def _workers(text: str) -> int | None:
    """Return 0 for files that may stay on the disk, and None for sets that are held."""
    return 0 if text.startswith(("folder:", "index:", "record:")) else None
