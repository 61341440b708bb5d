"""Faults of a run folder: a full disk, a read-only place, files emptied by a crash, a removal."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import marginlab
from marginlab.study import load, open_run
from marginlab.study.__main__ import main
from marginlab.study.cell import Cell

STUDY = '''"""What befalls its folder?"""
import shutil
from dataclasses import dataclass
from pathlib import Path
@dataclass(frozen=True)
class Settings:
    n: int = 3
    data: str = "none"
def cells(settings):
    return [{"i": i} for i in range(settings.n)]
def shared(*, folder):
    return 0.5
def run(cell):
    if (cell.home / f"remove{cell['i']}").exists():
        shutil.rmtree(cell.folder.parent.parent)
    if (cell.home / f"full{cell['i']}").exists():
        (cell.folder / "large").write_bytes(bytes(100_000))
    if (cell.home / f"elsewhere{cell['i']}").exists():
        raise OSError(28, "No space left on device", "/mnt/cache/large")
    cell.record("value", cell.once("shared", shared))
def report(run):
    run.report.text(str(run.settings.data))
'''


HEAD = "i,epoch,space,quantity,at,value,low,high,n"


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "study.py"
    file.write_text(STUDY)
    return file


def sentence(capsys):
    """The one line that was said on standard error."""
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
    return said


def dot_files(folder):
    return [p for p in Path(folder).rglob(".*") if p.name not in (".lock", ".report.lock")]


@pytest.fixture
def full(monkeypatch):
    """A disk that is full from now on, for files of these names."""

    def begin(*names):
        fsync = os.fsync

        def failing(descriptor):
            if any(name in str(Path(f"/proc/self/fd/{descriptor}").readlink()) for name in names):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", failing)

    return begin


@pytest.mark.parametrize("name", ["about.json", "config.toml"])
def test_a_full_disk_at_the_start_is_a_sentence_and_leaves_nothing(study, full, name, capsys):
    full(name)
    assert main([str(study), "--folder", "run"]) == 1
    assert "run cannot be made: No space left on device. Give --folder another path." in sentence(
        capsys
    )
    assert sorted(p.name for p in Path().iterdir() if p.name != "__pycache__") == ["study.py"]


@pytest.mark.parametrize(
    "name", ["time.csv", "rows.csv", "once.json", "results.csv", "report.html"]
)
def test_a_full_disk_later_is_a_sentence_and_the_run_goes_on_when_there_is_room(
    study, full, name, capsys, monkeypatch
):
    full(name)
    assert main([str(study), "--folder", "run"]) == 1
    assert (
        "run cannot be written: No space left on device. The cells that are finished are kept"
        in sentence(capsys)
    )
    assert dot_files("run") == []
    monkeypatch.undo()
    monkeypatch.chdir(study.parent)
    assert main([str(study), "--folder", "run"]) == 0
    assert len(open_run("run").results) == 3


def test_a_cell_that_fills_the_disk_ends_the_run_by_a_sentence(study):
    """By a limit on the size of files, which the system itself enforces."""
    (study.parent / "full1").touch()
    environment = os.environ | {"PYTHONPATH": str(Path(marginlab.__file__).parent.parent)}
    command = [sys.executable, "-m", "marginlab.study", str(study), "--folder", "run"]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, preexec_fn=limit
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: ")
    where = "run, or another place that a cell writes to, cannot be written: File too large"
    assert where in done.stderr  # the system does not say which file it was
    assert "Traceback" not in done.stdout + done.stderr
    assert dot_files("run") == []


@pytest.mark.parametrize("place", ["/proc/run", "study.py/run"])
def test_a_place_where_nothing_can_be_written_is_a_sentence(study, place, capsys):
    assert main([str(study), "--folder", place]) in (1, 2)
    assert "error: " in (said := capsys.readouterr().err)
    assert "Traceback" not in said
    assert "another path" in said


def test_keep_into_a_place_where_nothing_can_be_written(study, capsys):
    assert main([str(study), "--folder", "run"]) == 0
    load(study).module.headline = ("value",)
    capsys.readouterr()
    assert main(["keep", "run", "/proc/nowhere/kept.csv"]) == 1
    assert "/proc/nowhere cannot be used: " in sentence(capsys)


def test_a_folder_that_is_removed_during_the_run_is_told_of(study, capsys):
    (study.parent / "remove1").touch()
    assert main([str(study), "--folder", "run"]) == 1
    assert "run was removed while its cells were computed" in sentence(capsys)
    (study.parent / "remove1").unlink()
    shutil.rmtree("run", ignore_errors=True)
    assert main([str(study), "--folder", "run"]) == 0


@pytest.mark.parametrize("text", ["", HEAD, f"{HEAD}\n0,-1,val", "0\n"])
def test_rows_that_are_not_whole_are_no_finished_cell(study, text):
    assert main([str(study), "--folder", "run"]) == 0
    expected = Path("run/results.csv").read_bytes()
    cell = open_run("run").cells[1]
    assert cell.finished
    cell.rows_file.write_text(text)
    assert not cell.finished
    assert cell.rows() == []
    assert main([str(study), "--folder", "run"]) == 0
    assert Path("run/results.csv").read_bytes() == expected


def test_a_cell_that_records_nothing_is_finished(tmp_path):
    cell = Cell({"i": 1}, settings=None, run_folder=tmp_path, home=tmp_path)
    cell.folder.mkdir(parents=True)
    cell.rows_file.write_text(f"{HEAD}\n")
    assert cell.finished


@pytest.mark.parametrize("name", ["once.json", "time.csv", "config.toml", "about.json"])
def test_files_that_a_crash_emptied_are_not_believed(study, name, capsys):
    assert main([str(study), "--folder", "run", "--data", "mine"]) == 0
    expected = Path("run/results.csv").read_bytes()
    (emptied,) = list(Path("run").rglob(name))[:1]
    emptied.write_bytes(b"")
    if name in ("config.toml", "about.json"):
        capsys.readouterr()
        assert main(["report", "run"]) == 2
        assert "is no run folder" in sentence(capsys)
        return
    for cell in open_run("run").cells:
        cell.rows_file.unlink()
    assert main([str(study), "--folder", "run", "--data", "mine"]) == 0
    assert Path("run/results.csv").read_bytes() == expected


def test_names_of_study_and_run_folder_that_are_no_utf_8(study):
    """As another process reads them from its command line, and another again from about.json."""
    home = Path(os.fsdecode(b"caf\xe9"))
    home.mkdir()
    own, run = shutil.copy(study, home / "own.py"), home / "run"
    environment = os.environ | {
        "PYTHONPATH": str(Path(marginlab.__file__).parent.parent),
        "PYTHONUTF8": "1",
    }
    for words in ([own, "--folder", run], ["report", run, "--study", own], [own, "--resume", run]):
        command = [sys.executable, "-m", "marginlab.study", *words]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b"caf\\udce9" in done.stdout
    assert "caf\\udce9" in (run / "report.html").read_text()
    assert open_run(run, own).settings.n == 3


def test_a_full_disk_elsewhere_is_not_said_to_be_the_run_folders(study, capsys):
    (study.parent / "elsewhere1").touch()
    assert main([str(study), "--folder", "run"]) == 1
    assert sentence(capsys).startswith(
        "error: /mnt/cache/large cannot be written: No space left on device."
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("command"),
        lambda about: about.pop("versions"),
        lambda about: about.pop("later_versions"),
        lambda about: about.update(command=["a"]),
        lambda about: about.update(command="an 'open quote"),
        lambda about: about.update(versions={"torch": 2}),
        lambda about: about.update(later_versions=[3]),
        lambda about: about.update(started=None),
    ],
)
def test_an_about_json_without_what_is_shown_of_it_is_a_sentence(study, change, capsys):
    assert main([str(study), "--folder", "run"]) == 0
    file = Path("run/about.json")
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))
    load(study).module.headline = ("value",)
    capsys.readouterr()
    for words in (["report", "run"], ["keep", "run", "kept.csv"], [str(study), "--resume", "run"]):
        assert main(words) == 2
        assert "its about.json does not say as text by which command" in sentence(capsys)


def test_a_folder_of_an_earlier_version_whose_rows_have_names_is_refused(study, capsys):
    assert main([str(study), "--folder", "run"]) == 0
    file = Path("run/about.json")
    about = json.loads(file.read_text())
    assert about.pop("columns") == HEAD.split(",")[1:]
    file.write_text(json.dumps(about))
    capsys.readouterr()
    for words in (["report", "run"], ["keep", "run", "kept.csv"], [str(study), "--folder", "run"]):
        assert main(words) == 2
        assert "an earlier version of marginlab made this folder" in sentence(capsys)


def test_json_that_nests_too_deep_is_a_sentence(study, capsys):
    assert main([str(study), "--folder", "run"]) == 0
    Path("run/about.json").write_text("[" * 200_000)
    capsys.readouterr()
    assert main(["report", "run"]) == 2
    assert "its about.json names no study" in sentence(capsys)


@pytest.mark.parametrize(
    "name",
    ["about.json", "config.toml", "rows.csv", "time.csv", "report.html", "failed.txt", "once.json"],
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(study, name):
    assert main([str(study), "--folder", "run"]) == 0
    [cell, *_] = sorted(Path("run/cells").iterdir())
    once = next(Path("run/once").iterdir())
    folder = {"about.json": Path("run"), "config.toml": Path("run"), "report.html": Path("run")}
    place = folder.get(name, once if name == "once.json" else cell) / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    if name in ("failed.txt", "once.json"):
        (cell / "rows.csv").unlink()
    ended = []
    words = ["--resume", "run"] if name == "once.json" else ["report", "run"]
    study_named = [str(study), *words] if words[0] == "--resume" else words
    thread = threading.Thread(target=lambda: ended.append(main(study_named)), daemon=True)
    thread.start()
    thread.join(30)
    assert ended == [
        {"about.json": 2, "config.toml": 2, "rows.csv": 1, "time.csv": 1, "failed.txt": 1}.get(
            name, 0
        )
    ]
