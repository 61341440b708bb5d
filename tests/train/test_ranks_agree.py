"""The script that compares one process with two, on a small recipe: the first losses agree to
rounding, and the planner's bytes are exchanged.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import ranks_agree
from ranks_agree import Said, apart, exchanged, trained, watched

from marginlab.train import Recipe

RECIPE = Recipe(
    images=96,
    image_size=16,
    augmentation="Augmentation('ae')",
    backbone="Backbone('resnet18', stem='strided', width=0.125, norm='group', activation='silu')",
    method="MarginClassifier(margin='ArcFace(0.3)', scale=16.0, dim=16, sample_rate=0.5)",
    epochs=1,
    batch=16,
    optimizer="SGD(lr=0.05)",
)


@pytest.fixture(autouse=True)
def forks(monkeypatch, tmp_path):
    """Fork the processes that the script starts."""

    def run(words, *, env, **_):
        return forked.run(words, cwd=tmp_path, env=env, timeout=200)

    monkeypatch.setattr(ranks_agree, "subprocess", SimpleNamespace(run=run))


def test_the_first_losses_of_two_processes_are_those_of_one(tmp_path):
    one, two = watched(RECIPE, 5, torch.float64, tmp_path / "one"), trained(RECIPE, 5, "float64", 2)
    assert len(one.losses) == len(two.losses) == 5
    assert apart(one, two) < 1e-10
    assert max(one.losses) - min(one.losses) > 0.1  # it trains
    assert (one.payloads, one.gradients) == ([], 0)
    method = RECIPE.make_method(10)
    assert two.gradients == 8 * sum(
        p.numel() for p in [*method.backbone.parameters(), *method.head.parameters()]
    )
    # the numbers of the planner are those of float32, in which embeddings and what is summed take
    # half as much
    halved = [
        [how, n if (how, n) in (("all-reduce", 32), ("all-gather", 64)) else n // 2]
        for how, n in two.payloads
    ]
    assert "of which the head's 1,824 are as planned" in exchanged(
        two._replace(payloads=halved), RECIPE, 0.5, 10, 16, "ArcFace(0.3)"
    )


def test_losses_that_differ_and_bytes_that_were_not_planned_are_seen():
    one, two = (
        Said([2.0, 1.0, 0.5], 1.0, [], 0),
        Said([2.0, 1.25, 0.25], 1.0, [["all-gather", 7]], 0),
    )
    assert apart(one, two) == 0.25
    with pytest.raises(ValueError, match="not in list"):
        exchanged(two, RECIPE, 0.5, 10, 16, "ArcFace(0.3)")


def test_a_process_that_fails_is_said_with_its_cause():
    with pytest.raises(
        RuntimeError,
        match=r"1 process\(es\) failed(.|\n)*A batch of 96 is more than the 90 training images",
    ):
        trained(Recipe(images=90, image_size=16, batch=96), 1, "float64", 1)
