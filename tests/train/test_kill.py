"""Broken off while a checkpoint is written, and killed, a run goes on from a whole checkpoint and
ends as one that nobody disturbed.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import forked
import pytest
import torch

from marginlab.train import Recipe, checkpoint, contents, fit
from marginlab.train.keeping import Keeper
from marginlab.train.monitor import Monitor

SCRIPT = Path(__file__).with_name("kill_trials.py")
RECIPE = Recipe(
    images=32,
    image_size=16,
    augmentation="Augmentation('ae')",
    backbone="Backbone('resnet18', stem='strided', width=0.125, norm='group')",
    method="MarginClassifier(margin='ArcFace(0.3)', scale=16.0, dim=8)",
    epochs=2,
    batch=16,
    optimizer="SGD(lr=0.05)",
)
WATCH = Monitor(images=20, views=2, bank=40)


class Killed(Exception):
    """In the place of SIGKILL: nothing that follows is done."""


def quiet(line):
    """Where progress goes in tests."""


def broken_off(monkeypatch, owner, name, place):
    """A function does nothing but end the run, when it is called for a certain place."""
    whole = getattr(owner, name)

    def part(*arguments, **keywords):
        where = Path(keywords.get("checkpoint_id") or arguments[0])
        if str(where).endswith(place) and (name != "rmtree" or where.exists()):
            raise Killed
        return whole(*arguments, **keywords)

    monkeypatch.setattr(owner, name, part)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return fit(RECIPE, tmp_path_factory.mktemp("undisturbed") / "run", WATCH, say=quiet)


SECOND = "step-00000004.partial"
CUTS = {  # where the second of two checkpoints is broken off, and which of them is kept
    "before its tensors": (checkpoint, "save_state", SECOND, 2),
    "before its recipe": (checkpoint, "put_text", f"{SECOND}/recipe.toml", 2),
    "before its progress": (checkpoint, "put_text", f"{SECOND}/progress.json", 2),
    "before its checksums": (contents, "put", f"{SECOND}/checksums.sha256", 2),
    "before it has its name": (Path, "rename", SECOND, 2),
    "before the first loses its name": (Path, "rename", "step-00000002", 4),
    "before the first is removed": (shutil, "rmtree", "step-00000002.partial", 4),
}


@pytest.mark.parametrize("cut", CUTS)
def test_broken_off_in_any_part_of_a_checkpoint_a_run_goes_on_from_a_whole_one(
    tmp_path, monkeypatch, undisturbed, cut
):
    *what, kept = CUTS[cut]
    with monkeypatch.context() as patch:
        broken_off(patch, *what)
        with pytest.raises(Killed):
            fit(RECIPE, tmp_path / "run", WATCH, say=quiet)
    assert checkpoint.latest(tmp_path / "run").name == f"step-{kept:08d}"
    again = fit(RECIPE, tmp_path / "run", WATCH, say=quiet)
    assert repr(again.rows) == repr(undisturbed.rows)
    for name, value in undisturbed.method.state_dict().items():
        assert torch.equal(value, again.method.state_dict()[name]), name
    whole = [
        path.name
        for path in (tmp_path / "run" / "checkpoints").iterdir()
        if path.suffix != ".partial"
    ]
    assert set(whole) - {"step-00000002"} == {"step-00000004"}


def test_a_step_that_is_kept_is_not_written_again(tmp_path, monkeypatch, undisturbed):
    """The signal to end, in the last step of an epoch, comes when that step has been kept: removing
    it first would leave nothing for a moment.
    """
    folder, method = undisturbed.folder, undisturbed.method
    keeper = Keeper(
        RECIPE, folder, method, method.optimizers(RECIPE.make_optimizer()), (), torch.device("cpu")
    )
    place = keeper.save(5, {})
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(checkpoint, "save_state", None)
    assert keeper.save(5, {}) == place == checkpoint.latest(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    "ranks", [["2"], pytest.param(["1", "2", "3"], marks=pytest.mark.nightly)], ids=len
)
def test_ranks_that_are_killed_end_as_if_they_had_not_been(tmp_path, ranks):
    """A trial of the script for each number of ranks; every other one aims at a checkpoint."""
    asked = "--kills 1 --seed 15 --start forked --trials".split()
    asked += [str(len(ranks)), "--ranks", *ranks, "--record", str(tmp_path / "said.json")]
    command = [sys.executable, str(SCRIPT), *asked]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = forked.run(command, cwd=tmp_path, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    trials = json.loads((tmp_path / "said.json").read_text())["trials"]
    assert [(trial["same"], trial["lost"]) for trial in trials] == [(True, False)] * len(ranks)
    aims = [kill["aim"] is not None for trial in trials for kill in trial["kills"]]
    assert aims == [True, False, True][: len(ranks)]


def test_the_recorded_trials_all_ended_alike():
    record = json.loads((SCRIPT.parent / "measured" / "kill_trials.json").read_text())
    assert len(record["trials"]) >= 20
    assert {trial["ranks"] for trial in record["trials"]} == {1, 2, 3}
    assert all(trial["same"] and not trial["lost"] for trial in record["trials"])
    kills = [kill for trial in record["trials"] for kill in trial["kills"]]
    assert sum(bool(kill["half_written"]) for kill in kills) >= len(kills) / 4
