"""The sections that a study's `report(run)` adds: text, plotly figures, tables, pictures.

Everything is escaped, nothing is fetched.
"""

import base64
import hashlib
import html
import io
import json
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from marginlab.study.markup import Markup, block, inline
from marginlab.study.traces import Grid, numbered

if TYPE_CHECKING:
    import numpy

# any other than these
_TAG = re.compile(r"<(?!/?(?:br|b|i|em|sub|sup|extra)\s*/?>)", re.IGNORECASE)
# pixels; pictures up to the first are shown at one small size, those up to the second twice as
# large as they are
_SMALL, _WIDE = 96, 320


class Drawing(NamedTuple):
    """A figure of a report: plotly's data and layout, made safe, and its caption."""

    figure: dict[str, Any]
    caption: str


class Report:
    r"""Sections of a report, in the order in which they are added.

    `title` and `lead` stand above them, and may be set at any time.

    Args:
        title: The line above all.
        lead: A sentence or two below it.
        cells: The cells of the grid, if the report is of a run: traces and rows that name columns
            of theirs obey the filter of the page.

    Example:
        >>> report = Report(title="What is *measured*")
        >>> report.text("## Errors\n\nThe error is **small**.")
        >>> report.table([{"letters": "ab", "error": 0.1234567}], "Errors on clean images.")
        >>> len(report.sections)
        2
    """

    def __init__(self, title: str, lead: str = "", cells: Sequence[Mapping[str, Any]] = ()) -> None:
        self.title, self.lead, self.grid = title, lead, Grid(cells)
        self.sections: list[str] = []
        self.drawings: list[Drawing] = []
        self.pictures: dict[str, str] = {}  # digest of a picture's pixels: its id on the page
        self.tables = self._shown = 0

    @property
    def figures(self) -> int:
        """The number of figures."""
        return len(self.drawings)

    def text(self, markup: str) -> None:
        """Add paragraphs with markup.

        The markup is `## headings`, lists, `**bold**`, `*italic*`, code in backticks,
        [links](address).
        """
        self.sections.append(f'<div class="text">{block(markup)}</div>')

    def figure(self, figure: Any, caption: str = "") -> None:
        """Add a plotly figure, which opens without a network.

        Of the tags in its texts, only those that style are rendered. A trace says by `of_cells`
        which cells it is of.

        Raises:
            KeyError: A trace names a column that the cells do not have.
            ValueError: A trace names other than one value of a column for each point.
        """
        whole = figure.to_dict()
        whole["data"] = numbered(self.grid, whole["data"])
        self.drawings.append(Drawing(_without_links(whole), caption))
        self.sections.append(drawn(self.drawings[-1], str(self.figures)))

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        caption: str = "",
        cells: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add a table of rows as dicts; its columns are their keys, in order of appearance.

        Numbers are shortened to four digits, with a tooltip. Texts are shown as they are, except
        for a `Markup`.

        Args:
            rows: The rows.
            caption: The line above them.
            cells: For each row the columns of the cells that it is of; without it they are read
                from the row, where it has columns of the grid under their names.

        Raises:
            KeyError: `cells` names a column that the cells do not have.
        """
        if cells is None:
            of = [self.grid.of_row(row) for row in rows]
        else:
            of = [self.grid.numbers(each) for _, each in zip(rows, cells, strict=True)]
        self.numbered_table(rows, caption, [[numbers] for numbers in of])

    def numbered_table(
        self,
        rows: Sequence[Mapping[str, Any]],
        caption: str,
        cells: Sequence[Sequence[Sequence[int]]],
    ) -> None:
        """Add a table as `table` does, with the numbers of each row's cells, run by run."""
        self.tables += 1
        columns = list(dict.fromkeys(key for row in rows for key in row))
        numeric = {column for column in columns if all(_is_number(row.get(column)) for row in rows)}
        head = "".join(
            f"<th{_right(column in numeric)}>{html.escape(str(column))}</th>" for column in columns
        )
        body = "".join(
            f"<tr{of_numbers(*one)}>"
            f"{''.join(_data(row.get(column), column in numeric) for column in columns)}</tr>"
            for row, one in zip(rows, cells, strict=True)
        )
        table = (
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
        self.sections.append(
            f'<figure class="table">{_caption(f"Table {self.tables}", caption)}{table}</figure>'
        )

    def images(self, pictures: Sequence[tuple[Any, str]], title: str = "") -> None:
        """Add pictures with their captions, such as names of classes, in which nothing is markup.

        Args:
            pictures: (picture, caption) pairs; a picture is a uint8 array of shape (H, W, 3).
            title: The heading above them.

        Raises:
            ValueError: A picture of another shape or type.
        """
        shown = "".join(
            f'<figure><img id="{self._named(picture)}" {_size(picture.shape[1])} '
            f'src="{_uri(picture)}" alt="{html.escape(caption, quote=True)}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for picture, caption in ((_picture(array), caption) for array, caption in pictures)
        )
        heading = f"<h3>{inline(title)}</h3>" if title else ""
        self.sections.append(
            f'<section class="gallery">{heading}<div class="pictures">{shown}</div></section>'
        )

    def _named(self, picture: "numpy.ndarray") -> str:
        """Return the id of a picture on the page; a cell that kept the same one refers to it."""
        self._shown += 1
        name = f"picture-{self._shown}"
        self.pictures.setdefault(digest(picture), name)
        return name


def digest(picture: "numpy.ndarray") -> str:
    """Return a hash of a picture's pixels."""
    return hashlib.sha256(f"{picture.shape}".encode() + picture.tobytes()).hexdigest()


def drawn(drawing: Drawing, number: str, run: int = 0) -> str:
    """Render a figure with its caption.

    Args:
        drawing: The figure.
        number: Its number on the page, unique there.
        run: The number of its run on the page.
    """
    import plotly.io

    plot = plotly.io.to_html(
        drawing.figure,
        full_html=False,
        validate=False,  # it was, when the figure was made
        include_plotlyjs=False,
        include_mathjax=False,
        div_id=f"figure-{number}",
        config={"displaylogo": False, "responsive": True},
    )
    caption = _caption(f"Figure {number}", drawing.caption)
    return f'<figure class="plot" data-run="{run}">{plot}{caption}</figure>'


def of_numbers(*numbers: Sequence[int]) -> str:
    """Return the attribute that names the cells of a row, of each run on the page."""
    return f' data-cells="{json.dumps(numbers)}"' if any(numbers) else ""


def _without_links(value: Any) -> Any:
    """Remove links and pictures from a figure's texts: plotly reads them out of class names."""
    if isinstance(value, str):
        return _TAG.sub("&lt;", value)
    if isinstance(value, Mapping):
        return {key: _without_links(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_links(item) for item in value]
    dtype = getattr(value, "dtype", None)
    if dtype is not None and dtype.kind in "OU":  # an array of texts
        return _without_links(value.tolist())
    return value


def show(value: Any) -> str:
    """Write a value in a table for people.

    Example:
        >>> show(0.1234567), show(float("nan")), show(12), show(None)
        ('0.1235', '–', '12', '–')
    """
    if value is None or (
        isinstance(value, numbers.Real)
        and not isinstance(value, numbers.Integral)
        and math.isnan(value)
    ):
        return "–"
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):.4g}"
    return str(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def _size(width: int) -> str:
    if width <= _SMALL:
        return 'class="small"'
    return f'class="pixels" width="{2 * width}"' if width <= _WIDE else 'class=""'


def _right(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _data(value: Any, numeric: bool) -> str:
    shown, whole = show(value), str(value)
    tip = f' title="{html.escape(whole, quote=True)}"' if shown not in (whole, "–") else ""
    text = inline(shown) if isinstance(value, Markup) else html.escape(shown)
    return f"<td{_right(numeric)}{tip}>{text}</td>"


def _caption(number: str, caption: str) -> str:
    return f"<figcaption><b>{number}</b> {inline(caption)}</figcaption>"


def _picture(array: Any) -> "numpy.ndarray":
    import numpy as np

    picture = np.asarray(array)
    if (
        picture.dtype != np.uint8
        or picture.ndim != 3
        or picture.shape[2] != 3
        or 0 in picture.shape
    ):
        raise ValueError(
            f"A picture is a uint8 array of shape (H, W, 3), not {picture.dtype} of shape "
            f"{picture.shape}. From an image in [0, 1]: (image.permute(1, 2, 0) * "
            "255).round().byte().numpy()."
        )
    return picture


def png(picture: "numpy.ndarray") -> bytes:
    """Encode a picture (H, W, 3) as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png", optimize=True)
    return file.getvalue()


def _uri(picture: "numpy.ndarray") -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()
