"""Readers of untrusted files: regular files only, and zip entries with a verified checksum.

    bytes that an entry may claim <= 1032 x its bytes in the file + 64

No deflated block packs more. An entry is read from its beginning to its end and never by a seek:
from Python 3.12 on, zipfile drops the checksum of a stored entry after a seek. This file and
`files` import the standard library only, so that the tests can run them under every Python that
they find.
"""

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from marginlab.files import open_regular

_RATIO = 1032  # of deflate: 258 bytes for each 2 bits


@runtime_checkable
class Readable(Protocol):
    """A stream of bytes."""

    def read(self, n: int, /) -> bytes:
        """Read up to n bytes, fewer only at the end."""


class DamagedError(ValueError):
    """A zip file, or one of its entries, that is not whole; the message says in which way."""


def shown(path: Path) -> str:
    """Write a path as text for any log, with escapes for bytes that are not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def refusal(error: Exception) -> str:
    """Say in a few words why torch.load took no file as data.

    Example:
        >>> refusal(RuntimeError("Unsupported. GLOBAL os.system was not an allowed global ..."))
        'it holds a os.system'
    """
    foreign = re.search(r"GLOBAL (\S+) was not an allowed", str(error))  # its advice is long
    if foreign:
        return f"it holds a {foreign[1]}"
    return str(error).split("\n")[0].rstrip(".") or "it is cut short"


class Entries:
    """The entries of a zip file by name, for reading; use it in a `with` statement.

    Raises:
        OSError: As `open_regular`.
        DamagedError: The file is no zip file, or not a whole one.
    """

    def __init__(self, path: Path):
        self._stream = open_regular(path)
        self._length = os.fstat(self._stream.fileno()).st_size
        try:
            with _damage("the list of its entries"):
                self._archive = zipfile.ZipFile(self._stream)
        except DamagedError:
            self._stream.close()
            raise
        self.names = tuple(self._archive.namelist())

    def __enter__(self) -> "Entries":
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()
        self._stream.close()

    def open(self, name: str) -> "Entry":
        """Open an entry, to be read once from its beginning to its end.

        Raises:
            DamagedError: An entry that is absent, encrypted, packed otherwise than by deflate, or
                that claims more bytes than the file can hold.
        """
        with _damage(name):
            info = self._archive.getinfo(name)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DamagedError(
                    f"{name} is packed by method {info.compress_type}, not by deflate"
                )
            ratio = 1 if info.compress_type == zipfile.ZIP_STORED else _RATIO
            packed = min(info.compress_size, self._length)
            if info.file_size > ratio * packed + 64:
                raise DamagedError(
                    f"{name} claims {info.file_size:,} bytes, more than {packed:,} in the file can "
                    "hold"
                )
            return Entry(name, info.file_size, self._archive.open(info))

    def at(self, offset: int) -> str | None:
        """Name the entry with data that begin at this byte of the file; None if there is none."""
        with _damage("the list of its entries"):
            for info in self._archive.infolist():
                self._stream.seek(info.header_offset)
                header = self._stream.read(30)
                names, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
                if info.header_offset + 30 + names + extra == offset:
                    return info.filename
        return None


class Entry:
    """One entry as a stream of `size` bytes; `read` returns the next ones."""

    def __init__(self, name: str, size: int, stream: Readable):
        self.name = name
        self.size = size
        self._left = size
        self._stream = stream

    def read(self, n: int) -> bytes:
        """Read the next n bytes; with the last ones the checksum is verified.

        Raises:
            DamagedError: The entry ends early, or its checksum is wrong.
        """
        with _damage(self.name):
            data = self._stream.read(n) if n else b""
            self._left -= len(data)
            if len(data) < n or (not self._left and self._stream.read(1)):
                raise DamagedError(
                    f"{self.name} ends after {self.size - self._left:,} of its bytes"
                )
        return data

    def verify(self, block: int = 2**24) -> None:
        """Read the rest, to verify the checksum."""
        while self._left:
            self.read(min(block, self._left))


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """Turn all errors of reading bytes into a `DamagedError`.

    zipfile, zlib, struct and the codecs have ten ways between them to say that a file is broken,
    and the ways differ from one Python to the next.
    """
    try:
        yield
    except DamagedError:
        raise
    except Exception as error:
        said = str(error) or type(error).__name__
        raise DamagedError(said if where in said else f"{said} ({where})") from error
