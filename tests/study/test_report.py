"""The report: one file that fetches nothing, escapes everything, and says where its numbers come
from.
"""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marginlab.study import Report
from marginlab.study.__main__ import main
from marginlab.study.markup import block, inline
from marginlab.study.report import png

STUDY = '''"""Is <i>everything</i> escaped & shown?"""
from dataclasses import dataclass
@dataclass(frozen=True)
class Settings:
    text: str = "<script>alert(1)</script>"
def cells(settings):
    return [{"i": 0}, {"i": 1}]
def run(cell):
    cell.record("value", 0.123456789)
def report(run):
    import numpy as np
    import plotly.graph_objects as go
    run.report.lead = "A **lead**."
    run.report.text("## Heading <b>\\n\\nText with [a link](https://example.org/a?b=1).")
    for kind in ("one", "two"):
        line = go.Scatter(y=[1, float("nan"), 3], name="</script><script>alert(1)</script>")
        run.report.figure(go.Figure(line), f"Figure of {kind} <b>.")
    run.report.table(run.results, "All")
    run.report.images([(np.full((4, 6, 3), 7, dtype=np.uint8), "a <b>")], "Views & more")
'''


class Page(HTMLParser):
    """Addresses that a page loads, its tags, and its texts outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads, self.tags, self.texts, self.scripts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        self.loads += [
            given[key]
            for key in ("src", "srcset", "data", "poster", "background")
            if given.get(key)
        ]
        if tag != "a" and given.get("href"):
            self.loads.append(given["href"])

    def handle_data(self, data):
        (
            self.scripts
            if self.tags and self.tags[-1] == "script" and self.cdata_elem == "script"
            else self.texts
        ).append(data)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    home = tmp_path_factory.mktemp("study")
    (home / "shown.py").write_text(STUDY)
    assert main([str(home / "shown.py"), "--folder", str(home / "run")]) == 0
    return (home / "run" / "report.html").read_text()


def test_the_page_loads_nothing(text):
    page = Page(text)
    assert page.loads
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)


def test_plotly_is_there_once_and_draws_each_figure(text):
    page = Page(text)
    assert sum(len(script) > 1_000_000 for script in page.scripts) == 1
    drawn = [
        re.search(r'Plotly\.newPlot\(\s*"([^"]+)"', script)
        for script in page.scripts
        if len(script) < 1_000_000
    ]
    assert [found[1] for found in drawn if found] == ["figure-1", "figure-2"]


def test_everything_is_escaped(text):
    page = Page(text)
    shown = "".join(page.texts)
    assert "i" not in page.tags
    assert "alert(1)" not in [script.strip() for script in page.scripts]
    given = (
        "Is <i>everything</i> escaped & shown?",
        "Heading <b>",
        "Figure of one <b>.",
        "a <b>",
        "Views & more",
        "'<script>alert(1)</script>'",
    )
    for words in given:
        assert words in shown


def test_the_page_says_where_its_numbers_come_from(text):
    shown = "".join(Page(text).texts)
    for words in ("marginlab.study", "torch 2.", "marginlab 0.", "2 of 2", "results.csv", "CPU"):
        assert words in shown
    assert '<td class="number" title="0.123456789">0.1235</td>' in text


def test_pictures_are_those_given():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), picture)
    report = Report("title")
    report.images([(picture, "one")])
    encoded = re.search(r"base64,([^\"]+)", report.sections[0])[1]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))), picture)
    for wrong in (picture / 255, picture[0], picture.transpose(2, 0, 1)):
        with pytest.raises(ValueError, match="A picture is a uint8 array"):
            report.images([(wrong, "one")])


def test_markup():
    assert (
        inline("a *b* **c** `*d*` 2 * 3 * 4 <x>")
        == "a <em>b</em> <strong>c</strong> <code>*d*</code> 2 * 3 * 4 &lt;x&gt;"
    )
    assert inline("[x](javascript:alert(1))") == "[x](javascript:alert(1))"
    assert inline('[x](https://a.org/"onload=1)') == '<a href="https://a.org/&quot;onload=1">x</a>'
    assert inline("d_A and L_align and snake_case_name") == "d_A and L_align and snake_case_name"
    assert block("one\ntwo\n\nthree") == "<p>one two</p>\n<p>three</p>"
    assert (
        block("1. a\n   more\n2. b\n\n- c")
        == "<ol><li>a more</li><li>b</li></ol>\n<ul><li>c</li></ul>"
    )
    assert block("## h\ntext") == "<h2>h</h2>\n<p>text</p>"


def test_a_missing_value_is_a_dash():
    report = Report("title")
    report.table([{"a": 1, "b": float("nan")}, {"a": 2, "c": "x<y"}], "T")
    assert report.sections[0].count("–") == 3
    assert "x&lt;y" in report.sections[0]


def test_the_style_is_in_the_package():
    assert (Path(__import__("marginlab").__file__).parent / "study" / "report.css").is_file()
