"""Every number on a study's page follows from its committed tables, or is named with a reason."""

import pytest
from front_page import front, speed
from page import ROOT, Page, down, near, up
from recompute import PAGES


@pytest.mark.parametrize("name", PAGES)
def test_every_number_of_a_page_has_a_source(name):
    page = PAGES[name]()
    assert not page.faults(), "\n".join(page.faults())
    assert page.numbers() > 5


def test_what_the_readme_says_of_the_studies_follows_from_them():
    for page in (front(), speed()):
        assert not page.wrong, "\n".join(page.wrong)


@pytest.fixture
def page(tmp_path):
    """Make a page of some text."""

    def made(text):
        (tmp_path / "page.md").write_text(text)
        return Page(str(tmp_path / "page.md"))

    return made


def test_a_number_without_a_source_is_found_and_a_wrong_one_named(page):
    text = "# 7\n`--k 3` of [it](9.md): the error **0.25**, p = .04, of\n1,000 images of CIFAR-10."
    found = page(text)
    assert found.numbers() == 4  # the last is the name of a data set
    assert [fault.split(" has")[0][-5:] for fault in found.faults()] == [" 0.25", ": .04", "1,000"]
    found.says("the error 0.25, p = .04, of 1,000 images")
    assert found.faults() == []
    found.says("the error 0.26, p = .04")
    (fault,) = found.faults()
    assert "should say\n    the error 0.26, p = .04" in fault


def test_a_number_that_is_covered_in_part_has_no_source(page):
    found = page("the errors are 0.125 and 4 of them")
    found.says("are 0.12")
    found.given("a setting", "4 of them")
    assert ["0.125 has no source" in fault for fault in found.faults()] == [True]


def test_an_entry_that_the_page_no_longer_needs_is_a_fault(page):
    found = page("of two images")
    found.given("a setting", "of 3 images")
    assert "drop the entry" in found.faults()[0]


def test_rows_of_a_table_stand_together(page):
    found = page("| a | 1 |\n| b | 2 |\n\n| c | 3 |\n")
    found.says_rows(["a", "1"], ["b", "2"])
    assert not found.wrong
    found.says_rows(["a", "1"], ["c", "3"])
    assert "do not stand together" in found.wrong[0]


def test_bounds_are_rounded_to_the_side_on_which_they_hold():
    assert [up(x) for x in (0.0602944, 0.06, 0.0600001, 1)] == ["0.061", "0.060", "0.061", "1.000"]
    assert [down(x, 1) for x in (3.83, 3.8, 3.79)] == ["3.8", "3.8", "3.7"]
    assert [near(x) for x in (0.8605, 0.1765, 0.0125, 0.4)] == ["0.861", "0.177", "0.013", "0.400"]


@pytest.mark.parametrize(
    "study", ["bounds", "concentration", "inversion", "learning_rate", "partial_fc"]
)
def test_a_page_with_tables_of_one_run_says_so(study):
    text = (ROOT / f"studies/{study}/README.md").read_text()
    assert "**One run" in text
