"""The training cell of studies: train once in a study's run, and record what was measured.

    trained = train_cell(cell, recipe, monitor)     in `run(cell)`
    trained = once_trained(run, recipe, monitor)    in `report(run)`

Cells that ask for the same recipe and monitor share one training.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from marginlab.study import Cell, Run
from marginlab.train.fit import fit
from marginlab.train.monitor import Monitor
from marginlab.train.recipe import Recipe
from marginlab.train.rows import Row


class Trained(NamedTuple):
    """A training that a study's run keeps.

    Attributes:
        folder: The run folder of the training; `marginlab.train.load` reads the method from it.
        rows: What the monitor measured.
        images_per_second: How fast it trained, when it was trained.
    """

    folder: Path
    rows: list[Row]
    images_per_second: float

    def record(self, cell: Cell) -> None:
        """Record the monitor's rows in a cell; the same training gives the same rows."""
        for row in self.rows:
            cell.record(**row._asdict())


def once_trained(asking: Cell | Run, recipe: Recipe, monitor: Monitor | None = None) -> Trained:
    """Train a recipe once in the run of a study; who asks again finds the training.

    All trainings of a run share one `precision.json`, so "auto" means the same for each.

    Args:
        asking: The cell, or the run in a report.
        recipe: What is trained.
        monitor: What is measured during training. None means the default `Monitor()`.

    Returns:
        The folder of the training, its rows and its speed.

    Raises:
        SettingsError: Whatever `fit` refuses.
    """
    say = asking.say if isinstance(asking, Cell) else None
    function = functools.partial(_train, say=say)
    kept = asking.once("training", function, recipe, monitor or Monitor())
    folder = asking.run_folder if isinstance(asking, Cell) else asking.folder
    return Trained(
        folder / "once" / kept["folder"] / "run",
        [Row(**row) for row in kept["rows"]],
        kept["images_per_second"],
    )


def train_cell(cell: Cell, recipe: Recipe, monitor: Monitor | None = None) -> Trained:
    """Train a recipe once in the run of a study, and record the monitor's rows in this cell.

    The speed is recorded too, as `images_per_second`. A study whose table is the same each time it
    is run leaves it out: `once_trained(cell, ...).record(cell)`. Arguments, result and errors are
    those of `once_trained`.
    """
    trained = once_trained(cell, recipe, monitor)
    trained.record(cell)
    cell.record("images_per_second", trained.images_per_second)
    return trained


def _train(
    recipe: Recipe, monitor: Monitor, *, say: Callable[[str], None] | None, folder: Path
) -> dict[str, Any]:
    done = fit(recipe, folder / "run", monitor, say=say, precision_in=folder.parent)
    rows = [row._asdict() for row in done.rows]
    return {"folder": folder.name, "rows": rows, "images_per_second": done.images_per_second}
