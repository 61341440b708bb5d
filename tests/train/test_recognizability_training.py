"""Fine-tuning by Recognizability from a margin classifier: it starts, and resumes bit for bit."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from marginlab.methods import Recognizability
from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe, fit, load
from marginlab.train.watch import Stopped

FIRST = Recipe(
    images=80,
    augmentation="Augmentation('e')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="MarginClassifier(scale=16.0, dim=16)",
    epochs=1,
    batch=40,
    optimizer="SGD(lr=0.02)",
)
SECOND = replace(
    FIRST,
    method="Recognizability(image_size=32, scale=16.0, dim=16, instances=40, tight=0.0)",
    augmentation="Augmentation(('HorizontalFlip()', 'LowResolution(rows=(4, 16))'))",
    epochs=2,
)
WATCH = Monitor(every=1, images=20, views=2, bank=40)


def quiet(line: str) -> None:
    """Drop a line of progress."""


class Stop(Exception):
    pass


class Dying(Monitor):
    def __call__(self, method, augmentation, train, test, at, *, last, **more):
        if at == 2:
            raise Stop
        return super().__call__(method, augmentation, train, test, at, last=last, **more)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return fit(FIRST, tmp_path_factory.mktemp("first") / "run", WATCH, say=quiet)


def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(first, tmp_path):
    recipe = replace(SECOND, start=str(first.folder))
    whole = fit(recipe, tmp_path / "whole", WATCH, say=quiet)
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "killed", Dying(**vars(WATCH)), say=quiet)
    again = fit(recipe, tmp_path / "killed", WATCH, say=quiet)
    ours, theirs = whole.method.state_dict(), again.method.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert int(whole.method.center_epoch) == 1
    loaded = load(tmp_path / "whole")
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(loaded.quality(images), whole.method.quality(images))
    named = {row.quantity for row in whole.rows}
    assert {"index_regression", "index_diversion", "attention", "unrecognizable_cosine"} <= named


def test_a_run_that_is_stopped_within_an_epoch_keeps_center_and_statistics(
    first, tmp_path, monkeypatch
):
    recipe = replace(SECOND, start=str(first.folder))
    whole = fit(recipe, tmp_path / "whole", Monitor.none(), say=quiet)
    steps, loss = [], Recognizability.loss

    def stopping(self, views, labels):
        steps.append(int(self.center_epoch))
        if len(steps) == 3:  # the first of two steps of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, views, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Recognizability, "loss", stopping)
        with pytest.raises(Stopped, match="after step 3 of 4"):
            fit(recipe, tmp_path / "stopped", Monitor.none(), say=quiet)
    assert steps == [0, 0, 1]
    with monkeypatch.context() as patch:  # what the second epoch began with is in the checkpoint
        patch.setattr(Recognizability, "begin_epoch", lambda *_: pytest.fail("an epoch began"))
        again = fit(recipe, tmp_path / "stopped", Monitor.none(), say=quiet)
    ours, theirs = whole.method.state_dict(), again.method.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_center_is_that_of_the_network_it_starts_from(first, tmp_path):
    method = replace(SECOND, start=str(first.folder)).make_method(10)
    names = set(method.state_dict()) - set(first.method.state_dict())
    assert names
    assert all(name.startswith(method.drawn_anew) for name in names)


def test_parts_of_a_batch_are_refused():
    with pytest.raises(SettingsError, match=r"Take accumulate = 1\."):
        replace(SECOND, accumulate=2).make_method(10)
