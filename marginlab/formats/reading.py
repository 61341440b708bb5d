"""Reading of other programs' files: whole contents, lines of words, and errors that name the place.

Bytes are untrusted. A reader gives a value, or a ValueError that names the file, the place in it
and the remedy. A file that is not there gives a FileNotFoundError.
"""

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from marginlab.files import content_of
from marginlab.files.untrusted import shown

MOST = 2**32  # bytes of a file that is read whole


class Version(NamedTuple):
    """Size in bytes and time of the last change in nanoseconds: a changed file has another."""

    size: int
    changed: int


class Line(NamedTuple):
    """A line with its number from 1, and the words in it."""

    number: int
    words: list[str]


def wrong(path: Path, place: str, problem: str, remedy: str) -> ValueError:
    """Make the error of a file: where the problem is, what it is, and what to do."""
    return ValueError(f"{shown(path)}, {place}: {problem}. {remedy}")


def version_of(path: Path) -> Version:
    """Return the version of a file."""
    stat = path.stat()
    return Version(stat.st_size, stat.st_mtime_ns)


def there(path: Path, remedy: str) -> None:
    """Refuse a file that is absent.

    Raises:
        FileNotFoundError: There is no such file; the message holds the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {shown(path)}. {remedy}")


def content(path: Path, remedy: str) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: There is no such file; the message holds the remedy.
        ValueError: The file has more than 4 GiB.
    """
    there(path, remedy)
    return content_of(path, MOST)


def lines(path: Path, remedy: str, separator: str | None = None) -> Iterator[Line]:
    """Yield the lines of a text file that are not blank.

    Args:
        path: The file, text in UTF-8.
        remedy: What the file should be, for messages.
        separator: The character between words; None for blanks and tabs.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not text in UTF-8.
    """
    begin = 0
    # a line at a time: the lines of a list of 15 million pairs would take gigabytes
    for number, line in enumerate(BytesIO(content(path, remedy)), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            problem = "the bytes are no text in UTF-8"
            raise wrong(path, f"byte {begin + error.start}", problem, remedy) from error
        if text:
            yield Line(number, [word.strip() for word in text.split(separator)])
        begin += len(line)


def whole(word: str, most: int = 2**62) -> int | None:
    """Return the whole number that a word is; None if it is none, or below 0 or above `most`.

    Example:
        >>> whole("12"), whole("-1"), whole("1.5"), whole("1_000")
        (12, None, None, None)
    """
    if not (word.isascii() and word.isdigit() and len(word) <= 20):
        return None
    number = int(word)
    return number if number <= most else None


def name_in(word: str) -> bool:
    """Return whether a word is a relative path that stays below its folder.

    Example:
        >>> name_in("a/b.jpg"), name_in("../b.jpg"), name_in("/etc/b.jpg")
        (True, False, False)
    """
    path = Path(word)
    return (
        bool(word) and "\0" not in word and not path.is_absolute() and os.pardir not in path.parts
    )
