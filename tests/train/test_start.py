"""Runs that start from the weights of another run."""

import shutil
from dataclasses import replace

import pytest
import torch
from small_training import SMALL, WATCH, quiet, weights

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
