"""Pages that are made before the build: the reference, the studies, the benchmarks, the notebooks.

The originals stay where they are. Their relative links, and those of the pages of `docs/`, are
written for a reader of the repository; `link` turns each into a link that works on the site.
"""

import importlib
import inspect
import json
import os
import re
import shutil
from pathlib import Path

from docstrings import rst
from names import ROOMS, page, public

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def originals() -> dict[Path, str]:
    """Files outside of `docs/` that have a page, and its path below `docs/`."""
    found = {
        ROOT / "README.md": "index.md",
        ROOT / "studies/README.md": "studies/index.md",
        ROOT / "benchmarks/README.md": "benchmarks/index.md",
    }
    for path in sorted(ROOT.glob("studies/*/README.md")):
        found[path] = f"studies/{path.parent.name}.md"
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        found[path] = f"notebooks/{path.name}"
    return found


def link(text: str, target: str, original: Path, place: str) -> str:
    """A Markdown link of the file `original`, whose page is `place`, as the site needs it.

    A file with a page leads to the page, another file is offered for download, and a folder is
    named.

    Raises:
        FileNotFoundError: the link leads to nothing.
    """
    path, _, part = target.partition("#")
    if re.match(r"[a-z]+:", target) or not path:
        return f"[{text}]({target})"
    found = (original.parent / path).resolve()
    if not found.exists():
        raise FileNotFoundError(f"{original}: the link {target} leads to nothing.")
    pages = originals()
    start = (DOCS / place).parent
    if found.is_dir() and found / "README.md" in pages:
        found = found / "README.md"
    if found.is_dir():
        return f"{text} (`{found.relative_to(ROOT)}/`)"
    if found in pages:
        found = DOCS / pages[found]
    return f"[{text}]({os.path.relpath(found, start)}{'#' + part if part else ''})"


def linked(markdown: str, original: Path, place: str) -> str:
    """Markdown with its links turned into those of the site; code blocks are left alone."""
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)
    return "".join(
        part
        if part.startswith("```")
        else LINK.sub(lambda m: m[1] + link(m[2], m[3], original, place), part)
        for part in parts
    )


def module_text(name: str) -> list[str]:
    """The docstring of a module as reStructuredText."""
    return rst((inspect.getdoc(importlib.import_module(name)) or "").split("\n"))


def of_file(fullname: str) -> str:
    """The docstring of the file that defines a public name, for the end of its page: the equation,
    and its source. Empty if the name is defined in the room's `__init__`, which has its own page.
    """
    module, _, name = fullname.rpartition(".")
    home = getattr(importlib.import_module(module), name).__module__
    if home == module:
        return ""
    title = f"The file {home.rpartition('.')[2]}.py".replace("_", "\\_")
    return "\n".join([title, "-" * len(title), "", *module_text(home)])


def room(name: str) -> str:
    """The reference page of a room: its docstring and a table of its public names."""
    title = name
    lines = [title, "=" * len(title), "", f".. currentmodule:: marginlab.{name}", ""]
    lines += [*module_text(f"marginlab.{name}"), ""]
    lines += [".. autosummary::", f"   :toctree: {name.replace('.', '-')}", "   :nosignatures:", ""]
    return "\n".join([*lines, *(f"   {each}" for each in public(name)), ""])


def reference() -> dict[str, str]:
    """Paths below `docs/` and texts of the reference."""
    made = {f"reference/{name.replace('.', '-')}.rst": room(name) for name in ROOMS}
    lines = ["# Reference", "", "One page for each room, and in it one for each public name."]
    lines += [
        "The letters of all shapes are on [one page](../design.md#letters-of-shapes).",
        "",
    ]
    lines += ["```{toctree}", ":maxdepth: 1", ""]
    lines += [f"{name.replace('.', '-')}" for name in ROOMS] + ["```", ""]
    made["reference/index.md"] = "\n".join(lines)
    return made


def copies(notebooks: bool) -> dict[str, str]:
    """Paths below `docs/` and texts of the pages whose originals lie elsewhere."""
    made = {}
    for original, place in originals().items():
        text = original.read_text(encoding="utf-8")
        if original.suffix == ".ipynb":
            made[place] = text if notebooks else _unexecuted(text)
        elif place != "index.md":
            made[place] = linked(text, original, place)
    studies = [Path(p).stem for p in made if p.startswith("studies/") and p != "studies/index.md"]
    made["studies/index.md"] += "\n".join(["", "```{toctree}", ":hidden:", "", *studies, "```", ""])
    names = [Path(p).stem for p in made if p.startswith("notebooks/")]
    made["notebooks/index.md"] = "\n".join(
        [
            "# Notebooks",
            "",
            "Each notebook runs from its first cell to its last in some minutes on two cores.",
            "They lie in the folder `notebooks/`: install the extra `notebooks`, then say",
            "`jupyter lab notebooks`."
            if notebooks
            else "`jupyter lab notebooks`. This build has not run them.",
            "",
            "```{toctree}",
            ":maxdepth: 1",
            "",
            *names,
            "```",
            "",
        ]
    )
    return made


def _unexecuted(text: str) -> str:
    """A notebook whose cells carry no output."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return json.dumps(notebook)


def write(notebooks: bool) -> None:
    """Write all pages that changed, and remove those whose original is gone."""
    made = reference() | copies(notebooks)
    stubs = {f"{page(name, each)}.rst" for name in ROOMS for each in public(name)}
    for folder in ("reference", "studies", "benchmarks", "notebooks"):
        for path in (DOCS / folder).rglob("*"):
            if path.is_file() and str(path.relative_to(DOCS)) not in made.keys() | stubs:
                path.unlink()
    for place, text in made.items():
        path = DOCS / place
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def plotly_script() -> None:
    """Copy plotly's script beside the site's own, so that figures show without a network."""
    import plotly

    source = Path(plotly.__file__).parent / "package_data/plotly.min.js"
    target = DOCS / "_static/plotly.min.js"
    if not target.exists() or target.stat().st_size != source.stat().st_size:
        target.parent.mkdir(exist_ok=True)  # git keeps no empty folder
        shutil.copyfile(source, target)
