"""Runs that start from the weights of another run."""

import shutil
from dataclasses import replace

import pytest
import torch
from small_training import SMALL, WATCH, quiet, weights

from marginlab.data import load
from marginlab.train import fit
from marginlab.train.fit import _Loop
from marginlab.train.keeping import start


def test_a_run_starts_from_another_with_more_classes_and_the_old_centers_kept(tmp_path):
    margin = replace(SMALL, data="shapes-5", method="MarginClassifier(dim=8)", epochs=1, batch=48)
    first = fit(margin, tmp_path / "first", WATCH, say=quiet)
    # ten classes
    more = replace(margin, data="shapes", start=str(first.folder), optimizer="SGD(lr=1e-12)")
    run = fit(more, tmp_path / "more", WATCH, say=quiet)
    centers = run.method.classifier.centers
    old, new = first.method.classes, run.method.classes
    drawn = more.make_method(10).classifier.centers
    assert set(old) < set(new)
    for c, name in enumerate(new):  # by name
        expected = first.method.classifier.centers[old.index(name)] if name in old else drawn[c]
        torch.testing.assert_close(centers[c], expected)
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


def nearest(method, images):
    x = method.project(method.encode(images.images))
    return method.classifier.cosines(x, images.labels).argmax(1)


def test_a_run_with_one_center_starts_from_the_dominant_of_three_on_a_purified_set(tmp_path):
    margin = replace(SMALL, method="MarginClassifier(dim=8, subcenters=3)", epochs=1, batch=48)
    first = fit(margin, tmp_path / "first", WATCH, say=quiet)
    train, test = (load(margin.data, split, size=margin.image_size) for split in ("train", "test"))
    train = train.subset(96)
    left = train.where((train.labels != 3) & (train.labels != 7), dense=True)
    asked = replace(
        margin,
        method="MarginClassifier(dim=8)",
        start=str(first.folder),
        optimizer="SGD(lr=1e-12, weight_decay=0.0)",
    )
    shown = test.where((test.labels != 3) & (test.labels != 7), dense=True)
    run = fit(asked, tmp_path / "again", WATCH, data=(left, shown), say=quiet)
    old = first.method.classifier.centers.detach()
    names = first.method.classes
    same = left.with_labels(
        torch.tensor([names.index(left.classes[c]) for c in left.labels]), names
    )
    votes = torch.nn.functional.one_hot(nearest(first.method, same), 3)
    for c, name in enumerate(left.classes):
        own = votes[left.labels == c].sum(0)
        expected = old[names.index(name), int(own.argmax())]
        torch.testing.assert_close(run.method.classifier.centers[c, 0], expected)
    assert left.classes == tuple(name for k, name in enumerate(train.classes) if k not in (3, 7))
    used = {row.at: row.value for row in first.rows if row.quantity == "subcenter_share"}
    assert set(used) == {"1", "2", "3"}
    assert sum(row.quantity == "dead_subcenters" for row in first.rows) == 2  # epochs 0 and 1
    with pytest.raises(ValueError, match=r"do not fit: classifier.centers is \(10, 3, 8\) there"):
        fit(
            replace(asked, method="MarginClassifier(dim=8, subcenters=5)"),
            tmp_path / "more",
            WATCH,
            data=(left, shown),
            say=quiet,
        )


def dominant(group, rank, recipe, folder, images):
    method = recipe.make_method(10)
    start(method, folder, images)
    return method.classifier.part, method.classifier.centers.detach()


@pytest.mark.xdist_group("ranks")
def test_ranks_take_the_same_dominant_centers(pool, tmp_path):
    margin = replace(SMALL, method="MarginClassifier(dim=8, subcenters=3)", epochs=1, batch=48)
    first = fit(margin, tmp_path / "first", WATCH, say=quiet)
    images = load(margin.data, "train", size=margin.image_size).subset(96)
    one = replace(margin, method="MarginClassifier(dim=8)")
    alone = one.make_method(10)
    start(alone, first.folder, images)
    expected = alone.classifier.centers.detach()
    assert expected.shape == (10, 1, 8)
    assert not torch.equal(expected, one.make_method(10).classifier.centers)
    for part, centers in pool.run(4, dominant, one, first.folder, images):
        assert torch.equal(centers, expected[part])


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
