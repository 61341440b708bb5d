"""Docstrings of plain text as reStructuredText.

    in the source               on the page
    `name`                      ``name``
    an indented block           a literal block
    *args, |x|, weight_         escaped
    name: text, indented on     an item of a list

Sections in Google style and examples (`>>>`) are left to napoleon and docutils.
"""

import re
from collections.abc import Iterable

SECTIONS = "Args|Returns|Raises|Yields|Example|Examples|Note|Warns|Attributes|References"
SECTION = re.compile(rf"^({SECTIONS}):\s*$")
ITEM = re.compile(r"^([-*]|\d+\.)\s+\S")
FIELD = re.compile(r"^`?([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*)`?: +(\S.*)$")
CODE = re.compile(r"(``.+?``|`[^`]+`)", re.S)


def inline(text: str) -> str:
    r"""Escape what reStructuredText would read as markup; single backticks become double ones.

    >>> inline("`x` of *args, |x| and w_")
    '``x`` of \\*args, \\|x\\| and w\\_'
    """
    parts = CODE.split(text)
    for n, part in enumerate(parts):
        if n % 2:
            # reStructuredText wants a literal to stand as a word of its own
            before = "\\ " if re.search(r"\w$", parts[n - 1]) else ""
            behind = "\\ " if re.match(r"\w", parts[n + 1]) else ""
            parts[n] = f"{before}``{part.strip('`').strip()}``{behind}"
        else:
            part = re.sub(r"([\\*|`])", r"\\\1", part)
            parts[n] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", part)
    return "".join(parts)


def rst(lines: Iterable[str]) -> list[str]:
    """Lines of a docstring, dedented, as lines of reStructuredText.

    >>> rst(["As", "", "    a = |b|", "", "where `a` is."])
    ['As', '', '::', '', '    a = |b|', '', 'where ``a`` is.']
    """
    out: list[str] = []
    pending: list[str] = []

    def flush() -> None:
        if pending:
            out.extend(inline("\n".join(pending)).split("\n"))
            pending.clear()

    def blank() -> None:
        flush()
        if out and out[-1].strip():
            out.append("")

    rows = [line.rstrip() for line in lines]
    n, section, hanging = 0, False, False
    while n < len(rows):
        row = rows[n]
        indent = len(row) - len(row.lstrip())
        if not row:
            blank()
            hanging = False
        elif SECTION.match(row):
            blank()
            section = True
            out.append("Fields:" if row.startswith("Attributes:") else row)
        elif row.lstrip().startswith(">>>"):
            flush()
            if out and out[-1].strip() and not SECTION.match(out[-1]):
                out.append("")
            while n < len(rows) and rows[n]:
                out.append(rows[n])
                n += 1
            out.append("")
            section = section and indent > 0
            continue
        elif indent == 0:
            if section:  # text behind a section, at the margin
                blank()
                section = False
            field = FIELD.match(row)
            following = rows[n + 1] if n + 1 < len(rows) else ""
            goes_on = following.startswith("  ") or bool(FIELD.match(following)) or hanging
            if ITEM.match(row):
                if not hanging:
                    blank()
                hanging = True
            elif field and goes_on and " " not in field[1].replace(", ", ""):
                if not hanging:
                    blank()
                flush()
                row, hanging = f"- `{field[1]}`: {field[2]}", True
            elif hanging:
                blank()
                hanging = False
            pending.append(row)
        elif section:
            pending.append(row)
        elif hanging:
            flush()
            pending.append(("  " if indent else "") + row.lstrip())
            if ITEM.match(rows[n - 1].lstrip()) and not FIELD.match(rows[n - 1]):
                pending[-1] = " " * (len(rows[n - 1]) - len(rows[n - 1].lstrip("-*. 0123456789")))
                pending[-1] += row.lstrip()
        else:
            blank()
            block = []
            while n < len(rows) and (not rows[n] or rows[n].startswith(" ")):
                block.append(rows[n])
                n += 1
            while block and not block[-1]:
                block.pop()
            out.extend(["::", "", *block, ""])
            continue
        n += 1
    flush()
    while out and not out[-1]:
        out.pop()
    return out
