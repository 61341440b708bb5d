"""The classes of each step, replayed without training, are those that the training drew."""

from dataclasses import replace

import pytest
import torch
from small_training import SMALL, quiet

from marginlab.data import load
from marginlab.losses import partial_fc
from marginlab.settings import SettingsError
from marginlab.train import Monitor, fit, sampled_steps

SAMPLED = replace(
    SMALL,
    method="MarginClassifier(dim=8, sample_rate=0.5)",
    batch=4,
    images=24,
    epochs=2,
)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_samples_of_a_training_are_replayed(tmp_path, monkeypatch, accumulate):
    seen, draw = [], partial_fc.draw_classes

    def noted(labels, *arguments, **named):
        found = draw(labels, *arguments, **named)
        seen.append((named["step"], labels.clone(), found.classes.clone()))
        return found

    monkeypatch.setattr(partial_fc, "draw_classes", noted)
    recipe = replace(SAMPLED, accumulate=accumulate)
    fit(recipe, tmp_path, Monitor.none(), say=quiet)
    images = load(recipe.data, "train", size=recipe.image_size).subset(recipe.images, recipe.seed)
    steps = list(sampled_steps(recipe, images))
    drawn = {step: (labels, classes) for step, labels, classes in seen}
    assert sorted(drawn) == list(range(len(steps))) == list(range(12))
    for number, step in enumerate(steps):
        labels, classes = drawn[number]
        assert torch.equal(step.labels, labels)
        assert torch.equal(step.classes, classes)


def test_all_classes_are_seen_at_rate_one_and_other_methods_refused():
    images = load("shapes", "train", size=16).subset(24)
    every = replace(SAMPLED, method="MarginClassifier(dim=8)")
    assert all(len(step.classes) == 10 for step in sampled_steps(every, images))
    with pytest.raises(SettingsError, match="has no class centers"):
        next(sampled_steps(SMALL, images))
