"""A whole run, finished or not: the argument of `report(run)`, and the object a notebook opens."""

import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from marginlab.settings import as_data
from marginlab.study.cell import Cell, as_text
from marginlab.study.definition import Study, load
from marginlab.study.folder import check, reopen, times
from marginlab.study.once import once
from marginlab.study.report import Report
from marginlab.study.team import Team
from marginlab.study.traces import of_cells


class Rows(list[dict[str, Any]]):
    """Rows of a table, as dicts."""

    _grouped: tuple[int, dict[Any, list[dict[str, Any]]]] = -1, {}

    def select(self, **columns: Any) -> "Rows":
        """Return the rows with these values in these columns.

        Raises:
            KeyError: A column that the rows do not have.

        Example:
            >>> Rows([{"seed": 0, "value": 0.5}, {"seed": 1, "value": 0.25}]).select(seed=1)
            [{'seed': 1, 'value': 0.25}]
        """
        rows = self if "quantity" not in columns else self._of(columns["quantity"])
        return Rows(
            row for row in rows if all(row[column] == value for column, value in columns.items())
        )

    def _of(self, quantity: Any) -> list[dict[str, Any]]:
        """Return the rows of a quantity. A report asks thousands of times, so they are grouped."""
        if self._grouped[0] != len(self):
            groups: dict[Any, list[dict[str, Any]]] = {}
            for row in self:
                groups.setdefault(row["quantity"], []).append(row)
            self._grouped = len(self), groups
        return self._grouped[1].get(quantity, [])


class Series(NamedTuple):
    """A quantity over training: its epochs, and its value at each."""

    epochs: list[int]
    values: list[float]


class Run:
    """A run folder, read.

    Attributes:
        folder, settings, home: The run folder, its settings, the folder of the study's file.
        cells: All cells of the grid, in order (`cell["seed"]`, `cell.folder`, `cell.finished`).
        results: The rows of results.csv as dicts: the cell's columns, epoch, space, quantity, at,
            value, low, high, n; `results.select(quantity="error", seed=0)`.
        times: The rows of times.csv.
        report: The report that the study's `report` writes into.
    """

    def __init__(
        self,
        study: Study,
        settings: Any,
        folder: Path,
        *,
        team: Team | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.study, self.settings, self.folder, self.home = (
            study,
            settings,
            folder.resolve(),
            study.home,
        )
        self.cells = [
            Cell(columns, settings=settings, run_folder=self.folder, home=study.home)
            for columns in study.grid(settings)
        ]
        self.results = Rows(row for cell in self.cells for row in cell.rows())
        self.times = Rows(times(self.cells))
        self.report = Report(title=study.title, cells=self.cells)
        self._team, self._say = team or Team(), say or (lambda _: None)

    def select(self, **columns: Any) -> Rows:
        """Return the rows of `results` with these values in these columns."""
        return self.results.select(**columns)

    def series(
        self, quantity: str, *, space: str = "", at: str | float = "", **columns: Any
    ) -> Series:
        """Return a quantity at each epoch, as a mean over the cells with these columns.

        Both lists are empty where no finished cell has it.

        Args:
            quantity: What was measured: "knn_error".
            space: Where it was measured: "backbone".
            at: Which of the quantity's numbers: 0.5, "T".
            **columns: Columns of the cells: `seed=0` takes one seed, without it the mean is over
                all.

        Raises:
            KeyError: The cells have no such column.
        """
        for column in columns:
            _ = self.cells[0][column]
        found: dict[int, list[float]] = {}
        for row in self.results.select(quantity=quantity, space=space, at=as_text(at), **columns):
            found.setdefault(row["epoch"], []).append(row["value"])
        epochs = sorted(found)
        return Series(epochs, [sum(found[epoch]) / len(found[epoch]) for epoch in epochs])

    def last(
        self, quantity: str, *, space: str = "", at: str | float = "", **columns: Any
    ) -> float:
        """Return a quantity at its last epoch, as a mean over the cells with these columns.

        It is NaN where no finished cell has it. The arguments are those of `series`.
        """
        values = self.series(quantity, space=space, at=at, **columns).values
        return values[-1] if values else math.nan

    def parts(self, column: str, **columns: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield a trace that is a mean over a column, then its parts, one for each value.

        The report hides the parts. It draws them in the place of the mean while its filter leaves
        some of the values only. `for at, look in run.parts("seed", loss="arcface")` gives columns
        for `series`, `last` and `select`, and arguments for `figure.add_scatter(..., **look)`.

        Args:
            column: The column that the mean is over, such as "seed".
            **columns: Columns of the cells, as in `of_cells`.

        Yields:
            Columns, and the arguments of a plotly trace with the same name for each.

        Raises:
            KeyError: The cells have no such column.
        """
        grid = self.report.grid
        numbers = grid.numbers(columns)
        yield columns, of_cells(**columns)
        values = dict.fromkeys(self.cells[number][column] for number in numbers)
        for value in values if len(values) > 1 else ():
            at = {**columns, column: value}
            yield at, {**of_cells(**at), "visible": False}

    def once(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return a result kept in the run folder, as `Cell.once`, for the report alone."""
        return once(self.folder, self._team, self._say, name, function, *arguments)


def open_run(
    folder: Path | str,
    study: Study | Path | str | None = None,
    *,
    code: Collection[str] = (),
) -> Run:
    """Open a run folder, to read its results elsewhere.

    `open_run("runs/concentration-1f2e3d4c").results.select(quantity="error")`

    Args:
        folder: A run folder.
        study: The file of a study of your own, as on the command line. A run folder is data and may
            come from anybody: the file that it names is executed only if it comes with marginlab,
            or if this process has loaded it already.
        code: Modules with methods, backbones or operations of your own that the folder's settings
            may name; they are imported. Modules that this process has named before need not be
            given.

    Raises:
        SettingsError: The folder is no run folder, or its study neither comes with marginlab nor
            was given, or the folder is of another study than the given one, or its settings name
            code that is not in `code`. Nothing of that was imported.
    """
    if study is not None and not isinstance(study, Study):
        study = load(study)  # outside: its code is the user's word
    with as_data(code=code):
        study, settings = reopen(Path(folder), study)
        check(study, settings, Path(folder))
        return Run(study, settings, Path(folder))
