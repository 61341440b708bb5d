"""The sections that a study's `report(run)` adds: text, plotly figures, tables, pictures.

Everything is escaped, nothing is fetched.
"""

import base64
import html
import io
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from marginlab.study.markup import Markup, block, inline

if TYPE_CHECKING:
    import numpy

# any other than these
_TAG = re.compile(r"<(?!/?(?:br|b|i|em|sub|sup|extra)\s*/?>)", re.IGNORECASE)
# pixels; pictures up to the first are shown at one small size, those up to the second twice as
# large as they are
_SMALL, _WIDE = 96, 320


class Report:
    r"""Sections of a report, in the order in which they are added.

    `title` and `lead` stand above them, and may be set at any time.

    Example:
        >>> report = Report(title="What is *measured*")
        >>> report.text("## Errors\n\nThe error is **small**.")
        >>> report.table([{"letters": "ab", "error": 0.1234567}], "Errors on clean images.")
        >>> len(report.sections)
        2
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self.sections: list[str] = []
        self.figures = self.tables = 0

    def text(self, markup: str) -> None:
        """Add paragraphs with markup.

        The markup is `## headings`, lists, `**bold**`, `*italic*`, code in backticks,
        [links](address).
        """
        self.sections.append(f'<div class="text">{block(markup)}</div>')

    def figure(self, figure: Any, caption: str = "") -> None:
        """Add a plotly figure, which opens without a network.

        Of the tags in its texts, only those that style are rendered.
        """
        import plotly.io

        self.figures += 1
        drawn = plotly.io.to_html(
            _without_links(figure.to_dict()),
            full_html=False,
            validate=False,  # it was, when the figure was made
            include_plotlyjs=False,
            include_mathjax=False,
            div_id=f"figure-{self.figures}",
            config={"displaylogo": False, "responsive": True},
        )
        self.sections.append(
            f'<figure class="plot">{drawn}{_caption(f"Figure {self.figures}", caption)}</figure>'
        )

    def table(self, rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
        """Add a table of rows as dicts; its columns are their keys, in order of appearance.

        Numbers are shortened to four digits, with a tooltip. Texts are shown as they are, except
        for a `Markup`.
        """
        self.tables += 1
        columns = list(dict.fromkeys(key for row in rows for key in row))
        numeric = {column for column in columns if all(_is_number(row.get(column)) for row in rows)}
        head = "".join(
            f"<th{_right(column in numeric)}>{html.escape(str(column))}</th>" for column in columns
        )
        body = "".join(
            f"<tr>{''.join(_data(row.get(column), column in numeric) for column in columns)}</tr>"
            for row in rows
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
            f'<figure><img {_size(picture.shape[1])} src="{_uri(picture)}" '
            f'alt="{html.escape(caption, quote=True)}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for picture, caption in ((_picture(array), caption) for array, caption in pictures)
        )
        heading = f"<h3>{inline(title)}</h3>" if title else ""
        self.sections.append(
            f'<section class="gallery">{heading}<div class="pictures">{shown}</div></section>'
        )


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
