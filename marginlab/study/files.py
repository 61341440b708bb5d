"""Files of a run folder that survive a kill: whole or absent, and claimed by one process at a time.

A file is written beside its place and renamed into it, so a reader sees the old one or the new one.
A claim is a lock that ends with its process, however that ends.
"""

import csv
import errno
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from marginlab.files import Lock, content_of, csv_text, refuse_links
from marginlab.files import write as put

# of every cell, not of one
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


class Claim(Lock):
    """An exclusive claim on a path of a run folder."""

    def take(self) -> bool:
        """Return True if the claim is now ours; False, at once, if another process has it."""
        place = self.path.parent
        refuse_links(place.parent, (place.name,))  # of a cell, which others wrote
        refuse_links(place.parent.parent, (place.parent.name,))
        place.mkdir(parents=True, exist_ok=True)
        return super().take()


def write(path: Path, content: str | bytes) -> None:
    """Put a whole file in its place, on disk before it is seen, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, content)


def unwritable(error: BaseException, folder: Path) -> OSError | None:
    """Return a sentence, as an error, if the cause is a run folder that cannot be written.

    Otherwise return None.
    """
    if not (folder / "config.toml").exists():
        return RunFolderError(
            f"{folder} was removed while its cells were computed, and what was finished is lost "
            "with it. The same command begins again."
        )
    seen: set[int] = set()
    behind: BaseException | None = error
    while behind is not None and id(behind) not in seen:
        seen.add(id(behind))
        if isinstance(behind, RunFolderError):
            return behind
        if isinstance(behind, OSError) and behind.errno in _LASTING:
            named = behind.filename
            place = f"{folder}, or another place that a cell writes to,"
            if named is not None:
                inside = Path(os.fsdecode(named)).absolute().is_relative_to(folder.absolute())
                place = str(folder) if inside else os.fsdecode(named)
            return RunFolderError(
                f"{place} cannot be written: {behind.strerror}. The cells that are finished are "
                "kept; the same command goes on once it can be."
            )
        behind = behind.__cause__ or behind.__context__
    return None


class RunFolderError(OSError):
    """A run folder that cannot be used; the message is a sentence."""


def write_json(path: Path, value: Any) -> None:
    """Put a value in its place as readable JSON."""
    write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read the value that `write_json` wrote.

    Raises:
        OSError: There is no such file.
        ValueError: The file is not JSON.
    """
    try:
        return json.loads(content_of(path))
    except RecursionError as error:
        raise ValueError(f"{path} nests too deep to be read") from error


def write_table(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Put rows in their place as CSV.

    A float is written so that it reads back equal: csv writes its repr.
    """
    write(path, csv_text(header, ([row[name] for name in header] for row in rows)))


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file, as text."""
    return list(csv.DictReader(io.StringIO(content_of(path).decode(), newline="")))


def number(text: str) -> int | float:
    """Read a number of a table: an int if it was written as one, else a float.

    Example:
        >>> number("3"), number("3.0"), number("nan")
        (3, 3.0, nan)
    """
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


def safe(text: str) -> str:
    """Return the text as part of a file name, with '_' for any but A-Z, a-z, 0-9, '.', '+' and '-'.

    No file system or shell minds these characters.
    """
    return re.sub(r"[^A-Za-z0-9.+-]", "_", text)
