"""Plain text with a little markup, as HTML.

The markup is paragraphs, `## headings`, lists, `**bold**`, `*italic*`, code in backticks,
[links](address). Text from outside (the name of a class or a file, a setting) is inserted by
`literal`, and is shown as it is.
"""

import html
import re

_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[([^\]]+)\]\((https?://[^\s)]+|#[\w-]+|[\w./-]+)\)")
_BOLD = re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*")
_ITALIC = re.compile(r"(?<![\w*])\*(?=\S)([^*]+?)(?<=\S)\*(?![\w*])")
_HEADING = re.compile(r"(#{2,4})\s+(.+)")
_MARKS = "\\`*[]()#_.+-"
_ESCAPED = re.compile(rf"\\([{re.escape(_MARKS)}])")
# a mark that was escaped, while others are looked for
_KEPT = {chr(0xE000 + ord(mark)): mark for mark in _MARKS}
_ITEM = re.compile(r"\s*(?:[-*]|\d+[.)])\s+(.+)")


class Markup(str):
    """A text in a table whose markup is rendered; any other text is shown as it is."""


def literal(value: object) -> str:
    """Return a value as text in which nothing is markup, on one line.

    Example:
        >>> inline(literal("[a](https://b.c) **d**"))
        '[a](https://b.c) **d**'
    """
    return re.sub(f"([{re.escape(_MARKS)}])", r"\\\1", " ".join(str(value).split()))


def inline(text: str) -> str:
    """Render one run of text as HTML.

    Everything that is not markup is escaped, and nothing in code is markup.

    Example:
        >>> inline("**d_A** < `a*b*c`")
        '<strong>d_A</strong> &lt; <code>a*b*c</code>'
    """
    hidden = _ESCAPED.sub(lambda m: chr(0xE000 + ord(m[1])), text)
    parts = _CODE.split(hidden)  # text, code, text, code, ...
    for i, part in enumerate(parts):
        safe = html.escape(part)
        if i % 2:
            parts[i] = f"<code>{safe}</code>"
        else:
            safe = _LINK.sub(lambda m: f'<a href="{m[2]}">{m[1]}</a>', safe)
            parts[i] = _ITALIC.sub(r"<em>\1</em>", _BOLD.sub(r"<strong>\1</strong>", safe))
    return "".join(_KEPT.get(character, character) for character in "".join(parts))


def block(text: str) -> str:
    r"""Render paragraphs, headings and lists, which empty lines separate.

    A heading in a report is `##`; the title is the page's own.

    Example:
        >>> print(block("## Errors\n\nTwo lines\nof one paragraph.\n- an item"))
        <h2>Errors</h2>
        <p>Two lines of one paragraph.</p>
        <ul><li>an item</li></ul>
    """
    # a tag, and the texts in it: one, or the items of a list
    blocks: list[tuple[str, list[str]]] = []
    going_on = False  # whether a line without a mark belongs to the block before it
    for line in text.splitlines():
        heading, item = _HEADING.fullmatch(line.strip()), _ITEM.fullmatch(line)
        if heading:
            blocks.append((f"h{len(heading[1])}", [heading[2]]))
        elif item:
            kind = "ol" if line.strip()[0].isdigit() else "ul"
            if going_on and blocks[-1][0] == kind:
                blocks[-1][1].append(item[1])
            else:
                blocks.append((kind, [item[1]]))
        elif line.strip() and going_on:
            blocks[-1][1][-1] += " " + line.strip()
        elif line.strip():
            blocks.append(("p", [line.strip()]))
        going_on = bool(line.strip()) and not heading
    return "\n".join(_element(kind, texts) for kind, texts in blocks)


def _element(kind: str, texts: list[str]) -> str:
    inside = (
        "".join(f"<li>{inline(text)}</li>" for text in texts)
        if kind in ("ul", "ol")
        else inline(texts[0])
    )
    return f"<{kind}>{inside}</{kind}>"
