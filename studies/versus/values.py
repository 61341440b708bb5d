"""Values of a run of the study, by seed, and the cells that differ in the augmentation alone."""

import math
from typing import Any

from marginlab.study import Run


def values(run: Run, quantity: str, at: str, space: str, **columns: Any) -> list[float]:
    """Return a quantity that is measured once, of each seed, in the order of the settings."""
    found = {
        row["seed"]: row["value"]
        for row in run.select(quantity=quantity, at=at, space=space, epoch=-1, **columns)
    }
    return [found.get(seed, math.nan) for seed in run.settings.seeds]


def augmentations(run: Run) -> list[dict[str, str]]:
    """Return the columns of the cells that differ in the augmentation alone."""
    return [
        {"factor": "base", "level": "base"},
        *({"factor": "augmentations", "level": level} for level in run.settings.augmentations),
    ]
