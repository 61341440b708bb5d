"""Strings of other people stay what they are: no link in a report, no markup and no escape code on
a terminal.
"""

import csv
import io
import sys

import hypothesis.strategies as st
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given

from marginlab.data import ImageSet
from marginlab.data.__main__ import describe
from marginlab.data.__main__ import main as data_main
from marginlab.study import Markup, Report, literal, open_run
from marginlab.study.__main__ import main
from marginlab.study.display import console
from marginlab.study.markup import block, inline
from marginlab.terminal import printable, run_command, say

LINKS = (
    "[cat](https://evil.example)",
    "<a href='https://evil.example'>cat</a>",
    "**cat**",
    "`cat`",
    "# cat",
    "- cat",
    "1. cat",
)
ESCAPES = (
    "cat\x1b]0;title\x07",
    "\x1b[31mcat",
    "cat\rdog",
    "cat\x9b31m",
    "cat\u202egod",
    "caf\udce9",
)


@given(st.text())
def test_nothing_in_a_literal_is_markup(text):
    import html

    for shown in (inline(literal(text)), inline(f"## {literal(text)}")):
        assert "<" not in shown
    assert html.unescape(inline(literal(text))) == " ".join(text.split()) or any(
        "\ue000" <= c <= "\ue0ff" for c in text
    )
    assert block(f"x {literal(text)}").count("<") == 2  # <p> and </p>


@pytest.mark.parametrize("name", LINKS)
def test_a_class_name_in_a_report_is_shown_as_it_is(name):
    report = Report(f"Of {literal(name)}", f"And **{literal(name)}**")
    report.table([{name: 1, "class": name}], literal(name))
    report.images([(np.zeros((2, 2, 3), dtype=np.uint8), name)], literal(name))
    report.text(f"- {literal(name)}\n\n{literal(name)}")
    page = "".join(report.sections)
    assert "href" not in page.replace("&lt;a href", "")
    for tag in ("<strong>", "<code>", "<h1>", "<h2>", "<ol>"):
        assert tag not in page
    assert page.count("cat") >= 6
    report.table([{"verdict": Markup("**yes**")}], "")
    assert "<strong>yes</strong>" in report.sections[-1]


def test_a_class_name_in_a_figure_is_no_link():
    name = '<a href="https://evil.example">cat</a>'
    figure = go.Figure(
        go.Scatter(
            x=[name, "b"],
            y=np.array([1.0, 2.0]),
            name=name,
            text=np.array([name, "x"], dtype=object),
        )
    )
    figure.update_layout(title=f"<b>Of</b> {name}<br>H<sub>2</sub>", xaxis_title=name)
    figure.add_annotation(text=name, hovertext=name)
    report = Report("t")
    report.figure(figure, "c")
    (page,) = report.sections
    assert "u003ca" not in page
    assert "<a" not in page
    assert page.count("&lt;a href") >= 6
    assert "\\u003cb\\u003eOf" in page or "<b>Of" in page  # what only styles stays


@pytest.mark.parametrize(
    "name", ["[bold]cat[/bold]", "[link=https://evil.example]cat[/link]", ":cat:", "[/]"]
)
def test_a_name_is_no_markup_of_the_terminal(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        f'''"""Of {name}"""
from dataclasses import dataclass
@dataclass(frozen=True)
class Settings:
    name: str = {name!r}
headline = ({name!r},)
def cells(settings):
    return [{{"class": settings.name, {name!r}: i, "i": i}} for i in (0, 1)]
def run(cell):
    cell.say({name!r})
    cell.record({name!r}, 0.5)
'''
    )
    assert main(["./own.py", "--folder", "run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(name) >= 4  # the title, two columns, a value that does not vary


@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_is_no_escape_code(name, tmp_path, monkeypatch, capsys):
    shown = printable(name)
    assert shown.isprintable()
    shown.encode()
    assert printable(shown) == shown
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(raw := io.BytesIO(), encoding="utf-8"))
        say(name)
        assert raw.getvalue() == f"{shown}\n".encode()
    images = ImageSet(
        torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), (name, "dog"), name
    )
    assert shown in printable(describe(images, "train"))
    with pytest.raises(SystemExit):
        data_main([f"folder:/nowhere/{name}"])
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\r" not in said
    assert main(["./nowhere/" + name]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\r" not in said


def test_escape_codes_in_a_studys_values_reach_no_terminal_log_or_kept_table(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        '''"""Of names."""
from dataclasses import dataclass
@dataclass(frozen=True)
class Settings:
    name: str = "\\x1b[31mcat\\nvalue: 3"
headline = ("error",)
def cells(settings):
    return [{"class": settings.name, "i": i} for i in (0, 1)]
def run(cell):
    if (cell.home / "broken").exists():
        raise RuntimeError("\\x1b[31mcat")
    cell.record("error", 0.5)
'''
    )
    (tmp_path / "broken").touch()
    assert main(["./own.py", "--folder", "run"]) == 1
    (tmp_path / "broken").unlink()
    assert main(["./own.py", "--folder", "run"]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err + (tmp_path / "run" / "log.txt").read_text()
    assert "\\x1b[31mcat" in said.out
    assert main(["keep", "run", "kept.csv"]) == 0
    kept = (tmp_path / "kept.csv").read_text().splitlines()
    head = [line for line in kept if line.startswith("#")]
    assert [line.split(":")[0] for line in head] == [
        "# command",
        "# measured",
        "# device",
        "# versions",
        "# seconds",
        "# settings",
    ]
    assert (
        next(iter(csv.DictReader(io.StringIO("\n".join(kept[len(head) :])))))["class"]
        == open_run("run").settings.name
    )


def test_the_console_takes_nothing_for_markup():
    with console().capture() as capture:
        pass
    assert capture.get() == ""
    assert console()._markup is False


def test_ctrl_c_ends_a_command_with_a_sentence(monkeypatch, capsys):
    def stopped(words):
        assert words == ["a", "b"]
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["command", "a", "b"])
    for resumes, said in ((True, "Stopped. The same command goes on"), (False, "Stopped.\n")):
        with pytest.raises(SystemExit) as ended:
            run_command(stopped, resumes=resumes)
        assert ended.value.code == 130
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run_command(lambda words: 2, resumes=True)
    assert ended.value.code == 2
