"""A page of measured numbers, held against the tables that they follow from.

`says` puts together a sentence or a row of a table as the committed numbers make it, and the page
must hold it word for word; `given` names a number that no run measured, with the reason. A number
of the page that neither of them covers has no source.

Code, links and headings are not looked at: they name files, commands and presets.
"""

import bisect
import csv
import difflib
import gzip
import itertools
import math
import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"(?<![\w.])\.?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
NOT_READ = re.compile(r"```.*?```|`[^`\n]*`|\]\([^)\n]*\)|^#.*?$", re.DOTALL | re.MULTILINE)
# What is no number though it has one: names of things, and what a page is a page of
NAMES = {
    r"CIFAR-100?\b": "a data set",
    r"ResNet-18": "a network",
    r"\brank-[15]\b": "a score",
    r"Theorems? \d( \([\w-]+\))?": "a theorem",
    r"(Figure|Tables?) \d( and \d)?": "a figure or table of a paper",
    r"section \d": "a section of a paper",
    r"\b(ICLR|CVPR) 20\d\d": "where a paper was published",
    r"NC\d|WebFace12M|MS1MV2|shapes-5": "a measure, or a data set",
    r"r\^2|\)\^2": "a square",
    r"Python 3\.\d+": "a version",
}


class Page:
    """A page's text, what of it has a source, and what is wrong."""

    def __init__(self, name: str):
        self.name = name
        raw = (ROOT / name).read_text().replace("**", "")  # bold is for the eye
        hidden = NOT_READ.sub(lambda found: re.sub(r"\d", "#", found[0]), raw)
        # one blank for any blanks, so that a sentence may break anywhere
        self.text, self.read = (re.sub(r"\s+", " ", text) for text in (raw, hidden))
        self.covered: list[tuple[int, int]] = []
        self.wrong: list[str] = []
        for pattern in NAMES:
            self.covered += [found.span() for found in re.finditer(pattern, self.read)]

    def says(self, words: str) -> None:
        """Hold the page to words that were put together from measured numbers."""
        if not self._cover(words):
            near = self._nearest(words)
            self.wrong.append(f"{self.name} should say\n    {words}\n  and says\n    {near}")

    def says_rows(self, *rows: list[str]) -> None:
        """Hold the page to rows of a table that stand one below the other."""
        lines = [" ".join(["|", *(f"{cell} |" if cell else "|" for cell in row)]) for row in rows]
        if not self._cover(" ".join(lines)):
            for line in lines:
                self.says(line)
            self.wrong.append(f"{self.name}: these rows do not stand together: {lines[0]} ...")

    def given(self, reason: str, *quotes: str) -> None:
        """Name numbers that no run measured: settings, citations, definitions."""
        assert reason, "a number without a source has a reason"
        for words in quotes:
            if not self._cover(words):
                self.wrong.append(
                    f"{self.name} no longer says {words!r} ({reason}): drop the entry"
                )

    def faults(self) -> list[str]:
        """Everything wrong, with the numbers that have no source last."""
        starts = sorted(self.covered)
        ends = list(itertools.accumulate((end for _, end in starts), max))
        alone = []
        for found in NUMBER.finditer(self.read):
            at = bisect.bisect_right(starts, (found.start(), math.inf)) - 1
            if at < 0 or ends[at] < found.end():
                around = self.text[max(found.start() - 50, 0) : found.end() + 30]
                alone.append(f"{self.name}: {found[0]} has no source: ...{around}...")
        return self.wrong + alone

    def numbers(self) -> int:
        """Count the numbers of the page."""
        return len(NUMBER.findall(self.read))

    def _cover(self, words: str) -> bool:
        words = re.sub(r"\s+", " ", words)
        spans = [found.span() for found in re.finditer(re.escape(words), self.text)]
        self.covered += spans
        return bool(spans)

    def _nearest(self, words: str) -> str:
        n = len(words)
        parts = [self.text[k : k + n] for k in range(0, len(self.text), max(n // 3, 1))]
        return max(parts, key=lambda part: difflib.SequenceMatcher(None, part, words).ratio())


def table(name: str) -> list[dict[str, str]]:
    """Read a committed table, its comments left out; a large one is compressed."""
    file = ROOT / name
    file = file if file.is_file() else file.with_name(f"{file.name}.gz")
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(line for line in stream if not line.startswith("#")))


def rows(of: list[dict[str, str]], **columns: object) -> list[dict[str, str]]:
    """Choose rows by their columns; numbers are compared as they are written."""
    return [r for r in of if all(r[key] == str(value) for key, value in columns.items())]


def value(of: list[dict[str, str]], column: str = "value", **columns: object) -> float:
    """Read the one number that these columns name."""
    found = rows(of, **columns)
    assert len(found) == 1, f"{len(found)} rows are of {columns}"
    return float(found[0][column])


def near(x: float, digits: int = 3) -> str:
    """Round to the nearest, halves of the written decimals away from zero."""
    return str(Decimal(repr(x)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def up(x: float, digits: int = 3) -> str:
    """Write a bound: rounded up, since below its value it would bound nothing."""
    return f"{math.ceil(x * 10**digits - 1e-9) / 10**digits:.{digits}f}"


def down(x: float, digits: int = 3) -> str:
    """Write a lower bound, rounded down."""
    return f"{math.floor(x * 10**digits + 1e-9) / 10**digits:.{digits}f}"
