"""Results kept in a run folder: under which address, what is refused, what an interrupted one
finds.
"""

import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import marginlab
from marginlab.study.cell import MEASURED, Cell, identify
from marginlab.study.files import Claim, read_table, write_table
from marginlab.study.once import canonical
from marginlab.train import Row


@dataclass(frozen=True)
class Recipe:
    data: str = "shapes"
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Other:
    data: str = "shapes"
    sizes: tuple[int, ...] = (1, 2)


@pytest.fixture
def cell(tmp_path):
    return Cell({"i": 1}, settings=None, run_folder=tmp_path, home=tmp_path)


def test_a_result_is_computed_once_for_equal_arguments(cell):
    asked = []

    def function(*arguments, folder):
        asked.append(arguments)
        return {"n": len(asked), "pair": (1, math.nan)}

    first = cell.once("train", function, Recipe(), {"b": 1, "a": None}, [1.5, True])
    again = cell.once("train", function, Recipe(), {"a": None, "b": 1}, (1.5, True))
    assert repr(first) == repr(again) == "{'n': 1, 'pair': [1, nan]}"
    for others in (
        (Other(), {}, []),
        (Recipe("digits"), {}, []),
        (1,),
        (1.0,),
        ("1",),
        (True,),
        (),
    ):
        cell.once("train", function, *others)
    assert cell.once("other", function)["n"] == len(asked) == 9


def test_an_interrupted_computation_finds_its_folder(cell):
    def function(*, folder):
        checkpoint = folder / "checkpoint"
        checkpoint.write_text((checkpoint.read_text() if checkpoint.exists() else "") + "x")
        if len(checkpoint.read_text()) < 3:
            raise OSError("interrupted")
        return checkpoint.read_text()

    for _ in range(2):
        with pytest.raises(OSError, match="interrupted"):
            cell.once("train", function)
    assert cell.once("train", function) == "xxx"


def test_what_cannot_be_kept_is_refused(cell):
    for value in (object(), {1: 2}, [Path()], {1, 2}):
        with pytest.raises(TypeError, match=r"once\('train'\)"):
            cell.once("train", lambda value=value, *, folder: value)
        with pytest.raises(TypeError, match="argument of once"):
            cell.once("train", lambda *_, folder: 1, value)
    with pytest.raises(RuntimeError, match="asks for itself"):
        cell.once("loop", lambda *, folder: cell.once("loop", lambda *, folder: 1))
    assert cell.once("train", lambda *, folder: 1) == 1  # the failures left no claim behind


def test_records_are_checked(cell):
    cell.record("error", 0.5)
    cell.record("error", 0.5, epoch=0)
    cell.record("error", 0.5, space="backbone")
    cell.record("error", 0.5, at=0.25)
    with pytest.raises(ValueError, match=r"the same twice: epoch -1, space '', .* at '0\.25'"):
        cell.record("error", 0.25, at="0.25")
    with pytest.raises(ValueError, match="has a quantity"):
        cell.record("", 1.0)
    with pytest.raises(KeyError, match="its columns are i"):
        cell["j"]


def test_a_value_that_is_no_number_is_refused(cell, unchecked):
    with pytest.raises(TypeError, match="no number"):
        cell.record("error", "big")
    with pytest.raises(TypeError, match="is a text, not 3"):
        cell.record("error", 0.5, space=3)


def test_a_row_of_a_training_is_recorded_as_it_is(cell):
    assert Row._fields == MEASURED
    row = Row(3, "backbone", "R_epsilon", "0.5", 0.25, 0.125, 0.5, 40)
    cell.record(**row._asdict())
    assert cell.recorded() == [{"i": 1, **row._asdict()}]


@given(st.lists(st.floats(), min_size=1, max_size=5))
def test_numbers_read_back_equal(tmp_path_factory, values):
    cell = Cell(
        {"kind": "1", "x": values[0]},
        settings=None,
        run_folder=tmp_path_factory.mktemp("run"),
        home=Path(),
    )
    for i, value in enumerate(values):
        cell.record(f'a,"{i}"\n', value, n=i)
    write_table(cell.rows_file, list(cell.recorded()[0]), cell.recorded())
    assert repr(cell.rows()) == repr(cell.recorded())
    assert len(read_table(cell.rows_file)) == len(values)


@given(
    st.lists(
        st.tuples(
            st.text(max_size=6),
            st.text(alphabet="ab._-/", max_size=4),
            st.integers(-3, 3),
            st.floats(allow_nan=False),
        ),
        unique=True,
    )
)
def test_names_of_cells_are_safe_and_differ(cells):
    names = [identify({"a": a, "b": b, "i": i, "x": x}) for a, b, i, x in cells]
    assert len(set(names)) == len({repr(cell) for cell in cells})
    assert all(
        name
        and len(name) < 100
        and not name.startswith(".")
        and set(name).isdisjoint("/\\ \0\n*?'\"$")
        for name in names
    )


def test_a_claim_is_exclusive_and_can_be_let_go(tmp_path):
    one, two = Claim(tmp_path / "lock"), Claim(tmp_path / "lock")
    assert one.take()
    assert not two.take()
    one.release()
    assert two.take()
    one.release()  # not its own any more: nothing happens
    assert not one.take()
    two.release()


FORKS = """
import os, sys, time
from pathlib import Path
from marginlab.study.files import Claim
one, two = Claim(Path(sys.argv[1])), Claim(Path(sys.argv[1]))
assert one.take()
child = os.fork()
if child == 0:
    time.sleep(30)
    os._exit(0)
time.sleep(0.1)
assert not two.take()
one.release()
assert two.take()
os.kill(child, 9)
"""


def test_a_forked_child_does_not_keep_a_claim(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(tmp_path / "lock")],
        cwd=Path(marginlab.__file__).parent.parent,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0


def test_arguments_are_named_by_what_they_hold():
    assert canonical(Recipe()) == {"class": "Recipe", "fields": {"data": "shapes", "sizes": [1, 2]}}
