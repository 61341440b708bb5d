"""One verb for every source of images: `load(spec, split)`.

    spec = shapes | shapes-5 | digits | cifar10 | cifar100 | stl10 | omniglot | omniglot-upright | npz:PATH | folder:PATH
"""

import functools
import os
from dataclasses import replace
from pathlib import Path

from marginlab.data.arrays import read_npz
from marginlab.data.folders import read_folder
from marginlab.data.images import ImageSet
from marginlab.data.omniglot import OMNIGLOT, read_omniglot
from marginlab.data.pixels import BUDGET, afford
from marginlab.data.published import TORCHVISION, read_digits, read_published
from marginlab.data.shapes import EASY, Shapes
from marginlab.settings import SettingsError, nearest

_SPECS = ("shapes", "shapes-5", "digits", *TORCHVISION, "omniglot-upright", "npz:PATH", "folder:PATH")
_COUNTS = {"train": 5_000, "test": 2_000}  # of the embedded sets


def load(spec: str, split: str = "train", root: str | Path | None = None, *, size: int = 0, budget: int = BUDGET) -> ImageSet:
    """The images of a split, as bytes in memory.

    Parameters
    ----------
    spec: `shapes` and its easy variant `shapes-5` (rendered), `digits` (scikit-learn's), `cifar10`, `cifar100`, `stl10` (ROOT/NAME.npz, else
        torchvision's folder under ROOT; never downloaded), `npz:PATH` (keys `images`, `labels`, or with `train_` and `test_` before them;
        optional `classes`), `folder:PATH` (PATH/CLASS/*.png, or PATH/train/CLASS and PATH/test/CLASS), `omniglot` (its quarter turns are
        classes: 3,856 to train on) and `omniglot-upright` (964), as the published sets.
    split: `train` or `test`; of the omniglots also `unseen`, whose classes are in neither, for verification. A source without a split gives
        one fifth of each class to the test, the same fifth every time.
    root: the folder of the published sets; by default the environment's MARGINLAB_DATA, else `data`.
    size: resize the shorter side to this many pixels (antialiased) and cut out the centre; 0 keeps the images' own size. `shapes` are
        rendered at it instead.
    budget: bytes that the images of the split may take.

    >>> digits = load("digits", "test", size=16)
    >>> digits.images.shape, len(digits.classes)
    (torch.Size([359, 3, 16, 16]), 10)

    Raises
    ------
    SettingsError: an unknown spec or split, or a size or budget that makes no sense.
    FileNotFoundError: no such file or folder, or a published set that is not under the root; the message says what to do.
    TypeError, ValueError: images or labels that cannot be used, one class only, or more bytes than the budget.

    """
    if split not in splits(spec):
        raise SettingsError(f"There is no split {split!r}: {nearest(split, splits(spec))}")
    if size < 0 or budget <= 0:
        raise SettingsError(f"size is 0 or a number of pixels and budget a number of bytes, not {size} and {budget}.")
    kind, colon, rest = spec.partition(":")
    if colon and rest and kind in ("npz", "folder"):
        read = read_npz if kind == "npz" else read_folder
        return read(Path(rest).expanduser(), split, spec, size=size, budget=budget)
    if spec in ("shapes", "shapes-5"):
        shapes = Shapes() if spec == "shapes" else EASY
        shapes = replace(shapes, size=size or shapes.size)
        afford(_COUNTS[split], shapes.size, shapes.size, budget, spec)
        return replace(_rendered(shapes, split, _COUNTS[split]), name=spec)
    if spec == "digits":
        return read_digits(split, size=size, budget=budget)
    if spec in OMNIGLOT:
        return read_omniglot(spec, split, root_folder(root), size=size, budget=budget)
    if spec in TORCHVISION:
        return read_published(spec, split, root_folder(root), size=size, budget=budget)
    raise SettingsError(f"There is no data {spec!r}: {nearest(spec, _SPECS)}")


def splits(spec: str) -> tuple[str, ...]:
    """The splits that a spec has."""
    return ("train", "test", "unseen") if spec in OMNIGLOT else ("train", "test")


@functools.lru_cache(maxsize=4)
def _rendered(shapes: Shapes, split: str, count: int) -> ImageSet:
    """Rendering takes a second, and a study loads its images for every cell."""
    return shapes.load(split, count)


def root_folder(root: str | Path | None) -> Path:
    """The folder of the published sets."""
    return Path(root if root is not None else os.environ.get("MARGINLAB_DATA") or "data").expanduser()
