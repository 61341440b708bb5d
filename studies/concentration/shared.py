"""Texts and groupings that the sections of the report share."""

import math
from collections.abc import Mapping
from typing import Any

from marginlab.study import Run

from .labels import Label, label

# of backbone features
ERRORS = {
    "kNN": "knn_error",
    "nearest center": "nearest_center_error",
    "linear": "linear_error",
}
CONTROL = "Dotted: the null control, the same for groups of equal size drawn across classes."
Kept = Mapping[tuple[str, str, float], dict[str, Any]]
Encoded = Mapping[tuple[str, str, float, str, int], dict[str, Any]]


def by_label(kept: Mapping[tuple[Any, ...], Any]) -> dict[Label, Any]:
    """By label, each augmentation once: ab is on the ladder and among the pairs."""
    found: dict[Label, Any] = {}
    for (grid, letters, strength, *_), value in kept.items():
        found.setdefault(label(letters, strength, grid), value)
    return found


def seeds_of(run: Run) -> str:
    """Return how many seeds the run has, in words."""
    n = len(run.settings.seeds)
    return f"{n} seeds" if n > 1 else "1 seed"


def errors_of(run: Run, method: str) -> dict[str, dict[Label, list[float]]]:
    """Errors of the last epoch: title -> augmentation -> by seed."""
    keys = by_label(
        {
            (cell["grid"], cell["letters"], cell["strength"]): cell
            for cell in run.cells
            if cell.finished and cell["method"] == method
        }
    )
    return {
        title: {name: _by_seed(run, quantity, cell) for name, cell in keys.items()}
        for title, quantity in ERRORS.items()
    }


def _by_seed(run: Run, quantity: str, cell: Mapping[str, Any]) -> list[float]:
    """Return the last value with each seed that is finished, at the other columns of a cell."""
    columns = {key: cell[key] for key in ("grid", "letters", "strength", "method")}
    values = (
        run.last(quantity, space="backbone", seed=seed, **columns) for seed in run.settings.seeds
    )
    return [value for value in values if not math.isnan(value)]
