"""The claims ledger names what there is, and each claim's verdict has something behind it."""

import ast
import functools
import importlib
import re

import pytest
from page import ROOT

TEXT = (ROOT / "docs/claims.md").read_text(encoding="utf-8")
VERDICTS = ("seen", "not seen", "not testable here")
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
NAME = re.compile(r"`(marginlab(?:\.\w+)+)`")
PENDING = "## Not measured yet"


def table(text: str) -> list[list[str]]:
    """Cells of the rows of all tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[1] != "claim"]


MEASURED, REST = (table(part) for part in TEXT.split(PENDING))


@functools.cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    found = ast.walk(tree)
    return {node.name for node in found if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists():
    named = TEST.findall(TEXT)
    assert len(named) > 30
    for file, name in named:
        found = functions_of(file)
        assert (name in found) if name else any(each.startswith("test_") for each in found), (
            f"{file} has no test {name}"
        )


@pytest.mark.parametrize("name", sorted(set(NAME.findall(TEXT))))
def test_every_name_is_public(name):
    room, _, public = name.rpartition(".")
    assert public in importlib.import_module(room).__all__


def test_every_claim_of_the_four_papers_has_one_number_and_they_are_complete():
    numbers = [row[0] for row in (*MEASURED, *REST) if row[0]]
    assert len(set(numbers)) == len(numbers)
    for letter in "HAPR":
        own = sorted(int(number[1:]) for number in numbers if number[0] == letter)
        assert own == list(range(1, len(own) + 1))


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: row[0] or row[1][:20])
def test_a_verdict_has_something_behind_it(row):
    _, claim, built, tested, measured, verdict = row
    assert claim
    assert verdict in VERDICTS
    assert measured.endswith(".")
    if verdict != "not testable here":
        assert NAME.search(built)
        assert TEST.search(tested)
    if verdict == "not seen":
        assert re.search(r"\d", measured), "what is not seen was measured"


@pytest.mark.parametrize("row", REST, ids=lambda row: row[0])
def test_a_claim_that_is_not_measured_yet_has_no_table_yet(row):
    number, _, built, tested, run = row
    assert NAME.search(built)
    assert TEST.search(tested)
    (file,) = re.findall(r"`(studies/\w+/measured/[\w-]+\.csv)`", run)
    study, _, preset = file.rpartition("/measured/")
    assert (ROOT / study / "presets" / f"{preset.removesuffix('.csv')}.toml").is_file()
    there = [name for name in (file, f"{file}.gz") if (ROOT / name).is_file()]
    assert not there, f"{there[0]} is there: give claim {number} of docs/claims.md its numbers"
