"""Files that a conversion writes: a folder of images, an npz file, or record files.

    folder    PATH/SPLIT/CLASS/00000012.png, the number of an image in its split; each image in
              place when it is whole
    npz       SPLIT_images (N, H, W, 3), SPLIT_labels, classes; in place when all of it is whole
    record    PATH/SPLIT.rec and .idx, in place when whole, property, and the names of the classes
              in classes.txt, one a line

A folder and record files are begun with `.conversion.json`, which tells the same conversion from
another. What is there and whole is then not written again.
"""

import contextlib
import json
import os
import socket
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marginlab.data.parts import Encoding, Part
from marginlab.files import content_of, open_own, write
from marginlab.files.untrusted import shown
from marginlab.formats import write_records

MARK = ".conversion.json"
_ENDS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9"}
_LONGEST = 255  # bytes of a name that file systems take
Tick = Callable[[int], None]
"""Called with the number of images that are done."""


def begin(path: Path, mark: str, spec: str) -> None:
    """Make a folder and mark it as the place of this conversion.

    Raises:
        ValueError: It is the place of another conversion.
    """
    path.mkdir(parents=True, exist_ok=True)
    told = marked(path)
    if told and told.get("mark") != mark:
        raise ValueError(
            f"{shown(path)} holds another conversion, of {told.get('spec')!s:.200}: other images "
            "or other settings. Remove it, or choose another place."
        )
    if not told:
        write(path / MARK, json.dumps({"mark": mark, "spec": spec}) + "\n")


def marked(path: Path) -> dict[str, Any]:
    """Return the mark of a folder that a conversion began, and nothing for another."""
    with contextlib.suppress(OSError, ValueError):
        told = json.loads(content_of(path / MARK, 2**20))
        if isinstance(told, dict):
            return told
    return {}


def payloads(
    part: Part, rows: torch.Tensor, encoding: Encoding | None
) -> Iterator[tuple[int, bytes, str]]:
    """Yield number, bytes and ending of the files of images; without an encoding as stored."""
    if encoding is None:
        for row in rows.tolist():
            yield row, *part.original(row)
        return
    for some, images in part.pictures(rows):
        for row, image in zip(some.tolist(), images, strict=True):
            yield row, encoding.encoded(image), encoding.ending


def check_names(parts: Sequence[Part]) -> None:
    """Refuse classes whose names no folder can have.

    Raises:
        ValueError: Such a name, or two classes of one name.
    """
    for part in parts:
        for name in part.classes:
            if not is_folder_name(name):
                raise ValueError(
                    f"No folder of a class can be called {name!r:.120}. Convert to npz, or rename "
                    "the class."
                )
        if twins := equal_folder_names(part.classes):
            raise ValueError(
                f"The classes {twins[0]!r:.120} and {twins[1]!r:.120} have one name where letters "
                "are not told from capitals, or composed ones from others. Their folders would be "
                "one. Convert to npz, or rename one."
            )


def is_folder_name(name: str) -> bool:
    """Return whether a folder can be called so, and is read as one of a class.

    Example:
        >>> [is_folder_name(name) for name in ("cat", "a/b", ".cat", "")]
        [True, False, False, False]
    """
    bad = not name or name.startswith(".") or "/" in name or "\0" in name or os.sep in name
    return not bad and len(name.encode()) <= _LONGEST


def equal_folder_names(names: Sequence[str]) -> tuple[str, str] | None:
    """Return the first two names that are one on some file system, or None.

    Example:
        >>> equal_folder_names(("ant", "Bee", "bee"))
        ('Bee', 'bee')
    """
    known: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in known:
            return known[folded], name
        known[folded] = name
    return None


def write_folder(parts: Sequence[Part], path: Path, encoding: Encoding | None, tick: Tick) -> None:
    """Write each image that is not there and whole."""
    for part in parts:
        folders = [path / part.split / name for name in part.classes]
        for label in part.labels.unique().tolist():
            folders[label].mkdir(parents=True, exist_ok=True)
        labels = part.labels.tolist()
        rows = torch.arange(len(labels))
        if encoding is not None:
            there = [
                _whole(folders[label] / f"{row:08d}{encoding.ending}")
                for row, label in enumerate(labels)
            ]
            rows = (~torch.tensor(there)).nonzero()[:, 0]
            tick(len(labels) - len(rows))
        for row, data, ending in payloads(part, rows, encoding):
            file = folders[labels[row]] / f"{row:08d}{ending}"
            if encoding is not None or not _has(file, len(data)):
                _put(file, data)
            tick(1)


def _has(file: Path, length: int) -> bool:
    try:
        return not file.is_symlink() and file.stat().st_size == length
    except OSError:
        return False


def _whole(file: Path) -> bool:
    """Return whether a PNG or a JPEG is there, with the end that it has when it is whole."""
    end = _ENDS[file.suffix]
    try:
        with file.open("rb") as stream:
            stream.seek(-len(end), os.SEEK_END)
            return stream.read() == end
    except OSError:
        return False


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")


def _put(file: Path, data: bytes) -> None:
    """Write one of many files: whole or not at all if the process dies, but not forced to disk."""
    draft = _draft(file)
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(open_own(draft, os.O_WRONLY | os.O_EXCL), "wb") as stream:
            stream.write(data)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def write_npz(parts: Sequence[Part], path: Path, tick: Tick) -> None:
    """Write the arrays of all splits, a batch of images at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(path)
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(open_own(draft, os.O_RDWR | os.O_EXCL), "w+b") as stream:
            with zipfile.ZipFile(stream, "w") as archive:
                for part in parts:
                    _images(archive, part, tick)
                    _array(archive, f"{part.split}_labels", part.labels.numpy())
                    if part.split == "unseen":
                        _array(archive, "unseen_classes", np.array(part.classes, dtype=str))
                _array(archive, "classes", np.array(parts[0].classes, dtype=str))
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _entry(archive: zipfile.ZipFile, key: str) -> Any:
    # no time of writing, so that equal images make equal files
    return archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True)


def _array(archive: zipfile.ZipFile, key: str, values: np.ndarray) -> None:
    with _entry(archive, key) as stream:
        np.lib.format.write_array(stream, values, allow_pickle=False)


def _images(archive: zipfile.ZipFile, part: Part, tick: Tick) -> None:
    N, _, height, width = part.shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (N, height, width, 3)}
    with _entry(archive, f"{part.split}_images") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for some, images in part.pictures(torch.arange(N)):
            stream.write(images.permute(0, 2, 3, 1).contiguous().numpy().data)
            tick(len(some))


def write_record_files(
    parts: Sequence[Part], path: Path, encoding: Encoding | None, tick: Tick
) -> None:
    """Write the record file of each split that is not there."""

    def pairs(part: Part) -> Iterator[tuple[bytes, int]]:
        labels = part.labels.tolist()
        for row, data, _ in payloads(part, torch.arange(len(labels)), encoding):
            yield data, labels[row]
            tick(1)

    for part in parts:
        if (path / f"{part.split}.rec").exists() and (path / f"{part.split}.idx").exists():
            tick(len(part.labels))
            continue
        write_records(path, pairs(part), size=part.shape[2:], name=part.split)
    # the writer says what the last file has; these are of train and test together
    _, _, height, width = parts[0].shape
    write(path / "property", f"{len(parts[0].classes)},{height},{width}\n")
    for part in parts:
        if part.split != "test":
            name = "classes.txt" if part.split == "train" else "unseen_classes.txt"
            text = "".join(f"{' '.join(of.split())}\n" for of in part.classes)
            write(path / name, text)
