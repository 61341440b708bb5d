"""The shipped study: its presets, its refusals, a small run killed and resumed, and what its report
holds.
"""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from report_pages import assert_report

from marginlab import settings, study
from marginlab.study.__main__ import main

HERE = study.load("concentration")
SMALL = [
    *"--data shapes-5 --image-size 16 --recipe.images 40 --grids pairs strength --pairs ad ae "
    "--methods SimCLR(hidden=16,dim=8) --epochs 1 --batch 20 --recipe.precision float32".split(),
    *"--per-class 4 --blocks 2 --views 4 --deep-views 8 --deep-per-class 4 --sharpened 2 "
    "--monitor.every 0 --monitor.images 30 --monitor.views 2 --monitor.bank 40".split(),
    "--recipe.backbone",
    "Backbone('resnet18', stem='strided', width=0.125)",
]
SECTIONS = (
    "What the augmentations do",
    "How concentrated",
    "What the encoders learn",
    "Concentration and error",
    "Beside the published tables",
    "What follows",
)
COMMAND = [sys.executable, "-m", "marginlab.study", "concentration"]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return forked.run([*COMMAND, *arguments], cwd=folder, env=environment, timeout=200)


def succeeded(done: subprocess.CompletedProcess, folder: Path) -> None:
    if done.returncode != 0:
        said = [("stdout", done.stdout), ("stderr", done.stderr)]
        # log.txt, failed.txt
        said += [(file.name, file.read_text()) for file in folder.rglob("*.txt")]
        pytest.fail("\n".join(f"--- the end of {title}\n{text[-6000:]}" for title, text in said))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(*SMALL, folder=folder)
    succeeded(done, folder)
    return next((folder / "runs").iterdir()), done.stdout


@pytest.mark.parametrize(
    "preset", sorted(path.stem for path in (HERE.home / "presets").glob("*.toml"))
)
def test_every_preset_reads_and_gives_a_grid(preset):
    chosen = HERE.settings(preset)
    grid = HERE.grid(chosen)
    sizes = {"ladder": 5, "strength": 4, "pairs": len(chosen.pairs)}
    assert len(grid) == len(chosen.methods) * len(chosen.seeds) * sum(
        sizes[name] for name in chosen.grids
    )
    assert settings.to_toml(chosen)


def test_the_published_tables_are_whole():
    with (HERE.home / "published.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * (5 + 4)
    assert all(
        25 < float(row["knn_accuracy"]) < 91 and 0 < float(row["std"]) < 2.1 and row["source"]
        for row in rows
    )
    for column in {(row["data"], row["method"]) for row in rows}:
        best = max(
            (row for row in rows if (row["data"], row["method"]) == column),
            key=lambda row: float(row["knn_accuracy"]),
        )
        assert best["letters"] == "abcde"


def test_a_run_ends_with_a_table_and_a_report_that_holds_the_numbers(undisturbed):
    folder, said = undisturbed
    assert_report(folder / "report.html")
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert str(folder / "report.html") in said
    places = [report.index(f"<h2>{heading}") for heading in SECTIONS]
    assert places == sorted(places)  # the order of the story
    assert "this run has 2 of them, and claims none" in report
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?:", report)
    with (folder / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cells = {(row["grid"], row["letters"], row["strength"]) for row in rows}
    assert cells == {
        ("pairs", "ad", "0.5"),
        ("pairs", "ae", "0.5"),
        *(("strength", "ad", s) for s in ("1.0", "0.5", "0.25", "0.125")),
    }
    assert {row["stem"] for row in rows} == {"strided"}
    for row in rows:
        if row["quantity"] == "one_minus_sigma_by_block":
            assert 0 <= float(row["low"]) <= float(row["value"]) == float(row["high"]) <= 1
    for cell in cells:
        mine = {
            (row["space"], row["quantity"], row["at"]): float(row["value"])
            for row in rows
            if (row["grid"], row["letters"], row["strength"]) == cell and row["epoch"] == "-1"
        }
        sigma, blocks, by_views = (
            {at: value for (space, name, at), value in mine.items() if (space, name) == of}
            for of in (
                ("pixels", "one_minus_sigma"),
                ("pixels", "one_minus_sigma_by_block"),
                ("pixels", "one_minus_sigma_by_views"),
            )
        )
        assert list(blocks) == ["0", "1"]
        assert sigma[""] == pytest.approx(sum(blocks.values()) / 2)
        assert sigma["control_minus_class"] == pytest.approx(sigma["control"] - sigma[""])
        # views are added, never redrawn
        assert by_views["2"] >= by_views["4"] >= by_views["8"]
        assert sigma["most_views"] >= sigma["sharpened"]
        assert 0 <= mine["backbone", "area", ""] <= 1
        assert 0 <= sigma["anchor_form"] <= 1
    names = {(row["space"], row["quantity"], row["epoch"]) for row in rows}
    assert {
        ("backbone", "knn_error", "0"),
        ("backbone", "knn_error", "1"),
        ("backbone", "nearest_center_error", "1"),
        ("backbone", "linear_error", "1"),
    } <= names


def test_killed_and_resumed_it_gives_the_same_results_and_computes_nothing_twice(
    undisturbed, tmp_path
):
    two = [*SMALL, "--grids", "pairs"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = forked.Child([*COMMAND, *two], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 120
    while (
        not (ended := list(tmp_path.glob("runs/*/cells/*/rows.csv")))
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(child.pid, signal.SIGKILL)
    child.wait(60)
    stamps = {path: path.stat().st_mtime_ns for path in ended}
    assert stamps
    done = run(*two, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    resumed = next((tmp_path / "runs").iterdir()) / "results.csv"
    with (undisturbed[0] / "results.csv").open(newline="", encoding="utf-8") as file:
        whole = file.readlines()
    column = next(csv.reader(whole)).index("grid")
    pairs = [
        line
        for line, row in zip(whole, csv.reader(whole), strict=True)
        if row[column] in ("grid", "pairs")
    ]
    assert 0 < len(pairs) < len(whole)
    assert resumed.read_bytes() == "".join(pairs).encode()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "shapez"], "did you mean 'shapes'"),
        (["--data", "npz:nothing.npz"], "nothing.npz"),
        (["--grids", "ladders"], "did you mean 'ladder'"),
        (["--pairs", "az"], "is no pair of operations"),
        (["--methods", "SimCRL()"], "did you mean 'SimCLR'"),
        (["--backbone", "Backbone('resnet18', stem='cifr')"], "did you mean 'cifar'"),
        (["--batch", "100000"], "Take batch <="),
        (["--optimizers", "SGD(lr=0)"], "lr > 0"),
        (["--views", "1"], "at least 2"),
        (["--blocks", "0"], "blocks is at least 1"),
        (["--sharpened", "1"], "leaves it out"),
        (["--monitor.bank", "1"], "bank is 0"),
        (["--monitor.every", "-5"], "every is at least 0"),
        (["--backbone", "Projector((2,3))"], "is no Backbone"),
        (["--preset", "cifar11"], "did you mean 'cifar10"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence_before_any_work(
    tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["concentration", *arguments])
    except SystemExit as end:  # tyro's own
        status = end.code
    assert status == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_class_data_is_refused_before_any_work(tmp_path):
    import numpy as np

    np.savez(
        tmp_path / "one.npz",
        images=np.zeros((30, 8, 8, 3), np.uint8),
        labels=np.zeros(30, np.int64),
    )
    refused = run("--data", f"npz:{tmp_path / 'one.npz'}", folder=tmp_path)
    assert refused.returncode == 2
    assert "two classes" in refused.stderr
    assert not (tmp_path / "runs").exists()


def arrays(folder, counts, seed=0):
    import numpy as np

    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    both = {"images": images, "labels": labels}
    np.savez(
        folder / "own.npz",
        **{f"{split}_{key}": value for split in ("train", "test") for key, value in both.items()},
    )


OWN = [
    *SMALL,
    *"--data npz:own.npz --image-size 0 --recipe.images 0 --grids pairs --pairs ae".split(),
]


def test_classes_of_unequal_size_are_measured_on_equally_many_images_and_say_so(tmp_path):
    arrays(tmp_path, (30, 5, 12))
    done = run(*OWN, "--per-class", "9", folder=tmp_path)
    succeeded(done, tmp_path)
    with next(tmp_path.glob("runs/*/results.csv")).open(encoding="utf-8") as file:
        measured = {
            row["n"]
            for row in csv.DictReader(file)
            if (row["quantity"], row["at"]) in (("one_minus_sigma", ""), ("delta_max", ""))
        }
    assert measured == {"5"}
    assert "n = 5 images a class" in next(tmp_path.glob("runs/*/report.html")).read_text(
        encoding="utf-8"
    )
    arrays(tmp_path, (30, 5, 12), seed=1)
    refused = run(*OWN, "--per-class", "9", folder=tmp_path)
    assert refused.returncode == 2
    assert "other data" in refused.stderr
    arrays(tmp_path, (30, 1, 12))
    refused = run(*OWN, "--per-class", "8", folder=tmp_path)
    assert refused.returncode == 2
    assert "fewer than 2 training images" in refused.stderr
    assert len(list(tmp_path.glob("runs/*"))) == 1


def test_under_torchrun_the_concentration_is_that_of_one_process(tmp_path):
    arrays(tmp_path, (12, 12))
    found = []
    for name, start in (
        ("one", COMMAND[1:]),
        (
            "two",
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *COMMAND[1:]],
        ),
    ):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, *start, *OWN, "--folder", name]
        done = forked.run(command, cwd=tmp_path, env=environment, timeout=200)
        succeeded(done, tmp_path / name)
        with (tmp_path / name / "results.csv").open(encoding="utf-8") as file:
            # in pixels; the encoders differ, for batch statistics are of a rank's own images
            found.append(
                [
                    row
                    for row in csv.DictReader(file)
                    if row["epoch"] == "-1" and row["space"] == "pixels"
                ]
            )
    assert len(found[0]) > 20
    assert found[0] == found[1]
