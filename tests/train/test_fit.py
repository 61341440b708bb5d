"""Training: it learns, gives the same twice, and is read back, also as a command."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from small_training import CHILD, NARROW, SMALL, WATCH, quiet, weights

import marginlab
from marginlab import settings
from marginlab.methods import MarginClassifier
from marginlab.train import Monitor, Recipe, fit, load


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(SMALL, tmp_path_factory.mktemp("whole") / "run", WATCH, say=quiet)


SHAPE = (
    "alignment",
    "R_epsilon/0.5",
    "divergence_max",
    "divergence_mean",
    "center_norm_min",
    "delta_mu",
)


def test_a_run_measures_what_the_monitor_promises(whole):
    named = {(row.epoch, row.tag): row for row in whole.rows}
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


def test_a_recipe_reads_back_from_its_file(tmp_path):
    (tmp_path / "r.toml").write_text(settings.to_toml(SMALL))
    assert settings.read(Recipe, tmp_path / "r.toml") == SMALL


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bfloat16", "backbone": NARROW},
        {"accumulate": 2},
        {"method": "BarlowTwins(hidden=32, dim=32)", "optimizer": "SGD(lr=0.01)"},
    ],
    ids=["plain", "bfloat16", "accumulation", "barlow"],
)
def test_every_way_to_train_learns(tmp_path, changes):
    run = fit(
        replace(SMALL, image_size=0, images=128, epochs=12, **changes),
        tmp_path / "run",
        Monitor(every=12, images=20, views=2, bank=20),
        say=quiet,
    )
    losses = [row.value for row in run.rows if row.quantity == "loss"]
    assert len(losses) == 12
    assert sum(losses[-4:]) < 0.99 * sum(losses[:4])


def test_a_compiled_run_is_close_to_an_eager_one(whole, tmp_path):
    # Without the run-time checks of these tests, which compilers do not trace, in a process of its
    # own. The whole step is traced and differentiated as in a real run; generating C++ for it would
    # take a minute more.
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(settings.to_toml(replace(SMALL, compile=True, epochs=1)))
    child = (
        "import functools, torch; torch.compile = functools.partial(torch.compile, "
        f"backend='aot_eager')\n{CHILD}"
    )
    command = [sys.executable, "-c", child, str(recipe), str(tmp_path / "run")]
    done = forked.run(command, cwd=tmp_path, env=dict(os.environ), timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "run" / "monitor.csv").open() as file:
        rows = list(csv.DictReader(file))
    eager = next(row.value for row in whole.rows if row.quantity == "loss")
    assert float(next(row["value"] for row in rows if row["quantity"] == "loss")) == pytest.approx(
        eager, rel=0.05
    )


def test_the_command_trains_says_what_it_did_and_refuses_with_a_sentence(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(settings.to_toml(replace(SMALL, epochs=1)))
    command = [
        sys.executable,
        "-m",
        "marginlab.train",
        str(recipe),
        "--folder",
        str(tmp_path / "run"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = forked.run(command, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "backbone   knn_error" in done.stdout
    assert "Kept in" in done.stdout
    wrong = forked.run([*command, "--batch", "32000"], cwd=tmp_path, env=environment, timeout=120)
    assert wrong.returncode == 2
    assert "Take batch <=" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_two_processes_train_the_same_run_by_torchrun(tmp_path):
    """Start torchrun and its ranks as a user does, each a new Python; other tests fork them."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(settings.to_toml(replace(SMALL, data="digits", images=32, epochs=1)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "marginlab.train",
        str(recipe),
    ]
    folder = tmp_path / "run"
    home = str(Path(marginlab.__file__).parent.parent)
    done = subprocess.run(
        [*command, "--folder", str(folder), "--measure", repr(WATCH)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": home},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert load(folder).encode(torch.rand(2, 3, 32, 32)).shape == (2, 64)
    assert done.stdout.count("backbone   knn_error") == 1


def test_the_loss_of_a_margin_classifier_is_that_of_the_batch_however_it_is_cut(
    tmp_path, monkeypatch
):
    embed = MarginClassifier.embed

    def without_statistics(self, views):  # batch normalisation would see micro-batches
        self.head.eval()
        return embed(self, views)

    monkeypatch.setattr(MarginClassifier, "embed", without_statistics)
    method = "MarginClassifier(margin='CosFace(0.2)', scale=8.0, dim=8, sample_rate=0.5)"
    backbone = "Backbone('resnet18', stem='strided', width=0.125, norm='group')"
    one = replace(
        SMALL,
        method=method,
        backbone=backbone,
        augmentation="Augmentation('e')",
        epochs=2,
        images=64,
    )
    runs = [fit(replace(one, accumulate=n), tmp_path / str(n), WATCH, say=quiet) for n in (1, 4)]
    losses = [[row.value for row in run.rows if row.quantity == "loss"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    torch.testing.assert_close(
        weights(runs[0].method), weights(runs[1].method), rtol=1e-3, atol=1e-4
    )
