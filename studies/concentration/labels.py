"""Names of augmentations and grids in figures and tables; a name knows which cells it is of."""

from collections.abc import Iterable
from typing import Any

from plotly.colors import qualitative

from marginlab.study import of_cells

GRIDS = {
    "ladder": "ladder (Table 1)",
    "strength": "strength of colour (Table 2)",
    "pairs": "pairs (Figure 3)",
}
MARKS = {
    "ladder": ("square", "#d1622b"),
    "strength": ("diamond", "#2e8b57"),
    "pairs": ("circle", "#2458a6"),
}


class Label(str):
    """The name of an augmentation, with the columns of its cells.

    Args:
        text: The name.
        letters: The column letters.
        strength: The column strength.
    """

    letters: str
    strength: float

    def __new__(cls, text: str, letters: str, strength: float) -> "Label":
        made = super().__new__(cls, text)
        made.letters, made.strength = letters, strength
        return made

    def __getnewargs__(self) -> tuple[str, str, float]:  # type: ignore[override]
        """Return what a copy is made of: plotly copies the texts of a figure."""
        return str(self), self.letters, self.strength

    @property
    def cells(self) -> dict[str, Any]:
        """The columns of its cells."""
        return {"letters": self.letters, "strength": self.strength}

    def look(self, **columns: str) -> dict[str, Any]:
        """Return the arguments of a trace of its cells, of those with more columns."""
        return of_cells(**self.cells, **columns)


def label(letters: str, strength: float, grid: str = "") -> Label:
    """Name an augmentation; those of the grid of strengths jitter always, and are named so."""
    told = f"{letters}, s={strength:g}"
    return Label(letters if strength == 0.5 and grid != "strength" else told, letters, strength)


def points(labels: Iterable[Label], **columns: str) -> dict[str, Any]:
    """Return the arguments of a trace with a point for each augmentation."""
    named = list(labels)
    letters, strengths = [one.letters for one in named], [one.strength for one in named]
    return of_cells(letters=letters, strength=strengths, **columns)


def colors(labels: Iterable[Label]) -> dict[Label, str]:
    """A colour for each augmentation, the same in all figures."""
    wheel = (*qualitative.D3, *qualitative.Dark2)
    return {name: wheel[number % len(wheel)] for number, name in enumerate(dict.fromkeys(labels))}
