"""The page of a run as people use it: the filter, the panel of a cell, CSV, two runs side by side.

A browser clicks on it; what it carries is tested without one.
"""

import csv
import io
import math
import re

import pytest
from report_pages import assert_report, browse, carried

from marginlab.settings import SettingsError
from marginlab.study import beside, of_cells, open_run
from marginlab.study.__main__ import main
from marginlab.study.page import sections
from marginlab.study.traces import Grid, numbered

HOSTILE = "</script><script>window.alert(1)</script><img src=x onerror=alert(2)>"
STUDY = f'''"""How far do two methods fall?"""
from dataclasses import dataclass
import numpy as np
import plotly.graph_objects as go
from PIL import Image
from marginlab.study import of_cells
METHODS = ("arc", {HOSTILE!r})
headline = ("error",)
@dataclass(frozen=True)
class Settings:
    shift: float = 0.0
    seeds: tuple[int, ...] = (0, 1)
def cells(settings):
    return [{{"method": m, "seed": s}} for m in METHODS for s in settings.seeds]
def run(cell):
    method = METHODS.index(cell["method"])
    for epoch in (0, 1):
        error = method + cell["seed"] / 10 + epoch + cell.settings.shift * (cell["seed"] + 1)
        cell.record("error", error, epoch=epoch)
    if method == 0:
        cell.folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((4, 4, 3), 9 + cell["seed"], dtype=np.uint8)
        Image.fromarray(pixels).save(cell.folder / "kept.png")
        (cell.folder / "broken.png").write_text("no picture")
def report(run):
    lines, points = go.Figure(), go.Figure()
    for method in METHODS:
        for of, look in run.parts("seed", method=method):
            error = run.series("error", **of)
            lines.add_scatter(x=error.epochs, y=error.values, name=method, **look)
        rows = run.select(quantity="error", method=method, epoch=1)
        points.add_scatter(x=[r["seed"] for r in rows], y=np.array([r["value"] for r in rows]),
            mode="markers", error_y={{"array": [0.5] * len(rows)}}, name=method,
            **of_cells(method=method, seed=[r["seed"] for r in rows]))
    lines.update_xaxes(title="epoch").update_yaxes(title="error, <b>all</b>")
    run.report.figure(lines, f"Over training, {{len(run.settings.seeds)}} seeds.")
    run.report.figure(points.update_xaxes(title="seed").update_yaxes(title="error"), "By seed.")
    run.report.figure(go.Figure(go.Scatter(y=[1, 2], name="other")), "Of no cell.")
    run.report.table([{{"method": m, "error": run.last("error", method=m)}} for m in METHODS], "M.")
    run.report.images([(np.full((4, 4, 3), 9, dtype=np.uint8), "shown")])
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("page")
    (home / "falls.py").write_text(STUDY)
    (home / "other.py").write_text(STUDY)
    file = str(home / "falls.py")
    assert main([file, "--folder", str(home / "one")]) == 0
    assert main([file, "--folder", str(home / "two"), "--shift", "0.5"]) == 0
    assert main(["report", str(home / "one"), str(home / "two"), "--study", file]) == 0
    return home


# --- which cells traces and rows are of -----------------------------------------------------------


def grid():
    return Grid([{"loss": loss, "seed": seed} for loss in "ab" for seed in (0, 1, 2)])


def test_a_trace_is_of_the_cells_that_agree_with_its_columns():
    traces = [{"x": [1], "name": "a", **of_cells(loss="a")}, {"x": [1], "name": "free"}]
    assert [t.get("meta") for t in numbered(grid(), traces)] == [
        {"marginlab": {"cells": [0, 1, 2]}}, None,
    ]  # fmt: skip
    points = {"y": [5, 6], "name": "b", **of_cells(loss="b", seed=[2, 0])}
    assert numbered(grid(), [points])[0]["meta"]["marginlab"] == {
        "cells": [3, 5], "points": [[5], [3]],
    }  # fmt: skip


def test_a_part_stands_behind_and_knows_its_mean():
    part = {"x": [1], "name": "a", "visible": False, **of_cells(loss="a", seed=1)}
    mean, other = ({"x": [1], "name": n, **of_cells(loss=n)} for n in "ab")
    found = numbered(grid(), [part, other, mean])
    assert [t["meta"]["marginlab"].get("whole") for t in found] == [None, None, 1]
    alone = numbered(grid(), [part, other])  # hidden, without a mean of its name
    assert "whole" not in alone[1]["meta"]["marginlab"]


def test_a_wrong_column_or_number_of_values_is_an_error():
    with pytest.raises(KeyError, match="no column 'los'; their columns are loss, seed"):
        numbered(grid(), [{"x": [1], **of_cells(los="a")}])
    with pytest.raises(ValueError, match=r"2 points names \{'seed': 3\} values"):
        numbered(grid(), [{"x": [1, 2], **of_cells(seed=[0, 1, 2])}])


def test_a_row_is_of_the_cells_of_its_columns_by_name():
    assert grid().of_row({"loss": "a", "value": 3}) == [0, 1, 2]
    assert grid().of_row({"seed": "1", "loss": "b"}) == [4]
    assert grid().of_row({"loss": "published"}) == grid().of_row({"value": 1}) == []
    assert Grid([{"rate": 0.10, "n": 1}, {"rate": 1.0, "n": 1}]).of_row({"rate": "1"}) == [1]


# --- what the page carries ------------------------------------------------------------------------


def test_the_page_is_one_file_and_carries_its_cells(home):
    data = assert_report(home / "one" / "report.html")
    assert data["columns"] == {"method": ["arc", HOSTILE], "seed": ["0", "1"]}
    (run,) = data["runs"]
    assert [cell["at"] for cell in run["cells"]] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    first, second, third, _ = run["cells"]
    assert first["argument"] == f"--cell {first['id']}"
    assert "falls.py --folder" in run["command"]
    assert set(first["times"]) == {"seconds", "host", "device", "started"}
    assert first["log"][0].split(" ", 2)[2] == f"{first['id']} begins"
    assert " finished in " in first["log"][-1]
    assert first["values"] == {"error": "1"}
    # one picture is shown by the report, the other is not; what is no picture is left out
    assert first["images"] == [{"name": "kept.png", "same": "picture-1"}]
    assert second["images"][0]["src"].startswith("data:image/png;base64,")
    assert third["images"] == []


def test_images_without_room_are_named(home):
    from marginlab.study.panel import carried as told

    run = open_run(home / "one", home / "falls.py")
    found = told([run], ["command"], 10)["runs"][0]["cells"][1]
    assert found["images"] == [{"name": "kept.png", "path": f"cells/{found['id']}/kept.png"}]


def test_a_picture_outside_of_the_run_is_not_shown(home, tmp_path):
    from marginlab.study.panel import carried as told

    run = open_run(home / "two", home / "falls.py")
    kept = run.cells[0].folder / "kept.png"
    kept.rename(tmp_path / "elsewhere.png")
    kept.symlink_to(tmp_path / "elsewhere.png")
    assert told([run], ["command"], 10**6)["runs"][0]["cells"][0]["images"] == []


def test_no_name_of_a_cell_is_markup(home):
    for page in ("one/report.html", "one/beside-two.html"):
        text = (home / page).read_text(encoding="utf-8")
        assert HOSTILE not in text
        assert "<img src=x" not in text
        assert carried(text)["columns"]["method"][1] == HOSTILE


# --- one cell -------------------------------------------------------------------------------------


def test_one_cell_is_computed_by_the_command_that_its_panel_names(home, tmp_path, capsys):
    cell = carried((home / "one" / "report.html").read_text())["runs"][0]["cells"][1]["id"]
    words = [str(home / "falls.py"), "--folder", str(tmp_path / "run")]
    assert main([*words, "--cell", cell]) == 0
    run = open_run(tmp_path / "run", home / "falls.py")
    assert [c.id for c in run.cells if c.finished] == [cell]
    assert "3 cells were not asked for" in capsys.readouterr().out
    assert "--cell" not in (tmp_path / "run" / "about.json").read_text()
    assert main([*words, f"--cell={cell}x"]) == 2
    assert f"no cell '{cell}x'" in capsys.readouterr().err
    assert main(words) == 0
    assert all(c.finished for c in run.cells)


# --- two runs -------------------------------------------------------------------------------------


def test_differences_are_paired_by_seed(home):
    runs = [open_run(home / name, home / "falls.py") for name in ("one", "two")]
    assert beside.settings_apart(runs) == [{"setting": "shift", "first": "0.0", "second": "0.5"}]
    arc = beside.headlines(runs)[0]
    assert (arc.columns, arc.quantity, arc.seeds) == ({"method": "arc"}, "error", 2)
    assert (arc.first, arc.second) == (pytest.approx(1.05), pytest.approx(1.8))
    assert arc.difference == pytest.approx(0.75)  # 0.5 and 1.0
    assert arc.low == pytest.approx(0.75 - 12.7062 * 0.25, abs=1e-3)
    runs[1].results[:] = [{**row, "seed": row["seed"] + 7} for row in runs[1].results]
    assert beside.headlines([runs[0], runs[0]])[0].difference == 0
    assert math.isnan(beside.headlines(runs)[0].second)  # no such cell has a value


def test_two_runs_are_one_page_with_paired_figures(home):
    data = assert_report(home / "one" / "beside-two.html")
    assert [run["name"] for run in data["runs"]] == ["one", "two"]
    for run in data["runs"]:  # their reports show them, this page does not
        assert "src" in run["cells"][0]["images"][0]
    text = (home / "one" / "beside-two.html").read_text(encoding="utf-8")
    body = text[text.index("<main") :]
    assert (
        body.index("Settings that differ") < body.index("Headline numbers") < body.index('"pair"')
    )
    assert re.findall(r'<div id="(figure-\w+)"', text) == [
        f"figure-{number}{side}" for number in (1, 2, 3) for side in "ab"
    ]
    assert text.count('data-cells="[[0, 1], [0, 1]]"') == 1


def test_runs_that_do_not_fit_are_refused(home, tmp_path, capsys):
    one, file = str(home / "one"), str(home / "falls.py")
    assert main(["report", one, one, "--study", file]) == 2
    assert "is named twice" in capsys.readouterr().err
    assert main(["report", one, str(tmp_path), "--study", file]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main(["report", one, one, one, "--study", file]) == 2
    assert "or report RUN RUN2" in capsys.readouterr().err
    assert main([str(home / "other.py"), "--folder", str(tmp_path / "other"), "--seeds", "0"]) == 0
    other = open_run(tmp_path / "other", home / "other.py")
    with pytest.raises(SettingsError, match=r"'falls', and .* one of 'other'"):
        beside.check([open_run(one, file), other])


def test_a_figure_without_a_partner_stands_alone(home):
    runs = [open_run(home / name, home / "falls.py") for name in ("one", "two")]
    for run in runs:
        sections(run)
    runs[1].report.drawings.pop()
    assert beside.page(runs).count("This run has no such figure.") == 1


# --- in a browser ---------------------------------------------------------------------------------

ACTIONS = """
const wait = (ms = 50) => new Promise((done) => setTimeout(done, ms));
const box = (column, place) =>
  document.querySelector(`#filter input[data-column="${column}"][data-place="${place}"]`);
const drawn = (id) => document.getElementById(id).data.map((trace) => trace.visible !== false);
const rows = () => [...document.querySelectorAll("tr[data-cells]")].map((row) => !row.hidden);
const notes = () => [...document.querySelectorAll(".reach")].map((note) => note.textContent);
const files = [];
let alerts = 0;
window.alert = () => { alerts += 1; };
URL.createObjectURL = (blob) => { files.push(blob); return "blob:none"; };
const names = [];
HTMLAnchorElement.prototype.click = function () { names.push(this.download); };
const csv = async (id) => {
  document.getElementById(id).closest("figure").querySelector("button.csv").click();
  return files[files.length - 1].text();
};
const said = { count: [], first: [drawn("figure-1")], rows: [rows()], notes: [] };
const count = () => document.querySelector("#filter .count").textContent;
said.columns = [...document.querySelectorAll("#filter summary")].map((s) => s.textContent);
said.labels = [...document.querySelectorAll("#filter label")].map((label) => label.textContent);
said.csv = [await csv("figure-1"), await csv("figure-2"), await csv("figure-3")];
said.count.push(count());
box(0, 1).click(); await wait();
said.count.push(count()); said.first.push(drawn("figure-1")); said.rows.push(rows());
box(1, 0).click(); await wait();
said.count.push(count()); said.first.push(drawn("figure-1")); said.rows.push(rows());
said.opacity = document.getElementById("figure-2").data.map((trace) => trace.marker.opacity);
said.legend = document.getElementById("figure-1").data.map((trace) => trace.showlegend);
said.notes.push(notes());
said.csv.push(await csv("figure-1"));
document.querySelector("#filter > button").click(); await wait();
said.count.push(count()); said.first.push(drawn("figure-1")); said.notes.push(notes());
const panel = document.getElementById("panel");
const click = (id, curveNumber, pointNumber) =>
  document.getElementById(id).emit("plotly_click", { points: [{ curveNumber, pointNumber }] });
said.panel = [panel.hidden];
click("figure-3", 0, 0); said.panel.push(panel.hidden);
click("figure-1", 1, 0);
said.panel.push(panel.hidden, panel.querySelector("h2").textContent,
  panel.querySelectorAll("details.cell").length);
click("figure-2", 0, 1);
said.cell = panel.textContent;
said.links = [...panel.querySelectorAll(".links a")].map((a) => a.getAttribute("href"));
said.images = [...panel.querySelectorAll("img")].map((image) => image.src.slice(0, 22));
document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
said.panel.push(panel.hidden);
const moved = new Promise((done) => addEventListener("hashchange", done, { once: true }));
location.hash = "#cell-0-0"; await moved; await wait();
const shown = document.getElementById("picture-1").src;
said.hash = [panel.hidden, panel.querySelector("img").src === shown];
said.alerts = alerts;
said.injected = document.querySelectorAll('img[src="x"], [onerror]').length;
said.names = names;
const blocked = new Promise((done) => {
  document.addEventListener("securitypolicyviolation", (event) => done(event.blockedURI));
  setTimeout(() => done(""), 500);
});
new Image().src = "https://example.org/pixel.png";
said.blocked = await blocked;
return said;
"""


@pytest.fixture(scope="module")
def clicked(home, tmp_path_factory):
    return browse(home / "one" / "report.html", ACTIONS, tmp_path_factory.mktemp("browser"))


def test_the_filter_names_every_value_as_text(clicked):
    assert clicked["columns"] == ["method all", "seed all"]
    assert clicked["labels"] == ["arc", HOSTILE, "0", "1"]
    assert clicked["alerts"] == clicked["injected"] == 0


def test_the_filter_reaches_figures_and_tables(clicked):
    assert clicked["count"] == ["4 cells", "2 of 4 cells", "1 of 4 cells", "4 cells"]
    # means of both methods, then the parts: seeds of the first, seeds of the second
    means, second, part, again = clicked["first"]
    assert means == again == [True, True, False, False, False, False]
    assert second == [False, True, False, False, False, False]
    assert part == [False, False, False, False, True, False]
    assert clicked["legend"][4] is True
    assert clicked["opacity"][1] == [1, 0.12]
    # the study's table has a row for each method, the table of cells one for each cell
    assert clicked["rows"][1] == [False, True, False, False, True, True]
    assert clicked["rows"][2] == [False, True, False, False, True, False]
    active, reset = clicked["notes"]
    assert active == ["", "", "The filter does not reach this figure: it names no cells."]
    assert reset == ["", "", ""]


def test_a_point_opens_its_cells(clicked):
    assert clicked["panel"] == [True, True, False, "2 cells", 2, True]
    for words in ("A cell", "methodarc", "seed1", "--cell arc_seed1", "finished", "CPU", "begins"):
        assert words in clicked["cell"]
    assert clicked["links"] == ["#figure-1", "#figure-2", "#row-0-1"]
    assert clicked["images"] == ["data:image/png;base64,"]
    assert clicked["hash"] == [False, True]


def test_a_figure_is_downloaded_as_csv(clicked):
    lines, points, other, part = ([*csv.DictReader(io.StringIO(t))] for t in clicked["csv"])
    assert list(lines[0]) == ["trace", "method", "epoch", "error, all"]
    assert list(other[0]) == ["trace", "x", "y"]
    assert [(row["method"], row["epoch"], row["error, all"]) for row in lines] == [
        ("arc", "0", "0.05"), ("arc", "1", "1.05"),
        (HOSTILE, "0", "1.05"), (HOSTILE, "1", "2.05"),
    ]  # fmt: skip
    assert [float(row["error"]) for row in points] == pytest.approx([1, 1.1, 2, 2.1])
    assert [row["seed"] for row in points] == ["0", "1", "0", "1"]
    assert {row["error, above"] for row in points} == {"0.5"}
    assert [(row["x"], row["y"]) for row in other] == [("0", "1"), ("1", "2")]
    # under the filter the part that is shown, with its seed
    assert [(row["method"], row["seed"], row["error, all"]) for row in part] == [
        (HOSTILE, "0", "1"), (HOSTILE, "0", "2"),
    ]  # fmt: skip
    assert clicked["names"][:2] == ["falls-figure-1.csv", "falls-figure-2.csv"]


def test_the_browser_refuses_to_ask_a_host(clicked):
    assert clicked["blocked"] == "https://example.org/pixel.png"


def test_a_pair_has_the_same_axes_and_one_filter(home, tmp_path):
    said = browse(
        home / "one" / "beside-two.html",
        """
        await new Promise((done) => setTimeout(done, 200));
        const all = [...document.querySelectorAll(".pair .js-plotly-plot")];
        const ranges = () =>
          all.map((gd) => ["xaxis", "yaxis"].map((axis) => [...gd._fullLayout[axis].range]));
        const range = ranges();
        const color = all.map((gd) => gd.colors[0]);
        const shown = () => all[1].data.filter((trace) => trace.visible !== false);
        const top = () => Math.max(...shown().flatMap((trace) => [...trace.y]));
        const tops = [top()];
        document.querySelector('#filter input[data-column="0"][data-place="0"]').click();
        await new Promise((done) => setTimeout(done, 200));
        const left = all.map((gd) => gd.data.filter((trace) => trace.visible !== false).length);
        all[3].emit("plotly_click", { points: [{ curveNumber: 0, pointNumber: 0 }] });
        const images = document.querySelectorAll("#panel img").length;
        document.querySelector("#filter > button").click();
        document.querySelector('#filter input[data-column="1"][data-place="1"]').click();
        await new Promise((done) => setTimeout(done, 200));
        tops.push(top());
        const cell = document.getElementById("panel").textContent;
        return { range, color, tops, left, later: ranges(), cell, images };
        """,
        tmp_path,
    )
    for found, top in ((said["range"], said["tops"][0]), (said["later"], said["tops"][1])):
        assert found[::2] == found[1::2]
        assert found[0][1][1] >= top
    assert said["tops"] == pytest.approx([2.8, 3.1])  # means, then the second seed alone
    assert said["color"][0] == said["color"][1]
    assert said["left"][:4] == [1, 1, 1, 1]
    assert "Run two" in said["cell"]
    assert said["images"] == 1
