"""The grids of augmentations: the ladder, the strengths and the pairs of Huang et al. 2023."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from marginlab import settings

LADDER = ("abcde", "abcd", "abc", "ab", "a")  # Huang et al. 2023, Table 1
STRENGTHS = (1.0, 0.5, 0.25, 0.125)  # their Table 2: crop and colour, the colour always applied
PAIRS = tuple("".join(pair) for pair in itertools.combinations("abcde", 2))  # their Figure 3
GRIDS = ("ladder", "strength", "pairs")


def augmentations(grid: str, pairs: Sequence[str]) -> list[tuple[str, float]]:
    """Return the letters and the strength of each augmentation of a grid."""
    if grid == "strength":
        return [("ad", strength) for strength in STRENGTHS]
    return [(letters, 0.5) for letters in (LADDER if grid == "ladder" else pairs)]


def augmentation(cell: Mapping[str, Any]) -> str:
    """Return the augmentation of a cell in call notation."""
    # their strength experiment always jitters
    jitter_p = 1.0 if cell["grid"] == "strength" else 0.8
    return settings.describe(
        "Augmentation", operations=cell["letters"], strength=cell["strength"], jitter_p=jitter_p
    )
