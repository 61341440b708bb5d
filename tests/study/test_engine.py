"""A grid survives kills, is shared by processes, and says what went wrong: with a fake study that
counts what is computed.
"""

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest

import marginlab
from marginlab.study import open_run
from marginlab.study.__main__ import main

STUDY = '''"""Does the fake grid add up?"""
import time
from dataclasses import dataclass
@dataclass(frozen=True)
class Settings:
    n: int = 4
    fails: int = -1
    pause: float = 0.0
headline = ("third",)
def note(home, text):
    with (home / "notes.txt").open("a") as file:
        file.write(text + "\\n")
def cells(settings):
    if settings.n < 1:
        raise ValueError(f"n is at least 1, not {settings.n}.")
    return [{"kind": "a(b=1)", "i": i} for i in range(settings.n)]
def shared(base, home, *, folder):
    note(__import__("pathlib").Path(home), "shared")
    time.sleep(0.2)
    return {"base": base, "pair": (1, 2.5)}
def run(cell):
    note(cell.home, f"begin {cell['i']}")
    while (cell.home / f"hold{cell['i']}").exists():
        time.sleep(0.02)
    if cell["i"] == cell.settings.fails and (cell.home / "broken").exists():
        raise RuntimeError("the fake cell is broken")
    if (cell.home / "stop").exists():
        raise __import__("marginlab.train.watch").train.watch.Stopped("its step is kept")
    time.sleep(cell.settings.pause)
    base = cell.once("shared", shared, 10, str(cell.home))["base"]
    cell.record("third", cell["i"] / 3 + base, low=0.0, n=cell["i"])
    cell.record("loss", float("nan"), epoch=1)
    note(cell.home, f"end {cell['i']}")
'''
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(marginlab.__file__).parent.parent),
    "PYTHONUNBUFFERED": "1",
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "fake.py"
    file.write_text(STUDY)
    return file


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "marginlab.study", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # a shell in the background hands on that it is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def notes(study: Path) -> list[str]:
    file = study.parent / "notes.txt"
    return file.read_text().splitlines() if file.exists() else []


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.02)


def undisturbed(study: Path) -> bytes:
    assert main([str(study), "--folder", "undisturbed"]) == 0
    results = Path("undisturbed/results.csv").read_bytes()
    (study.parent / "notes.txt").unlink()
    return results


def run_folder() -> Path:
    (folder,) = Path("runs").iterdir()
    return folder


def test_a_run_folder_holds_what_it_promises(study, capsys):
    assert main([str(study), "--n", "2"]) == 0
    folder = run_folder()
    assert folder.name.startswith("fake-")
    assert {p.name for p in folder.iterdir()} >= {
        "config.toml",
        "about.json",
        "cells",
        "once",
        "results.csv",
        "times.csv",
        "log.txt",
        "report.html",
    }
    lines = (folder / "results.csv").read_text().splitlines()
    assert lines[0] == "kind,i,epoch,space,quantity,at,value,low,high,n"
    assert lines[3] == "a(b=1),1,-1,,third,,10.333333333333334,0.0,nan,1"
    printed = capsys.readouterr().out
    assert str(folder.resolve() / "report.html") in printed
    assert "10.3" in printed  # three digits
    run = open_run(folder)
    assert run.results.select(quantity="third", i=1)[0]["value"] == 1 / 3 + 10
    assert run.series("third", i=1) == ([-1], [1 / 3 + 10])
    assert run.last("third", i=1) == 1 / 3 + 10
    assert run.last("third") == pytest.approx((run.last("third", i=0) + 1 / 3 + 10) / 2)
    assert run.series("third", space="backbone") == run.series("fourth") == ([], [])
    assert math.isnan(run.last("third", at=0.5))
    with pytest.raises(KeyError, match="its columns are kind, i"):
        run.last("third", absent=1)
    assert [row["i"] for row in run.times] == [0, 1]
    assert all(cell.finished and cell.folder.is_dir() for cell in run.cells)
    with pytest.raises(KeyError):
        run.results.select(absent=1)


def test_a_killed_grid_goes_on_where_it_was(study):
    expected = undisturbed(study)
    (study.parent / "hold2").touch()
    process = start(study)
    wait_for(lambda: "begin 2" in notes(study))
    process.kill()
    process.communicate()
    (study.parent / "hold2").unlink()
    assert not (run_folder() / "results.csv").exists()
    assert main([str(study)]) == 0
    assert (run_folder() / "results.csv").read_bytes() == expected
    assert sorted(notes(study)) == sorted(
        ["shared", "begin 2", *(f"{what} {i}" for what in ("begin", "end") for i in range(4))]
    )
    before = notes(study)
    assert main([str(study)]) == 0
    assert notes(study) == before


def test_processes_share_a_grid(study):
    expected = undisturbed(study)
    several = [start(study, "--pause", "0.15", "--n", "8") for _ in range(2)]
    outcomes = [process.communicate(timeout=60) for process in several]
    assert [process.returncode for process in several] == [0, 0], outcomes
    assert sorted(notes(study)) == sorted(
        ["shared", *(f"{what} {i}" for what in ("begin", "end") for i in range(8))]
    )
    text = (run_folder() / "results.csv").read_bytes()
    assert text.startswith(expected)
    assert len(text.splitlines()) == 1 + 2 * 8
    log = (run_folder() / "log.txt").read_text()
    assert (
        len(
            {
                line.split()[1]
                for line in log.splitlines()
                if "finished" in line or "ends" in line or "✓" in line
            }
        )
        == 2
    ), log


def test_the_cell_of_a_dead_process_is_taken_over(study):
    (study.parent / "hold3").touch()
    first = start(study)
    wait_for(lambda: "begin 3" in notes(study))
    second = start(study)
    assert any("waits for 1 cell" in line for line in iter(second.stdout.readline, ""))
    first.kill()
    first.communicate()
    (study.parent / "hold3").unlink()
    second.communicate(timeout=60)
    assert second.returncode == 0
    assert notes(study).count("begin 2") == 1
    assert notes(study).count("end 3") == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(study, number, status):
    (study.parent / "hold1").touch()
    process = start(study, "--n", "3")
    wait_for(lambda: "begin 1" in notes(study))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    (study.parent / "hold1").unlink()
    assert process.returncode == status
    assert "Traceback" not in errors
    (line,) = errors.strip().splitlines()
    assert line.startswith("Interrupted: 1 of 3 cells are finished")
    again = shlex.split(line.split("go on with: ")[1])
    assert (
        subprocess.run(
            again, env=ENVIRONMENT, check=False, capture_output=True, timeout=60
        ).returncode
        == 0
    )
    assert notes(study).count("end 0") == 1


def test_a_training_that_is_stopped_stops_the_grid(study, capsys):
    """`fit` keeps its step at SIGTERM and then raises; the cell has not failed, and the next one
    does not begin.
    """
    (study.parent / "stop").touch()
    assert main([str(study)]) == 143
    assert "Interrupted: 0 of 4 cells are finished" in capsys.readouterr().err
    assert notes(study) == ["begin 0"]
    assert not any(cell.failure_file.exists() for cell in open_run(run_folder()).cells)
    (study.parent / "stop").unlink()
    assert main([str(study)]) == 0


def test_a_failed_cell_is_reported_and_tried_again(study, capsys):
    (study.parent / "broken").touch()
    assert main([str(study), "--fails", "1"]) == 1
    printed = capsys.readouterr().out
    folder = run_folder()
    failed = next(cell for cell in open_run(folder).cells if not cell.finished)
    assert failed["i"] == 1
    assert f"{failed.id} failed" in printed
    assert "RuntimeError: the fake cell is broken" in printed
    assert "RuntimeError: the fake cell is broken" in (folder / "log.txt").read_text()
    page = (folder / "report.html").read_text()
    assert "1 of 4 cells are missing" in page
    assert failed.id in page
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 2 * 3
    (study.parent / "broken").unlink()
    assert main([str(study), "--fails", "1"]) == 0
    assert notes(study).count("begin 0") == 1
    assert "cells are missing" not in (folder / "report.html").read_text()
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 2 * 4


def test_resume_and_report_need_only_the_folder(study, capsys):
    (study.parent / "broken").touch()
    assert main([str(study), "--fails", "3", "--folder", "mine"]) == 1
    (Path("mine") / "report.html").unlink()
    assert main(["report", "mine"]) == 1
    assert notes(study).count("begin 3") == 1
    assert "1 of 4 cells are missing" in Path("mine/report.html").read_text()
    (study.parent / "broken").unlink()
    assert main(["--resume", "mine"]) == 0
    assert notes(study).count("begin 2") == 1
    assert main([str(study), "--resume", "mine"]) == 0
    assert main([str(study), "--resume", "mine", "--n", "9"]) == 2
    assert "n is 4 there and 9 now" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(study, capsys):
    assert main([str(study), "--folder", "mine", "--n", "1"]) == 0
    assert main([str(study), "--folder", "mine", "--n", "2"]) == 2
    assert "n is 1 there and 2 now" in capsys.readouterr().err
    other = study.with_name("other.py")
    other.write_text(STUDY)
    assert main([str(other), "--folder", "mine", "--n", "1"]) == 2
    assert "a run of the study 'fake'" in capsys.readouterr().err
    Path("full").mkdir()
    Path("full/letter.txt").write_text("mine")
    assert main([str(study), "--folder", "full"]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main(["report", "full"]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_a_twin_of_another_place_is_refused(study, capsys):
    assert main([str(study), "--folder", "mine", "--n", "1"]) == 0
    twin = study.parent / "elsewhere" / "fake.py"
    twin.parent.mkdir()
    twin.write_text(STUDY + "# changed\n")
    assert main([str(twin), "--folder", "mine", "--n", "1"]) == 2
    assert str(twin) in capsys.readouterr().err


def test_a_failed_report_loses_nothing(study, capsys):
    study.write_text(
        STUDY
        + 'def report(run):\n    run.report.text("so far")\n    raise KeyError("absent <b>")\n'
    )
    assert main([str(study), "--n", "1"]) == 1
    page = (run_folder() / "report.html").read_text()
    assert "so far" in page
    assert "absent &lt;b&gt;" in page
    assert "KeyError" in capsys.readouterr().err
    assert (run_folder() / "results.csv").exists()


RANKS = '''"""Do two ranks work on one cell?"""
from dataclasses import dataclass
@dataclass(frozen=True)
class Settings:
    n: int = 3
def cells(settings):
    return [{"i": i} for i in range(settings.n)]
def count(*, folder):
    import torch
    from marginlab import ranks
    return float(ranks.all_reduce(torch.ones(1)))
def run(cell):
    import torch
    from marginlab import ranks
    if cell["i"] == 1:
        raise RuntimeError("on both")
    cell.record("ranks", cell.once("count", count))
    cell.record("rank", float(ranks.all_reduce(torch.tensor(float(ranks.rank())))))
def report(run):
    run.report.text(f"once in the report: {run.once('again', count)}")
'''


def test_under_torchrun_all_ranks_work_on_one_cell(study):
    study.write_text(RANKS)
    command = [*forked.torchrun(), "-m", "marginlab.study", str(study), "--folder", "mine"]
    done = forked.run(
        command, cwd=study.parent, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("i1 failed;") == 1, done.stdout + done.stderr
    rows = [
        f"{i},-1,,{name},,{value},nan,nan,0"
        for i in (0, 2)
        for name, value in (("ranks", 2.0), ("rank", 1.0))
    ]
    assert Path("mine/results.csv").read_text().splitlines() == [
        "i,epoch,space,quantity,at,value,low,high,n",
        *rows,
    ]
    assert "once in the report: 2.0" in Path("mine/report.html").read_text()
