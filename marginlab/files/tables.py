"""Tables as csv text: a header and rows, lines that end in one newline."""

import csv
import io
from collections.abc import Iterable, Sequence


def csv_text(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    r"""Return a table as csv text; a number is written so that it reads back equal.

    Args:
        header: The names of the columns; empty for rows that are added to a table.
        rows: The values of each row.

    Example:
        >>> csv_text(("name", "value"), [("a, b", 0.1)])
        'name,value\n"a, b",0.1\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
