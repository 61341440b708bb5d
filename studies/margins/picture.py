"""Draw the page's picture from the committed table: `python studies/margins/picture.py`.

Left: the value that a margin puts in the place of the target cosine, by the angle. Right: the
target angles of training images after training, by loss, as means over seeds.
"""

import csv
import gzip
import importlib
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from marginlab import study

HERE = Path(__file__).parent
TABLE = HERE / "measured" / "omniglot.csv.gz"
COLORS = ("#222222", "#d1622b", "#2458a6", "#2e8b57", "#8e44ad", "#c0a000", "#008b8b", "#b03060")
SIZE, PANEL, LEFT, TOP = (1000, 400), (360, 320), 60, 30


class Panel:
    """Axes of a plot on a picture, and the lines on it.

    Args:
        draw: The picture.
        corner: Its upper left corner in pixels.
        x: Smallest and largest abscissa.
        y: Smallest and largest ordinate.
        title: Words above it.
    """

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        corner: tuple[int, int],
        x: tuple[float, float],
        y: tuple[float, float],
        title: str,
    ):
        self.draw, self.corner, self.x, self.y, self.lines = draw, corner, x, y, 0
        self.font = ImageFont.load_default(13)
        right, below = (at + side for at, side in zip(corner, PANEL, strict=True))
        draw.rectangle((*corner, right, below), outline="#999999")
        draw.text((corner[0], corner[1] - 20), title, fill="#222222", font=self.font)
        for part in range(5):
            across, up = (low + part / 4 * (high - low) for low, high in (x, y))
            draw.text((self.at(across, 0)[0] - 8, below + 4), f"{across:g}", "#666666", self.font)
            draw.text((corner[0] - 38, self.at(0, up)[1] - 7), f"{up:.2g}", "#666666", self.font)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a point."""
        across = self.corner[0] + PANEL[0] * (x - self.x[0]) / (self.x[1] - self.x[0])
        down = self.corner[1] + PANEL[1] * (self.y[1] - y) / (self.y[1] - self.y[0])
        return across, down

    def line(self, x: Sequence[float], y: Sequence[float], name: str) -> None:
        """Draw a line in the next colour, and its name."""
        color = COLORS[self.lines % len(COLORS)]
        self.draw.line([self.at(*point) for point in zip(x, y, strict=True)], color, 2)
        place = (self.corner[0] + PANEL[0] - 130, self.corner[1] + 6 + 16 * self.lines)
        self.draw.text(place, name, color, self.font)
        self.lines += 1


def shares(rows: Iterable[dict[str, str]], loss: str) -> tuple[list[float], list[float]]:
    """Return the middles of the bars of a loss's histogram after training, and their means."""
    own = [r for r in rows if r["loss"] == loss and r["quantity"] == "target_angle_share"]
    last = max((int(row["epoch"]) for row in own), default=0)
    found: dict[int, list[float]] = {}
    for row in own:
        if int(row["epoch"]) == last:
            found.setdefault(int(row["at"]), []).append(float(row["value"]))
    x = sorted(found)
    return [at + 5.0 for at in x], [statistics.fmean(found[at]) for at in x]


def drawn(table: Path) -> Image.Image:
    """Return the picture of a kept table."""
    with gzip.open(table, "rt", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    loaded = study.load(str(HERE / "study.py"))
    figures = importlib.import_module(f"{loaded.module.__name__}.figures")
    picture = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(picture)
    left = Panel(draw, (LEFT, TOP), (0, 180), (-2, 1), "target value, by the angle in degrees")
    for name in ("norm-softmax", "sphereface", "cosface", "arcface", "combined-1"):
        degrees, value, _ = figures.curve(loaded.module.MARGINS[name].format(g=""))
        left.line(degrees, value, name)
    losses = list(dict.fromkeys(row["loss"] for row in rows))
    bars = {loss: shares(rows, loss) for loss in losses}
    bars = {loss: found for loss, found in bars.items() if found[0]}
    highest = math.ceil(10 * max(max(y) for _, y in bars.values())) / 10
    title = "share of training images, by the target angle"
    right = Panel(draw, (LEFT + PANEL[0] + 100, TOP), (0, 180), (0, highest), title)
    for loss, (x, y) in bars.items():
        right.line(x, y, loss)
    return picture


if __name__ == "__main__":
    drawn(TABLE).quantize(32).save(HERE / "measured" / "curves.png", optimize=True)
