"""The site of marginlab, built by sphinx: `make docs`, or `make docs NOTEBOOKS=off` without running
the notebooks.

It loads nothing from a network: formulas are MathML, figures use a copy of plotly's script.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
# kernels of the notebooks find the package as this process does
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
os.environ["PLOTLY_RENDERER"] = "notebook_connected"

import names  # noqa: E402
import pages  # noqa: E402
from docstrings import rst  # noqa: E402
from docutils import nodes  # noqa: E402
from docutils.utils.math import MathError, latex2mathml  # noqa: E402
from sphinx.util import logging  # noqa: E402
from sphinx.util.nodes import make_refnode  # noqa: E402

import marginlab  # noqa: E402

RUN = os.environ.get("NOTEBOOKS", "on") != "off"
pages.write(RUN)
pages.plotly_script()

project = "marginlab"
author = "the authors of marginlab"
version = release = marginlab.__version__
project_copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_ext", "_templates"]
templates_path = ["_templates"]
nitpicky = True
suppress_warnings = ["config.cache"]  # a function for the templates is no value to compare

html_theme = "furo"
html_title = "marginlab"
html_static_path = ["_static"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"

autosummary_context = {"of_file": pages.of_file}
autosummary_filename_map = {
    f"marginlab.{room}.{name}": f"marginlab.{room}.{name}-function"
    for room in names.ROOMS
    for name in names.public(room)
    if names.page(room, name).endswith("-function")
}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of torch are written for other conventions
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 72
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# "Attributes" of a class are its fields, which have entries of their own further down
napoleon_custom_sections = [("Fields", "params_style")]
add_module_names = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force" if RUN else "off"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # warnings that name folders of the machine that builds

PUBLIC = names.of_object()
BY_NAME: dict[str, list[str]] = {}
for room in names.ROOMS:
    for each in names.public(room):
        BY_NAME.setdefault(each, []).append(room)


COLON = "\x01"  # stands for a colon in which napoleon would see the end of a type


def docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring into reStructuredText before napoleon reads it.

    Types are in annotations, so that no text before a colon is one: not of a property, and not of
    what a function returns.
    """
    if lines and lines[0].startswith("Alias for field number"):
        lines[:] = []
    returns = False
    made = rst(lines)
    for n, line in enumerate(made):
        if line and not line.startswith(" "):
            returns = line == "Returns:"
        if what in ("property", "attribute", "data") or (returns and line.startswith(" ")):
            made[n] = line.replace(":", COLON) if ">>>" not in line and line != "::" else line
    lines[:] = made


def colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put the colons back behind napoleon."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def room_of(text: str, here: str) -> tuple[str, str] | None:
    """(Room, name) that a piece of code names, or None: `InfoNCE`, `InfoNCE(0.5)`, `theory.tau`,
    `marginlab.train.load`. A bare word in small letters is a name on the pages of its room only.
    """
    found = re.fullmatch(r"(?:marginlab\.)?((?:\w+\.)*)(\w+)(\(.*\))?", text, re.S)
    if not found:
        return None
    path, name = found[1].rstrip("."), found[2]
    rooms = BY_NAME.get(name, [])
    if path:
        return (path, name) if path in rooms else None
    own = [room for room in rooms if here.startswith(f"reference/{room.replace('.', '-')}")]
    if own:
        return own[0], name
    telling = not name.islower() or "_" in name
    return (rooms[0], name) if len(rooms) == 1 and telling else None


def link_names(app: Any, doctree: nodes.document, here: str) -> None:
    """Link every public name that stands in code to its page."""
    for node in list(doctree.findall(nodes.literal)):
        if isinstance(node.parent, (nodes.reference, nodes.title)):
            continue
        found = room_of(node.astext(), here)
        if found is None or names.page(*found) == here:
            continue
        target = names.page(*found)
        if target not in app.env.found_docs:
            continue
        node.replace_self(
            make_refnode(app.builder, here, target, "", [node.deepcopy()], ".".join(found))
        )


def missing(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Resolve a type of an annotation: a public name to its page, any other to its text.

    Annotations name objects of torch, jaxtyping and files of the lab that have no page. A Python
    reference that is written by hand in a page, and leads nowhere, becomes its text as well.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    module, _, name = target.rpartition(".")
    found = PUBLIC.get((module, name))
    if found is None and not module:
        found = room_of(name, node.get("refdoc", ""))
    if found and names.page(*found) in env.found_docs:
        here = node.get("refdoc", env.docname)
        return make_refnode(app.builder, here, names.page(*found), "", [content], target)
    return content


def sources(app: Any, name: str, source: list[str]) -> None:
    """Turn the links of a page of docs/ into those of the site."""
    path = HERE / f"{name}.md"
    if path.exists() and path.parent == HERE:
        source[0] = pages.linked(source[0], path, f"{name}.md")


def per_page(app: Any, name: str, template: str, context: Any, doctree: Any) -> None:
    """Unfold the sidebar around the page only."""
    whole = context.get("toctree")
    if whole is not None:
        context["toctree"] = lambda **settings: whole(**settings | {"collapse": True})


PLOTLY = '<script src="../_static/plotly.min.js"></script>'


def offline(app: Any, error: Exception | None) -> None:
    """Load plotly's script from the site in the pages of the notebooks; refuse any script, style or
    picture that a page would load from a network.

    The figures stand in the body and draw themselves as it is read, so the script is in the head;
    the theme puts the scripts that sphinx knows of at the end of the body.
    """
    if error or app.builder.format != "html":
        return
    remote = re.compile(
        r"<script[^>]*\ssrc=\"https?://[^>]*>\s*</script>"
        r"|<script type=\"module\">\s*import \"https?://[^<]*</script>"
    )
    loads = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\s(?:src|href)=\"(?:https?:)?//[^\"]*")
    for path in Path(app.outdir).rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        if path.parent.name == "notebooks":
            made = remote.sub("", text)
            if "Plotly.newPlot" in made and PLOTLY not in made:
                made = made.replace("</head>", f"{PLOTLY}\n</head>", 1)
            if made != text:
                path.write_text(made, encoding="utf-8")
            text = made
        for found in loads.findall(text):
            raise RuntimeError(f"{path} loads from a network: {found}")


def formula(self: Any, node: nodes.math, display: bool) -> None:
    """Write a formula as MathML, by docutils' own converter."""
    text = node.astext()
    if display and r"\\" in text and r"\begin" not in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    text = text.replace("°", r"^{\circ}")
    try:
        made = latex2mathml.tex2mathml(text, as_block=display)
    except MathError as error:
        logging.getLogger(__name__).warning("%s: %s", error, text, location=node)
        made = f"<code>{text}</code>"
    self.body.append(f'<div class="math">{made}</div>' if display else made)
    raise nodes.SkipNode


MODULES = re.compile(r"\b(?:jaxtyping|torch|typing|collections\.abc)\.(?=[A-Z])")


def signature(*event: Any) -> tuple[str | None, ...]:
    """Shorten the shapes: Float[Tensor, 'B D'] in place of jaxtyping.Float[torch.Tensor, 'B D']."""
    return tuple(part and MODULES.sub("", part) for part in event[-2:])


def setup(app: Any) -> None:
    """Connect the parts."""
    app.add_html_math_renderer(
        "mathml",
        (lambda self, node: formula(self, node, False), None),
        (lambda self, node: formula(self, node, True), None),
    )
    app.connect("autodoc-process-docstring", docstring, priority=400)
    app.connect("autodoc-process-docstring", colons, priority=600)
    app.connect("autodoc-process-signature", signature)
    app.connect("source-read", sources)
    app.connect("missing-reference", missing)
    app.connect("doctree-resolved", link_names)
    app.connect("html-page-context", per_page, priority=100)  # before furo asks for the sidebar
    app.connect("build-finished", offline)
