"""RecordIO files: a sequence of payloads, read by the byte offset of their records, and written.

    record  = part | first middle* last
    part    = uint32 magic 0xced7230a, uint32 (kind << 29 | length), length bytes, zeros to 4 bytes
    payload = bytes of the parts, joined by the four bytes of the magic word
    .idx    = text, a line `key <tab> offset` for each record

Kinds: 0 is a whole record, 1 a first part, 2 a middle one, 3 a last one. All numbers are
little-endian. A writer splits a payload wherever the magic word stands at a multiple of 4 bytes, so
the word marks the beginning of a part and nothing else. Source: dmlc-core's recordio.h.

A reader allocates no more than a file holds, whatever its numbers claim.
"""

import contextlib
import os
import socket
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from marginlab.files import open_own, open_regular
from marginlab.formats.reading import Version, there, version_of, whole, wrong

MAGIC = 0xCED7230A
_WORD = struct.pack("<I", MAGIC)
_HEAD = struct.Struct("<II")
_LIMIT = 2**29  # a part is shorter
_BLOCK = 2**20  # characters of an index that are parsed at a time
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_AGAIN = "Copy or download the file again."
_INDEX = "Remove the index, and the records are found by reading the record file from its beginning"


class Keys(NamedTuple):
    """An index: keys (R,) and byte offsets (R,) of the records, both int64, in the file's order."""

    keys: NDArray[np.int64]
    offsets: NDArray[np.int64]


class RecordReader:
    """Payloads of a RecordIO file, in any order and from any number of processes.

    A reader pickles as a path. A process opens the file when it first reads, and reads at offsets,
    so that processes and threads do not move each other's position.

    Args:
        path: The record file.
        version: The version that the offsets are of; by default the present one.

    Raises:
        FileNotFoundError: There is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with RecordWriter(Path(folder) / "a.rec") as out:
        ...         offsets = [out.write(payload) for payload in (b"one", b"two")]
        ...     reader = RecordReader(Path(folder) / "a.rec")
        ...     offsets, reader.payload(offsets[1])
        ([0, 12], b'two')
    """

    def __init__(self, path: Path | str, version: Version | None = None):
        path = Path(path)
        there(path, "Give a record file (.rec).")
        self.path = path
        self.version = version or version_of(path)
        self._descriptor: int | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "version": self.version, "_descriptor": None}

    def payload(self, offset: int) -> bytes:
        """Read the payload of the record that begins at a byte.

        Raises:
            ValueError: No whole record begins there, or the file has changed since it was looked
                at; the message names the file and the byte.
        """
        return self.read(offset)[0]

    def read(self, offset: int) -> tuple[bytes, int]:
        """Read a payload, and return it with the byte at which the next record begins.

        Raises:
            ValueError: As `payload`.
        """
        kind, data, end = self._part(offset)
        if kind == _WHOLE:
            return data, end
        if kind != _FIRST:
            raise self._wrong(offset, f"a part of kind {kind} begins no record")
        parts = [data]
        while kind != _LAST:
            at = end
            kind, data, end = self._part(at)
            if kind not in (_MIDDLE, _LAST):
                raise self._wrong(at, f"a part of kind {kind} stands inside a record")
            parts.append(data)
        return _WORD.join(parts), end

    def walk(self) -> Iterator[tuple[int, bytes]]:
        """Yield the offset and the payload of every record, from the first to the last.

        Raises:
            ValueError: As `payload`.
        """
        offset = 0
        while offset < self.version.size:
            payload, end = self.read(offset)
            yield offset, payload
            offset = end

    def _part(self, at: int) -> tuple[int, bytes, int]:
        """Return kind and bytes of the part at a byte, and where the next part begins."""
        size = self.version.size
        if at < 0 or at % 4 or at + _HEAD.size > size:
            told = f"the file has {size:,} bytes, and records begin at multiples of 4 in it"
            raise self._wrong(at, f"no record can begin here: {told}")
        magic, word = _HEAD.unpack(self._bytes(at, _HEAD.size))
        if magic != MAGIC:
            raise self._wrong(at, f"a record begins with 0xced7230a, not 0x{magic:08x}")
        kind, length = word >> 29, word & (_LIMIT - 1)
        begin = at + _HEAD.size
        if kind > _LAST:
            raise self._wrong(at, f"there is no part of kind {kind}")
        if begin + length > size:
            left = size - begin
            raise self._wrong(at, f"a part claims {length:,} bytes, but {left:,} are left")
        if kind in (_FIRST, _MIDDLE) and length % 4:
            told = "a part that another one follows is a multiple of 4"
            raise self._wrong(at, f"{told}, not {length:,} bytes long")
        return kind, self._bytes(begin, length), min(begin + (length + 3 & ~3), size)

    def _bytes(self, at: int, n: int) -> bytes:
        if self._descriptor is None:
            there(self.path, "It was there when the work began. Put it back.")
            with open_regular(self.path) as stream:
                stat = os.fstat(stream.fileno())
                if (stat.st_size, stat.st_mtime_ns) != self.version:
                    problem = "the file has changed since it was looked at"
                    raise wrong(self.path, f"byte {at:,}", problem, "Load it again.")
                self._descriptor = os.dup(stream.fileno())
            weakref.finalize(self, os.close, self._descriptor)
        data = os.pread(self._descriptor, n, at)
        if len(data) < n:  # truncated in place while it is read
            raise self._wrong(at, f"{n:,} bytes are due, but the file ends after {len(data):,}")
        return data

    def _wrong(self, at: int, problem: str) -> ValueError:
        return wrong(self.path, f"byte {at:,}", problem, _AGAIN)


def read_idx(path: Path, size: int) -> Keys:
    """Read the index of a record file.

    Args:
        path: The index.
        size: Bytes of the record file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line that is not two whole numbers, an offset at which no record can begin, or
            a key or an offset that comes twice.
    """
    there(path, "Give the index (.idx) of a record file.")
    keys: list[NDArray[np.int64]] = []
    offsets: list[NDArray[np.int64]] = []
    number, left = 0, size // _HEAD.size  # as many records as the file can hold
    with open_regular(path) as stream:
        while block := stream.readlines(_BLOCK):
            if len(block[-1]) > _BLOCK:
                raise wrong(
                    path, f"line {number + len(block)}", "the line has no end", _INDEX + "."
                )
            pairs = np.empty((len(block), 2), dtype=np.int64)
            filled = 0
            for at, line in enumerate(block, number + 1):
                if not (words := line.split()):
                    continue
                pairs[filled] = _pair(words, size, path, at)
                filled += 1
            number += len(block)
            left -= filled
            if left < 0:
                problem = f"there are more records than {size:,} bytes of the record file hold"
                raise wrong(path, f"line {number}", problem, _INDEX + ".")
            keys.append(pairs[:filled, 0])
            offsets.append(pairs[:filled, 1])
    found = Keys(
        *(np.concatenate([*some, np.empty(0, dtype=np.int64)]) for some in (keys, offsets))
    )
    for what, numbers in zip(("key", "offset"), found, strict=True):
        ordered = np.sort(numbers)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            problem = f"the {what} {int(twice[0])} comes more than once"
            raise wrong(path, f"{len(numbers):,} lines", problem, _INDEX + ".")
    return found


def _pair(words: list[bytes], size: int, path: Path, line: int) -> tuple[int, int]:
    numbers = [whole(word.decode("ascii", "replace")) for word in words]
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        problem = "a line is a key, a tab and a byte offset, both whole numbers"
        raise wrong(path, f"line {line}", problem, _INDEX + ".")
    if numbers[1] % 4 or numbers[1] + _HEAD.size > size:
        problem = f"no record of {size:,} bytes begins at {numbers[1]}"
        raise wrong(path, f"line {line}", problem, _INDEX + ".")
    return numbers[0], numbers[1]


class RecordWriter:
    """A RecordIO file and its index, written record by record; both are in place only when whole.

    Use it in a `with` statement. Until its end the files have temporary names. An exception leaves
    the old files as they were, and nothing else.

    Args:
        path: The record file, NAME.rec. The index is NAME.idx.

    Raises:
        ValueError: The name does not end in .rec.
        OSError: The folder cannot be written.
    """

    def __init__(self, path: Path | str):
        path = Path(path)
        if path.suffix != ".rec":
            raise ValueError(f"A record file is called NAME.rec, not {path.name!a}. Rename it.")
        self._places = (path, path.with_suffix(".idx"))
        mark = f"{socket.gethostname()}.{os.getpid()}"
        self._drafts = tuple(place.with_name(f".{place.name}.{mark}") for place in self._places)
        self._files = []
        for draft in self._drafts:
            draft.unlink(missing_ok=True)  # of a process that was killed, or a link
            self._files.append(os.fdopen(open_own(draft, os.O_RDWR | os.O_EXCL), "w+b"))
        self._end = 0
        self._keys: set[int] = set()

    def write(self, payload: bytes, key: int | None = None) -> int:
        """Append a record.

        Args:
            payload: Its bytes.
            key: Its key in the index; by default the number of records before it.

        Returns:
            The byte offset of the record.

        Raises:
            ValueError: A key that is below 0 or was given before, or 512 MiB or more without the
                magic word.
        """
        key = len(self._keys) if key is None else key
        if key < 0 or key in self._keys:
            raise ValueError(f"A key is a whole number that no record has yet, not {key}.")
        records, index = self._files
        offset = self._end
        for head, part in _split(payload):
            records.write(head + part + bytes(-len(part) % 4))
            self._end += len(head) + len(part) + -len(part) % 4
        index.write(f"{key}\t{offset}\n".encode())
        self._keys.add(key)
        return offset

    def replace(self, offset: int, payload: bytes) -> None:
        """Write a record over one of as many bytes that begins at an offset."""
        data = b"".join(head + part + bytes(-len(part) % 4) for head, part in _split(payload))
        self._files[0].seek(offset)
        self._files[0].write(data)
        self._files[0].seek(self._end)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
            if kind is None:
                # in this order a killed process never leaves an index of other records
                self._places[1].unlink(missing_ok=True)
                for draft, place in zip(self._drafts, self._places, strict=True):
                    draft.replace(place)
        finally:
            for file, draft in zip(self._files, self._drafts, strict=True):
                with contextlib.suppress(OSError):
                    file.close()
                draft.unlink(missing_ok=True)


def _split(payload: bytes) -> list[tuple[bytes, bytes]]:
    """Split a payload at the magic words in it that stand at multiples of 4."""
    parts, begin, at = [], 0, payload.find(_WORD)
    while at >= 0:
        if at % 4 == 0:
            parts.append(payload[begin:at])
            begin = at + 4
        at = payload.find(_WORD, at + 4 if at % 4 == 0 else at + 1)
    parts.append(payload[begin:])
    if max(len(part) for part in parts) >= _LIMIT:
        longest = max(len(part) for part in parts)
        raise ValueError(f"A record holds fewer than {_LIMIT:,} bytes, not {longest:,}. Split it.")
    kinds = [_WHOLE] if len(parts) == 1 else [_FIRST, *[_MIDDLE] * (len(parts) - 2), _LAST]
    return [
        (_HEAD.pack(MAGIC, kind << 29 | len(part)), part)
        for kind, part in zip(kinds, parts, strict=True)
    ]
