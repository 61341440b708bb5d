"""Training: it learns, resumes bit for bit after being killed anywhere, and refuses what cannot be trained before it starts."""

import csv
import fcntl
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from marginlab import settings
from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe, fit, load
from marginlab.train.checkpoint import latest

SMALL = Recipe(
    images=96, augmentation="Augmentation('ade')", backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="SimCLR(hidden=32, dim=16)", epochs=3, batch=32, optimizer="SGD(lr=0.05)",
)  # fmt: skip
WATCH = Monitor(every=1, images=40, views=3, bank=60)


def quiet(line: str) -> None:
    """Where progress goes in tests."""


def weights(method):
    return torch.cat([value.double().flatten() for value in method.state_dict().values()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(SMALL, tmp_path_factory.mktemp("whole") / "run", WATCH, say=quiet)


SHAPE = ("alignment", "R_epsilon[0.5]", "divergence_max", "divergence_mean", "center_norm_min", "delta_mu")


def test_a_run_measures_what_the_monitor_promises(whole):
    named = {(row.epoch, row.name): row for row in whole.rows}
    for epoch in (0, 1, 2, 3):
        for space in ("backbone", "projector"):
            for quantity in (*SHAPE, "knn_error", "nearest_center_error"):
                assert (epoch, f"{quantity}/{space}") in named
        assert ((epoch, "linear_error/backbone") in named) == (epoch in (0, 3))
        assert ((epoch, "loss") in named) == (epoch > 0)
    for (_, name), row in named.items():
        if "error" in name or "R_epsilon" in name:
            assert 0 <= row.low <= row.value <= row.high <= 1
    assert (whole.folder / "monitor.csv").read_text().count("\n") == len(whole.rows) + 1
    assert any((whole.folder / "tensorboard").iterdir())


def test_two_runs_are_equal_bit_for_bit(whole, tmp_path):
    again = fit(SMALL, tmp_path / "run", WATCH, say=quiet)
    assert torch.equal(weights(whole.method), weights(again.method))
    np.testing.assert_equal(again.rows, whole.rows)


def test_a_finished_run_is_read_not_trained(whole):
    told = []
    again = fit(SMALL, whole.folder, WATCH, say=told.append)
    assert told == []
    assert torch.equal(weights(again.method), weights(whole.method))
    np.testing.assert_equal(again.rows, whole.rows)


def test_load_gives_the_method_back(whole):
    method = load(whole.folder)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(method.encode(images), whole.method.encode(images))
    assert not method.training
    assert repr(method) == "SimCLR(temperature=0.5, hidden=32, dim=16)"
    checkpoint = next((whole.folder / "checkpoints").iterdir())
    assert torch.equal(weights(load(checkpoint)), weights(method))
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        load(whole.folder / "tensorboard")


class Stop(Exception):
    pass


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_run_that_dies_in_the_monitor_ends_as_one_that_did_not(whole, tmp_path, epoch):
    class Dying(Monitor):
        def __call__(self, method, augmentation, train, test, at, *, last):
            if at == epoch:
                raise Stop
            return super().__call__(method, augmentation, train, test, at, last=last)

    with pytest.raises(Stop):
        fit(SMALL, tmp_path / "run", Dying(**vars(WATCH)), say=quiet)
    resumed = fit(SMALL, tmp_path / "run", WATCH, say=quiet)
    assert torch.equal(weights(resumed.method), weights(whole.method))
    np.testing.assert_equal(resumed.rows, whole.rows)


CHILD = """
import sys, torch
torch.set_num_threads(1)
from marginlab import settings
from marginlab.train import Monitor, Recipe, fit
fit(settings.read(Recipe, sys.argv[1]), sys.argv[2], Monitor(every=1, images=40, views=3, bank=60), say=lambda line: None)
"""


@pytest.mark.parametrize("moment", [0.0, 0.15, 0.5])
def test_a_run_killed_at_any_moment_ends_bit_for_bit_as_one_that_was_not(whole, tmp_path, moment):
    recipe, folder = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(settings.to_toml(SMALL))
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(recipe), str(folder)])
    deadline = time.monotonic() + 60
    while not list(folder.glob("checkpoints/*")) and time.monotonic() < deadline:  # also one that is just being written
        time.sleep(0.005)
    assert child.poll() is None, "the child ended before it could be killed"
    time.sleep(moment)
    child.kill()
    child.wait()
    assert list(folder.glob("checkpoints/*"))
    resumed = fit(SMALL, folder, WATCH, say=quiet)
    assert torch.equal(weights(resumed.method), weights(whole.method))
    np.testing.assert_equal(resumed.rows, whole.rows)


def test_a_long_epoch_is_saved_inside_and_gone_on_with(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(sys.modules["marginlab.train.fit"], "SAVE_EVERY", 2)  # steps 2, 4, 8 lie inside epochs of 3

    class Dying(Monitor):
        def __call__(self, method, augmentation, train, test, at, *, last):
            if at == 2:
                raise Stop
            return super().__call__(method, augmentation, train, test, at, last=last)

    with pytest.raises(Stop):
        fit(SMALL, tmp_path / "run", Dying(**vars(WATCH)), say=quiet)
    assert latest(tmp_path / "run").name == "step-00000004"
    resumed = fit(SMALL, tmp_path / "run", WATCH, say=quiet)
    assert torch.equal(weights(resumed.method), weights(whole.method))
    np.testing.assert_equal(resumed.rows, whole.rows)


def test_a_folder_is_of_one_monitor_one_set_of_images_and_one_process(tmp_path):
    data = {"images": torch.randint(0, 256, (60, 8, 8, 3), dtype=torch.uint8).numpy(), "labels": torch.arange(60).numpy() % 2}
    np.savez(tmp_path / "own.npz", **data)
    recipe = replace(SMALL, data=f"npz:{tmp_path / 'own.npz'}", images=0, batch=16, epochs=1)
    short = Monitor(images=20, views=2, bank=20)
    fit(recipe, tmp_path / "run", short, say=quiet)
    with pytest.raises(SettingsError, match="is measured with views = 2, not 3"):
        fit(recipe, tmp_path / "run", replace(short, views=3), say=quiet)
    with (tmp_path / "run" / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="Another process trains in"):
            fit(recipe, tmp_path / "run", short, say=quiet)
    np.savez(tmp_path / "own.npz", **{**data, "images": 255 - data["images"]})
    with pytest.raises(SettingsError, match="on other images"):
        fit(recipe, tmp_path / "run", short, say=quiet)


@pytest.mark.parametrize("wrong", [{"every": -1}, {"images": 1}, {"views": 1}, {"bank": 1}, {"bank": -1}])
def test_a_monitor_refuses_what_it_cannot_measure(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Monitor(**wrong)


def test_a_folder_of_another_recipe_is_refused(whole, tmp_path):
    with pytest.raises(SettingsError, match=r"holds a run with epochs = 3, not 4\. Choose another folder"):
        fit(replace(SMALL, epochs=4), whole.folder, say=quiet)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SettingsError, match="is not empty and holds no run"):
        fit(SMALL, tmp_path, say=quiet)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"batch": 97}, SettingsError, r"batch of 97 is more than the 96 training images of shapes\. Take batch <= 96"),
        ({"data": "shape"}, ValueError, "did you mean 'shapes'"),
        ({"backbone": "Backbone('resnt18')"}, SettingsError, "timm has no model 'resnt18'"),
        ({"backbone": "Projector((2, 3))"}, SettingsError, "is not a backbone"),
        ({"method": "SimCRL()"}, SettingsError, "did you mean 'SimCLR'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(tmp_path, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        fit(replace(SMALL, **changes), tmp_path / "run", say=quiet)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs is at least 1, not 0"),
        ({"batch": 10, "accumulate": 3}, "does not fall into 3 equal micro-batches"),
        ({"precision": "float16"}, "did you mean 'bfloat16'"),
        ({"augmentation": "Augmentation('az')"}, "z"),
        ({"augmentation": "HorizontalFlip()"}, "one operation"),
        ({"optimizer": "WarmupCosine()"}, "is a schedule"),
        ({"schedule": "SGD()"}, "is an optimizer"),
        ({"optimizer": "SGD(lr=-1)"}, "lr > 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(SettingsError, match=sentence):
        replace(SMALL, **changes)


def test_a_recipe_reads_back_from_its_file(tmp_path):
    (tmp_path / "r.toml").write_text(settings.to_toml(SMALL))
    assert settings.read(Recipe, tmp_path / "r.toml") == SMALL


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    wild = replace(SMALL, optimizer="SGD(lr=1e30)", schedule="Constant()", method="BarlowTwins(hidden=16, dim=16)")
    with pytest.raises(FloatingPointError, match=r"Step \d+ of \d+, rank 0: the first number that is not finite is in"):
        fit(wild, tmp_path / "run", Monitor(images=20, views=2, bank=20), say=quiet)


@pytest.mark.parametrize(
    "changes",
    [{}, {"precision": "bfloat16"}, {"accumulate": 2}, {"method": "BarlowTwins(hidden=32, dim=32)", "optimizer": "SGD(lr=0.01)"}],
    ids=["plain", "bfloat16", "accumulation", "barlow"],
)
def test_every_way_to_train_learns(tmp_path, changes):
    run = fit(replace(SMALL, images=256, epochs=12, **changes), tmp_path / "run", Monitor(every=12, images=20, views=2, bank=20), say=quiet)
    losses = [row.value for row in run.rows if row.name == "loss"]
    assert len(losses) == 12
    assert sum(losses[-4:]) < 0.99 * sum(losses[:4])


def test_a_compiled_run_is_close_to_an_eager_one(whole, tmp_path):
    # Without the run-time checks of these tests, which compilers do not trace, in a process of its own. The whole step is traced and
    # differentiated as in a real run; generating C++ for it would take a minute more.
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(settings.to_toml(replace(SMALL, compile=True, epochs=1)))
    child = f"import functools, torch; torch.compile = functools.partial(torch.compile, backend='aot_eager')\n{CHILD}"
    subprocess.run([sys.executable, "-c", child, str(recipe), str(tmp_path / "run")], check=True, timeout=120)
    with (tmp_path / "run" / "monitor.csv").open() as file:
        rows = list(csv.DictReader(file))
    eager = next(row.value for row in whole.rows if row.name == "loss")
    assert float(next(row["value"] for row in rows if row["name"] == "loss")) == pytest.approx(eager, rel=0.05)


def test_the_command_trains_says_what_it_did_and_refuses_with_a_sentence(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(settings.to_toml(replace(SMALL, epochs=1)))
    command = [sys.executable, "-m", "marginlab.train", str(recipe), "--folder", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "knn_error/backbone" in done.stdout
    assert "Kept in" in done.stdout
    wrong = subprocess.run([*command, "--batch", "32000"], capture_output=True, text=True, env=environment, timeout=120)
    assert wrong.returncode == 2
    assert "Take batch <=" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_two_processes_train_the_same_run_by_torchrun(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(settings.to_toml(replace(SMALL, epochs=1)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "marginlab.train", str(recipe)]
    folder = Path(tmp_path / "run")
    done = subprocess.run([*command, "--folder", str(folder)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200)
    assert done.returncode == 0, done.stderr
    assert load(folder).encode(torch.rand(2, 3, 32, 32)).shape == (2, 64)
    assert done.stdout.count("knn_error/backbone") == 1
