"""The cells of a run on the page of its report: their table, and what a click on a point opens.

The page carries one JSON text, from which report.js builds the filter and the panel of a cell:

    name     the study, for names of files
    columns  the columns that vary: name, and its values as text
    runs     of each run: its name, its command, its cells
    cells    of each: id, columns, argument, seconds, device, log, images, values, and `at`, the
             place of its value in each of the page's columns

Nothing in it is HTML: the script inserts texts as texts.
"""

import base64
import html
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from marginlab.study.cell import Cell
from marginlab.study.display import clock
from marginlab.study.folder import TIMES
from marginlab.study.quantity import last_values, measured
from marginlab.study.report import digest, of_numbers, show
from marginlab.study.run import Run

LIMIT = 6_000_000  # bytes of a page: what is left of them is for images that cells kept
_ENTRY = re.compile(
    r"\d{4}-\d\d-\d\dT\S+ \S+ (?=\S)"
)  # the time and process of an entry of log.txt
_LINES, _WIDTH = 12, 300  # the tail of a cell's log
_OPEN = 60  # cells; the table of more is closed at first
_IMAGES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}


def varied(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the columns that tell cells of the page apart, with all their values, in order."""
    found: dict[str, list[Any]] = {}
    for column in dict.fromkeys(column for run in runs for column in run.cells[0]):
        values = [cell[column] for run in runs for cell in run.cells if column in cell]
        if len(set(values)) > 1:
            found[column] = list(dict.fromkeys(values))
    return found


def carried(
    runs: Sequence[Run],
    commands: Sequence[str],
    room: int,
    pictures: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what the page carries of its runs.

    Args:
        runs: The runs, one or two, of one study.
        commands: The command of each.
        room: Bytes that are left for images of cells that the page does not show anyway.
        pictures: Those that it shows: the digest of their pixels, and their id on the page.
    """
    columns = varied(runs)
    told = []
    for run, command in zip(runs, commands, strict=True):
        quantities = measured(run.study.headline, run.results)
        values = last_values(quantities, run.results, list(run.cells[0]))
        times = {tuple(row[column] for column in run.cells[0]): row for row in run.times}
        logs = _logs(run)
        cells = []
        for cell in run.cells:
            key = tuple(cell.values())
            time = times.get(key, {})
            images, room = _images(run, cell, room, pictures or {})
            cells.append(
                {
                    "id": cell.id,
                    "columns": {name: str(value) for name, value in cell.items()},
                    "at": [
                        values_.index(cell[column]) if column in cell else -1
                        for column, values_ in columns.items()
                    ],
                    "argument": f"--cell {shlex.quote(cell.id)}",
                    "state": "finished" if cell.finished else "not finished",
                    "times": {
                        name: clock(time[name]) if name == "seconds" else str(time[name])
                        for name in TIMES
                        if name in time
                    },
                    "log": logs.get(cell.id, [])[-_LINES:],
                    "images": images,
                    "values": {
                        one.title: show(row["value"]) for one, row in values.get(key, {}).items()
                    },
                }
            )
        told.append({"name": run.folder.name, "command": command, "cells": cells})
    named = {name: [str(value) for value in values] for name, values in columns.items()}
    return {"name": runs[0].study.name, "columns": named, "runs": told}


def script(carried: dict[str, Any]) -> str:
    """Return the element that holds what the page carries; no text in it can end the element."""
    text = json.dumps(carried, ensure_ascii=True, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return f'<script type="application/json" id="marginlab-data">{text}</script>'


def table(run: Run) -> str:
    """Return the table of all cells, each with its headline of the last epoch and its seconds."""
    quantities = measured(run.study.headline, run.results)
    values = last_values(quantities, run.results, list(run.cells[0]))
    seconds = {tuple(r[c] for c in run.cells[0]): clock(r["seconds"]) for r in run.times}
    columns = list(run.report.grid.varied) or list(run.cells[0])
    titles = [*columns, *(one.title for one in quantities), "time"]
    head = "".join(f"<th>{html.escape(title)}</th>" for title in ("cell", *titles))
    body = []
    for number, cell in enumerate(run.cells):
        key = tuple(cell.values())
        found = values.get(key, {})
        texts = [
            *(str(cell[column]) for column in columns),
            *(show(found[one]["value"]) if one in found else "–" for one in quantities),
            seconds.get(key, "–"),
        ]
        link = f'<td><a href="#cell-0-{number}">{number + 1}</a></td>'
        body.append(
            f'<tr id="row-0-{number}"{of_numbers([number])}>{link}'
            f"{''.join(f'<td>{html.escape(text)}</td>' for text in texts)}</tr>"
        )
    shown = " open" if len(run.cells) <= _OPEN else ""
    return (
        f'<h2 id="cells">Cells</h2><details class="cells"{shown}><summary>{len(run.cells)} of the '
        f'grid, with what was measured last</summary><div class="scroll"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table></div></details>"
    )


def _logs(run: Run) -> dict[str, list[str]]:
    """Return the lines of log.txt that speak of each cell, and those that continue them."""
    try:
        text = (run.folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    ids = {cell.id for cell in run.cells}
    found: dict[str, list[str]] = {}
    of = ""
    for line in text.splitlines():
        if entry := _ENTRY.match(line):
            of = line[entry.end() :].split(" ", 1)[0]
        if of in ids:
            found.setdefault(of, []).append(line[:_WIDTH])
    return found


def _images(
    run: Run, cell: Cell, room: int, pictures: Mapping[str, str]
) -> tuple[list[dict[str, str]], int]:
    """Return the pictures in a cell's folder, and the room that they leave.

    One that the page shows is referred to. One for which there is no room is named by its path.
    """
    found = []
    for file in sorted(cell.folder.glob("*")):
        kind = _IMAGES.get(file.suffix.lower())
        pixels = _pixels(file) if kind and _inside(file, run.folder) else None
        if pixels is None:
            continue
        told = {"name": file.name}
        data = base64.b64encode(file.read_bytes()).decode()
        if same := pictures.get(digest(pixels)):
            told["same"] = same
        elif len(data) <= room:
            told["src"] = f"data:image/{kind};base64,{data}"
            room -= len(data)
        else:
            told["path"] = str(file.relative_to(run.folder))
        found.append(told)
    return found, room


def _inside(file: Path, folder: Path) -> bool:
    """Return whether it is a file of the run itself: no link may lead out of its folder."""
    return file.is_file() and file.resolve().is_relative_to(folder.resolve())


def _pixels(file: Path) -> Any:
    """Return the pixels of an image file as the report shows them; None if it is none."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
