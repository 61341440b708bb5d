"""The display of a running grid: a progress line or plain lines, and a table at the end.

The progress line is shown on a terminal, plain lines elsewhere.
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from marginlab.study.quantity import Quantity, last_values, measured
from marginlab.study.run import Run
from marginlab.terminal import printable, say

if TYPE_CHECKING:
    import rich.console

_QUIET = 30.0  # seconds between two lines about the same cell where there is no terminal


def clock(seconds: float) -> str:
    """Write a duration for people.

    Example:
        >>> clock(4.2), clock(75), clock(7260)
        ('4.2 s', '1 min 15 s', '2 h 01 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02} s"
        if whole < 3600
        else f"{whole // 3600} h {whole % 3600 // 60:02} min"
    )


def console() -> "rich.console.Console":
    """Return standard output as rich's console; without a terminal as wide as a table needs."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(highlight=False, markup=False, emoji=False, width=width)  # what it shows is data


class Display:
    """Progress over a grid of `total` cells, of which other processes may compute some.

    `shown=False` keeps it silent (other ranks).
    """

    def __init__(self, total: int, *, shown: bool) -> None:
        self.total, self.shown = total, shown
        self.finished, self.others, self.seconds = 0, 0, list[float]()
        self._cell, self._begun, self._said, self._part = "", 0.0, 0.0, math.nan
        self._bar: Any = None

    def __enter__(self) -> "Display":
        if self.shown and sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            columns = (
                SpinnerColumn(),
                BarColumn(24),
                *(
                    TextColumn(f"{{task.fields[{key}]}}", markup=False)
                    for key in ("count", "left", "what")
                ),
            )
            self._bar = Progress(*columns, console=console(), transient=True)
            self._task = self._bar.add_task("", total=self.total, count="", left="", what="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def line(self, text: str) -> None:
        """Show a line that stays."""
        if self._bar is not None:
            self._bar.console.print(printable(text))
        elif self.shown:
            say(text)

    def start(self, cell: str, finished: int, others: int) -> None:
        """Show that a cell begins, how many are finished, and how many other processes compute."""
        self._cell, self._begun, self._said, self._part = (
            cell,
            time.monotonic(),
            time.monotonic(),
            math.nan,
        )
        self.finished, self.others = finished, others
        self._update("")
        if self._bar is None:
            self.line(f"[{finished + 1}/{self.total}] {cell}")

    def wait(self, finished: int, others: int) -> None:
        """Show that other processes compute the remaining cells."""
        if (finished, others) != (self.finished, self.others) or self._cell:
            self._cell, self.finished, self.others = "", finished, others
            self._update("")
            if self._bar is None:
                self.line(
                    f"[{finished}/{self.total}] waits for {others} "
                    f"{'cell' if others == 1 else 'cells'} that other processes compute"
                )

    def say(self, text: str, done: float) -> None:
        """Show a few words about the cell that is computed."""
        self._part = done
        self._update(text)
        if self._bar is None and time.monotonic() - self._said >= _QUIET:
            self._said = time.monotonic()
            self.line(f"    {self._cell}: {text}{self._left(', ')}")

    def stop(self, seconds: float, *, good: bool) -> None:
        """Show that the cell has ended."""
        if good:
            self.seconds.append(seconds)
            self.finished += 1
        self._part = math.nan
        self.line(
            f"{'✓' if good else '✗'} {self._cell}, "
            f"{clock(seconds)}{self._left(', ') if good else ''}"
        )

    def _left(self, before: str) -> str:
        ours = (time.monotonic() - self._begun) / self._part if self._part > 0 else math.nan
        known = [*self.seconds, *([ours] if math.isfinite(ours) else [])]
        cells = self.total - self.finished - (self._part if self._part > 0 else 0.0)
        if not known or cells <= 0:
            return ""
        return f"{before}about {clock(sum(known) / len(known) * cells / (1 + self.others))} left"

    def _update(self, text: str) -> None:
        if self._bar is not None:
            part = self._part if self._part > 0 else 0.0
            what = (
                f"{self._cell}  {text}"
                if self._cell
                else f"waits for {self.others} that other processes compute"
            )
            count, left = f"{self.finished}/{self.total} cells", self._left("")
            done = self.finished + part
            self._bar.update(
                self._task, completed=done, count=count, left=left, what=printable(what)
            )


def closing(run: Run, headline: Sequence[Quantity]) -> None:
    """Print the study's headline values, cell by cell: those of the last epoch.

    Columns that do not vary stand below.
    """
    if not headline:
        return
    from rich.table import Table

    shown = measured(headline, run.results)
    columns = list(run.cells[0])
    last = last_values(shown, run.results, columns)
    varying = [column for column in columns if len({cell[column] for cell in run.cells}) > 1]
    fixed = ", ".join(
        f"{column} {run.cells[0][column]}" for column in columns if column not in varying
    )
    title, caption = printable(run.study.title), printable(fixed)
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column in varying:
        table.add_column(printable(column))
    for quantity in shown:
        table.add_column(printable(quantity.title), justify="right")
    for cell in run.cells:
        values = last.get(tuple(cell.values()), {})
        table.add_row(
            *(printable(cell[column]) for column in varying),
            *(_short(values.get(quantity)) for quantity in shown),
        )
    console().print(table)


def _short(row: Mapping[str, Any] | None) -> str:
    """Show a value to three digits; its interval is in results.csv."""
    return "–" if row is None else f"{row['value']:.3g}"
