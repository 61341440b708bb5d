"""One function for every source of images: `load(spec, split)`.

source = shapes | shapes-5 | digits | cifar10 | cifar100 | stl10 | omniglot | omniglot-upright
         | lfw | npz:PATH | folder:PATH | index:PATH | record:PATH
spec   = source, or source?min_per_class=A&max_per_class=B
"""

import functools
import os
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from marginlab.data.arrays import has_part, read_npz, read_part
from marginlab.data.folders import has_unseen, read_folder
from marginlab.data.images import ImageSet, warn_of_absent
from marginlab.data.index import index_has, read_index
from marginlab.data.lfw import FOLD_SPECS, read_lfw
from marginlab.data.omniglot import OMNIGLOT, read_omniglot
from marginlab.data.pixels import BUDGET, afford
from marginlab.data.published import TORCHVISION, read_digits, read_published, root_folder
from marginlab.data.records import has_unseen_records, read_record_set
from marginlab.data.selection import Selection, counts, selection_of
from marginlab.data.shapes import EASY, Shapes
from marginlab.settings import SettingsError, nearest

_FILES = ("npz:PATH", "folder:PATH", "index:PATH", "record:PATH")
_LFW = ("lfw", *FOLD_SPECS)
_SPECS = ("shapes", "shapes-5", "digits", *TORCHVISION, "omniglot-upright", *_LFW, *_FILES)
SPLITS = ("train", "test", "unseen")
_UNSEEN = (
    "Such are of omniglot, omniglot-upright, lfw, a folder with unseen/CLASS, an index with a "
    "split unseen, a folder with unseen.rec, an npz file with unseen_images, unseen_labels and "
    "unseen_classes."
)
_COUNTS = {"train": 5_000, "test": 2_000}  # of the embedded sets


def load(
    spec: str,
    split: str = "train",
    root: str | Path | None = None,
    *,
    size: int = 0,
    budget: int = BUDGET,
    workers: int | None = None,
) -> ImageSet:
    """Load the images of a split, as bytes in memory or as files that are decoded when asked for.

    A warning names the classes that have no image in the split: class metrics leave them out.

    A spec is one of these sources:

    - `shapes`, and its easy variant `shapes-5`: rendered.
    - `digits`: from scikit-learn.
    - `cifar10`, `cifar100`, `stl10`: from ROOT/NAME.npz, else from torchvision's folder under ROOT;
      never downloaded.
    - `omniglot`, whose quarter turns are classes (3,856 to train on), and `omniglot-upright` (964):
      found as the sets above.
    - `lfw`: from ROOT/lfw.npz, the people of its development lists, and `lfw-fold-1` to
      `lfw-fold-10`, those of no pair in a fold. `lfw_protocol` has its pairs.
    - `npz:PATH`: keys `images` and `labels`, or both with `train_` and with `test_` before them;
      optionally `classes`.
    - `folder:PATH`: PATH/CLASS/*.png, or PATH/train/CLASS and PATH/test/CLASS.
    - `index:PATH`: a csv, npz or text file of paths and labels (`marginlab.data.index`).
    - `record:PATH`: a folder with train.rec and train.idx, as InsightFace's training sets have
      them, or such a record file (`marginlab.data.records`). A class is called by its number.

    Behind any of them, `?min_per_class=A` drops the classes of fewer than A images to train on, and
    `?max_per_class=B` takes at most B images of each class and split. `&` joins the two.

    Args:
        spec: The source, with or without a choice of classes behind it.
        split: `train`, `test` or `unseen`. The classes of `unseen` are in neither of the others,
            for verification. The omniglots and `lfw` have it, a folder with PATH/unseen/CLASS, an
            index that names it, a folder with unseen.rec, and an npz file with `unseen_images`,
            `unseen_labels` and `unseen_classes`. A source without a split gives one fifth of each
            class to the test, the same fifth every time.
        root: The folder of the published sets; by default the environment's MARGINLAB_DATA, else
            `data`.
        size: Pixels to which the shorter side is resized (antialiased) before the centre is cut
            out; 0 keeps the images' own size. `shapes` are rendered at this size instead.
        budget: Bytes that the images of the split may take in memory.
        workers: The treatment of a folder, an index or a record file whose images take more than
            the budget. None refuses it. A number streams it with so many processes that decode
            ahead of a training; with 0 the process that asks decodes. `ImageSet.images` is then no
            tensor, but is read by index.

    Raises:
        SettingsError: An unknown spec or split, or a size, budget or number of workers that makes
            no sense.
        FileNotFoundError: No such file or folder, or a published set that is not under the root;
            the message says what to do.
        TypeError, ValueError: Images or labels that cannot be used, one class only, or more bytes
            than the budget. Only the headers of a streamed folder's files are read, so a truncated
            file is found when it is asked for; the error names it.

    Example:
        >>> digits = load("digits", "test", size=16)
        >>> digits.images.shape, len(digits.classes)
        (torch.Size([359, 3, 16, 16]), 10)
    """
    if split not in SPLITS:
        raise SettingsError(f"There is no split {split!r}: {nearest(split, SPLITS)}")
    _check_path(spec)
    if size < 0 or budget <= 0:
        raise SettingsError(
            f"size is 0 or a number of pixels and budget a number of bytes, not {size} and "
            f"{budget}."
        )
    if workers is not None and workers < 0:
        raise SettingsError(
            f"workers is a number of processes, or 0 for none beside this one, not {workers}."
        )
    source, selection = selection_of(spec)
    if selection == Selection():
        found = _load(spec, split, root, size=size, budget=budget, workers=workers)
        warn_of_absent(found, split)
        return found
    files = source.startswith(
        ("folder:", "index:", "record:")
    )  # only these can be left in their files
    found = _load(source, split, root, size=size, budget=budget, workers=workers or 0)
    counted = found
    if split == "test":
        few = 1 if files else budget  # labels are counted, so files need not be decoded
        counted = _load(source, "train", root, size=size, budget=few, workers=0)
    some = selection.of(replace(found, name=spec), counts(counted))
    if workers is None and not isinstance(some.images, Tensor):
        height, width = some.images.shape[2:]
        afford(len(some), height, width, budget, spec)
    warn_of_absent(some, split)
    return some


def _load(
    spec: str, split: str, root: str | Path | None, *, size: int, budget: int, workers: int | None
) -> ImageSet:
    """Load a source without a selection."""
    kind, colon, rest = spec.partition(":")
    # if it is not there, that is what its reader says
    there = kind in ("npz", "folder", "index", "record") and Path(rest).expanduser().exists()
    if split not in splits(spec) and (spec in _SPECS or there):
        told = "has no images of classes that are neither in train nor in test: no split 'unseen'"
        raise SettingsError(f"{spec} {told}. {_UNSEEN}")
    if colon and rest and kind == "npz" and split == "unseen":
        return read_part(Path(rest).expanduser(), split, spec, size=size, budget=budget)
    if colon and rest and kind == "npz":
        return read_npz(Path(rest).expanduser(), split, spec, size=size, budget=budget)
    if colon and rest and kind == "folder":
        return read_folder(
            Path(rest).expanduser(), split, spec, size=size, budget=budget, workers=workers
        )
    if colon and rest and kind == "index":
        path = Path(rest).expanduser()
        return read_index(path, split, spec, size=size, budget=budget, workers=workers)
    if colon and rest and kind == "record":
        path = Path(rest).expanduser()
        return read_record_set(path, split, spec, size=size, budget=budget, workers=workers)
    if spec in _LFW:
        return read_lfw(spec, split, root_folder(root), size=size, budget=budget)
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
    """Return the splits that a spec has."""
    _check_path(spec)
    source, _ = selection_of(spec)
    kind, _, rest = source.partition(":")
    path = Path(rest).expanduser()
    unseen = (
        source in (*OMNIGLOT, *_LFW)
        or (kind == "folder" and has_unseen(path))
        or (kind == "npz" and has_part(path, "unseen"))
        or (kind == "index" and index_has(path, "unseen"))
        or (kind == "record" and has_unseen_records(path))
    )
    return SPLITS if unseen else SPLITS[:2]


def _check_path(spec: str) -> None:
    """Refuse a spec whose path no report could show, or no system could have."""
    try:
        spec.encode()
        Path(spec.partition(":")[2]).expanduser().exists()
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"The path in {os.fsencode(spec)!r} is no text in UTF-8, so no report could show it. "
            "Rename the folder, or give a link to it."
        ) from error
    except (RuntimeError, OSError) as error:  # no such user's home, too long a name, no permission
        raise SettingsError(f"The path in {spec!r} cannot be looked at: {error}.") from error


@functools.lru_cache(maxsize=4)
def _rendered(shapes: Shapes, split: str, count: int) -> ImageSet:
    """Render a split of `Shapes`, cached: it takes a second, and each cell of a study loads it."""
    return shapes.load(split, count)
