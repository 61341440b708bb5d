"""Labelled Faces in the Wild from a small npz file, and from the real one where it is there."""

import numpy as np
import pytest
import torch

from marginlab.data import lfw_protocol, load
from marginlab.data.lfw import fold_pairs
from marginlab.evaluation import verification_accuracy

LABELS = np.repeat(np.arange(6), 4)
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 6, 5, 3), dtype=np.uint8)
FIELDS = {
    "images": IMAGES,
    "labels": LABELS,
    "classes": np.array([f"person {k}" for k in range(6)]),
    "dev_train": np.arange(4, 16),
    "dev_test": np.concatenate([np.arange(4), np.arange(16, 24)]),
    # fold by fold in the result, though not in the file
    "pairs": np.array([[0, 1, 1], [4, 6, 1], [0, 5, 0], [8, 12, 0]]),
    "fold": np.array([1, 0, 1, 0]),
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    np.savez(tmp_path / "lfw.npz", **FIELDS)
    monkeypatch.setenv("MARGINLAB_DATA", str(tmp_path))
    return tmp_path


def test_splits_are_the_people_of_the_development_lists(root):
    train, test, unseen = (load("lfw", split) for split in ("train", "test", "unseen"))
    assert train.classes == test.classes == ("person 1", "person 2", "person 3")
    assert unseen.classes == ("person 0", "person 4", "person 5")
    every = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    assert torch.equal(unseen.images, every[FIELDS["dev_test"]])
    assert unseen.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.bincount(test.labels).tolist() == [1] * 3
    both = torch.cat([train.images, test.images]).flatten(1).tolist()
    assert sorted(both) == sorted(every[4:16].flatten(1).tolist())
    assert load("lfw?max_per_class=2").labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_fold_is_judged_by_people_that_are_in_no_training(root):
    every = set(FIELDS["classes"].tolist())
    for fold, people in ((1, {"person 1", "person 2", "person 3"}), (2, {"person 0", "person 1"})):
        train, unseen = (load(f"lfw-fold-{fold}", split) for split in ("train", "unseen"))
        assert set(unseen.classes) == people
        assert set(train.classes) == every - people
        assert len(unseen) == 4 * len(people)
        pairs = fold_pairs(lfw_protocol(), fold)
        judged = lfw_protocol().images.labels[torch.cat([pairs.first, pairs.second])]
        assert {FIELDS["classes"][k] for k in judged.tolist()} == people
        assert train.name == f"lfw-fold-{fold}"
    with pytest.raises(ValueError, match="folds 1 to 2, and no fold 3"):
        load("lfw-fold-3")


def test_the_pairs_stand_fold_by_fold_and_are_verified_as_they_are(root):
    found = lfw_protocol(size=4)
    assert found.images.images.shape == (24, 3, 4, 4)
    assert found.folds == 2
    assert found.pairs.first.tolist() == [4, 8, 0, 0]
    assert found.pairs.second.tolist() == [6, 12, 1, 5]
    assert found.pairs.same.tolist() == [True, False, True, False]
    features = torch.eye(6)[found.images.labels]
    first, second = features[found.pairs.first], features[found.pairs.second]
    result = verification_accuracy(first, second, found.pairs.same, found.folds)
    assert result.folds == (1.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": FIELDS["pairs"] + [[24, 0, 0]]}, "pairs of .* name the images 1 to 32"),
        ({"pairs": FIELDS["pairs"][:, :2]}, r"pairs of .* are of shape \(4, 2\)"),
        ({"pairs": FIELDS["pairs"] * [[1, 1, 0]]}, "pair 0 of .* is not what the labels"),
        ({"fold": np.array([0, 0, 0, 1])}, r"folds of .* have \[3, 1\] pairs"),
        ({"dev_test": np.array([], dtype=int)}, "dev_test of .* name the images"),
    ],
)
def test_lists_that_do_not_fit_the_images_are_refused(root, change, message):
    np.savez(root / "lfw.npz", **FIELDS | change)
    with pytest.raises(ValueError, match=message):
        lfw_protocol()


def test_what_is_absent_is_said(root):
    np.savez(root / "lfw.npz", **{key: value for key, value in FIELDS.items() if key != "fold"})
    with pytest.raises(ValueError, match="has no 'fold'; its keys are: images"):
        load("lfw")
    (root / "lfw.npz").unlink()
    with pytest.raises(FileNotFoundError, match="Put it there, with the arrays images, labels"):
        load("lfw")


def test_the_real_set_has_its_published_counts(real_images):
    if not (real_images / "lfw.npz").is_file():
        pytest.skip("no lfw.npz in MARGINLAB_DATA")
    found = lfw_protocol(real_images)
    labels = found.images.labels
    assert (len(found.images), len(found.images.classes)) == (13_233, 5_749)
    assert (len(found.dev_train), len(found.dev_test)) == (9_525, 3_708)
    people = [set(labels[part].tolist()) for part in (found.dev_train, found.dev_test)]
    assert [len(part) for part in people] == [4_038, 1_711]
    assert not people[0] & people[1]
    assert found.folds == 10
    assert int(found.pairs.same.sum()) == 3_000
    assert len(found.pairs.same) == 6_000
    met = [set(labels[torch.cat(parts)].tolist()) for parts in zip(*(
        part.split(600) for part in (found.pairs.first, found.pairs.second)
    ), strict=True)]  # fmt: skip
    # people differ from fold to fold
    assert sum(len(part) for part in met) == len(set().union(*met))
