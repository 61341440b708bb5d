"""A run folder: the study and settings that made it, and the measurements of its cells.

config.toml   the settings, as marginlab.settings reads them
about.json    study, command, versions, machine
cells/ID/     rows.csv, files that the cell kept
once/NAME-H/  results that cells share
results.csv   all rows, in grid order, long form
times.csv     seconds of each cell, its device with the number of threads, its start
log.txt       events with their times
report.html
"""

import contextlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import socket
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import marginlab
from marginlab.files import append
from marginlab.machine import device
from marginlab.settings import SettingsError, as_data, flat, named_in, read, to_toml
from marginlab.study.cell import MEASURED, Cell
from marginlab.study.definition import Study, load, loaded, same_file, shipped
from marginlab.study.files import (
    RunFolderError,
    read_json,
    read_table,
    write,
    write_json,
    write_table,
)
from marginlab.terminal import printable

TIMES = ("seconds", "host", "device", "started")
_SHOWN = ("torch", "torchvision", "timm", "kornia", "numpy", "scikit-learn", "plotly")


def prepare(study: Study, settings: Any, folder: Path, command: str, ground: str = "") -> None:
    """Make a run folder, or check that an existing one is of this study with these settings.

    Raises:
        SettingsError: The folder is no run folder, or of another study, or made with other settings
            (the first that differs is named) or other data (`ground` is their digest).
    """
    folder = folder.resolve()
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / "config.toml").exists())
    ):
        raise SettingsError(
            f"{folder} exists and is no run folder. Give --folder a new path or an empty folder."
        )
    if not (folder / "config.toml").exists():
        # built beside its place and renamed into it, so that two processes that start together
        # agree on one
        beside = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            write_json(beside / "about.json", {**about(study, command), "ground": ground})
            write(beside / "config.toml", to_toml(settings))
            beside.rename(folder)
        except OSError as error:
            if not (folder / "config.toml").exists():
                raise RunFolderError(
                    f"{folder} cannot be made: {error.strerror}. Give --folder another path."
                ) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    check(study, settings, folder)
    written, here = origin(folder), about(study, command)
    if written.get("ground", ground) != ground:
        raise SettingsError(
            f"{folder} was made with the same settings but other data. Give --folder another path, "
            "or bring the data back."
        )
    # a run that goes on after an update says so
    if here["versions"] not in (written["versions"], *written["later_versions"]):
        write_json(
            folder / "about.json",
            {**written, "later_versions": [*written["later_versions"], here["versions"]]},
        )


def check(study: Study, settings: Any, folder: Path) -> None:
    """Refuse a run folder of another study, or made with other settings."""
    written = source(folder)
    other = Path(written["file"])
    differs = other.is_file() and not same_file(other, study.file)
    if written["name"] != study.name or differs:
        of = f"{written['name']!r} ({other})" if differs else repr(written["name"])
        raise SettingsError(
            f"{folder} is a run of the study {of}, not of {study.name!r} ({study.file}). Give "
            "--folder another path."
        )
    try:
        with as_data(code=named_in(settings)):  # what these settings name, and nothing more
            made = read(type(settings), folder / "config.toml")
    except SettingsError as error:
        raise SettingsError(
            f"{folder} was made with other settings. {error} Give --folder another path."
        ) from error
    theirs = flat(made)
    for name, now in flat(settings).items():
        before = theirs[name]
        if repr(before) != repr(now):
            raise SettingsError(
                f"{folder} was made with other settings: {name} is {before!r} there and {now!r} "
                f"now. Give --folder another path, or the same {name}."
            )


def reopen(folder: Path, study: Study | str | Path | None = None) -> tuple[Study, Any]:
    """Return the study and the settings of a run folder; call it, and use them, inside `as_data`.

    A run folder is data. The file that its about.json names is imported only if it comes with
    marginlab, or if this process was told by name to import it; any other has to be given as
    `study`. Its settings may name code too, and become methods and operations wherever the study
    makes them (in `cells`, `check`, `report`, `run`): `as_data` holds for all of these.

    Raises:
        SettingsError: The folder is no run folder, or its study is not found, or would have to be
            trusted.
    """
    config = folder / "config.toml"
    if not (folder / "about.json").is_file() or not config.is_file() or not config.stat().st_size:
        raise SettingsError(
            f"{folder} is no run folder: config.toml or about.json is missing or empty."
        )
    if study is None:
        study = _trusted(folder)
    elif not isinstance(study, Study):
        study = load(study)
    return study, study.settings(toml=folder / "config.toml")


def _trusted(folder: Path) -> Study:
    """Return the study that a run folder names, if it may be imported without being asked for."""
    written = source(folder)
    name, file = written["name"], Path(written["file"])
    known = shipped()
    if name in known and (not file.is_file() or same_file(file, known[name])):
        return load(known[name])  # also a run of another machine, where it lay elsewhere
    if loaded(file):
        return load(file)
    here = f"{file} does not come with marginlab" if file.is_file() else f"{file} is not there"
    raise SettingsError(
        f"{folder} says that it is a run of the study {name!r}, but {here}, and what a run folder "
        "names is not executed. Name a file that you trust: --study FILE on the command line, or "
        "open_run(folder, FILE)."
    )


def source(folder: Path) -> dict[str, str]:
    """Return the name and file of the study that a run folder names.

    Raises:
        SettingsError: It names none, or an earlier version made the folder, whose rows have other
            columns.
    """
    try:
        whole = read_json(folder / "about.json")
        name, file = whole["study"]["name"], whole["study"]["file"]
    except (ValueError, KeyError, TypeError, OSError):
        name, file, whole = None, None, {}
    if not isinstance(name, str) or not isinstance(file, str):
        raise SettingsError(
            f"{folder} is no run folder: its about.json names no study and no file."
        )
    if whole.get("columns") != list(MEASURED):
        raise SettingsError(
            f"{folder / 'about.json'} does not say that the run's rows have the columns "
            f"{', '.join(MEASURED)}: an earlier version of marginlab made this folder. Give "
            "--folder another path and run the study again, or read it with the version that made "
            "it."
        )
    return {"name": name, "file": file}


def origin(folder: Path) -> dict[str, Any]:
    """Read about.json, and check everything that is shown of it.

    Raises:
        SettingsError: It is not of a run folder, or does not say by which command and versions it
            was made.
    """
    source(folder)
    found: dict[str, Any] = read_json(folder / "about.json")
    later = found.get("later_versions")
    texts = [found.get(name) for name in ("command", "started")]
    tables = [found.get("versions"), *(later if isinstance(later, list) else [None])]
    for table in tables:
        texts += list(table.values()) if isinstance(table, dict) else [None]
    try:
        shlex.split(found.get("command") or "")
    except (ValueError, AttributeError, TypeError):  # no command of a shell
        texts.append(None)
    if not all(isinstance(text, str) for text in texts):
        raise SettingsError(
            f"{folder} is no run folder: its about.json does not say as text by which command, "
            "when and by which versions it was made (command, started, versions, later_versions)."
        )
    return found


def about(study: Study, command: str) -> dict[str, Any]:
    """Return the content of about.json: the source of the run's numbers."""
    return {
        "study": {"name": study.name, "file": str(study.file)},
        "command": command,
        "started": now(),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "versions": versions(),
        "later_versions": [],
        "columns": list(MEASURED),
    }


def versions() -> dict[str, str]:
    """Return the versions of marginlab, Python and what numbers depend on."""
    found = {"marginlab": marginlab.__version__, "python": platform.python_version()}
    for name in _SHOWN:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def now() -> str:
    """Return the time, to a second, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def log(folder: Path, text: str) -> None:
    """Add a line to log.txt, in one write, so that lines of several processes do not mix."""
    line = f"{now()} {socket.gethostname()}:{os.getpid()} {text}"
    append(folder / "log.txt", f"{printable(line)}\n")


def finish(cell: Cell, seconds: float, started: str) -> None:
    """Write a cell's measurements; from the moment its rows are there, the cell is finished."""
    columns = list(cell)
    entry = {
        **cell,
        "seconds": round(seconds, 3),
        "host": socket.gethostname(),
        "device": device(),
        "started": started,
    }
    write_table(cell.folder / "time.csv", [*columns, *TIMES], [entry])
    write_table(cell.rows_file, [*columns, *MEASURED], cell.recorded())
    cell.failure_file.unlink(missing_ok=True)


def times(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return seconds, machine and start of each finished cell, with its columns."""
    table = []
    for cell in cells:
        if cell.finished and (cell.folder / "time.csv").exists():
            for entry in read_table(cell.folder / "time.csv")[:1]:  # none, if a crash emptied it
                told = {key: entry[key] for key in TIMES}
                table.append({**cell, **told, "seconds": float(entry["seconds"])})
    return table


def assemble(folder: Path, cells: Sequence[Cell]) -> None:
    """Write results.csv and times.csv from the finished cells, in grid order."""
    columns = list(cells[0])
    write_table(
        folder / "results.csv",
        [*columns, *MEASURED],
        (row for cell in cells for row in cell.rows()),
    )
    write_table(folder / "times.csv", [*columns, *TIMES], times(cells))
