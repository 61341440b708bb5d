"""One cell of a grid: its columns, its folder, its records, its results shared with other cells."""

import hashlib
import json
import math
import numbers
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from marginlab.files import csv_text
from marginlab.study.files import number, read_table, safe
from marginlab.study.once import once
from marginlab.study.team import Team

Value = str | int | float
# the columns of results.csv after the cell's own: those of `marginlab.train.Row`
MEASURED = ("epoch", "space", "quantity", "at", "value", "low", "high", "n")
_TEXTS = ("space", "quantity", "at")


class Cell(Mapping[str, Value]):
    """The argument of `run(cell)`: a mapping of the cell's columns (`cell["seed"]`).

    Attributes:
        settings: The study's settings.
        id: A readable name, unique in the grid, made of the columns.
        folder: This cell's own folder, for files that the report shows. It is kept when the cell is
            interrupted, so that `run` can go on in it.
        home: The folder of the study's file, for data beside it.
        run_folder: The folder of the whole run.
    """

    def __init__(
        self,
        columns: Mapping[str, Value],
        *,
        settings: Any,
        run_folder: Path,
        home: Path,
        team: Team | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        self._columns = dict(columns)
        self.settings, self.home = settings, home
        self.id = identify(columns)
        self.folder = run_folder / "cells" / self.id
        self.run_folder, self._team, self._progress = run_folder, team or Team(), progress
        self._rows: list[dict[str, Value]] = []
        self._seen = (0, 0), False  # the rows' file when it was read last, and whether it was whole

    def __getitem__(self, column: str) -> Value:
        if column not in self._columns:
            raise KeyError(
                f"the cell has no column {column!r}; its columns are {', '.join(self._columns)}"
            )
        return self._columns[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Cell({self.id})"

    def __hash__(self) -> int:
        return hash(self.id)

    def record(
        self,
        quantity: str,
        value: float,
        low: float = math.nan,
        high: float = math.nan,
        n: int = 0,
        epoch: int = -1,
        *,
        space: str = "",
        at: str | float = "",
    ) -> None:
        """Add a row to results.csv: a measured value, its interval, and the size of its sample.

        Under torchrun rank 0's values are written. A row of a training is recorded by
        `cell.record(**row._asdict())`.

        Args:
            quantity: What was measured: "knn_error".
            value: The measured value.
            low: The lower end of the interval in which the value is known to lie.
            high: The upper end of the interval.
            n: The number of things that the value was measured on.
            epoch: The epoch; -1 for a value that is measured once, at the end.
            space: Where it was measured ("backbone", "pixels"), if the quantity has a space.
            at: Which of the quantity's numbers it is, if there are several: a threshold, a key.

        Raises:
            ValueError: The quantity is empty, or the cell has recorded the same already.
            TypeError: A value that is no number, or a space that is no text.
        """
        if not quantity or not isinstance(quantity, str):
            raise ValueError(
                f"A measured value has a quantity, a text that is not empty, not {quantity!r}."
            )
        if not isinstance(space, str):
            raise TypeError(f"The space of {quantity!r} is a text, not {space!r}.")
        what: dict[str, Value] = {
            "epoch": int(epoch),
            "space": space,
            "quantity": quantity,
            "at": as_text(at),
        }
        if any(what.items() <= row.items() for row in self._rows):
            named = ", ".join(f"{key} {value!r}" for key, value in what.items())
            raise ValueError(
                f"{self.id} records the same twice: {named}. Tell the two apart by one of these "
                "columns."
            )
        values = {
            "value": _number(value, quantity),
            "low": _number(low, quantity),
            "high": _number(high, quantity),
        }
        self._rows.append({**what, **values, "n": int(n)})

    def once(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(*arguments, folder=...)`, computed by the first cell that asks.

        The other cells find the result, or wait for it. It is kept in the run folder under a hash
        of `name` and `arguments` (text, numbers, bools, None, tuples, lists, dicts, frozen
        dataclasses). The result is a value that JSON can hold. Larger things go into `folder`,
        which an interrupted computation finds again.
        """
        return once(self.run_folder, self._team, self.say, name, function, *arguments)

    def say(self, text: str, done: float = math.nan) -> None:
        """Show a few words beside the cell ("epoch 3/20").

        Args:
            text: The words.
            done: The fraction of the cell that is done, where it is known.
        """
        if self._progress is not None:
            self._progress(text, done)

    @property
    def finished(self) -> bool:
        """Return whether its rows are written: a table with its columns, whole to its last line."""
        try:
            found = self.rows_file.stat()
        except OSError:
            return False
        if not stat.S_ISREG(found.st_mode):
            return False
        seen = found.st_mtime_ns, found.st_size
        if seen != self._seen[0]:
            header = csv_text([*self._columns, *MEASURED], ())
            text = self.rows_file.read_bytes()
            whole = text.startswith(header.encode()) and text.endswith(b"\n")
            self._seen = seen, whole
        return self._seen[1]

    @property
    def rows_file(self) -> Path:
        """The file of the cell's measurements; it exists once the cell has ended."""
        return self.folder / "rows.csv"

    @property
    def failure_file(self) -> Path:
        """The traceback of the last attempt, if that failed."""
        return self.folder / "failed.txt"

    def recorded(self) -> list[dict[str, Value]]:
        """Return the rows that this process recorded, each with the cell's columns."""
        return [{**self._columns, **row} for row in self._rows]

    def rows(self) -> list[dict[str, Value]]:
        """Return the rows of a finished cell; none before."""
        if not self.finished:
            return []
        # the columns come from the grid, which knows the text "1" from the number
        return [
            {
                **self._columns,
                **{key: row[key] if key in _TEXTS else number(row[key]) for key in MEASURED},
            }
            for row in read_table(self.rows_file)
        ]


def as_text(at: str | float) -> str:
    """Return the text of a value in the column `at`.

    Example:
        >>> as_text("new_images"), as_text(0.5), as_text(32)
        ('new_images', '0.5', '32')
    """
    return at if isinstance(at, str) else f"{at:g}"


def _number(value: Any, name: str) -> int | float:
    try:
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name!r} is recorded with {value!r:.80}, which is no number.") from error


def identify(columns: Mapping[str, Value]) -> str:
    """Make a readable file name from the columns; append a hash where the name would be ambiguous.

    Texts stand as they are, and numbers behind their column's name.

    Example:
        >>> identify({"grid": "ladder", "letters": "abcd", "seed": 0})
        'ladder_abcd_seed0'
        >>> identify({"method": "SimCLR(0.5)"})
        'SimCLR_0.5_-8f2e55'
    """
    parts = [
        value if isinstance(value, str) else f"{key}{value!r}" for key, value in columns.items()
    ]
    shown = [safe(part) for part in parts]
    name = "_".join(shown)
    if shown == parts and name and len(name) <= 80 and not name.startswith(".") and all(parts):
        return name
    digest = hashlib.sha256(json.dumps(dict(columns), sort_keys=True).encode()).hexdigest()[:6]
    return f"{name[:80].lstrip('.')}-{digest}"
