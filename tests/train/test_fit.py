"""Training: it learns, resumes bit for bit after being killed anywhere, and refuses what cannot be
trained before it starts.
"""

import csv
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from marginlab import settings
from marginlab.data import load as load_images
from marginlab.methods import MarginClassifier
from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe, fit, load
from marginlab.train.checkpoint import latest, restore
from marginlab.train.fit import _Loop
from marginlab.train.images import check
from marginlab.train.keeping import start

SMALL = Recipe(
    images=96,
    image_size=16,
    augmentation="Augmentation('ade')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="SimCLR(hidden=32, dim=16)",
    epochs=3,
    batch=32,
    optimizer="SGD(lr=0.05)",
)
# for bfloat16, which many a processor emulates
NARROW = "Backbone('resnet18', stem='strided', width=0.0625)"
WATCH = Monitor(every=1, images=40, views=3, bank=60)


def quiet(line: str) -> None:
    """Where progress goes in tests."""


def weights(method):
    return torch.cat([value.double().flatten() for value in method.state_dict().values()])


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
watch = Monitor(every=1, images=40, views=3, bank=60)
fit(settings.read(Recipe, sys.argv[1]), sys.argv[2], watch, say=lambda line: None)
"""


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
    data = {
        "images": torch.randint(0, 256, (60, 8, 8, 3), dtype=torch.uint8).numpy(),
        "labels": torch.arange(60).numpy() % 2,
    }
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


@pytest.mark.parametrize(
    "wrong", [{"every": -1}, {"images": 1}, {"views": 1}, {"bank": 1}, {"bank": -1}]
)
def test_a_monitor_refuses_what_it_cannot_measure(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Monitor(**wrong)


def test_a_folder_of_another_recipe_is_refused(whole, tmp_path):
    with pytest.raises(
        SettingsError, match=r"holds a run with epochs = 3, not 4\. Choose another folder"
    ):
        fit(replace(SMALL, epochs=4), whole.folder, say=quiet)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SettingsError, match="is not empty and holds no run"):
        fit(SMALL, tmp_path, say=quiet)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (
            {"batch": 97},
            SettingsError,
            r"batch of 97 is more than the 96 training images of shapes\. Take batch <= 96",
        ),
        ({"data": "shape"}, ValueError, "did you mean 'shapes'"),
        ({"backbone": "Backbone('resnt18')"}, SettingsError, "timm has no model 'resnt18'"),
        ({"backbone": "Projector((2, 3))"}, SettingsError, "is no Backbone"),
        ({"method": "SimCRL()"}, SettingsError, "did you mean 'SimCLR'"),
        (
            {"method": "MarginClassifier(margin='ElasticFace(plus=True)')", "accumulate": 2},
            SettingsError,
            "accumulate = 2 .* all rows of a batch",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(tmp_path, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        fit(replace(SMALL, **changes), tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


def refused(group, rank, recipe, folder):
    try:
        fit(recipe, folder, say=quiet)
    except SettingsError as error:
        return str(error)


@pytest.mark.xdist_group("ranks")
def test_a_view_for_each_rank_is_too_few_for_batch_normalisation(pool, tmp_path):
    small = replace(SMALL, method="MarginClassifier(dim=8)", batch=4, images=8)
    # the last maps are single pixels
    for said in pool.run(4, refused, replace(small, image_size=8), tmp_path / "run"):
        assert (
            "A micro-batch is one view (batch = 4, accumulate = 1): Expected more than 1 value per "
            "channel" in said
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs is at least 1, not 0"),
        ({"batch": 10, "accumulate": 3}, "does not fall into 3 equal micro-batches"),
        ({"batch": 10, "accumulate": 10}, "have at least 2 images, not 10 / 10 = 1"),
        ({"precision": "float16"}, "did you mean 'bfloat16'"),
        ({"augmentation": "Augmentation('az')"}, "z"),
        (
            {"augmentation": "HorizontalFlip()"},
            "is no Augmentation: marginlab.augment has Augmentation",
        ),
        ({"optimizer": "WarmupCosine()"}, "is no OptimizerSettings: marginlab.optim has LARS"),
        ({"schedule": "SGD()"}, "is no Schedule: "),
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
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(settings.to_toml(replace(SMALL, epochs=1)))
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
    folder = Path(tmp_path / "run")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = forked.run(
        [*command, "--folder", str(folder)], cwd=tmp_path, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert load(folder).encode(torch.rand(2, 3, 32, 32)).shape == (2, 64)
    assert done.stdout.count("backbone   knn_error") == 1


def copied(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    return folder, latest(folder)


def test_a_damaged_checkpoint_is_refused_with_what_is_wrong(whole, tmp_path):
    folder, last = copied(whole, tmp_path)
    (file,) = last.glob("*.distcp")
    content = file.read_bytes()
    for damaged, words in ((content[:-9], "cut short"), (None, "has 0 of")):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        for attempt in (lambda: load(folder), lambda: fit(SMALL, folder, WATCH, say=quiet)):
            with pytest.raises(ValueError, match=words):
                attempt()
    file.write_bytes(content)
    assert torch.equal(weights(load(folder)), weights(whole.method))
    (last / "progress.json").write_text("{")
    with pytest.raises(ValueError, match=r"progress\.json cannot be read: Expecting property name"):
        load(folder)


def test_a_checkpoint_that_is_not_the_runs_is_refused(whole, tmp_path):
    folder, last = copied(whole, tmp_path)
    other = last.rename(last.with_name("step-00000001"))
    with pytest.raises(ValueError, match="says that it is of step 9: it was renamed"):
        load(folder)
    other.rename(last)
    progress = json.loads((last / "progress.json").read_text())
    assert (progress["step"], progress["ranks"], len(progress["classes"])) == (9, 1, 10)
    margin = replace(SMALL, method="MarginClassifier(dim=8)", epochs=1)
    run = fit(margin, tmp_path / "margin", WATCH, say=quiet)
    there = latest(run.folder)
    method = margin.make_method(9)
    with pytest.raises(
        ValueError, match=r"here classifier\.centers is \(9, 1, 8\), and it holds \(10, 1, 8\)"
    ):
        restore(there, method, method.optimizers(margin.make_optimizer()))
    (there / "progress.json").write_text(
        json.dumps(json.loads((there / "progress.json").read_text()) | {"ranks": 0})
    )
    with pytest.raises(ValueError, match=r"progress\.json says no number of ranks, from 1 on"):
        load(run.folder)


def test_rows_without_columns_as_of_an_earlier_version_are_refused(whole, tmp_path):
    folder, last = copied(whole, tmp_path)
    file = last / "progress.json"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    progress = json.loads(file.read_text())
    progress["rows"] = [[0, "loss", 0.5, 0.5, 0.5, 1]]
    file.write_text(json.dumps(progress))
    sums = last / "checksums.sha256"
    after = hashlib.sha256(file.read_bytes()).hexdigest()
    sums.write_text(sums.read_text().replace(before, after))
    with pytest.raises(settings.SettingsError, match="without the columns epoch, space, quantity"):
        fit(SMALL, folder, WATCH, say=quiet)
    assert torch.equal(weights(load(folder)), weights(whole.method))


def test_a_run_killed_while_it_took_its_folder_gets_what_is_missing(whole, tmp_path):
    folder, _ = copied(whole, tmp_path)
    (folder / "monitor.toml").unlink()
    (folder / "images.txt").unlink()
    fit(SMALL, folder, WATCH, say=quiet)
    for name in ("monitor.toml", "images.txt"):
        assert (folder / name).read_text() == (whole.folder / name).read_text()


def test_tensorboard_shows_each_epoch_once_also_after_a_stop(whole, tmp_path, monkeypatch):
    measure = Monitor.__call__

    def dying(self, method, augmentation, train, test, at, *, last):
        if at == 2:
            raise KeyboardInterrupt
        return measure(self, method, augmentation, train, test, at, last=last)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "__call__", dying)
        with pytest.raises(KeyboardInterrupt):
            # the loss of epoch 2 is written there, and no checkpoint of it
            fit(SMALL, tmp_path / "run", WATCH, say=quiet)
    fit(SMALL, tmp_path / "run", WATCH, say=quiet)
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("loss")
    kept = [row for row in whole.rows if row.quantity == "loss"]
    assert [event.step for event in shown] == [1, 2, 3] == [row.epoch for row in kept]
    assert [event.value for event in shown] == pytest.approx([row.value for row in kept], rel=1e-6)


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


def test_a_run_starts_from_another_with_more_classes_and_the_old_centers_kept(tmp_path):
    margin = replace(SMALL, data="shapes-5", method="MarginClassifier(dim=8)", epochs=1, batch=48)
    first = fit(margin, tmp_path / "first", WATCH, say=quiet)
    # ten classes
    more = replace(margin, data="shapes", start=str(first.folder), optimizer="SGD(lr=1e-12)")
    run = fit(more, tmp_path / "more", WATCH, say=quiet)
    centers = run.method.classifier.centers
    torch.testing.assert_close(centers[:5], first.method.classifier.centers)
    torch.testing.assert_close(centers[5:], more.make_method(10).classifier.centers[5:])
    torch.testing.assert_close(
        run.method.backbone.net.conv1.weight, first.method.backbone.net.conv1.weight
    )
    with pytest.raises(ValueError, match=r"do not fit: head\..* is .* there, .* here"):
        fit(replace(more, method="MarginClassifier(dim=9)"), tmp_path / "other", WATCH, say=quiet)
    with pytest.raises(FileNotFoundError, match="holds no whole checkpoint"):
        fit(replace(more, start=str(tmp_path / "none")), tmp_path / "other", WATCH, say=quiet)
    assert not (tmp_path / "other").exists()


def test_a_run_keeps_the_weights_that_it_started_from(tmp_path, monkeypatch):
    """Killed before its first checkpoint it goes on from them, though the other run has gone on
    meanwhile.
    """
    margin = replace(SMALL, method="MarginClassifier(dim=8, sample_rate=0.5)", epochs=1, batch=48)
    first = fit(margin, tmp_path / "first", WATCH, say=quiet)
    more = replace(margin, start=str(first.folder), epochs=2)
    whole = fit(more, tmp_path / "whole", WATCH, say=quiet)
    with monkeypatch.context() as patch:
        patch.setattr(
            _Loop, "one_step", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            fit(more, tmp_path / "killed", WATCH, say=quiet)
    shutil.rmtree(first.folder)
    again = fit(more, tmp_path / "killed", WATCH, say=quiet)
    assert torch.equal(weights(again.method), weights(whole.method))
    assert repr(again.rows) == repr(whole.rows)


def started(group, rank, recipe, folder):
    method = recipe.make_method(10)
    start(method, folder)
    return (
        method.classifier.part,
        method.classifier.centers.detach(),
        method.backbone.net.conv1.weight.detach(),
    )


@pytest.mark.xdist_group("ranks")
def test_ranks_start_from_a_run_with_other_classes_each_with_its_part(pool, tmp_path):
    margin = replace(SMALL, data="shapes-5", method="MarginClassifier(dim=8)", epochs=1, batch=48)
    first = fit(margin, tmp_path / "first", WATCH, say=quiet)
    fresh = margin.make_method(10).classifier.centers.detach()
    expected = torch.cat([first.method.classifier.centers.detach(), fresh[5:]])
    for part, centers, kernel in pool.run(4, started, margin, first.folder):
        assert torch.equal(centers, expected[part])
        assert torch.equal(kernel, first.method.backbone.net.conv1.weight)


def test_images_of_a_size_that_a_backbone_does_not_take_are_refused_before_work(tmp_path):
    vit = "Backbone('vit_tiny_patch16_224', stem='imagenet')"
    with pytest.raises(
        SettingsError, match=r"does not take images of \(3, 16, 16\): .* Set image_size"
    ):
        fit(replace(SMALL, backbone=vit), tmp_path / "run", WATCH, say=quiet)
    assert not (tmp_path / "run").exists()
    method = replace(SMALL, backbone=vit.replace(")", ", image_size=32)")).make_method()
    assert method.encode(torch.rand(2, 3, 32, 32)).shape == (2, 192)
    with pytest.raises(SettingsError, match="cannot be made"):
        replace(SMALL, backbone="Backbone(image_size=32)").make_method()


@pytest.fixture(scope="module")
def at_hand(tmp_path_factory):
    """Image sets at hand, and a run on them."""
    train, test = (load_images("shapes", s, size=SMALL.image_size) for s in ("train", "test"))
    sets = train.subset(96, SMALL.seed), test
    short = replace(SMALL, images=0, epochs=1)
    run = fit(short, tmp_path_factory.mktemp("hand") / "run", Monitor.none(), data=sets, say=quiet)
    return short, sets, run


def test_images_at_hand_train_as_those_of_the_same_name(at_hand, tmp_path):
    short, sets, run = at_hand
    assert settings.read(Recipe, run.folder / "recipe.toml") == replace(short, data="at hand")
    named = fit(replace(short, images=96), tmp_path / "run", Monitor.none(), say=quiet)
    assert torch.equal(weights(run.method), weights(named.method))
    assert (run.folder / "images.txt").read_text() == (named.folder / "images.txt").read_text()
    assert load(run.folder).classes == sets[0].classes
    again = fit(short, run.folder, Monitor.none(), data=sets, say=quiet)
    assert torch.equal(weights(again.method), weights(run.method))


def test_a_run_on_images_at_hand_goes_on_with_them_only(at_hand):
    short, (train, test), run = at_hand
    others = replace(train, images=255 - train.images)
    with pytest.raises(SettingsError, match="on other images: those at hand are not those that"):
        fit(short, run.folder, Monitor.none(), data=(others, test), say=quiet)
    with pytest.raises(SettingsError, match=r"a run on images at hand\. Give them again"):
        fit(short, run.folder, Monitor.none(), say=quiet)
    with pytest.raises(SettingsError, match="images at hand, which no name gives back"):
        fit(replace(short, data="at hand"), run.folder, Monitor.none(), say=quiet)


def test_images_at_hand_that_do_not_fit_are_refused(at_hand, tmp_path, unchecked):
    short, (train, test), _ = at_hand
    small = replace(test, images=test.images[..., :8, :8].contiguous())
    for recipe, data, sentence in (
        (replace(short, image_size=32), (train, test), "image_size = 32 .* at hand are 16 x 16"),
        (short, (train, small), "at hand are 16 x 16, and test images 8 x 8"),
        (short, train, "data is a pair of image sets, .* not ImageSet"),
        (short, (train, test.images), "data is a pair of image sets"),
        (replace(short, batch=98), (train, test), "more than the 96 training images"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            fit(recipe, tmp_path / "run", Monitor.none(), data=data, say=quiet)
    assert not (tmp_path / "run").exists()
    assert check(replace(short, image_size=16), data=(train, test)) == (train, test)
