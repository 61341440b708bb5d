"""Training on image sets that are given to `fit`."""

from dataclasses import replace

import pytest
import torch
from small_training import SMALL, quiet, weights

from marginlab import settings
from marginlab.data import load as load_images
from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe, fit, load
from marginlab.train.images import check


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
