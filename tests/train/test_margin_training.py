"""Margin training: it learns, a sampled run that died ends bit for bit as one that did not, ranks,
shipped recipes, the monitor with many classes.
"""

import json
import os
import sys
from dataclasses import replace

import forked
import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from marginlab import ranks, settings
from marginlab.augment import Augmentation
from marginlab.data import ImageSet
from marginlab.losses import PartialFC, outside_ddp
from marginlab.optim import LazySGD
from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe, checkpoint, contents, fit, load, read_rows
from marginlab.train.__main__ import RECIPES, main

SMALL = Recipe(
    images=96,
    image_size=16,
    augmentation="Augmentation('ae')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="MarginClassifier(scale=16.0, dim=16)",
    epochs=3,
    batch=32,
    optimizer="SGD(lr=0.05)",
)
# 5 of 10 classes at a time, a margin with buffers, and one with a count of its steps
SAMPLED = replace(
    SMALL,
    method="MarginClassifier(margin='AdaFace(momentum=0.5)', scale=16.0, dim=16, sample_rate=0.5)",
    batch=8,
    images=40,
)
ELASTIC = replace(
    SAMPLED,
    method='MarginClassifier(margin="ElasticFace(0.3)", scale=16.0, dim=16, sample_rate=0.5, '
    "subcenters=2)",
)
WATCH = Monitor(every=1, images=20, views=2, bank=40)


def quiet(line: str) -> None:
    """Drop a line of progress."""


def state(method):
    return {name: value.clone() for name, value in method.state_dict().items()}


class Stop(Exception):
    pass


def dying(at_epoch):
    class Dying(Monitor):
        def __call__(self, method, augmentation, train, test, at, *, last, **more):
            if at == at_epoch:
                raise Stop
            return super().__call__(method, augmentation, train, test, at, last=last, **more)

    return Dying(**vars(WATCH))


@pytest.mark.parametrize(
    "changes",
    [
        # the straight-through gradient: with the true one a few classes may collapse (see the head
        # of marginlab.methods.margin_classifier)
        {
            "method": "MarginClassifier(margin=\"ArcFace(0.5, gradient='straight_through')\", "
            "scale=16.0, dim=16)"
        },
        {
            "method": "MarginClassifier(margin='CosFace(0.2)', scale=16.0, dim=32, "
            "sample_rate=0.5)",
            "accumulate": 2,
        },
    ],
    ids=["all classes", "sampled"],
)
def test_it_learns(tmp_path, changes):
    # Flips only: on a small set under crops a small network takes longer than a test may.
    recipe = replace(
        SMALL,
        images=500,
        epochs=8,
        batch=50,
        augmentation="Augmentation('e')",
        optimizer="SGD(lr=0.1)",
        **changes,
    )
    run = fit(recipe, tmp_path / "run", Monitor(images=20, views=2, bank=400), say=quiet)
    named = {(row.epoch, row.tag): row.value for row in run.rows}
    angles = [named[epoch, "target_angle"] for epoch in range(1, 9)]
    assert 60 < angles[0] < 100
    assert angles[-1] < angles[0] - 15
    assert named[8, "loss"] < 0.7 * named[1, "loss"]
    for space in ("backbone", "projector"):
        assert (
            named[8, f"nearest_center_error/{space}"]
            < named[0, f"nearest_center_error/{space}"] - 0.1
        )
    assert named[8, "knn_error/projector"] < named[0, "knn_error/projector"] - 0.1


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    return fit(SAMPLED, tmp_path_factory.mktemp("sampled") / "run", WATCH, say=quiet)


@pytest.mark.parametrize("recipe", [SAMPLED, ELASTIC], ids=["AdaFace", "ElasticFace, sub-centers"])
@pytest.mark.parametrize(
    "epoch",
    [pytest.param(0, marks=pytest.mark.nightly), 1, pytest.param(2, marks=pytest.mark.nightly)],
)
def test_a_sampled_run_that_dies_ends_bit_for_bit_as_one_that_did_not(
    tmp_path, monkeypatch, sampled, recipe, epoch
):
    # also inside the epochs of 5 steps
    monkeypatch.setattr(sys.modules["marginlab.train.fit"], "SAVE_EVERY", 4)
    whole = sampled if recipe is SAMPLED else fit(recipe, tmp_path / "whole", WATCH, say=quiet)
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "run", dying(epoch), say=quiet)
    resumed = fit(recipe, tmp_path / "run", WATCH, say=quiet)
    ours, theirs = state(resumed.method), state(whole.method)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.method.classifier.step == 15
    np.testing.assert_equal(resumed.rows, whole.rows)


def test_a_checkpoint_holds_the_state_of_every_optimizer_and_restores_it_without_a_step(
    sampled, monkeypatch
):
    last = checkpoint.latest(sampled.folder)
    method = SAMPLED.make_method(10)
    optimizers = method.optimizers(SAMPLED.make_optimizer())
    monkeypatch.setattr(
        LazySGD, "step", lambda *arguments, **named: pytest.fail("the optimizer was stepped")
    )
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda *arguments, **named: pytest.fail("the optimizer was stepped"),
    )
    assert checkpoint.restore(last, method, optimizers)["classes"] == list(sampled.method.classes)
    held = optimizers[1].state[method.classifier.centers]
    assert int(held["steps"]) == 15
    assert held["momentum_buffer"].shape == (10, 1, 16)
    assert bool((held["momentum_buffer"] != 0).any())
    weight = method.backbone.net.conv1.weight
    assert optimizers[0].state[weight]["momentum_buffer"].shape == weight.shape
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(method.parameters(), sampled.method.parameters(), strict=True)
    )


def test_state_of_other_types_and_shapes_is_restored_bit_for_bit(tmp_path):
    method = SAMPLED.make_method(10)
    others = [*method.backbone.parameters(), *method.head.parameters()]

    def both():
        lazy = LazySGD(
            [method.classifier.centers], lr=0.1, semantics="decayed", momentum_dtype=torch.bfloat16
        )
        return [torch.optim.AdamW(others, lr=0.1), lazy]

    optimizers = both()
    method.loss(torch.rand(8, 1, 3, 16, 16), torch.arange(8))["loss"].backward()
    for optimizer in optimizers:
        optimizer.step()
    place = checkpoint.save(tmp_path, SAMPLED, method, optimizers, step=1, classes=())
    again = both()
    checkpoint.restore(place, method, again)
    for before, after in zip(optimizers, again, strict=True):
        assert before.state.keys() == after.state.keys()
        for parameter, values in before.state.items():
            assert values.keys() == after.state[parameter].keys()
            for name, value in values.items():
                other = after.state[parameter][name]
                assert (value.dtype, value.shape, value.stride()) == (
                    other.dtype,
                    other.shape,
                    other.stride(),
                )
                assert torch.equal(value, other)


def test_load_gives_the_classifier_back(sampled):
    method = load(sampled.folder)
    theirs = state(sampled.method)
    assert all(torch.equal(value, theirs[name]) for name, value in state(method).items())
    assert not method.training
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(
            method.project(method.encode(images)),
            sampled.method.project(sampled.method.encode(images)),
        )
        assert method.classifier.logits(method.project(method.encode(images))).shape == (3, 10)


def test_a_checkpoint_of_before_classifiers_loads_and_is_gone_on_with(tmp_path):
    recipe = replace(SMALL, method="SimCLR(hidden=16, dim=16)")
    whole = fit(recipe, tmp_path / "whole", WATCH, say=quiet)
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "run", dying(2), say=quiet)
    place = checkpoint.latest(tmp_path / "run") / "progress.json"
    progress = json.loads(place.read_text())
    del progress["classes"], progress["sums"], progress["format"]
    place.write_text(json.dumps({**progress, "losses": 0.0}))
    place.with_name("checksums.sha256").unlink()
    with torch.no_grad(), pytest.warns(UserWarning, match="a version that kept no checksums"):
        assert load(tmp_path / "run").encode(torch.rand(2, 3, 32, 32)).shape == (2, 64)
    with pytest.warns(UserWarning, match="a version that kept no checksums"):
        resumed = fit(recipe, tmp_path / "run", WATCH, say=quiet)
    assert all(
        torch.equal(value, state(whole.method)[name])
        for name, value in state(resumed.method).items()
    )
    np.testing.assert_equal(resumed.rows, whole.rows)


@pytest.mark.parametrize(
    ("method", "n_views"), [(SMALL.method, 1), ("SimCLR(hidden=16, dim=16)", 2)]
)
def test_training_draws_as_many_views_as_the_method_wants_each_once(
    tmp_path, monkeypatch, method, n_views
):
    asked = []
    views = Augmentation.views

    def recorded(self, images, **arguments):
        if "first_view" in arguments:  # not the trial before the run
            asked.append((arguments["first_view"], arguments["n_views"]))
        return views(self, images, **arguments)

    monkeypatch.setattr(Augmentation, "views", recorded)
    fit(replace(SMALL, method=method, batch=48), tmp_path / "run", WATCH, say=quiet)
    training = [(first, n) for first, n in asked if first < 1 << 31]
    assert training == [(n_views * epoch, n_views) for epoch in range(3) for _ in range(2)]


def test_a_margin_run_that_diverges_says_so(tmp_path):
    wild = replace(SMALL, optimizer="SGD(lr=1e30)", schedule="Constant()")
    with pytest.raises(
        FloatingPointError,
        match=r"Step \d+ of \d+, rank 0: the first number that is not finite is in",
    ):
        fit(wild, tmp_path / "run", WATCH, say=quiet)


@pytest.mark.parametrize("optimizer", ["LazySGD(lr=0.1)", "LazyAdamW(lr=0.1)"])
def test_a_sparse_optimizer_is_not_the_recipes(optimizer):
    with pytest.raises(SettingsError, match=r"is no OptimizerSettings.*SGD\(\.\.\.\)"):
        replace(SMALL, optimizer=optimizer)


def test_more_classes_than_watched_images_are_measured_and_not_probed(tmp_path):
    images = torch.randint(0, 256, (120, 3, 8, 8), dtype=torch.uint8)
    many = ImageSet(images, torch.arange(120) % 30, tuple(str(c) for c in range(30)), "many")
    method = replace(SMALL).make_method(30)
    monitor = Monitor(images=10, views=2, probe_classes=29)
    rows = {row.tag: row for row in monitor(method, Augmentation("e"), many, many, 0, last=True)}
    assert rows["divergence_max/projector"].n == 60
    assert all(
        np.isfinite(rows[f"{name}/backbone"].value)
        for name in ("divergence_max", "delta_mu", "center_norm_min", "nearest_center_error")
    )
    assert "linear_error/backbone" not in rows
    assert "linear_error/backbone" in {
        row.tag
        for row in replace(monitor, probe_classes=30)(
            method, Augmentation("e"), many, many, 0, last=True
        )
    }


@pytest.mark.parametrize("name", ["cifar10-arcface", "omniglot-arcface", "faces-arcface"])
def test_a_shipped_recipe_reads_and_makes_a_method(name):
    recipe = settings.read(Recipe, RECIPES / f"{name}.toml")
    assert recipe.make_method(10).n_views == 1
    assert recipe.epochs * recipe.batch > 0


def test_the_command_knows_shipped_recipes_by_name_and_a_monitor_in_call_notation(tmp_path, capsys):
    small = [
        "--data",
        "shapes",
        "--images",
        "64",
        "--batch",
        "32",
        "--epochs",
        "1",
        "--backbone",
        SMALL.backbone,
    ]
    words = [
        "cifar10-arcface",
        "--folder",
        str(tmp_path / "run"),
        "--measure",
        "Monitor(images=20, views=2, bank=40)",
        *small,
    ]
    assert main(words) == 0
    assert "target_angle" in capsys.readouterr().out
    assert 'precision = "auto"' in (tmp_path / "run" / "recipe.toml").read_text()
    assert "bank = 40" in (tmp_path / "run" / "monitor.toml").read_text()
    assert (
        main(["cifar10-arcface", "--folder", str(tmp_path / "other"), "--measure", "Recipe()"]) == 2
    )
    assert "is no Monitor" in capsys.readouterr().err


def _steps(group, rank, images, labels, sampled):
    """One step by DistributedDataParallel on this rank's images: the loss, the shared gradients,
    and that of this rank's centers.
    """
    # in evaluation mode: the statistics of batch normalisation are each rank's own
    method = SMALL.make_method(10).double().eval()
    # in training mode
    method.classifier = PartialFC(
        10, 16, scale=16.0, sample_rate=0.9 if sampled else 1.0, group=group, seed=4
    ).double()
    own = ranks.rank_slice(len(labels), group)
    outside_ddp(method)
    forward = (
        DistributedDataParallel(method, process_group=group) if ranks.size(group) > 1 else method
    )
    said = forward(images[own], labels[own])
    said["loss"].backward()
    shared = [
        p.grad.flatten()
        for name, p in method.named_parameters()
        if p.grad is not None and "centers" not in name
    ]
    return said["loss"].item(), torch.cat(shared), method.classifier.centers.grad.to_dense()


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("sampled", [False, True])
def test_two_ranks_under_ddp_make_the_step_of_one(pool, sampled):
    images, labels = torch.rand(8, 1, 3, 16, 16, dtype=torch.float64), torch.arange(8)
    ((loss, gradient, centers),) = pool.run(1, _steps, images, labels, sampled)
    answers = pool.run(2, _steps, images, labels, sampled)
    for other, their, _ in answers:
        assert other == pytest.approx(loss, abs=1e-10)
        torch.testing.assert_close(their, gradient, atol=1e-10, rtol=0)
    torch.testing.assert_close(
        torch.cat([own for _, _, own in answers]), centers, atol=1e-10, rtol=0
    )
    assert len(centers) == 10


@pytest.mark.parametrize("rate", [0.5, pytest.param(1.0, marks=pytest.mark.nightly)])
def test_a_classifier_trained_by_two_processes_is_that_of_one_and_goes_on_with_one(tmp_path, rate):
    alike = replace(
        SAMPLED,
        epochs=1,
        backbone="Backbone('resnet18', stem='strided', width=0.125, norm='group')",
        clip=1.0,
        method=SAMPLED.method.replace("sample_rate=0.5", f"sample_rate={rate}"),
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(settings.to_toml(alike))
    command = [
        "-m",
        "marginlab.train",
        str(recipe),
        "--folder",
        str(tmp_path / "run"),
        "--measure",
        repr(WATCH),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = forked.run([*forked.torchrun(), *command], cwd=tmp_path, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    two, one = load(tmp_path / "run"), fit(alike, tmp_path / "one", WATCH, say=quiet)
    assert two.classifier.centers.shape == (10, 1, 16)
    assert (
        two.classifier.step
        == one.method.classifier.step
        == (SAMPLED.images // SAMPLED.batch if rate < 1 else 0)
    )
    parts = torch.distributed.checkpoint.FileSystemReader(
        checkpoint.latest(tmp_path / "run")
    ).read_metadata()
    # each process has its classes
    assert len(parts.state_dict_metadata["method.classifier.centers"].chunks) == 2
    torch.testing.assert_close(
        two.classifier.centers, one.method.classifier.centers, rtol=1e-3, atol=1e-4
    )
    losses = {
        name: [
            row.value
            for row in read_rows(tmp_path / name / "monitor.csv")
            if row.quantity == "loss"
        ]
        for name in ("run", "one")
    }
    assert losses["run"][0] == pytest.approx(losses["one"][0], rel=1e-4)
    last = checkpoint.latest(tmp_path / "run")
    for place in (tmp_path / "run", last):
        (place / "recipe.toml").write_text(settings.to_toml(replace(alike, epochs=2)))
    contents.write_sums(last, {})
    method = fit(replace(alike, epochs=2), tmp_path / "run", WATCH, say=quiet).method
    assert method.classifier.step == 2 * one.method.classifier.step
    assert not torch.equal(method.classifier.centers, two.classifier.centers)
