"""Image records of face-recognition training sets: `train.rec`, `train.idx`, `property`.

    payload   = uint32 flag, float32 label, uint64 id, uint64 id2, flag x float32 labels, image
    label     = the first of the flag labels; the header's label where flag = 0
    images    = the records with bytes behind their labels, in the order of their keys
    property  = "num_classes,height,width"

A training set of InsightFace begins with a record of two labels (A, B) and no image. Its images
have the keys 1 to A - 1, and the keys A to B - 1 are identities: two labels (first, last + 1), no
image. These bounds are float32, which cannot hold every key above 2^24, and one class may own
several identities. So neither is used: an image is a record with an image, and its class is its own
label. A shuffled set without such records is read alike.

A float32 label is exact below 2^24, and a larger one is refused. The labels are found by reading
the record file once, and are kept in an int64 index beside it: see `index`.
"""

import math
import struct
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marginlab.files import write
from marginlab.formats.index import RecordIndex, scanned
from marginlab.formats.reading import content, whole, wrong
from marginlab.formats.recordio import RecordReader, RecordWriter

_HEADER = struct.Struct("<IfQQ")
_EXACT = 2**24  # whole numbers up to here are float32
_PROPERTY = "The file holds one line, num_classes,height,width; without the file, images tell both."
_AGAIN = "Copy or download the file again."


class Record(NamedTuple):
    """An image record: its labels, its id, and its encoded image, which may have no bytes."""

    labels: tuple[float, ...]
    id: int
    image: bytes


class Property(NamedTuple):
    """Number of classes, height and width of a set, as its file `property` says."""

    num_classes: int
    height: int
    width: int


def read_record(reader: RecordReader, offset: int) -> Record:
    """Read the image record that begins at a byte.

    Raises:
        ValueError: No whole image record begins there; the message names the file and the byte.
    """
    return _parsed(reader.payload(offset), reader.path, offset)


def _parsed(payload: bytes, path: Path, offset: int) -> Record:
    if len(payload) < _HEADER.size:
        problem = f"an image record has a header of {_HEADER.size} bytes, not {len(payload)} bytes"
        raise wrong(path, f"byte {offset:,}", problem, _AGAIN)
    flag, label, number, _ = _HEADER.unpack_from(payload)
    begin = _HEADER.size + 4 * flag
    if begin > len(payload):
        problem = f"a record claims {flag:,} labels in {len(payload) - _HEADER.size:,} bytes"
        raise wrong(path, f"byte {offset:,}", problem, _AGAIN)
    labels = struct.unpack_from(f"<{flag}f", payload, _HEADER.size) if flag else (label,)
    return Record(labels, number, payload[begin:])


def _image(payload: bytes, path: Path, offset: int) -> tuple[int, bytes]:
    """Return label and bytes of an image, and no bytes where a record has no image."""
    record = _parsed(payload, path, offset)
    if not record.image:
        return 0, b""
    label = record.labels[0]
    if not (math.isfinite(label) and label == int(label) and label >= 0):
        problem = f"the label of an image is {label}, which is no whole number from 0"
        raise wrong(path, f"byte {offset:,}", problem, "Write the file again with whole labels.")
    if label >= _EXACT:
        problem = f"the label of an image is {label:.0f}, and a float32 is exact below {_EXACT:,}"
        raise wrong(path, f"byte {offset:,}", problem, "Split the classes over several files.")
    return int(label), record.image


def read_records(path: Path | str) -> RecordIndex:
    """Find the images of a record file and their labels.

    The first call reads the file once and writes what it found beside it, or, where that cannot be
    written, into a folder of caches (MARGINLAB_CACHE, else XDG_CACHE_HOME or ~/.cache). Later calls
    read this index, until the record file or its .idx changes. Without an .idx the records are
    found by reading from the beginning, and their keys are their numbers.

    Args:
        path: The record file, NAME.rec, with NAME.idx beside it.

    Returns:
        Keys, byte offsets, labels and fingerprints of the images, sorted by key.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Damaged bytes, a label that is no whole number below 2^24, or no image at all.
            The message names the file and the byte or line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images = [(b"first", 0), (b"second", 0), (b"third", 1)]
        ...     path = write_records(Path(folder), images, size=(112, 112))
        ...     found = read_records(path)
        ...     record = read_record(RecordReader(path), int(found.offsets[2]))
        >>> found.labels.tolist(), record.image
        ([0, 0, 1], b'third')
    """
    path = Path(path)
    found = scanned(path, _image)
    if not len(found.keys):
        problem = "no record holds an image"
        raise wrong(path, f"{path.stat().st_size:,} bytes", problem, "Give a file with images.")
    return found


def read_property(path: Path | str) -> Property | None:
    """Read the file `property` of a training set; None where there is none.

    Raises:
        ValueError: The file is not three whole numbers above 0, separated by commas.
    """
    path = Path(path)
    if not path.is_file():
        return None
    text = content(path, _PROPERTY)[:200]
    words = text.decode("utf-8", "replace").strip().split(",")
    numbers = [whole(word.strip(), 2**31) for word in words]
    if len(numbers) != 3 or not all(numbers):
        raise wrong(path, "line 1", f"{text[:40]!r} is not three numbers above 0", _PROPERTY)
    return Property(*(number or 0 for number in numbers))


def write_records(
    folder: Path | str,
    images: Iterable[tuple[bytes, int]],
    *,
    size: tuple[int, int],
    name: str = "train",
    identities: bool = True,
) -> Path:
    """Write encoded images and their labels as NAME.rec, NAME.idx and `property`.

    The files are put in place when all images are written. An exception leaves the old ones.

    Args:
        folder: The folder, which is made if absent.
        images: The bytes of an encoded image and its label, one after the other.
        size: Height and width of the images, for `property`.
        name: The name of the files.
        identities: Write the layout of InsightFace: record 0 with the bounds, and behind the images
            a record for each run of images of one label. Without them, images only, from key 0.

    Returns:
        The record file.

    Raises:
        ValueError: No image, one without bytes, or a label that is negative or 2^24 or more.
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, key, most = folder / f"{name}.rec", 0, -1
    runs: list[tuple[int, int]] = []
    with RecordWriter(path) as out:
        if identities:
            out.write(_bounds(0, 0, 0), key)
            key += 1
        for label, run in groupby(images, key=lambda pair: pair[1]):
            if not 0 <= label < _EXACT:
                raise ValueError(f"A label of a record is from 0 to {_EXACT - 1:,}, not {label}.")
            first, most = key, max(most, label)
            for image, _ in run:
                if not image:
                    raise ValueError(f"Image {key} has no bytes. Leave it out.")
                out.write(_HEADER.pack(0, label, key, 0) + image, key)
                key += 1
            runs.append((first, key))
        if most < 0:
            raise ValueError(f"There are no images to write into {path}. Give at least one.")
        if identities:
            for number, (first, end) in enumerate(runs, key):
                out.write(_bounds(first, end, number), number)
            out.replace(0, _bounds(key, key + len(runs), 0))
    write(folder / "property", f"{most + 1},{size[0]},{size[1]}\n")
    return path


def _bounds(first: int, end: int, number: int) -> bytes:
    """Return a record of two labels and no image; the header's label is 0 then."""
    return _HEADER.pack(2, 0.0, number, 0) + np.array([first, end], dtype="<f4").tobytes()
