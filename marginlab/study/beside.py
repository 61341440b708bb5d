"""Two runs of one study on one page: their settings, headline numbers, and figures side by side.

    difference = mean over cells of (second - first), cells paired by their columns

Cells are paired by the columns that vary within one of the runs; a column that is constant in both
is a setting. Rows of the table join cells that differ in their seed alone, and the interval is
Student's over the seeds that both runs have.
"""

import difflib
import html
import math
import re
import statistics
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from marginlab.files import encoded
from marginlab.settings import SettingsError, flat
from marginlab.statistics.intervals import student_interval
from marginlab.study.files import write
from marginlab.study.folder import now, origin
from marginlab.study.markup import literal
from marginlab.study.page import document, released, sections
from marginlab.study.panel import LIMIT, carried, script
from marginlab.study.quantity import Quantity, last_values, measured
from marginlab.study.report import Drawing, Report, drawn
from marginlab.study.run import Run
from marginlab.terminal import say

SEED = "seed"


class Beside(NamedTuple):
    """Two values of a quantity, and their difference.

    Attributes:
        columns: The columns of the cells, without the seed.
        quantity: What was measured.
        first: Mean over seeds of the first run.
        second: Mean over seeds of the second run.
        difference: Mean over paired seeds of the second less the first; of the means where no seed
            is in both.
        low: Lower end of its 95 % interval over paired seeds, NaN for fewer than two.
        high: Upper end.
        seeds: Number of paired seeds.
    """

    columns: dict[str, Any]
    quantity: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    seeds: int


def check(runs: Sequence[Run]) -> None:
    """Refuse two runs that cannot stand side by side.

    Raises:
        SettingsError: They are of different studies, or one run twice.
    """
    one, other = runs
    if one.study.name != other.study.name or one.study.file != other.study.file:
        raise SettingsError(
            f"{one.folder} is a run of the study {one.study.name!r}, and {other.folder} one of "
            f"{other.study.name!r}: their figures and columns have nothing in common. Name two "
            "runs of one study."
        )
    if one.folder == other.folder:
        raise SettingsError(f"{one.folder} is named twice. Name two runs of one study.")


def settings_apart(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return the settings that differ, with the value in each run."""
    one, other = (flat(run.settings) for run in runs)
    return [
        {"setting": name, "first": repr(one.get(name)), "second": repr(other.get(name))}
        for name in dict.fromkeys([*one, *other])
        if repr(one.get(name)) != repr(other.get(name))
    ]


def headlines(runs: Sequence[Run]) -> list[Beside]:
    """Return the headline of the last epoch of each pair of cells, with the differences."""
    columns = [
        column
        for column in dict.fromkeys(column for run in runs for column in run.cells[0])
        if column != SEED and any(column in run.report.grid.varied for run in runs)
    ]
    values: list[dict[tuple[Any, Quantity], dict[Any, float]]] = []
    for run in runs:
        own = list(run.cells[0])
        last = last_values(measured(run.study.headline, run.results), run.results, own)
        values.append({})
        for cell in run.cells:
            key = tuple(cell.get(column) for column in columns)
            for quantity, row in last.get(tuple(cell.values()), {}).items():
                values[-1].setdefault((key, quantity), {})[cell.get(SEED)] = row["value"]
    found = []
    for key, quantity in dict.fromkeys(key for of in values for key in of):
        one, other = (of.get((key, quantity), {}) for of in values)
        first, second = (statistics.fmean(of.values()) if of else math.nan for of in (one, other))
        paired = [other[seed] - one[seed] for seed in one if seed in other]
        low, high = student_interval(paired)
        difference = statistics.fmean(paired) if paired else second - first
        named = dict(zip(columns, key, strict=True))
        numbers = first, second, difference, low, high, len(paired)
        found.append(Beside(named, quantity.title, *numbers))
    return found


def paired(first: Sequence[Drawing], second: Sequence[Drawing]) -> list[tuple[Any, Any]]:
    """Pair figures in order by their captions, in which numbers may differ.

    Example:
        >>> captions = "Error, 1 seed", "More", "Error, 3 seeds"
        >>> a, b, c = (Drawing({}, caption) for caption in captions)
        >>> [(x and x.caption, y and y.caption) for x, y in paired([a, b], [c])]
        [('Error, 1 seed', 'Error, 3 seeds'), ('More', None)]
    """
    one, other = ([re.sub(r"\d+|seeds?\b", "#", d.caption) for d in of] for of in (first, second))
    found: list[tuple[Any, Any]] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        left, right = list(first[a:b]), list(second[c:d])
        if kind in ("equal", "replace") and len(left) == len(right):
            found += zip(left, right, strict=True)
        else:
            found += [(drawing, None) for drawing in left] + [(None, drawing) for drawing in right]
    return found


def put_beside(runs: Sequence[Run]) -> int:
    """Write the page of two runs into the folder of the first; return the exit status.

    Raises:
        SettingsError: They are of different studies, or one run twice.
        OSError: The page cannot be written.
    """
    check(runs)
    status = 0
    for run in runs:
        try:
            sections(run)
        except Exception:
            status = 1
            what = f"The report of {run.folder} failed; the page shows what it had until then."
            say(f"{what}\n{traceback.format_exc()}", error=True)
    file = runs[0].folder / f"beside-{runs[1].folder.name}.html"
    write(file, page(runs))
    say(f"beside   {file}")
    return status


def page(runs: Sequence[Run]) -> str:
    """Render the page of two runs, whose reports were made.

    Raises:
        SettingsError: They are of different studies, or one run twice.
    """
    check(runs)
    names = _names(runs)
    report = Report(f"{literal(names[0])} beside {literal(names[1])}")
    report.lead = "The first run is on the left, the second on the right. A pair has the same axes."
    _settings(report, runs, names)
    _headlines(report, runs, names)
    _figures(report, runs, names)
    abouts = [origin(run.folder) for run in runs]
    facts = {"Made": now()}
    for word, run, about in zip(("First", "Second"), runs, abouts, strict=True):
        devices = "; ".join(dict.fromkeys(str(row["device"]) for row in run.times))
        done = sum(cell.finished for cell in run.cells)
        facts[word] = (
            f"<code>{html.escape(str(run.folder))}</code>, {done} of {len(run.cells)} cells, "
            f"{html.escape(devices or 'no device')}<br><code>{html.escape(about['command'])}</code>"
            f"<br>{html.escape(released(about))}"
        )
    source = (
        "Every number was measured by the commands above and stands in <code>results.csv</code> of "
        "its run. An interval is Student's, 95 %, over the seeds that both runs have."
    )
    commands = [about["command"] for about in abouts]
    kind = f"marginlab study · {runs[0].study.name}"

    def made(room: int) -> str:
        return document(report, kind, facts, source, data=script(carried(runs, commands, room)))

    return made(LIMIT - len(encoded(made(0))))


def _names(runs: Sequence[Run]) -> list[str]:
    """Name the runs by their folders, with the folder above where the names are the same."""
    short = [run.folder.name for run in runs]
    return short if short[0] != short[1] else [str(run.folder) for run in runs]


def _settings(report: Report, runs: Sequence[Run], names: Sequence[str]) -> None:
    apart = settings_apart(runs)
    report.text("## Settings that differ")
    if apart:
        heads = dict(zip(("setting", "first", "second"), ("setting", *names), strict=True))
        rows = [{heads[key]: value for key, value in row.items()} for row in apart]
        report.table(rows, "All other settings are the same.")
    else:
        report.text("None: the two runs have the same settings.")


def _headlines(report: Report, runs: Sequence[Run], names: Sequence[str]) -> None:
    found = headlines(runs)
    if not found:
        return
    rows = [
        {
            **{column: "–" if value is None else value for column, value in one.columns.items()},
            "quantity": one.quantity,
            names[0]: one.first,
            names[1]: one.second,
            "second less first": one.difference,
            "from": one.low,
            "to": one.high,
            "paired seeds": one.seeds,
        }
        for one in found
    ]
    report.text("## Headline numbers")
    cells = [
        [
            run.report.grid.numbers({k: v for k, v in one.columns.items() if k in run.cells[0]})
            for run in runs
        ]
        for one in found
    ]
    report.numbered_table(rows, "Last epoch, means over seeds, and their difference.", cells)


def _figures(report: Report, runs: Sequence[Run], names: Sequence[str]) -> None:
    pairs = paired(*(run.report.drawings for run in runs))
    report.text("## Figures" if pairs else "The reports of these runs have no figures.")
    for number, pair in enumerate(pairs, 1):
        sides = []
        for at, (drawing, name) in enumerate(zip(pair, names, strict=True)):
            inside = (
                drawn(drawing, f"{number}{'ab'[at]}", at)
                if drawing
                else '<p class="alone">This run has no such figure.</p>'
            )
            sides.append(f"<div><h4>{html.escape(name)}</h4>{inside}</div>")
            report.drawings += [drawing] if drawing else []
        report.sections.append(f'<div class="pair">{"".join(sides)}</div>')
