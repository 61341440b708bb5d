"""The house: which room may import which, and what the losses and measures may load."""

import ast
from pathlib import Path

import pytest

import marginlab

PACKAGE = Path(marginlab.__file__).parent
FLOORS = [
    {"files", "signals"},
    {"rng", "ranks", "recomputation", "settings", "terminal", "machine"},
    {"statistics"},
    {"margins", "study", "formats"},
    {"kernels"},
    {"measures", "evaluation"},
    {"losses", "optim"},
    {"models", "data", "augment", "theory"},
    {"encoding"},
    {"methods"},
    {"train"},
    {"inversion", "purify", "quality", "plan"},
    {"testing", "measure"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(
    p for p in PACKAGE.rglob("*.py") if "_studies" not in p.parts and p != PACKAGE / "__init__.py"
)


def imports(text: str) -> set[str]:
    """The rooms that a source text imports, wherever in it the import stands."""
    rooms = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("marginlab.")}
    return rooms - {"__version__"}


def imported_files(text: str, files: set[str]) -> set[str]:
    """Modules among `files` that a source text imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & files) or {str(node.module)}
    return found & files


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A path through the graph that ends where it begins; empty if there is none."""
    done: set[str] = set()

    def search(path: list[str]) -> list[str]:
        for other in sorted(graph[path[-1]] - done):
            if other in path:
                return [*path[path.index(other) :], other]
            if found := search([*path, other]):
                return found
        done.add(path[-1])
        return []

    return next((found for start in graph if (found := search([start]))), [])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_lower_floors(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imports(path.read_text()) - {room}:
        assert FLOOR[other] < FLOOR[room] or path.name == "__main__.py", (
            f"{path} imports {other}, which is not on a lower floor"
        )


@pytest.mark.parametrize("room", sorted({p.relative_to(PACKAGE).parts[0] for p in FILES}))
def test_no_room_holds_a_circle_of_imports(room):
    names = {}
    for path in FILES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if path.relative_to(PACKAGE).parts[0] == room:
            names[".".join(("marginlab", *parts)).removesuffix(".__init__")] = path
    texts = {name: path.read_text() for name, path in names.items()}
    found = circle({name: imported_files(text, set(names)) for name, text in texts.items()})
    assert not found, f"files import each other: {' -> '.join(found)}"


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    text = "from marginlab.a import b, Name\ndef f():\n    import marginlab.a.c"
    files = {"marginlab.a", "marginlab.a.b", "marginlab.a.c"}
    assert imported_files(text, files) == {"marginlab.a.b", "marginlab.a.c"}


def test_the_reader_of_imports_sees_every_form():
    text = (
        "import marginlab.train.fit\ndef f():\n    from marginlab import data, rng\nfrom "
        "marginlab.study.run import Run\nimport torch"
    )
    assert imports(text) == {"train", "data", "rng", "study"}


def test_every_file_is_one_room():
    assert {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in FILES} <= set(FLOOR)


STUDIES = sorted((PACKAGE.parent / "studies").glob("*/*.py"))


@pytest.mark.parametrize("path", [*FILES, *STUDIES], ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_file_is_short_and_narrow(path):
    lines = path.read_text().splitlines()
    most = 250 if path.name == "study.py" and path in STUDIES else 350
    assert len(lines) <= most, f"{path} has {len(lines)} lines: split it by subject"
    wide = [number for number, line in enumerate(lines, 1) if len(line) > 100]
    assert not wide, f"{path} has lines over 100 columns: {wide}"


def many_parameters(text: str, most: int = 8) -> list[str]:
    """Name the functions of a source text with more parameters than `most`.

    Settings that a public function takes by keyword only do not count, nor do the parameters of a
    public class's constructor. A Triton kernel takes no objects.
    """
    found = []

    def look(node: ast.AST, owner: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                made = child.args
                taken = [a for a in (*made.posonlyargs, *made.args) if a.arg not in ("self", "cls")]
                constructor = child.name == "__init__"
                hidden = owner.startswith("_") or (child.name.startswith("_") and not constructor)
                if hidden:
                    taken += made.kwonlyargs
                kernel = any("triton" in ast.unparse(d) for d in child.decorator_list)
                if len(taken) > most and not (constructor and not hidden) and not kernel:
                    found.append(child.name)
            look(child, child.name if isinstance(child, ast.ClassDef) else owner)

    look(ast.parse(text), "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_function_has_at_most_eight_parameters(path):
    assert many_parameters(path.read_text()) == []


def test_many_parameters_are_found():
    three = "a, b, c"
    assert many_parameters(f"def f({three}): ...", most=2) == ["f"]
    assert many_parameters("def f(a, *, b, c): ...", most=2) == []
    assert many_parameters("def _f(a, *, b, c): ...", most=2) == ["_f"]
    assert many_parameters(f"class A:\n def __init__(self, {three}): ...", most=2) == []
    assert many_parameters(f"class _A:\n def __init__(self, {three}): ...", most=2) == ["__init__"]
    assert many_parameters(f"@triton.jit\ndef _f({three}): ...", most=2) == []


def test_no_two_test_files_have_one_name():
    names = [p.name for p in Path(__file__).parent.rglob("*.py") if p.name != "conftest.py"]
    # the ranks of the pool find a test's functions by the name of its file
    assert sorted(set(names)) == sorted(names)
