"""The cells of the grid that a trace of a figure, one of its points, or a row of a table is of.

    meta = {"cells": {column: value, or a list of one value for each point}}    of a study's trace
    meta = {"cells": [numbers]}, and {"points": [[numbers], ...]}               of the page's trace

A study names columns. The report looks the cells up, and the page holds their numbers in the grid
alone: its filter compares numbers, and no value of a column can become markup there.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from marginlab.study.cell import Value

Columns = Mapping[str, Any]


def of_cells(**columns: Any) -> dict[str, Any]:
    """Return the arguments of a plotly trace that say which cells it shows.

    The filter of the report then hides the trace or its points with their cells, and a click on a
    point opens them.

    Args:
        **columns: Columns of the grid, each with one value, or with a list of one value for each
            point. Columns that are not named are free: the trace is of all cells that agree, such
            as a mean over seeds.

    Example:
        >>> of_cells(loss="arcface", seed=[0, 1])
        {'meta': {'cells': {'loss': 'arcface', 'seed': [0, 1]}}}
    """
    return {"meta": {"cells": columns}}


class Grid:
    """The cells of a run by their numbers, in the order of the grid.

    Args:
        cells: The cells, each a mapping of its columns.

    Example:
        >>> grid = Grid([{"loss": loss, "seed": seed} for loss in "ab" for seed in (0, 1)])
        >>> grid.numbers({"loss": "b"}), grid.varied
        ([2, 3], {'loss': ['a', 'b'], 'seed': [0, 1]})
    """

    def __init__(self, cells: Sequence[Columns] = ()) -> None:
        self.cells = cells
        self._values = {
            column: list(dict.fromkeys(cell[column] for cell in cells))
            for column in (cells[0] if cells else ())
        }

    @property
    def varied(self) -> dict[str, list[Value]]:
        """The columns that vary over the grid, with their values in order."""
        return {column: values for column, values in self._values.items() if len(values) > 1}

    def numbers(self, columns: Columns) -> list[int]:
        """Return the numbers of the cells with these values; a list or tuple allows several.

        Raises:
            KeyError: The cells have no such column.
        """
        for column in columns:
            if column not in self._values:
                raise KeyError(
                    f"the cells have no column {column!r}; their columns are "
                    f"{', '.join(self._values)}"
                )
        allowed = {
            column: value if isinstance(value, list | tuple) else (value,)
            for column, value in columns.items()
        }
        return [
            number
            for number, cell in enumerate(self.cells)
            if all(cell[column] in values for column, values in allowed.items())
        ]

    def of_row(self, row: Columns) -> list[int]:
        """Return the numbers of the cells that a row of a table is of, by columns of that name.

        The list is empty where the row names no column that varies, or a value that is none of the
        column's, such as "published".
        """
        found: dict[str, Value] = {}
        for column, values in self.varied.items():
            if row.get(column, "") != "":
                same = [v for v in values if v == row[column] or _written(v) == str(row[column])]
                if not same:
                    return []
                found[column] = same[0]
        return self.numbers(found) if found else []

    def of_trace(self, trace: Columns) -> dict[str, Any]:
        """Return the `meta` of a trace in numbers; nothing if it names no column of the grid.

        Raises:
            KeyError: It names a column that the cells do not have.
            ValueError: It names other than one value for each point.
        """
        meta = trace.get("meta")
        named = meta.get("cells") if isinstance(meta, Mapping) else None
        if not self.cells or not isinstance(named, Mapping):
            return {}
        found: dict[str, Any] = {"cells": self.numbers(named)}
        each = {c: list(v) for c, v in named.items() if isinstance(v, list | tuple)}
        if each:
            points = next(
                (_length(trace[axis]) for axis in "xyz" if trace.get(axis) is not None), 0
            )
            wrong = {column: len(values) for column, values in each.items()}
            if set(wrong.values()) != {points}:
                raise ValueError(
                    f"a trace of {points} points names {wrong} values of its cells' columns: give "
                    "one value, or one for each point"
                )
            found["points"] = [
                self.numbers({**named, **{column: values[i] for column, values in each.items()}})
                for i in range(points)
            ]
            found["cells"] = sorted(set().union(*found["points"]))
        return found if found["cells"] else {}


def numbered(grid: Grid, traces: Sequence[Columns]) -> list[dict[str, Any]]:
    """Return traces with the numbers of their cells in `meta`, parts behind the others.

    A part is a trace that is hidden (`visible=False`) beside one of the same name, on the same
    axes, of more cells. It is drawn in the place of that one while the filter leaves some of its
    cells only.

    Raises:
        KeyError: A trace names a column that the cells do not have.
        ValueError: A trace names other than one value for each point.
    """
    traces = sorted(traces, key=lambda trace: trace.get("visible") is False)  # stable
    metas = [grid.of_trace(trace) for trace in traces]
    for trace, meta in zip(traces, metas, strict=True):
        if meta and trace.get("visible") is False:
            wholes = [
                number
                for number, (other, of) in enumerate(zip(traces, metas, strict=True))
                if _place(other) == _place(trace)
                and other.get("visible") is not False
                and set(of.get("cells", ())) > set(meta["cells"])
            ]
            meta |= {"whole": wholes[0]} if wholes else {}
    rest = [{key: value for key, value in trace.items() if key != "meta"} for trace in traces]
    return [
        trace | ({"meta": {"marginlab": meta}} if meta else {})
        for trace, meta in zip(rest, metas, strict=True)
    ]


def _place(trace: Columns) -> tuple[Any, ...]:
    line = trace.get("line") or {}
    named = (trace.get(key) for key in ("name", "type", "xaxis", "yaxis"))
    return (*named, line.get("dash"))


def _length(values: Any) -> int:
    """Return the number of points, also of an array that plotly has encoded."""
    if not isinstance(values, Mapping):
        return len(values)
    import numpy as np

    return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).size


def _written(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
