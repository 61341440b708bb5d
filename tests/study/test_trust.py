"""A run folder is data: reading one executes nothing that its user has not named."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from marginlab.settings import SettingsError
from marginlab.study import definition, load, open_run
from marginlab.study.__main__ import main
from marginlab.study.cell import MEASURED

STUDY = '''"""Was this executed?"""
from dataclasses import dataclass
from pathlib import Path
Path("executed").touch()
@dataclass(frozen=True)
class Settings:
    n: int = 1
headline = ("value",)
def cells(settings):
    return [{"i": i} for i in range(settings.n)]
def run(cell):
    cell.record("value", 0.5)
'''


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A shelf with one study, which comes with the package as far as the engine knows."""
    monkeypatch.chdir(tmp_path)
    shelf = tmp_path / "studies"
    (shelf / "good").mkdir(parents=True)
    (shelf / "good" / "study.py").write_text(STUDY)
    monkeypatch.setattr(definition, "shelf", lambda: shelf)
    return shelf


@pytest.fixture
def own(shelf):
    """A finished run of a study of one's own, as another process would find it."""
    file = shelf.parent / "mine.py"
    file.write_text(STUDY)
    assert main([str(file), "--folder", "run"]) == 0
    _forget()
    return file


def _forget():
    for name in [n for n in sys.modules if n.startswith("marginlab.study.own.")]:
        del sys.modules[name]
    Path("executed").unlink(missing_ok=True)


def _names(folder, name, file):
    about = json.loads(Path(folder, "about.json").read_text())
    about["study"] = {"name": name, "file": str(file)}
    Path(folder, "about.json").write_text(json.dumps(about))


@pytest.mark.parametrize("where", ["inside", "outside", "path as name", "name of a shipped one"])
def test_a_file_that_only_the_run_folder_names_is_never_executed(shelf, own, where, capsys):
    inside = Path("run/study.py")
    shutil.copy(own, inside)
    inside.write_text(inside.read_text() + "# other bytes\n")
    name, file = {
        "inside": ("run", inside.resolve()),
        "outside": ("mine", own),
        "path as name": ("./mine.py", "/nowhere/mine.py"),
        "name of a shipped one": ("good", inside.resolve()),
    }[where]
    _names("run", name, file)
    with pytest.raises(SettingsError, match=r"is not executed.*open_run\(folder, FILE\)"):
        open_run("run")
    for arguments in (["report", "run"], ["keep", "run", "kept.csv"], ["--resume", "run"]):
        assert main(arguments) == 2
        assert "Name a file that you trust: --study FILE" in capsys.readouterr().err
    assert not Path("executed").exists()
    assert not Path("kept.csv").exists()


def test_a_file_that_the_user_names_is(shelf, own):
    assert open_run("run", own).results[0]["value"] == 0.5
    _forget()
    assert open_run("run", str(own)).results[0]["value"] == 0.5
    _forget()
    assert main(["report", "run", "--study", str(own)]) == 0
    _forget()
    assert main(["keep", "run", "kept.csv", "--study", str(own)]) == 0
    _forget()
    assert main([str(own), "--resume", "run"]) == 0
    assert open_run("run").results[0]["value"] == 0.5  # this process has loaded it by its name
    _forget()
    load(own)
    assert open_run("run").results[0]["value"] == 0.5


def test_a_shipped_study_is_read_from_its_shelf_wherever_the_run_was_made(shelf):
    assert main(["good", "--folder", "run"]) == 0
    _forget()
    _names("run", "good", "/of/another/machine/study.py")
    assert open_run("run").study.file == (shelf / "good" / "study.py").resolve()
    assert main(["report", "run"]) == 0


def test_another_study_than_the_folders_is_refused(shelf, own, capsys):
    assert main(["report", "run", "--study", "good"]) == 2
    assert "is a run of the study 'mine'" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="is a run of the study 'mine'"):
        open_run("run", "good")
    assert main(["good", "--study", str(own)]) == 2
    assert "goes with report and keep" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"study": 3}', '{"study": {"name": 1, "file": 2}}'])
def test_an_about_json_that_names_nothing_is_a_sentence(own, text, capsys):
    Path("run/about.json").write_text(text)
    assert main(["report", "run"]) == 2
    assert "its about.json names no study" in capsys.readouterr().err


# a shipped study, and settings by which it would import a module that lies in the folder
HOSTILE = {
    "bounds": (
        'methods = ["SimCLR()"]\noptimizers = ["SGD(lr=0.1)"]\n'
        "augmentations = [\"Augmentation(('runs.x.evil:Op()',))\"]\n"
    ),
    "concentration": 'methods = ["runs.x.evil:M()"]\n',
    "learning_rate": '[recipe]\nbackbone = "runs.x.evil:M()"\n',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_code_that_a_run_folders_settings_name_is_not_imported(tmp_path, monkeypatch, name, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m` does
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    about = {
        "study": {"name": name, "file": "/nowhere/study.py"},
        "command": "python",
        "versions": {},
        "columns": list(MEASURED),
    }
    (folder / "about.json").write_text(json.dumps({**about, "later_versions": [], "ground": ""}))
    (folder / "config.toml").write_text(HOSTILE[name])
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()")
    with pytest.raises(SettingsError, match=r"names code of the module 'runs\.x\.evil'"):
        open_run("runs/x")
    for arguments in (["report", "runs/x"], ["keep", "runs/x", "k.csv"], ["--resume", "runs/x"]):
        assert main(arguments) == 2
        assert "--code runs.x.evil" in capsys.readouterr().err
    assert main([name, "--resume", "runs/x"]) == 2
    assert not Path("executed").exists()
    assert not any(module.startswith("runs") for module in sys.modules)
    assert sorted(file.name for file in folder.iterdir()) == [
        "about.json",
        "config.toml",
        "evil.py",
    ]


OWN_CODE = '''"""Words of its settings become objects in its cells and its report."""
from dataclasses import dataclass
from marginlab import augment, settings
@dataclass(frozen=True)
class Settings:
    module: str = "mine_views"
    view: str = "Augmentation(('mine_views:Op()',))"
headline = ("value",)
def _made(text):
    return settings.make(text, augment, augment.Augmentation)
def cells(chosen):
    return [{"i": 0}]
def run(cell):
    _made(cell.settings.view)
    cell.record("value", 0.5)
def report(run):
    _made(f"Augmentation(('{run.settings.module}:Op()',))")
'''


def test_code_of_ones_own_in_a_run_is_named_by_its_user(shelf, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(shelf.parent))
    Path("mine_views.py").write_text(
        "from marginlab.augment import HorizontalFlip\nclass Op(HorizontalFlip): pass\n"
    )
    Path("other_views.py").write_text("raise RuntimeError('executed')")
    file = shelf.parent / "mine.py"
    file.write_text(OWN_CODE)
    assert main([str(file), "--folder", "run"]) == 0  # the user's own words

    def forget():
        _forget()
        monkeypatch.setattr("marginlab.settings.trust._NAMED", set())

    forget()
    with pytest.raises(SettingsError, match=r"code=\('mine_views',\) in load and open_run"):
        open_run("run", file)
    assert main([str(file), "--resume", "run"]) == 2
    assert open_run("run", file, code=("mine_views",)).results[0]["value"] == 0.5
    forget()
    assert main(["report", "run", "--study", str(file), "--code", "mine_views"]) == 0
    forget()
    assert main([str(file), "--resume", "run", "--code", "mine_views"]) == 0
    forget()
    assert main([str(file), "--folder", "run"]) == 0  # the user's words again
    # words that only the report puts together are held to the same
    forget()
    config = Path("run/config.toml")
    config.write_text(config.read_text().replace('module = "mine_views"', 'module = "other_views"'))
    assert main(["report", "run", "--study", str(file), "--code", "mine_views"]) == 1
    assert "names code of the module 'other_views'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "place", ["log.txt", ".report.lock", "results.csv", "report.html", "about.json"]
)
def test_a_report_writes_nothing_through_a_link(shelf, place, capsys):
    assert main(["good", "--folder", "run"]) == 0
    victim, link = Path("victim"), Path("run", place)
    victim.write_text(link.read_text())
    before = victim.read_text()
    link.unlink()
    link.symlink_to(victim.resolve())
    refused = place in ("log.txt", ".report.lock")
    assert main(["report", "run"]) == refused
    assert (
        "it is a link, and nothing is written through one" in capsys.readouterr().err
    ) == refused
    assert victim.read_text() == before


@pytest.mark.parametrize("place", ["cells", "cells/i=0", "cells/i=0/.lock"])
def test_a_cell_writes_nothing_through_a_link(shelf, place, capsys):
    assert main(["good", "--folder", "run"]) == 0
    [cell] = Path("run/cells").iterdir()
    link = Path("run", place.replace("i=0", cell.name))
    victim = Path("victim")
    if link.name == ".lock":
        shutil.move(cell / "rows.csv", "rows.csv")
        victim.write_text("precious")
        link.unlink()
    else:
        victim.mkdir()
        shutil.rmtree(link)
    link.symlink_to(victim.resolve())
    assert main(["--resume", "run"]) == 1
    assert "it is a link, and nothing is written through one" in capsys.readouterr().err
    assert victim.read_text() == "precious" if victim.is_file() else not any(victim.iterdir())
