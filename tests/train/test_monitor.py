"""The monitor: pairs of classes that are not trained are verified on its schedule, and of many
classes some are watched.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from marginlab import settings, train
from marginlab.augment import Augmentation
from marginlab.data import ImageSet, load
from marginlab.evaluation import knn_accuracy, verify
from marginlab.rng import Key
from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe, fit
from marginlab.train.features import encode_images

RECIPE = Recipe(
    data="omniglot-upright",
    image_size=16,
    augmentation="Augmentation('a')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="MarginClassifier(scale=16.0, dim=16)",
    epochs=2,
    batch=32,
    optimizer="SGD(lr=0.05)",
)
PAIRS = Monitor(
    images=24,
    views=2,
    bank=24,
    verified="omniglot-upright",
    verified_pairs=100,
    folds=5,
    far_pairs=300,
    fars=(0.1, 0.05),
)


def quiet(line):
    """Where progress goes in tests."""


@pytest.fixture
def characters(tmp_path, monkeypatch):
    """A set like Omniglot, of 12 characters to train and 10 to verify: a character is a field of
    ink, and a drawing of it loses some.
    """
    random = np.random.default_rng(0)
    fields = {}
    for part, n in (("background", 12), ("evaluation", 10)):
        ink = np.kron(random.random((n, 1, 4, 4)) < 0.4, np.ones((1, 1, 4, 4)))
        fields[f"{part}_images"] = (
            (255 * (1 - ink * (random.random((n, 20, 16, 16)) < 0.8)))
            .astype(np.uint8)
            .reshape(-1, 16, 16)
        )
        fields[f"{part}_labels"] = np.repeat(np.arange(n), 20)
        fields[f"{part}_classes"] = np.array([f"{part}/{number}" for number in range(n)])
    np.savez(tmp_path / "omniglot.npz", **fields)
    monkeypatch.setenv("MARGINLAB_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("every", "epochs"), [(0, {0, 2}), (1, {0, 1, 2})])
def test_unseen_classes_are_verified_when_the_monitor_measures(characters, tmp_path, every, epochs):
    run = fit(RECIPE, tmp_path / "run", replace(PAIRS, every=every), say=quiet)
    rows = {
        row[:4]: row for row in run.rows if row.quantity in ("verification_accuracy", "tar_at_far")
    }
    assert set(rows) == {
        (epoch, space, quantity, at)
        for epoch in epochs
        for quantity, at in (
            ("verification_accuracy", ""),
            ("tar_at_far", "0.1"),
            ("tar_at_far", "0.05"),
        )
        for space in ("backbone", "projector")
    }
    unseen = load("omniglot-upright", "unseen", size=16)
    for space, features in encode_images(run.method, unseen.images, torch.device("cpu")).items():
        found = verify(features, unseen.labels, n=100, folds=5, far_pairs=300, fars=(0.1, 0.05))
        for quantity, at, rate in (
            ("verification_accuracy", "", found.accuracy),
            ("tar_at_far", "0.1", found.tar[0.1]),
            ("tar_at_far", "0.05", found.tar[0.05]),
        ):
            assert rows[2, space, quantity, at][4:] == tuple(rate)
            assert rate.low <= rate.value <= rate.high
        assert (found.accuracy.n, found.tar[0.1].n) == (100, 150)
    # characters differ by much more than their drawings do
    assert rows[2, "projector", "verification_accuracy", ""].value > 0.7


def test_a_run_belongs_to_the_images_it_verifies(characters, tmp_path):
    fit(RECIPE, tmp_path / "run", PAIRS, say=quiet)
    with np.load(characters / "omniglot.npz") as file:
        fields = dict(file)
    fields["evaluation_images"] = 255 - fields["evaluation_images"]
    np.savez(characters / "omniglot.npz", **fields)
    with pytest.raises(SettingsError, match="holds a run on other images"):
        fit(RECIPE, tmp_path / "run", PAIRS, say=quiet)


def test_what_cannot_be_verified_is_refused_before_the_folder_is_taken(characters, tmp_path):
    trained = load("omniglot-upright", "train")
    for monitor, sentence in (
        (replace(PAIRS, verified="digits"), "no split 'unseen'"),
        (replace(PAIRS, verified="omniglott"), "There is no"),
        (replace(PAIRS, verified_pairs=10_000), "cannot be verified so: Fold 0 holds"),
        (replace(PAIRS, far_pairs=10_000), "cannot be verified so: Fold 0 holds"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            fit(RECIPE, tmp_path / "run", monitor, say=quiet)
        assert not (tmp_path / "run").exists()
    both = replace(trained, classes=("evaluation/3", "evaluation/4", *trained.classes[2:]))
    with pytest.raises(
        SettingsError,
        match="evaluation/3 and 1 other classes of omniglot-upright are trained on by "
        "omniglot-upright",
    ):
        PAIRS.unseen(both)
    assert Monitor().unseen(trained) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": 1}, "0 classes, which means all, or at least 2, not 1"),
        ({"classes": -1}, "classes is at least 0"),
        ({"folds": 1}, "folds is at least 2"),
        ({"verified_pairs": 110, "folds": 10}, "a multiple of 20, not 110"),
        ({"far_pairs": 0}, "a multiple of 2, not 0"),
        ({"fars": (0.001,), "far_pairs": 1000}, "0.001 of 1000 makes no rate"),
        ({"fars": (1.0,)}, "1.0 of 200000 makes no rate"),
    ],
)
def test_settings_that_measure_nothing_are_refused(changes, sentence):
    with pytest.raises(SettingsError, match=sentence):
        Monitor(**changes)


def test_a_monitor_in_call_notation_reads_back():
    assert settings.make(repr(PAIRS), train, Monitor) == PAIRS


def test_of_many_classes_the_watched_ones_are_measured_and_nearest_neighbours_are_of_all():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (120, 3, 8, 8), dtype=torch.uint8, generator=generator)
    many = ImageSet(images, torch.arange(120) % 12, tuple(str(c) for c in range(12)), "many")
    method = RECIPE.make_method(12)

    def measured(monitor, images):
        return {
            row.tag: row for row in monitor(method, Augmentation("e"), images, images, 0, last=True)
        }

    some, every = (
        Monitor(images=10, views=2, bank=48, classes=4, seed=3),
        Monitor(images=10, views=2, bank=48, classes=0, seed=3),
    )
    chosen = Key(3).named("monitor", "classes").permutation(12)[:4].sort().values
    own = ImageSet(
        images[torch.isin(many.labels, chosen)], torch.arange(40) % 4, ("a", "b", "c", "d"), "own"
    )
    found, alone, whole = measured(some, many), measured(every, own), measured(every, many)
    assert found.keys() == alone.keys() == whole.keys()
    watched = [name for name in found if not name.startswith(("knn", "linear"))]
    # alignment, divergences, lengths; R of six epsilons; the nearest center
    assert len(watched) == 2 * (5 + 6 + 1)
    for name in watched:
        np.testing.assert_equal(found[name], alone[name])
    for name in set(found) - set(watched):
        assert found[name] == whole[name]
    assert found["alignment/backbone"].n == 10
    assert found["nearest_center_error/backbone"].n == 40
    np.testing.assert_equal(measured(replace(some, classes=12), many), whole)


def test_k_neighbours_vote_as_in_knn_accuracy():
    """Of 40 images in the bank a default k of 200 takes all."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (80, 3, 8, 8), dtype=torch.uint8, generator=generator)
    train_set = ImageSet(images[:40], torch.arange(40) % 4, tuple("abcd"), "train")
    test_set = ImageSet(images[40:], torch.arange(40) % 4, tuple("abcd"), "test")
    method = RECIPE.make_method(4).eval()
    banked = encode_images(method, train_set.images, torch.device("cpu"))
    asked = encode_images(method, test_set.images, torch.device("cpu"))
    found = {}
    for k in (1, 7, 200):
        monitor = Monitor(images=8, views=2, k=k)
        for row in monitor(method, Augmentation("e"), train_set, test_set, 1, last=False):
            if row.quantity == "knn_error":
                right = knn_accuracy(
                    banked[row.space], train_set.labels, asked[row.space], test_set.labels, k=k
                )
                assert row.value == 1 - right
                found[k, row.space] = row.value
    assert len(found) == 6
    assert len({found[k, "backbone"] for k in (1, 7, 200)}) > 1
