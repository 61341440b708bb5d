"""Rows of a study chosen by their columns, for its closing table and for what is kept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marginlab.study.cell import as_text


@dataclass(frozen=True)
class Quantity:
    """A measured quantity, as a study names it in `headline` and `kept`.

    Args:
        name: The column `quantity` of its rows.
        space: The column `space`. None takes every space.
        at: The column `at`. None takes all.

    Example:
        >>> row = {"space": "backbone", "quantity": "R_epsilon", "at": "0.5", "value": 0.25}
        >>> Quantity("R_epsilon").matches(row), Quantity("R_epsilon", "projector").matches(row)
        (True, False)
        >>> Quantity("R_epsilon", at=0.5).title
        'R_epsilon 0.5'
    """

    name: str
    space: str | None = None
    at: str | float | None = None

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row of results.csv is of this quantity."""
        return (
            row["quantity"] == self.name
            and self.space in (None, row["space"])
            and (self.at is None or as_text(self.at) == row["at"])
        )

    @property
    def title(self) -> str:
        """The columns that it names, for a table."""
        at = None if self.at is None else as_text(self.at)
        return " ".join(part for part in (self.name, at, self.space) if part)


def quantities(named: Iterable[str | Quantity]) -> tuple[Quantity, ...]:
    """Return quantities; a text names one in every space and at all."""
    return tuple(Quantity(one) if isinstance(one, str) else one for one in named)


def measured(named: Iterable[Quantity], rows: Iterable[Mapping[str, Any]]) -> list[Quantity]:
    """Return each of the named quantities once for every space and `at` in which rows have it.

    One that no row has stands as it is named.
    """
    columns = dict.fromkeys((row["quantity"], row["space"], row["at"]) for row in rows)
    found: list[Quantity] = []
    for one in named:
        exact = [Quantity(*key) for key in columns]
        found += [
            other
            for other in exact
            if one.matches({"quantity": other.name, "space": other.space, "at": other.at})
        ] or [one]
    return list(dict.fromkeys(found))


def last_values(
    named: Iterable[Quantity], rows: Iterable[Mapping[str, Any]], columns: Sequence[str]
) -> dict[tuple[Any, ...], dict[Quantity, Mapping[str, Any]]]:
    """Return the row of the last epoch of each quantity, by the values of a cell's columns.

    Args:
        named: The quantities, as `measured` returns them.
        rows: Rows of results.csv, in the order of the epochs.
        columns: The cell's columns.

    Example:
        >>> row = {"seed": 0, "space": "", "quantity": "loss", "at": "", "value": 3}
        >>> rows = [row, {**row, "value": 2}]
        >>> found = last_values([Quantity("loss", "", "")], rows, ["seed"])
        >>> found[(0,)][Quantity("loss", "", "")]["value"]
        2
    """
    wanted = set(named)
    found: dict[tuple[Any, ...], dict[Quantity, Mapping[str, Any]]] = {}
    for row in rows:
        what = Quantity(row["quantity"], row["space"], row["at"])
        if what in wanted:
            found.setdefault(tuple(row[column] for column in columns), {})[what] = row
    return found
