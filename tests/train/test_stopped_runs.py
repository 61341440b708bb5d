"""Runs that died, or were killed, anywhere: they end bit for bit as one that was not."""

import os
import shutil
import signal
import sys
import time
from dataclasses import replace

import forked
import numpy as np
import pytest
import torch
from small_training import CHILD, SMALL, WATCH, Stop, dying, quiet, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from marginlab import settings
from marginlab.train import Monitor, fit
from marginlab.train.checkpoint import latest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(SMALL, tmp_path_factory.mktemp("whole") / "run", WATCH, say=quiet)


@pytest.mark.parametrize(
    "epoch",
    [pytest.param(0, marks=pytest.mark.nightly), 1, pytest.param(2, marks=pytest.mark.nightly)],
)
def test_a_run_that_dies_in_the_monitor_ends_as_one_that_did_not(whole, tmp_path, epoch):
    with pytest.raises(Stop):
        fit(SMALL, tmp_path / "run", dying(epoch), say=quiet)
    resumed = fit(SMALL, tmp_path / "run", WATCH, say=quiet)
    assert torch.equal(weights(resumed.method), weights(whole.method))
    np.testing.assert_equal(resumed.rows, whole.rows)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(0.0, marks=pytest.mark.nightly),
        0.15,
        pytest.param(0.5, marks=pytest.mark.nightly),
    ],
)
def test_a_run_killed_at_any_moment_ends_bit_for_bit_as_one_that_was_not(whole, tmp_path, moment):
    recipe, folder = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(settings.to_toml(SMALL))
    command = [sys.executable, "-c", CHILD, str(recipe), str(folder)]
    child = forked.Child(command, cwd=tmp_path, env=dict(os.environ))
    deadline = time.monotonic() + 200
    # also one that is just being written
    while not list(folder.glob("checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(moment)
    os.kill(child.pid, signal.SIGKILL)
    killed = child.wait(60).returncode == -signal.SIGKILL
    assert killed, "the child ended before it could be killed"
    assert list(folder.glob("checkpoints/*"))
    resumed = fit(SMALL, folder, WATCH, say=quiet)
    assert torch.equal(weights(resumed.method), weights(whole.method))
    np.testing.assert_equal(resumed.rows, whole.rows)


def test_a_long_epoch_is_saved_inside_and_gone_on_with(tmp_path, monkeypatch, whole):
    # steps 2, 4, 8 lie inside epochs of 3
    monkeypatch.setattr(sys.modules["marginlab.train.fit"], "SAVE_EVERY", 2)

    with pytest.raises(Stop):
        fit(SMALL, tmp_path / "run", dying(2), say=quiet)
    assert latest(tmp_path / "run").name == "step-00000004"
    resumed = fit(SMALL, tmp_path / "run", WATCH, say=quiet)
    assert torch.equal(weights(resumed.method), weights(whole.method))
    np.testing.assert_equal(resumed.rows, whole.rows)


def test_a_run_killed_while_it_took_its_folder_gets_what_is_missing(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    (folder / "monitor.toml").unlink()
    (folder / "images.txt").unlink()
    fit(SMALL, folder, WATCH, say=quiet)
    for name in ("monitor.toml", "images.txt"):
        assert (folder / name).read_text() == (whole.folder / name).read_text()


def test_tensorboard_shows_each_epoch_once_also_after_a_stop(whole, tmp_path):
    with pytest.raises(Stop):
        # the loss of epoch 2 is written there, and no checkpoint of it
        fit(SMALL, tmp_path / "run", dying(2), say=quiet)
    fit(SMALL, tmp_path / "run", WATCH, say=quiet)
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("loss")
    kept = [row for row in whole.rows if row.quantity == "loss"]
    assert [event.step for event in shown] == [1, 2, 3] == [row.epoch for row in kept]
    assert [event.value for event in shown] == pytest.approx([row.value for row in kept], rel=1e-6)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    wild = replace(
        SMALL,
        optimizer="SGD(lr=1e30)",
        schedule="Constant()",
        method="BarlowTwins(hidden=16, dim=16)",
    )
    with pytest.raises(
        FloatingPointError,
        match=r"Step \d+ of \d+, rank 0: the first number that is not finite is in",
    ):
        fit(wild, tmp_path / "run", Monitor(images=20, views=2, bank=20), say=quiet)
