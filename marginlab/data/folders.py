"""Image sets from folders of image files, with a folder for each class.

    PATH/CLASS/**                              one fifth of each class is its test
    PATH/train/CLASS/**, PATH/test/CLASS/**    classes of both together
    PATH/unseen/CLASS/**                       beside either: classes that are in neither

Images of a class lie anywhere below its folder. Hidden files and folders are left out. A warning
counts other files that look like images but are not read. Class names are text in UTF-8, in
composed form (NFC). Folders that print alike are therefore one class, whichever system wrote them,
and two such folders in one place are refused.

    bytes needed = 3 x height x width x number of images, from the files' headers

A set above the budget is refused before one image is decoded. With `workers` it is not refused:
each of its images is then decoded when it is asked for.
"""

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from marginlab.data.decoding import Encoded, decoded, look
from marginlab.data.images import ImageSet
from marginlab.data.labels import check_labels, in_split
from marginlab.data.pixels import afford, resized
from marginlab.data.streaming import Streamed
from marginlab.files import content_of
from marginlab.files.untrusted import shown

_PARTS = ("train", "test")  # these splits share their classes
NO_CLASSES = {*_PARTS, "unseen", "val", "valid", "validation", "dev", "eval"}
_PHOTOGRAPHS = {".heic", ".heif", ".jxl", ".dng"}  # kinds of cameras that Pillow does not know


def read_folder(
    path: Path, split: str, name: str, *, size: int, budget: int, workers: int | None = None
) -> ImageSet:
    """Read a split of a folder; if the folder has no splits, one fifth of each class is the test.

    Every file's header is read, also of a streamed set.
    """
    if not path.is_dir():
        raise FileNotFoundError(
            f"{name}: there is no folder {path}. Give one with a subfolder of images for each "
            "class."
        )
    parents = _parents(path, split, name)
    classes = sorted({of for folders in parents.values() for of in folders})
    number = {of: k for k, of in enumerate(classes)}
    files: list[Path] = []
    numbers: list[int] = []
    left_out: Counter[str] = Counter()
    for of, folder in sorted(parents[split].items()):
        own, others = _images(folder, name)
        if not own:
            held = f", but {_listed(others)}, which are not read" if others else ""
            raise ValueError(
                f"{name}: the class folder {folder} holds no images{held}. Put some into it "
                f"({_endings()}), or remove it."
            )
        files += own
        left_out += others
        numbers += [number[of]] * len(own)
    if not files:
        raise ValueError(
            f"{name}: {path} holds no class folders. Make one for each class, with its images in "
            f"it ({_endings()})."
        )
    if left_out:
        remedy = f"Save them as one of those that are read: {_endings()}"
        told = f"{name} ({split}): {left_out.total():,} files are left out: {_listed(left_out)}"
        warnings.warn(f"{told}. {remedy}.", stacklevel=3)
    labels = torch.tensor(numbers)
    check_labels(labels, len(classes), name)
    if split in _PARTS and len(parents) == 1 and not _subfolders(path / split):
        chosen = in_split(labels, split)
        files, labels = (
            [file for file, wanted in zip(files, chosen.tolist(), strict=True) if wanted],
            labels[chosen],
        )
        if not files:
            raise ValueError(
                f"{name}: no class has two images, so none is left for the {split} split. Add "
                "images, or folders train and test."
            )
        check_labels(labels, len(classes), f"{name} ({split})")
    return image_files(
        files, labels, tuple(classes), name, size=size, budget=budget, workers=workers
    )


def has_unseen(path: Path) -> bool:
    """Return whether a folder has classes that are in neither train nor test."""
    return bool(_subfolders(path / "unseen"))


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
    """Make an image set of files, held or streamed; every header is read, also of a streamed set.

    Args:
        files: The N files.
        labels: (N,) integers in [0, C).
        classes: The C class names.
        name: The spec.
        size: Pixels to which images are resized; with 0 all images must have one size, and keep it.
        budget: Bytes that the images may take in memory.
        workers: Processes that decode a set above the budget; None refuses such a set.

    Raises:
        ValueError: A file that is no image, sizes that differ, or more bytes than the budget.
    """
    if size and workers is None:  # known before a file is opened
        afford(len(files), size, size, budget, name)
    looked = _looked(files, name, size, budget)
    source = ImageFiles(files, looked.height, looked.width, size, name, budget)
    images = Streamed(source, torch.arange(len(files)), budget, workers or 0)
    if workers is None:
        afford(len(files), looked.height, looked.width, budget, name)
    return ImageSet(images.at(images.rows), labels, classes, name, looked.fingerprints)


class ImageFiles:
    """Image files as a source: each is decoded, resized and cut when it is asked for.

    Raises:
        ValueError: A file that cannot be decoded, or whose size has changed.
    """

    def __init__(
        self, files: Sequence[Path], height: int, width: int, size: int, name: str, budget: int
    ):
        paths = [os.fsencode(file) for file in files]
        # in tensors, whose memory workers share; of a million strings each would make a copy
        self.paths = torch.frombuffer(bytearray(b"".join(paths)), dtype=torch.uint8)
        self.ends = torch.tensor([len(path) for path in paths]).cumsum(0)
        self.shape, self.size, self.name = torch.Size((len(files), 3, height, width)), size, name
        self.budget = budget

    def __getitem__(self, rows: Int64[Tensor, " M"], /) -> UInt8[Tensor, "M 3 H W"]:
        images = torch.empty(len(rows), *self.shape[1:], dtype=torch.uint8)
        for place, row in enumerate(rows.tolist()):
            file = self.path(row)
            image = resized(decoded(file, self.name, self.size, self.budget)[None], self.size)[0]
            if image.shape != self.shape[1:]:
                old, new = (f"{shape[-2]} x {shape[-1]}" for shape in (self.shape, image.shape))
                raise ValueError(
                    f"{self.name}: {shown(file)} was of {old} when the work began, and is now of "
                    f"{new}. Leave the files as they are."
                )
            images[place] = image
        return images

    def path(self, row: int) -> Path:
        """Return the file of a row."""
        begin = int(self.ends[row - 1]) if row else 0
        return Path(os.fsdecode(self.paths[begin : int(self.ends[row])].numpy().tobytes()))

    def encoded(self, row: int) -> Encoded:
        """Return the bytes of the file of a row."""
        return Encoded(content_of(self.path(row)), shown(self.path(row)))


def _parents(path: Path, split: str, name: str) -> dict[str, dict[str, Path]]:
    """Map each split that shares its classes with this one to its class folders by name."""
    if split == "unseen":
        return {split: _classes(path / split, [], name)}
    splits = {side: path / side for side in _PARTS if _subfolders(path / side)}
    if not splits:
        unseen = [path / "unseen"] if has_unseen(path) else []
        classes = _classes(path, unseen, name)
        if "unseen" in classes or (classes and set(classes) <= NO_CLASSES):
            parts = sorted(set(classes) & NO_CLASSES)
            raise ValueError(
                f"{name}: the folders of {path} with images in them would be the classes, among "
                f"them {' and '.join(parts)}. Put the images of each class into a folder of their "
                f"own, as {path / parts[0]}/CLASS."
            )
        return {split: classes}
    if split not in splits:
        there = next(iter(splits.values()))
        raise FileNotFoundError(
            f"{name} has class folders in {there} but none in {path / split}. Add them, or put all "
            f"classes into {path}."
        )
    read = (*_PARTS, "unseen")
    beside = [folder.name for folder in _subfolders(path) if folder.name not in read]
    if beside:
        told = f"{name}: beside {' and '.join(splits)}, {len(beside)} folders of {path}"
        some = ", ".join(f"{of!a}" for of in beside[:5])
        told = f"{told} are left out: {some}. Only train, test and unseen are read."
        warnings.warn(told, stacklevel=4)
    return {side: _classes(parent, [], name) for side, parent in splits.items()}


def _classes(parent: Path, without: list[Path], name: str) -> dict[str, Path]:
    """Return the class folders of a place by their names, which are text and differ in print."""
    found: dict[str, Path] = {}
    folders, files = _children(parent)
    for folder in folders:
        if folder in without:
            continue
        try:
            folder.name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name}: the name of the class folder {os.fsencode(folder.name)!r} in {parent} is "
                "no text in UTF-8, so no report could show it. Rename the folder."
            ) from error
        of = unicodedata.normalize("NFC", folder.name)
        if of in found:
            two = f"{found[of].name!a} and {folder.name!a}"
            raise ValueError(
                f"{name}: two class folders in {parent} print alike, {two}: their letters are "
                "composed (NFC) in one and decomposed (NFD) in the other. Make them one."
            )
        found[of] = folder
    loose = [file for file in files if _is_image(file)]
    if loose:
        told = f"{name}: {len(loose):,} images in {parent} are in no class folder, and left out"
        warnings.warn(f"{told}, such as {loose[0].name!a}.", stacklevel=5)
    return found


def _children(path: Path) -> tuple[list[Path], list[Path]]:
    """List the folders and the files in a folder, sorted, without the hidden ones."""
    folders: list[Path] = []
    files: list[Path] = []
    with os.scandir(path) as children:
        for child in children:
            if not child.name.startswith("."):
                (folders if child.is_dir() else files).append(path / child.name)
    return sorted(folders), sorted(files)


def _subfolders(path: Path) -> list[Path]:
    return _children(path)[0] if path.is_dir() else []


def _endings() -> str:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return ", ".join(IMG_EXTENSIONS)


def _is_image(file: Path) -> bool:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return file.suffix.lower() in IMG_EXTENSIONS


def _images(folder: Path, name: str) -> tuple[list[Path], Counter[str]]:
    """List the images anywhere below a folder, sorted, and count the endings that are not read."""
    from PIL import Image

    Image.init()
    kinds = Image.registered_extensions()
    known = {ending for ending in kinds if kinds[ending] in Image.OPEN} | _PHOTOGRAPHS
    found: list[Path] = []
    others: Counter[str] = Counter()
    left = [folder]
    while left:
        here = left.pop()
        folders, files = _children(here)
        for child in folders:
            if child.is_symlink() and here.resolve().is_relative_to(child.resolve()):
                told = f"{name}: {shown(child)} leads back to {shown(child.resolve())}"
                raise ValueError(f"{told}. Remove the link.")
            left.append(child)
        for file in files:
            if _is_image(file):
                found.append(file)
            elif (ending := file.suffix.lower()) in known:
                others[ending] += 1
    return sorted(found), others


def _listed(endings: Counter[str]) -> str:
    return ", ".join(f"{n:,} {ending}" for ending, n in endings.most_common())


class _Looked(NamedTuple):
    """Result of a first look at the files: their height and width, and their fingerprints.

    Height and width are common to all files, or those that were asked for.
    """

    height: int
    width: int
    fingerprints: Tensor


def _looked(files: Sequence[Path], name: str, size: int, budget: int) -> _Looked:
    """Read every header, so that a bad file is known before the work starts."""
    common: tuple[int, int] | None = None
    prints = torch.empty(len(files), dtype=torch.int64)
    for place, file in enumerate(files):
        height, width, prints[place] = look(file, name, size, budget)
        common = common or (height, width)
        if not size and common != (height, width):
            raise ValueError(
                f"{name}: images of mixed sizes, {shown(files[0])} of {common[0]} x {common[1]} "
                f"and {shown(file)} of {height} x {width}. Give size=... to bring them to one."
            )
    assert common is not None
    return _Looked(*((size, size) if size else common), prints)
