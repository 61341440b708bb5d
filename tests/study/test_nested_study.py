"""A study of one's own whose settings hold a recipe and a monitor."""

from pathlib import Path

import pytest

from marginlab import settings
from marginlab.settings import SettingsError
from marginlab.study import load, open_run
from marginlab.study.__main__ import main
from marginlab.train import Monitor, Recipe

STUDY = '''"""Does the temperature change what is learned?"""
from dataclasses import dataclass
from functools import partial
import torch
from marginlab.methods import SimCLR
from marginlab.settings import replaced
from marginlab.train import Monitor, Recipe, load, once_trained, train_cell
@dataclass(frozen=True)
class Settings:
    temperatures: tuple[float, ...] = (0.1, 0.5)
    recipe: Recipe = Recipe(
        images=32, batch=16, epochs=1, augmentation="Augmentation('ae')",
        backbone="Backbone('resnet18', stem='strided', width=0.0625)",
    )
    monitor: Monitor = Monitor.none()
headline = ("norm",)
def cells(settings):
    return [{"temperature": t} for t in settings.temperatures]
def recipe_of(cell, settings):
    method = partial(SimCLR, temperature=cell["temperature"], hidden=8, dim=4)
    return replaced(settings.recipe, {"method": method})
def run(cell):
    trained = train_cell(cell, recipe_of(cell, cell.settings), cell.settings.monitor)
    gray = torch.full((1, 3, 32, 32), 0.5)
    cell.record("norm", float(load(trained.folder).encode(gray).detach().norm()))
def report(run):
    settings = run.settings
    found = [once_trained(run, recipe_of(c, settings), settings.monitor) for c in run.cells]
    run.report.table([{"rows": len(trained.rows)} for trained in found], "Rows of each training.")
'''


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "warm.py"
    file.write_text(STUDY)
    return file


def test_a_study_trains_from_the_recipe_and_the_monitor_that_it_holds(study, capsys):
    flags = ["--recipe.batch", "8", "--monitor.every", "3"]
    assert main([str(study), *flags, "--folder", "run"]) == 0
    run = open_run("run", study)
    assert len(run.select(quantity="norm")) == len(run.select(quantity="images_per_second")) == 2
    losses = run.select(quantity="loss")
    assert [row["epoch"] for row in losses] == [1, 1]
    assert len({row["value"] for row in losses}) == 2  # each cell has its own training
    assert "Rows of each training" in Path("run/report.html").read_text()
    assert len(list(Path("run/once").iterdir())) == 2  # the report trained nothing anew
    assert run.settings.recipe.batch == 8
    assert run.settings.monitor == settings.replaced(Monitor.none(), {"every": 3})
    assert isinstance(run.settings.recipe, Recipe)
    kind = load(study).module.Settings
    assert settings.read(kind, Path("run/config.toml")) == run.settings
    assert "\n[recipe]\n" in Path("run/config.toml").read_text()
    for folder in (kept.parent for kept in Path("run/once").glob("*/once.json")):
        recipe = settings.read(Recipe, folder / "run" / "recipe.toml")
        assert recipe.batch == 8
        assert recipe.method.startswith("SimCLR(temperature=0.")
    assert "<code>recipe.batch</code></td><td><code>8</code>" in Path("run/report.html").read_text()
    assert main(["keep", "run", "kept.csv", "--study", str(study)]) == 0
    assert "recipe.batch = 8; " in Path("kept.csv").read_text()
    # the same command finds its run finished; another batch is another run
    before = Path("run/results.csv").read_bytes()
    assert main([str(study), *flags, "--folder", "run"]) == 0
    assert Path("run/results.csv").read_bytes() == before
    capsys.readouterr()
    assert main([str(study), "--recipe.batch", "4", "--folder", "run"]) == 2
    assert "recipe.batch is 8 there and 4" in capsys.readouterr().err


def test_a_preset_has_tables(study, capsys):
    Path("presets").mkdir()
    Path("presets/small.toml").write_text("[recipe]\nbatch = 4\n")
    assert load(study).settings("small").recipe.batch == 4
    Path("presets/wrong.toml").write_text("[recipe]\nbacth = 4\n")
    with pytest.raises(SettingsError, match=r"no setting 'recipe\.bacth': did you mean 'batch'"):
        load(study).settings("wrong")
    assert main([str(study), "--preset", "wrong"]) == 2
    assert "recipe.bacth" in capsys.readouterr().err


def test_code_that_a_table_of_a_run_folder_names_is_not_imported(study):
    assert main([str(study), "--temperatures", "0.5", "--folder", "run"]) == 0
    config = Path("run/config.toml")
    text = config.read_text()
    line = next(line for line in text.splitlines() if line.startswith("method = "))
    config.write_text(text.replace(line, 'method = "no_such_room:Mine()"'))
    with pytest.raises(SettingsError, match="names code of the module 'no_such_room'"):
        open_run("run", study)
