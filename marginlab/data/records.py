"""Image sets from record files, as InsightFace's training sets are stored.

    PATH/train.rec, PATH/train.idx, PATH/property    one fifth of each class is its test
    PATH/test.rec, PATH/test.idx                     beside them: the test, of the same classes
    PATH/unseen.rec, PATH/unseen.idx                 beside them: classes that are in neither
    PATH = NAME.rec                                  this file, and one fifth of each class

A folder with one record file of any name is read like one with train.rec. A class is called by its
number, and the classes are those that have an image, sorted by number: in a whole set, class k is
label k. Images are in the order of their keys. All images of `train` are trained on where there is
a test.rec. Verification packs are no split: `marginlab.formats.read_pack` reads them.

The first look at a file reads it once and keeps its labels in an index (`marginlab.formats`). Where
no size is asked for, all images have the size of the first one. An image of another size, or one
that is broken, is found when it is decoded; the error names its byte in the file.
"""

from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from marginlab.data.decoding import READER, Encoded, decoded, look
from marginlab.data.images import ImageSet
from marginlab.data.labels import check_labels, in_split
from marginlab.data.pixels import BUDGET, afford, resized
from marginlab.data.streaming import Streamed
from marginlab.files.untrusted import shown
from marginlab.formats import RecordReader, read_property, read_record, read_records

_REMEDY = "Give a folder with train.rec and train.idx, or a record file."


def read_record_set(
    path: Path, split: str, name: str, *, size: int, budget: int, workers: int | None = None
) -> ImageSet:
    """Read a split of a folder of record files, or of a record file.

    Args:
        path: The folder or the file, as the head of this module describes them.
        split: `train`, `test` or `unseen`.
        name: The spec, for messages.
        size: Pixels that images are brought to; 0 keeps their own.
        budget: Bytes that the images may take in memory.
        workers: Processes that decode a set of more bytes; None refuses such a set.

    Raises:
        FileNotFoundError: No record file.
        ValueError: Damaged records, labels that do not fit `property`, or an image that cannot be
            read.
    """
    files = _files(path, split, name)
    found = {side: read_records(file) for side, file in files.items()}
    labels = {side: torch.from_numpy(index.labels) for side, index in found.items()}
    present = torch.cat(list(labels.values())).unique()
    claimed = None if split == "unseen" else read_property(files[split].with_name("property"))
    if claimed and int(present[-1]) >= claimed.num_classes:
        told = f"{name}: {shown(files[split])} has the label {int(present[-1])}, and `property` "
        raise ValueError(f"{told}says {claimed.num_classes} classes. Correct it, or remove it.")
    own = torch.searchsorted(present, labels[split])
    check_labels(own, len(present), name)
    chosen = torch.ones_like(own, dtype=torch.bool)
    if split != "unseen" and len(files) == 1:
        chosen = in_split(own, split)
        if not bool(chosen.any()):
            told = f"{name}: no class has two images, so none is left for the {split} split"
            raise ValueError(f"{told}. Add images, or a file test.rec.")
        check_labels(own[chosen], len(present), f"{name} ({split})")
    offsets = torch.from_numpy(found[split].offsets)[chosen]
    # another decoder makes other pixels of the same bytes
    prints = torch.from_numpy(found[split].fingerprints)[chosen] ^ READER
    if size and workers is None:  # known before an image is decoded
        afford(len(offsets), size, size, budget, name)
    source = RecordImages(RecordReader(files[split]), offsets, size, name, budget)
    images = Streamed(source, torch.arange(len(offsets)), budget, workers or 0)
    if workers is None:
        N, _, height, width = source.shape
        afford(N, height, width, budget, name)
    classes = tuple(str(label) for label in present.tolist())
    return ImageSet(images.at(images.rows), own[chosen], classes, name, prints)


def has_unseen_records(path: Path) -> bool:
    """Return whether a folder has a record file of classes that are in neither train nor test."""
    return (path / "unseen.rec").is_file()


class RecordImages:
    """Images of a record file as a source: each is read, decoded, resized and cut when asked for.

    Args:
        reader: The record file.
        offsets: (N,) bytes at which the records of the images begin.
        size: Pixels to which images are resized; with 0 all images have the size of the first one.
        name: The spec, for messages.
        budget: Bytes that an image may take while it is decoded.

    Raises:
        ValueError: An image that cannot be read, or of another size than the first one; the message
            names the file and the byte.
    """

    def __init__(
        self,
        reader: RecordReader,
        offsets: Int64[Tensor, " N"],
        size: int,
        name: str,
        budget: int = BUDGET,
    ):
        self.reader, self.offsets, self.size = reader, offsets, size
        self.name, self.budget = name, budget
        first = look(self.encoded(0), name, size, budget)
        height, width = (size, size) if size else (first.height, first.width)
        self.shape = torch.Size((len(offsets), 3, height, width))

    def __getitem__(self, rows: Int64[Tensor, " M"], /) -> UInt8[Tensor, "M 3 H W"]:
        images = torch.empty(len(rows), *self.shape[1:], dtype=torch.uint8)
        for place, row in enumerate(rows.tolist()):
            file = self.encoded(row)
            image = resized(decoded(file, self.name, self.size, self.budget)[None], self.size)[0]
            if image.shape != self.shape[1:]:
                first, other = (f"{shape[-2]} x {shape[-1]}" for shape in (self.shape, image.shape))
                raise ValueError(
                    f"{self.name}: images of mixed sizes, the first one of {first} and {file.place}"
                    f" of {other}. Give size=... to bring them to one."
                )
            images[place] = image
        return images

    def encoded(self, row: int) -> Encoded:
        """Return the bytes of the image of a row."""
        offset = int(self.offsets[row])
        try:
            record = read_record(self.reader, offset)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        return Encoded(record.image, f"the image at byte {offset:,} of {shown(self.reader.path)}")


def _files(path: Path, split: str, name: str) -> dict[str, Path]:
    """Return the record files of a split, and of the split that shares its classes."""
    if not path.exists():
        raise FileNotFoundError(f"{name}: there is no {shown(path)}. {_REMEDY}")
    if not path.is_dir():
        if path.suffix != ".rec":
            told = f"{name}: {shown(path)} is not called NAME.rec"
            raise ValueError(f"{told}. {_REMEDY}")
        return {split: path}
    if split == "unseen":
        return {split: path / "unseen.rec"}
    train, test = path / "train.rec", path / "test.rec"
    if not train.is_file():
        others = sorted(path.glob("*.rec"))
        if len(others) != 1:
            told = f"{name}: {shown(path)} has no train.rec, but {len(others)} record files"
            raise FileNotFoundError(f"{told}. {_REMEDY}")
        return {split: others[0]}
    return {"train": train, "test": test} if test.is_file() else {split: train}
