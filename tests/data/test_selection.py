"""Choosing images: by mask, by number, by other labels, by how many a class has; absent classes."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from marginlab.data import ImageSet, load
from marginlab.data.labels import places
from marginlab.data.selection import selection_of
from marginlab.rng import Key
from marginlab.settings import SettingsError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
LABELS = [0] * 5 + [1] * 4 + [2] * 2 + [3]
NAMES = ("ant", "bee", "cow", "dog")


@pytest.fixture
def folder(tmp_path):
    """Class folders of 5, 4, 2 and 1 images in train, 1, 1, 1 and 0 in test."""
    for place, (label, image) in enumerate(zip(LABELS, PIXELS, strict=True)):
        for split in ("train", "test") if place in (0, 5, 9) else ("train",):
            path = tmp_path / split / NAMES[label]
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path / f"{place:02d}.png")
    return f"folder:{tmp_path}"


def both(spec):
    """The training split, held, and left in its files by a budget of one byte."""
    return load(spec), load(spec, budget=1, workers=0)


def pixels(images: ImageSet):
    return torch.cat(list(images.images.split(3)))


@pytest.mark.usefixtures("unchecked")
def test_masks_rows_and_labels_give_the_same_of_held_and_of_streamed_images(folder):
    held, streamed = both(folder)
    assert not isinstance(streamed.images, torch.Tensor)
    every = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())
    labels = torch.tensor(LABELS)
    order = torch.tensor([11, 0, 7, 0, 9])
    for images in (held, streamed):
        some = images.rows(order)
        assert torch.equal(pixels(some), every[order])
        assert some.labels.tolist() == labels[order].tolist()
        assert some.classes == NAMES
        assert torch.equal(some.fingerprints, images.fingerprints[order])
        mask = (labels == 1) | (labels == 3)
        thin, dense = images.where(mask), images.where(mask, dense=True)
        assert thin.labels.tolist() == labels[mask].tolist()
        assert thin.classes == NAMES
        assert dense.labels.tolist() == [0] * 4 + [1]
        assert dense.classes == ("bee", "dog")
        for found in (thin, dense):
            assert torch.equal(pixels(found), every[mask])
        other = images.with_labels(np.arange(12) % 2, ["even", "odd"])
        assert other.labels.tolist() == [0, 1] * 6
        assert other.classes == ("even", "odd")
        assert other.images is images.images
    assert held.rows(order).digest() == streamed.rows(order).digest()


def test_at_is_rows_in_their_old_order(folder):
    for images in both(folder):
        index = torch.tensor([9, 2, 5])
        ours, sorted_rows = images.at(index), images.rows(index.sort().values)
        assert torch.equal(pixels(ours), pixels(sorted_rows))
        assert torch.equal(ours.labels, sorted_rows.labels)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("choose", "error", "message"),
    [
        (lambda s: s.rows(torch.tensor([0, 12])), IndexError, "no image 12.*from 0 to 11"),
        (lambda s: s.rows(torch.tensor([-1, 0])), IndexError, "no image -1"),
        (lambda s: s.rows(torch.ones(12, dtype=torch.bool)), TypeError, "bool.*to `where`"),
        (lambda s: s.rows(np.array([0.0, 5.0])), TypeError, "float64"),
        (lambda s: s.where(torch.ones(11, dtype=torch.bool)), TypeError, r"of 12 images is \(12"),
        (lambda s: s.where(torch.ones(12)), TypeError, "float32"),
        (lambda s: s.where(torch.zeros(12, dtype=torch.bool)), ValueError, "no images"),
        (lambda s: s.where(s.labels == 1), ValueError, "class 1"),
        (lambda s: s.with_labels(torch.zeros(12)), TypeError, "float32"),
        (lambda s: s.with_labels(torch.arange(11) % 2), ValueError, "12 images need labels"),
        (lambda s: s.with_labels(torch.arange(12)), ValueError, "label 11 is out of range"),
    ],
)
def test_what_cannot_be_chosen_is_refused(choose, error, message):
    images = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())
    with pytest.raises(error, match=message):
        choose(ImageSet(images, torch.tensor(LABELS), NAMES, "made"))


# classes without an image


def test_a_label_that_no_image_has_is_said_at_loading(tmp_path):
    np.savez(tmp_path / "from1.npz", images=PIXELS, labels=np.arange(12) % 4 + 1)
    spec = f"npz:{tmp_path}/from1.npz"
    for split in ("train", "test"):
        told = rf"from1.npz: 1 of 5 classes has no {split} image: '0'.*\?min_per_class=1` numbers"
        with pytest.warns(UserWarning, match=told):
            assert load(spec, split).absent() == ("0",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dense = load(f"{spec}?min_per_class=1")  # the remedy
        assert load(f"{spec}?min_per_class=1", "test").classes == dense.classes
    assert dense.classes == ("1", "2", "3", "4")
    assert dense.labels.unique().tolist() == [0, 1, 2, 3]


def test_many_absent_classes_are_counted_and_the_first_named(tmp_path):
    labels = np.array([0] * 6 + [20] * 6)
    np.savez(
        tmp_path / "gaps.npz", images=PIXELS, labels=labels, classes=[f"c{k}" for k in range(21)]
    )
    with pytest.warns(UserWarning, match="19 of 21 classes have no train.*'c5' and 14 more"):
        load(f"npz:{tmp_path}/gaps.npz")


def test_a_class_without_test_images_is_said_at_loading_in_folders_held_and_streamed(folder):
    for budget, workers in ((10**6, None), (1, 0)):
        with pytest.warns(UserWarning, match="1 of 4 classes has no test image: 'dog'"):
            load(folder, "test", budget=budget, workers=workers)


# how many a class has


@pytest.mark.parametrize("streamed", [False, True])
def test_classes_are_kept_by_their_training_images_in_both_splits(folder, streamed):
    how = {"budget": 1, "workers": 0} if streamed else {}
    train = load(f"{folder}?min_per_class=2", **how)
    test = load(f"{folder}?min_per_class=2", "test", **how)
    assert train.classes == test.classes == NAMES[:3]
    assert train.labels.tolist() == LABELS[:11]
    assert test.labels.tolist() == [0, 1, 2]
    assert train.name == f"{folder}?min_per_class=2"
    every = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())
    assert torch.equal(pixels(test), every[[0, 5, 9]])


def test_at_most_so_many_of_a_class_nested_and_the_same_every_time(folder):
    labels = torch.tensor(LABELS)
    place = places(labels, Key(0).named("per_class"))
    few, more = (load(f"{folder}?max_per_class={n}") for n in (2, 3))
    assert torch.bincount(few.labels).tolist() == [2, 2, 2, 1]
    assert torch.bincount(more.labels).tolist() == [3, 3, 2, 1]
    assert set(few.fingerprints.tolist()) < set(more.fingerprints.tolist())
    assert torch.equal(few.labels, labels[place < 2])
    assert load(f"{folder}?max_per_class=2").digest() == few.digest()
    assert few.classes == NAMES
    chosen = load(f"{folder}?min_per_class=4&max_per_class=1")
    assert chosen.classes == NAMES[:2]
    assert chosen.labels.tolist() == [0, 1]


def test_a_choice_fits_a_budget_that_all_images_do_not(folder):
    image = 6 * 5 * 3
    with pytest.raises(ValueError, match="above the budget"):
        load(folder, budget=7 * image)
    assert isinstance(load(f"{folder}?max_per_class=2", budget=7 * image).images, torch.Tensor)
    with pytest.raises(ValueError, match=r"max_per_class=3: 9 images .* above the budget"):
        load(f"{folder}?max_per_class=3", budget=7 * image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("min_per_classs=2", "no option 'min_per_classs'.*min_per_class"),
        ("min_per_class=0", "a whole number above 0, not '0'"),
        ("max_per_class=-1", "not '-1'"),
        ("max_per_class=many", "not 'many'"),
        ("max_per_class", "is no choice of images"),
        ("min_per_class=5", "min_per_class=5 leaves 1 classes; the second largest has 4"),
    ],
)
def test_choices_that_make_no_sense_are_refused(folder, options, message):
    with pytest.raises(SettingsError, match=message):
        load(f"{folder}?{options}")


def test_a_path_may_have_a_question_mark(tmp_path):
    path = tmp_path / "which?a=1"
    path.mkdir()
    spec = f"folder:{path}"
    assert selection_of(spec) == (spec, selection_of("digits")[1])
    assert selection_of(f"{spec}?max_per_class=3")[0] == spec


def test_every_source_takes_a_choice():
    digits = load("digits?max_per_class=3", "test")
    assert torch.bincount(digits.labels).tolist() == [3] * 10
