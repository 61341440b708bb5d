"""Rows of measurements: one number a row, and what it is stands in columns.

    epoch, space, quantity, at, value, low, high, n

Every table of the lab has these columns: a run's `monitor.csv`, a study's `results.csv`, and its
committed tables. TensorBoard's tags are made of them. No code parses or assembles the name of a
quantity.

Where an estimate has next to no bias, its standard error becomes a 95 % interval by the normal
distribution. Error rates have Wilson's interval, and extremes over classes have that of
`marginlab.statistics.extremes`. Where no interval is valid there is none: `low` and `high` are NaN.
"""

import csv
import inspect
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab import files
from marginlab.measures import Alignment, ClassDivergence
from marginlab.measures.composed import with_intervals
from marginlab.measures.measure import Measure, result_of
from marginlab.settings import SettingsError
from marginlab.statistics.intervals import normal_interval, wilson, within


class Row(NamedTuple):
    """One measured number, and what it is.

    Attributes:
        epoch: Number of epochs that the network was trained.
        space: Where it was measured: "backbone", "projector", "pixels", or empty where the
            quantity has no space.
        quantity: What was measured: "knn_error", "R_epsilon", "certified", ...
        at: Which of the quantity's numbers, or empty where it has one: an epsilon or a false accept
            rate ("0.5"), the key of a theorem's form ("T"), the field of a measure's result
            ("NC1").
        value: The number.
        low: Lower end of its interval, NaN where there is none.
        high: Upper end of its interval, NaN where there is none.
        n: Number of images on which it rests.

    Example:
        >>> Row(epoch=3, space="backbone", quantity="R_epsilon", at="0.5", value=0.25).tag
        'R_epsilon/0.5/backbone'
    """

    epoch: int
    space: str
    quantity: str
    at: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0

    @property
    def tag(self) -> str:
        """Name in TensorBoard: quantity, `at` and space, whichever are not empty."""
        return "/".join(part for part in (self.quantity, self.at, self.space) if part)


def rate(epoch: int, space: str, quantity: str, value: float | Tensor, n: int) -> Row:
    """Return an error rate with its 95 % Wilson interval."""
    return Row(epoch, space, quantity, "", float(value), *wilson(float(value), n), n)


def geometry(
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    classes: int,
    space: str,
    epoch: int,
    epsilons: tuple[float, ...],
) -> list[Row]:
    """Return alignment, R_epsilon at each epsilon, and how the class centers lie in one space.

    Classes without an image here are left out. Then `classes_present` says how many are left.
    `divergence_max`, `center_norm_min` and `delta_mu` are extremes over classes, whose estimates
    lean outwards. Their intervals allow for the choice among classes. There are none where a class
    has fewer than 3 images.
    """
    # rank 0 measures alone
    alignment = Alignment(epsilons=torch.tensor(epsilons), sync_on_compute=False)
    divergence = ClassDivergence(classes, features.shape[-1], sync_on_compute=False)
    aligned = result_of(alignment, features, labels)
    apart = result_of(divergence, features, labels)
    n = len(features)

    def row(quantity: str, value: Tensor, error: Tensor | None = None) -> Row:
        ends = normal_interval(float(value), math.nan if error is None else float(error))
        return Row(epoch, space, quantity, "", float(value), *ends, n)

    rows = [row("alignment", aligned.L_align, aligned.standard_error)]
    for number, epsilon in enumerate(epsilons):
        low, high = float(aligned.lower[number]), float(aligned.upper[number])
        rows.append(
            Row(
                epoch,
                space,
                "R_epsilon",
                f"{epsilon:g}",
                float(aligned.exceeding[number]),
                low,
                high,
                n,
            )
        )
    product, length = apart.largest_product(), apart.shortest_center()
    pairs = apart.gram[~torch.eye(classes, dtype=torch.bool, device=apart.gram.device)]
    norms = [math.sqrt(max(end, 0.0)) for end in length]
    delta = [float(apart.Delta_mu), 1 - length.high, 1 - length.low]  # of features of length 1

    def extreme(quantity: str, found: Sequence[float], least: float) -> Row:
        value, *ends = found
        low, high = (within(end, least, 1.0) for end in ends)
        return Row(epoch, space, quantity, "", value, low, high, n)

    rows.append(extreme("divergence_max", product, -1.0))
    rows.append(row("divergence_mean", pairs[~pairs.isnan()].mean()))
    rows.append(extreme("center_norm_min", norms, 0.0))
    rows.append(extreme("delta_mu", delta, 0.0))
    if (present := int((apart.n > 0).sum())) < classes:
        rows.append(Row(epoch, space, "classes_present", "", present, n=n))
    return rows


def measured(
    measure: Measure,
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    space: str,
    epoch: int,
) -> list[Row]:
    """Return a row for each number in the result of a measure.

    Its quantity is the measure's class, and `at` is the field of the result. Arrays, counts and
    standard errors make no row of their own. Only numbers that the measure has in its `intervals`
    get an interval. The bias of the others is beyond their error, as their `meaning` says, or the
    error is for a given bank.
    """
    measure.distributed_available_fn = lambda: False  # rank 0 measures alone
    takes_labels = "labels" in inspect.signature(type(measure).update).parameters
    measure.update(features, *([labels] if takes_labels else []))
    result: Any = measure.compute()
    n = len(features)
    return [
        Row(epoch, space, type(measure).__name__, name, value, low, high, n)
        for name, (value, low, high) in with_intervals(result, measure.intervals).items()
    ]


def write(rows: Iterable[Row], file: Path) -> None:
    """Write rows as a table; the previous table stays until this one is complete."""
    files.write(
        file, files.csv_text(Row._fields, rows), beside=file.with_name(f"{file.stem}.partial")
    )


def read_rows(file: Path | str) -> list[Row]:
    """Read the rows of a run's `monitor.csv`, or of a callback's table.

    Args:
        file: The table.

    Raises:
        FileNotFoundError: There is no such file.
        SettingsError: The file has other columns, as one of an earlier version has.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "monitor.csv"
        >>> write([Row(1, "backbone", "knn_error", "", 0.25)], file)
        >>> read_rows(file)[0].value
        0.25
    """
    with Path(file).open(encoding="utf-8", newline="") as stream:
        lines = list(csv.reader(stream))
    if not lines or tuple(lines[0]) != Row._fields:
        raise SettingsError(
            f"{file} has the columns {', '.join(lines[0]) if lines else 'of an empty file'}, not "
            f"{', '.join(Row._fields)}: an earlier version of marginlab wrote it, or it is no "
            "table of rows. Train in a new folder, or read it with the version that wrote it."
        )
    return [
        Row(int(epoch), space, quantity, at, float(value), float(low), float(high), int(n))
        for epoch, space, quantity, at, value, low, high, n in lines[1:]
    ]


def rows_of(kept: list[Any], checkpoint: Path) -> list[Row]:
    """Return the rows that the progress of a checkpoint keeps, as `Row._asdict` gives them.

    Raises:
        SettingsError: They are not in columns, as those of an earlier version.
    """
    if not all(isinstance(row, dict) and tuple(row) == Row._fields for row in kept):
        raise SettingsError(
            f"{checkpoint / 'progress.json'} keeps its measured rows without the columns "
            f"{', '.join(Row._fields)}: an earlier version of marginlab wrote it. Train in a new "
            "folder, or finish this run with the version that began it; `marginlab.train.load` "
            "still reads its weights."
        )
    return [Row(**row) for row in kept]
