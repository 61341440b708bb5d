"""A whole run, finished or not: what `report(run)` is given, and what a notebook opens."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from marginlab.settings import as_data
from marginlab.study.cell import Cell
from marginlab.study.definition import Study, load
from marginlab.study.folder import check, reopen, times
from marginlab.study.once import once
from marginlab.study.report import Report
from marginlab.study.team import Team


class Rows(list[dict[str, Any]]):
    """Rows of a table, as dicts."""

    def select(self, **columns: Any) -> "Rows":
        """The rows with these values in these columns.

        >>> Rows([{"seed": 0, "name": "error"}, {"seed": 1, "name": "error"}]).select(seed=1)
        [{'seed': 1, 'name': 'error'}]

        Raises:
            KeyError: a column that the rows do not have.
        """
        return Rows(
            row for row in self if all(row[column] == value for column, value in columns.items())
        )


class Run:
    """A run folder, read.

    Attributes:
        folder, settings, home: the run folder, its settings, the folder of the study's file.
        cells: all cells of the grid, in order (`cell["seed"]`, `cell.folder`, `cell.finished`).
        results: the rows of results.csv as dicts: the cell's columns, epoch, name, value, low,
            high, n; `results.select(name="error", seed=0)`.
        times: the rows of times.csv.
        report: what the study's `report` writes into.
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
        self.report = Report(title=study.title)
        self._team, self._say = team or Team(), say or (lambda _: None)

    def select(self, **columns: Any) -> Rows:
        """The rows of `results` with these values in these columns."""
        return self.results.select(**columns)

    def once(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """A result kept in the run folder, as `Cell.once`: for what only the report needs."""
        return once(self.folder, self._team, self._say, name, function, *arguments)


def open_run(
    folder: Path | str,
    study: Study | Path | str | None = None,
    *,
    code: Collection[str] = (),
) -> Run:
    """Open a run folder, to read its results elsewhere.

    `open_run("runs/concentration-1f2e3d4c").results.select(name="error")`

    Args:
        folder: a run folder.
        study: of a study of your own its file, as on the command line. A run folder is data and may
            come from anybody: the file that it names is executed only if it comes with marginlab,
            or if this process has loaded it already.
        code: modules with methods, backbones or operations of one's own that the folder's settings
            may name; they are imported. Those that this process has named before need not be.

    Raises:
        SettingsError: it is no run folder, or its study is neither one that comes with marginlab
            nor one that was given, or the folder is of another study than that, or its settings
            name code that is not in `code`. Nothing of that was imported.
    """
    if study is not None and not isinstance(study, Study):
        study = load(study)  # outside: its code is the user's word
    with as_data(code=code):
        study, settings = reopen(Path(folder), study)
        check(study, settings, Path(folder))
        return Run(study, settings, Path(folder))
