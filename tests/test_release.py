"""The version, the changelog and the citation file agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import marginlab

ROOT = Path(__file__).parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_version_has_one_place_and_the_others_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "marginlab/__init__.py"
    assert CITATION["version"] == marginlab.__version__
    changelog = (ROOT / "docs/changelog.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", changelog, re.M)[0] == marginlab.__version__


def test_the_citation_file_has_what_its_format_asks_for():
    for key in ("cff-version", "message", "title", "authors"):
        assert CITATION[key]
    assert CITATION["authors"] == [{"name": "The marginlab developers"}]
    assert CITATION["license"] == "MIT"


@pytest.mark.parametrize("paper", CITATION["references"], ids=lambda paper: paper["url"][-10:])
def test_each_paper_is_the_one_of_the_claims_ledger(paper):
    assert {"type", "title", "authors", "year", "url"} <= paper.keys()
    ledger = re.sub(r"\s+", " ", (ROOT / "docs/claims.md").read_text(encoding="utf-8"))
    assert f"*{paper['title']}*" in ledger
    assert paper["url"] in ledger
    assert ", ".join(each["family-names"] for each in paper["authors"]) in ledger


def test_the_four_papers_are_there():
    assert len(CITATION["references"]) == 4
