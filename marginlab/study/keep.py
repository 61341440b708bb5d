"""`keep`: write the main numbers of a run to one small file to be committed, with their source.

    # command, measured, device, versions, seconds, settings
          the source of the numbers, line by line
    cell columns, epoch, space, quantity, at, value, low, high, n
          the rows of results.csv that the study keeps (its headline), at every epoch

`numpy.genfromtxt`, `csv` after its first lines, and `pandas.read_csv(file, comment="#")` read it.
A file called .csv.gz is compressed, to a tenth for a large table; numpy and pandas read it too.
"""

import gzip
import shlex
from pathlib import Path
from typing import Any

from marginlab import settings
from marginlab.files import csv_text
from marginlab.settings import SettingsError
from marginlab.study.files import write
from marginlab.study.folder import origin
from marginlab.study.run import Run
from marginlab.terminal import printable


def keep(run: Run, file: Path) -> int:
    """Write the file, and return the number of its rows.

    Raises:
        SettingsError: A cell is not finished, the study names nothing to keep, or the file is not
            named .csv or .csv.gz.
    """
    missing = sum(not cell.finished for cell in run.cells)
    kept = run.study.kept
    if missing or not kept or not file.name.endswith((".csv", ".csv.gz")):
        raise SettingsError(
            f"{missing} of {len(run.cells)} cells of {run.folder} are missing: finish it with "
            "--resume first."
            if missing
            else f"The study {run.study.name} names no headline, so there is nothing to keep of it."
            if not kept
            else f"A kept table is a .csv or .csv.gz file, not {file}."
        )
    about = origin(run.folder)
    versions = "; later ".join(
        ", ".join(f"{name} {version}" for name, version in v.items())
        for v in (about["versions"], *about["later_versions"])
    )
    source = {
        "command": shlex.join(["python", *shlex.split(about["command"])[1:]]),
        "measured": about["started"],
        "device": "; ".join(dict.fromkeys(str(row["device"]) for row in run.times)),
        "versions": versions,
        "seconds": f"{sum(row['seconds'] for row in run.times):.0f}, over all cells",
        "settings": settings.one_line(run.settings),
    }
    # on one line each, also where a file's name is broken
    head = "".join(
        f"# {name}: {printable(' '.join(value.split()))}\n" for name, value in source.items()
    )
    rows = [row for row in run.results if any(one.matches(row) for one in kept)]
    header = list(run.results[0])
    text = head + csv_text(header, ([_short(row[name]) for name in header] for row in rows))
    if file.suffix == ".gz":  # without a time, so that the same rows are the same bytes
        write(file, gzip.compress(text.encode(), mtime=0))
    else:
        write(file, text)
    return len(rows)


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
