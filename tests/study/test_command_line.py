"""The command line: what it finds, what it refuses before any work, what it shows."""

import gzip
import re
import sys
from pathlib import Path

import pytest

import marginlab
from marginlab.study import definition
from marginlab.study.__main__ import main

STUDY = '''"""{title}

More about it.
"""
from dataclasses import dataclass
@dataclass(frozen=True)
class Settings:
    """Settings of the counting."""
    n: int = 2
    """how many cells"""
    letters: tuple[str, ...] = ("a",)
    rate: float = 0.5
def cells(settings):
    if settings.n < 1:
        raise ValueError(f"n is at least 1, not {{settings.n}}.")
    return [{{"letter": letter, "i": i}} for letter in settings.letters for i in range(settings.n)]
def run(cell):
    cell.record("rate", cell.settings.rate)
'''


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A shelf with a study and its presets, and a broken one."""
    monkeypatch.chdir(tmp_path)
    shelf = tmp_path / "studies"
    for name in ("counting", "broken"):
        (shelf / name / "presets").mkdir(parents=True)
    (shelf / "counting" / "study.py").write_text(STUDY.format(title="How many cells are counted?"))
    (shelf / "counting" / "presets" / "large.toml").write_text("n = 5\nrate = 2.5\n")
    (shelf / "counting" / "presets" / "default.toml").write_text("n = 1\n")
    (shelf / "broken" / "study.py").write_text('"""Broken?"""\ndef run(:\n')
    monkeypatch.setattr(definition, "shelf", lambda: shelf)
    return shelf


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a refusal."""
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert not Path("runs").exists()
    return errors


def test_list_imports_no_study(shelf, capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"counting\n +How many cells are counted\?\n +presets: default, large", printed
    )
    assert re.search(r"broken\n +cannot be read: SyntaxError", printed)
    assert not any("counting" in name for name in sys.modules)


def test_what_comes_with_the_package_is_found():
    assert definition.shelf() == Path(marginlab.__file__).parent.parent / "studies"


def test_unknown_names_are_answered_with_the_nearest(shelf, capsys):
    assert "did you mean 'counting'?" in refused(["countin"], capsys)
    assert "did you mean 'large'?" in refused(["counting", "--preset", "lage"], capsys)
    assert "There is no study './absent'" in refused(["./absent"], capsys)
    assert "Its name comes first" in refused(["--n", "2"], capsys)
    assert "cannot be imported: SyntaxError" in refused(["broken"], capsys)
    with pytest.raises(SystemExit) as stop:
        main(["counting", "--lettres", "a"])
    assert stop.value.code == 2
    assert "--letters" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_bad_settings_are_refused_before_any_work(shelf, capsys):
    assert "n is at least 1, not 0." in refused(["counting", "--n", "0"], capsys)
    (shelf / "counting" / "presets" / "large.toml").write_text("m = 5\n")
    assert "has no setting 'm'" in refused(["counting", "--preset", "large"], capsys)
    for cells, words in {
        "[]": "without cells",
        "[{'a': 1}, {'b': 1}]": "the same columns",
        "[{'a': True}]": "a text or a number, not True",
        "[{'at': 1}]": "no column of a cell is called 'at'",
        "[{'a': 1}, {'a': 1}]": "are alike",
    }.items():
        own = shelf / f"own{abs(hash(cells))}.py"
        own.write_text(STUDY.format(title="Own") + f"def cells(settings):\n    return {cells}\n")
        assert words in refused([str(own)], capsys)
    own.write_text("x = 1\n")
    other = own.with_name("other.py")
    other.write_text("x = 1\n")
    assert "no Settings and no cells and no run" in refused([str(other)], capsys)


def test_settings_come_from_defaults_presets_and_flags(shelf, capsys):
    assert main(["counting", "--folder", "preset"]) == 0  # the default preset
    assert Path("preset/config.toml").read_text() == 'n = 1\nletters = ["a"]\nrate = 0.5\n'
    assert (
        main(
            [
                "counting",
                "--preset",
                "large",
                "--letters",
                "x",
                "list",
                "--folder",
                "both",
                "--n",
                "2",
            ]
        )
        == 0
    )
    assert Path("both/config.toml").read_text() == 'n = 2\nletters = ["x", "list"]\nrate = 2.5\n'
    assert Path("both/results.csv").read_text().count("\n") == 5


def test_the_run_folder_is_named_by_the_settings(shelf):
    for arguments in (["--n", "2"], ["--n", "2", "--rate", "0.5"], ["--n", "3"]):
        assert main(["counting", *arguments]) == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_help_at_both_levels(shelf, capsys):
    assert main(["--help"]) == 0
    assert "--resume RUN" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["counting", "--help", "--preset", "large"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for words in ("More about it.", "default, large", "how many cells", "(default: 5)", "--rate"):
        assert words in printed


def test_two_studies_of_one_name_do_not_meet(shelf):
    one, two = shelf / "counting" / "study.py", shelf.parent / "counting" / "study.py"
    two.parent.mkdir()
    two.write_text(STUDY.format(title="Another") + "from . import helper\n")
    (two.parent / "helper.py").write_text("value = 3\n")
    first, second = definition.load(one), definition.load(two)
    assert first.module.__name__ != second.module.__name__
    assert second.module.helper.value == 3
    assert first.module.Settings is not second.module.Settings


def test_keep_writes_the_headline_and_where_it_comes_from(shelf, tmp_path, capsys):
    study = shelf / "counting" / "study.py"
    study.write_text(study.read_text() + '    cell.record("other", 1.0)\nheadline = ("rate",)\n')
    assert main(["counting", "--n", "2", "--folder", "run"]) == 0
    capsys.readouterr()
    assert main(["keep", "run", "kept/rates.csv"]) == 0
    assert "2 rows" in capsys.readouterr().out
    comments = [
        line for line in Path("kept/rates.csv").read_text().splitlines() if line.startswith("#")
    ]
    assert comments[0] == "# command: python -m marginlab.study counting --n 2 --folder run"
    assert [line.split(":")[0] for line in comments] == [
        "# command",
        "# measured",
        "# device",
        "# versions",
        "# seconds",
        "# settings",
    ]
    assert "torch" in comments[3]
    assert 'letters = ["a"]' in comments[5]
    table = Path("kept/rates.csv").read_text().splitlines()[len(comments) :]
    assert table == [
        "letter,i,epoch,space,quantity,at,value,low,high,n",
        "a,0,-1,,rate,,0.5,nan,nan,0",
        "a,1,-1,,rate,,0.5,nan,nan,0",
    ]
    for arguments, sentence in (
        (["run"], "keep RUN FILE.csv"),
        (["run", "rates.txt"], "is a .csv or .csv.gz file"),
        (["nothing", "a.csv"], "nothing"),
    ):
        assert main(["keep", *arguments]) == 2
        assert sentence in capsys.readouterr().err
    for name in ("rates.csv.gz", "again.csv.gz"):
        assert main(["keep", "run", name]) == 0
    assert Path("rates.csv.gz").read_bytes() == Path("again.csv.gz").read_bytes()
    assert gzip.decompress(Path("rates.csv.gz").read_bytes()) == Path("kept/rates.csv").read_bytes()
    next(Path("run/cells").glob("*/rows.csv")).unlink()
    assert main(["keep", "run", "a.csv"]) == 2
    assert "1 of 2 cells" in capsys.readouterr().err
    assert not Path("a.csv").exists()


def test_a_folder_of_ones_own_runs_by_its_path(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "study.py").write_text(STUDY.format(title="Mine?"))
    monkeypatch.chdir(tmp_path)
    assert main(["./mine", "--n", "1", "--folder", "run"]) == 0
    capsys.readouterr()
