"""A run folder belongs to one recipe: also of two that come together, and after a crash or a
removal in between.
"""

import os
import shutil
import threading
from dataclasses import replace

import pytest

from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe, claim, fit, rows
from marginlab.train.claim import claimed

RECIPE = Recipe(
    images=32,
    image_size=16,
    augmentation="Augmentation('e')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="SimCLR(hidden=16, dim=16)",
    epochs=2,
    batch=16,
    optimizer="SGD(lr=0.05)",
)
OTHER = replace(RECIPE, seed=1)


def _names(folder):
    return sorted(file.name for file in folder.iterdir())


class Nothing(Monitor):
    def __call__(self, *arguments, **named):
        return []


def test_of_two_recipes_on_one_new_folder_one_is_accepted(tmp_path):
    for turn in range(200):
        folder, begin = tmp_path / str(turn), threading.Barrier(2)
        accepted = []

        def take(recipe, folder=folder, begin=begin, accepted=accepted):
            begin.wait()
            try:
                with claimed(recipe, Monitor(), "images\n", folder):
                    accepted.append(recipe.seed)
            except SettingsError:
                return

        takers = [threading.Thread(target=take, args=(recipe,)) for recipe in (RECIPE, OTHER)]
        for taker in takers:
            taker.start()
        for taker in takers:
            taker.join()
        assert len(accepted) == 1
        assert f"seed = {accepted[0]}" in (folder / "recipe.toml").read_text()
        assert _names(folder) == [".lock", "images.txt", "monitor.toml", "recipe.toml"]


def test_another_recipe_that_comes_between_the_look_and_the_lock_is_seen(tmp_path, monkeypatch):
    refuse, looks = claim._refuse, []

    def late(recipe, monitor, images, folder):
        refuse(recipe, monitor, images, folder)
        looks.append(1)
        if len(looks) == 1:
            with claimed(OTHER, monitor, images, folder):
                pass

    monkeypatch.setattr(claim, "_refuse", late)
    with (
        pytest.raises(SettingsError, match=r"holds a run with seed = 1, not 0"),
        claimed(RECIPE, Monitor(), "images\n", tmp_path / "run"),
    ):
        pass


def test_a_folder_of_something_else_stays_as_it_was(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with (
        pytest.raises(SettingsError, match="is not empty and holds no run"),
        claimed(RECIPE, Monitor(), "images\n", tmp_path),
    ):
        pass
    assert _names(tmp_path) == ["letter.txt"]


def test_empty_files_of_a_crash_are_written_again(tmp_path):
    for name in ("recipe.toml", "monitor.toml", "images.txt", ".partial", ".lock"):
        (tmp_path / name).touch()
    with claimed(RECIPE, Monitor(), "images\n", tmp_path):
        pass
    with (
        pytest.raises(SettingsError, match="other images"),
        claimed(RECIPE, Monitor(), "others\n", tmp_path),
    ):
        pass


def test_a_folder_that_cannot_be_filled_keeps_nothing_half(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with (
            pytest.raises(OSError, match="No space left"),
            claimed(RECIPE, Monitor(), "images\n", tmp_path / "run"),
        ):
            pass
    assert _names(tmp_path / "run") == [".lock"]
    with claimed(RECIPE, Monitor(), "images\n", tmp_path / "run"):
        pass


# of TensorBoard's writer, whose file is gone
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("again", [False, True], ids=["removed", "replaced"])
def test_a_folder_that_is_removed_during_the_run_is_told_of(tmp_path, monkeypatch, again):
    """Otherwise checkpoints would go into a folder of the same name that holds no recipe."""
    folder, steps = tmp_path / "run", []

    class Removing(Nothing):
        def __call__(self, *arguments, **named):
            steps.append(1)
            if len(steps) == 2:
                shutil.rmtree(folder)
                if again:
                    folder.mkdir()
            return []

    with pytest.raises(
        OSError, match=r"run was removed while the run trained in it.*The same command begins again"
    ):
        fit(RECIPE, folder, Removing(every=1), say=lambda line: None)
    assert not (folder / "checkpoints").exists()
    fit(RECIPE, folder, Nothing(every=1), say=lambda line: None)
    assert (folder / "recipe.toml").is_file()


def test_a_folder_in_whose_place_another_one_stands_is_not_written_in(tmp_path):
    folder, away = tmp_path / "run", tmp_path / "away"
    with claimed(RECIPE, Nothing(), "", folder):
        claim.still_there(folder)
        folder.rename(away)
        shutil.copytree(away, folder)
        with pytest.raises(FileNotFoundError, match=r"run was replaced by another folder while"):
            claim.still_there(folder)
        shutil.rmtree(folder)
        away.rename(folder)
        claim.still_there(folder)


def test_a_folder_whose_name_is_no_utf_8_is_refused_before_it_is_made(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9") / "run"
    with pytest.raises(SettingsError, match=r"is no text in UTF-8.*Choose another folder"):
        fit(RECIPE, folder, Nothing(), say=lambda line: None)
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    ("refused", "error", "remedy"),
    [
        (
            {"method": "MoCo(queue=16, splits=16, dim=16)"},
            "Give at least 32",
            {"method": "MoCo(queue=16, splits=2, dim=16)"},
        ),
        (
            {"optimizer": "SGD(lr=1e30)", "schedule": "Constant()", "epochs": 3},
            "no checkpoint was written",
            {},
        ),
    ],
    ids=["refused by the first batch", "no finite numbers in the first epoch"],
)
def test_a_folder_of_a_run_that_kept_nothing_is_given_back(tmp_path, refused, error, remedy):
    """So the remedy that the message names does not meet `holds a run with ...`."""
    monitor = Nothing(every=3)
    recipe = replace(RECIPE, images=64, **refused)
    with pytest.raises((ValueError, FloatingPointError), match=error):
        fit(recipe, tmp_path / "run", monitor, say=lambda line: None)
    assert _names(tmp_path / "run") == [".lock"]
    fit(replace(RECIPE, **remedy), tmp_path / "run", monitor, say=lambda line: None)


def test_a_measure_that_refuses_the_data_does_not_keep_the_folder(tmp_path):
    class Refusing(Nothing):
        def __call__(self, *arguments, **named):
            raise SettingsError("These images are too few to measure.")

    with pytest.raises(SettingsError, match="too few to measure"):
        fit(RECIPE, tmp_path / "run", Refusing(), say=lambda line: None)
    assert _names(tmp_path / "run") == [".lock"]


def test_nothing_else_is_given_back(tmp_path):
    """Files that a run kept, that were there before, and that somebody put there stay."""

    def fail(folder, prepare=lambda folder: None):
        def work():
            with claimed(RECIPE, Monitor(), "images\n", folder):
                prepare(folder)
                raise KeyError

        with pytest.raises(KeyError):
            work()
        return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {
            ".lock"
        }

    def keep(folder):
        (folder / "checkpoints" / "step-00000002").mkdir(parents=True)
        (folder / "checkpoints" / "step-00000002" / "progress.json").touch()

    def write(folder):
        (folder / "checkpoints" / "step-00000002.partial").mkdir(parents=True)
        (folder / "checkpoints" / "step-00000002.partial" / "progress.json").touch()
        (folder / "tensorboard").mkdir()
        (folder / "tensorboard" / "events.out.tfevents.1").touch()
        (folder / "tensorboard" / "mine.txt").touch()

    def replaced(folder):
        shutil.rmtree(folder)
        with claimed(OTHER, Monitor(), "images\n", folder):
            pass

    whole = {"recipe.toml", "monitor.toml", "images.txt"}
    assert fail(tmp_path / "kept", keep) == whole | {"checkpoints/step-00000002/progress.json"}
    assert fail(tmp_path / "begun", write) == {"tensorboard/mine.txt"}
    with claimed(RECIPE, Monitor(), "images\n", tmp_path / "before"):  # as of a run that was killed
        pass
    assert fail(tmp_path / "before") == whole
    assert fail(tmp_path / "another's", replaced) == whole


@pytest.mark.parametrize(
    "name",
    [
        ".lock",
        ".partial",
        "machines.csv",
        "checkpoints",
        "checkpoints/step-1.partial",
        "tensorboard",
    ],
)
def test_a_link_in_a_run_folder_leads_nowhere(tmp_path, name):
    victim, folder = tmp_path / "victim", tmp_path / "run"
    with claimed(RECIPE, Monitor(), "images\n", folder):
        pass
    (folder / "monitor.toml").unlink()  # so that it is written again
    target = folder / name
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    if (target.suffix in (".partial", ".csv") and "step" not in name) or name == ".lock":
        victim.write_text("precious")
    else:
        victim.mkdir()
    target.symlink_to(victim)

    def attempt():
        with claimed(RECIPE, Monitor(), "images\n", folder):
            claim.record_machines(folder, 0, ["a"])

    if name == ".partial":  # of a killed process, as far as anybody knows
        attempt()
    else:
        with pytest.raises(OSError, match="it is a link, and nothing is written through one"):
            attempt()
    assert victim.read_text() == "precious" if victim.is_file() else not any(victim.iterdir())


def test_a_table_of_rows_is_not_written_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("precious")
    for name in ("monitor.csv", "monitor.partial"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    rows.write([rows.Row(1, "", "loss", "", 0.5)], tmp_path / "monitor.csv")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "monitor.csv").read_text().splitlines()[1] == "1,,loss,,0.5,nan,nan,0"
