"""The house: which room may import which, and what the losses and measures may load."""

import ast
from pathlib import Path

import pytest

import marginlab

PACKAGE = Path(marginlab.__file__).parent
FLOORS = [
    {"files", "signals"},
    {"rng", "ranks", "recomputation", "settings", "terminal", "machine", "statistics"},
    {"margins", "formats"},
    {"kernels"},
    {"measures", "evaluation"},
    {"losses", "optim"},
    {"models", "data", "augment", "quality", "theory"},
    {"encoding"},
    {"methods"},
    {"train"},
    {"inversion", "purify", "plan"},
    {"study", "testing"},
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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_lower_floors(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imports(path.read_text()) - {room}:
        assert FLOOR[other] < FLOOR[room] or path.name == "__main__.py", (
            f"{path} imports {other}, which is not on a lower floor"
        )


def test_the_reader_of_imports_sees_every_form():
    text = (
        "import marginlab.train.fit\ndef f():\n    from marginlab import data, rng\nfrom "
        "marginlab.study.run import Run\nimport torch"
    )
    assert imports(text) == {"train", "data", "rng", "study"}


def test_every_file_is_one_room():
    assert {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in FILES} <= set(FLOOR)
    assert all(len(p.read_text().splitlines()) <= 400 for p in FILES)


def test_no_two_test_files_have_one_name():
    names = [p.name for p in Path(__file__).parent.rglob("*.py")]
    # the ranks of the pool find a test's functions by the name of its file
    assert sorted(set(names)) == sorted(names)
