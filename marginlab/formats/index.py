"""The index of a record file: where its images are and what their labels are, kept as int64.

    NAME.rec.index = one line of JSON: versions of NAME.rec and NAME.idx, number of images, checksum
                     keys (N,), offsets (N,), labels (N,), fingerprints (N,), int64 little-endian
    fingerprint    = 64 bits of BLAKE2b over the bytes of an encoded image

The index is used while both files have the size and the time of change that it names, and its
checksum is right. Otherwise the record file is read again. A file appears whole or not at all.
"""

import hashlib
import json
import os
import warnings
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marginlab.files import content_of, encoded, write
from marginlab.files.untrusted import shown
from marginlab.formats.reading import version_of, wrong
from marginlab.formats.recordio import RecordReader, read_idx

_FORMAT = 1
_HEAD = 4096  # bytes of the first line at most
_AGAIN = "Copy or download the record file and its index again."


class RecordIndex(NamedTuple):
    """Keys, byte offsets, labels and fingerprints of N images, each (N,) int64, sorted by key."""

    keys: NDArray[np.int64]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    fingerprints: NDArray[np.int64]


Parse = Callable[[bytes, Path, int], tuple[int, bytes]]
"""Function of (payload, path, offset) that returns a label, and the bytes of an image or none."""


def scanned(path: Path, parse: Parse) -> RecordIndex:
    """Return the index of a record file: the one that was written before, or a new one.

    Args:
        path: The record file.
        parse: The function that finds label and image in a payload.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Damaged records; records that overlap.
    """
    reader = RecordReader(path)
    versions = _versions(path)
    places = [place for place in (path.with_name(f"{path.name}.index"), _cache(path)) if place]
    for place in places:
        found = _read(place, versions)
        if found is not None:
            return found
    found = _scan(reader, parse)
    reasons = []
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _write(place, versions, found)
        except OSError as error:
            reasons.append(f"{shown(place)} ({error.strerror})")
        else:
            return found
    told = f"The index of {shown(path)} could not be kept in {' nor in '.join(reasons)}"
    remedy = "The file is read again each time; MARGINLAB_CACHE names a folder that can be written"
    warnings.warn(f"{told}. {remedy}.", stacklevel=3)
    return found


def _versions(path: Path) -> dict[str, Any]:
    idx = path.with_suffix(".idx")
    there = list(version_of(idx)) if idx.is_file() else None
    return {"format": _FORMAT, "records": list(version_of(path)), "idx": there}


def _cache(path: Path) -> Path | None:
    """Return the place of an index in the folder of caches; None where no such folder is known."""
    try:
        asked = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(os.environ.get("MARGINLAB_CACHE") or Path(asked) / "marginlab")
    except RuntimeError:  # no home
        return None
    name = hashlib.blake2b(encoded(str(path.absolute())), digest_size=16).hexdigest()
    return folder / "records" / f"{name}.index"


def _scan(reader: RecordReader, parse: Parse) -> RecordIndex:
    idx = reader.path.with_suffix(".idx")
    columns = [array("q") for _ in RecordIndex._fields]

    def add(key: int, offset: int, payload: bytes) -> None:
        label, image = parse(payload, reader.path, offset)
        if image:
            digest = hashlib.blake2b(image, digest_size=8).digest()
            row = (key, offset, label, int.from_bytes(digest, "little", signed=True))
            for column, value in zip(columns, row, strict=True):
                column.append(value)

    if idx.is_file():
        keys, offsets = read_idx(idx, reader.version.size)
        end = 0
        for place in np.argsort(offsets).tolist():  # in the order of the disk
            offset = int(offsets[place])
            if offset < end:
                problem = f"a record begins here inside another one, which ends at {end:,}"
                raise wrong(reader.path, f"byte {offset:,}", problem, _AGAIN)
            payload, end = reader.read(offset)
            add(int(keys[place]), offset, payload)
    else:
        for number, (offset, payload) in enumerate(reader.walk()):
            add(number, offset, payload)
    found = [np.array(column, dtype=np.int64) for column in columns]
    order = np.argsort(found[0])
    return RecordIndex(*(column[order] for column in found))


def _write(place: Path, versions: dict[str, Any], index: RecordIndex) -> None:
    data = np.stack(index).astype("<i8").tobytes()
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    head = versions | {"images": len(index.keys), "digest": digest}
    write(place, json.dumps(head).encode() + b"\n" + data)


def _read(place: Path, versions: dict[str, Any]) -> RecordIndex | None:
    """Read an index; None if it is absent, of other files, or damaged."""
    try:
        head, _, data = content_of(place, 2**40).partition(b"\n")
        found = json.loads(head) if len(head) <= _HEAD else None
    except (OSError, ValueError, RecursionError):
        return None
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    if found != versions | {"images": len(data) // 32, "digest": digest} or len(data) % 32:
        return None
    return RecordIndex(*np.frombuffer(data, dtype="<i8").reshape(4, -1).astype(np.int64))
