"""Stops of a training: numbers that are not finite, and SIGTERM.

The first are found by layer and told to all ranks; after the second a run goes on bit for bit.
"""

import os
import signal
import time
from dataclasses import replace

import forked
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from marginlab import ranks, settings
from marginlab.augment import Augmentation
from marginlab.methods import Method
from marginlab.train import Monitor, Recipe, checkpoint, fit
from marginlab.train.watch import Signal, Stopped, agreed, diagnosis

RECIPE = Recipe(
    images=96,
    image_size=16,
    augmentation="Augmentation('ae')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="MarginClassifier(margin='AdaFace(momentum=0.5)', scale=16.0, dim=16, sample_rate=0.5)",
    epochs=2,
    batch=16,
    optimizer="SGD(lr=0.05)",
)
WATCH = Monitor(every=1, images=20, views=2, bank=40)


def quiet(line):
    """Where progress goes in tests."""


def test_sigterm_keeps_the_step_and_the_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole = fit(RECIPE, tmp_path / "whole", WATCH, say=quiet)
    after = Method.after_step
    calls = []

    def told(self):
        calls.append(1)
        if len(calls) == 4:  # in the middle of the first epoch of six steps
            os.kill(os.getpid(), signal.SIGTERM)
        after(self)

    monkeypatch.setattr(Method, "after_step", told)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        Stopped, match=r"Stopped after step 5 of 12, which is kept in .*step-00000005"
    ):
        fit(RECIPE, tmp_path / "run", WATCH, say=quiet)
    assert signal.getsignal(signal.SIGTERM) == before
    again = fit(RECIPE, tmp_path / "run", WATCH, say=quiet)
    assert len(calls) == 12
    assert again.rows == whole.rows or repr(again.rows) == repr(whole.rows)
    for name, value in whole.method.state_dict().items():
        assert torch.equal(value, again.method.state_dict()[name]), name


def test_the_layer_the_images_and_the_step_are_named(tmp_path, monkeypatch):
    made = Recipe.make_method

    def broken(self, num_classes=2):
        method = made(self, num_classes)
        with torch.no_grad():
            method.head.linear.weight[0, 0] = torch.nan
        return method

    monkeypatch.setattr(Recipe, "make_method", broken)
    monkeypatch.setattr(Monitor, "__call__", lambda self, *arguments, **keywords: [])
    words = (
        r"Step 0 of 12, rank 0: .* in the output of layer head.linear \(Linear\); "
        r"the batch is images \d+, "
    )
    with pytest.raises(FloatingPointError, match=words):
        fit(RECIPE, tmp_path / "run", WATCH, say=quiet)
    assert checkpoint.latest(tmp_path / "run") is None


def test_the_micro_batch_that_broke_is_named(tmp_path, monkeypatch):
    two = replace(RECIPE, method="SimCLR(hidden=16, dim=16)", accumulate=2)
    monkeypatch.setattr(Monitor, "__call__", lambda self, *arguments, **keywords: [])
    bad, views = [], Augmentation.views

    def broken(self, images, *, index=None, **keywords):
        made = views(self, images, index=index, **keywords)
        if index is None:  # the trial before the run
            return made
        bad.extend(index.tolist() if not bad else [])  # of the first micro-batch of the first step
        return (
            made.index_fill(0, torch.tensor([0]), torch.nan) if index.tolist() == bad[:8] else made
        )

    monkeypatch.setattr(Augmentation, "views", broken)
    with pytest.raises(
        FloatingPointError,
        match=r"Step 0 of 12, rank 0: .* in the views themselves; the batch is images ",
    ) as error:
        fit(two, tmp_path / "run", WATCH, say=quiet)
    assert f"images {', '.join(map(str, bad))}." in str(error.value)


def test_sigterm_after_the_last_step_is_not_lost(tmp_path, monkeypatch):
    """As in a study, whose next training would begin."""
    save = checkpoint.write
    one = replace(RECIPE, epochs=1)

    def told(*arguments, **keywords):
        place = save(*arguments, **keywords)
        os.kill(os.getpid(), signal.SIGTERM)
        return place

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", told)
        with pytest.raises(Stopped, match="Stopped after the last step"):
            fit(one, tmp_path / "run", WATCH, say=quiet)
    assert len(fit(one, tmp_path / "run", WATCH, say=quiet).rows) > 0


def test_ctrl_c_while_a_checkpoint_is_written_is_ctrl_c(tmp_path, monkeypatch):
    """torch collects it with the errors of ranks, or raises an error that follows from it."""

    def interrupted(*arguments, **keywords):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            try:
                raise RuntimeError("unexpected pos")
            except RuntimeError as error:
                raise CheckpointException("save", {0: _wrap_exception(error)}) from None

    monkeypatch.setattr(checkpoint, "save_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(RECIPE, tmp_path / "run", WATCH, say=quiet)


def test_views_gradients_and_the_loss_are_told_apart():
    method = RECIPE.make_method(10)
    views, rows, one = torch.rand(4, 1, 3, 16, 16), torch.arange(4), torch.tensor(1.0)
    assert "the loss, of finite embeddings" in diagnosis(method, views, rows, one * torch.nan)[1]
    method.backbone.requires_grad_(True)
    first = next(method.parameters())
    first.grad = torch.full_like(first, torch.inf)
    assert "the gradient of backbone." in diagnosis(method, views, rows, one)[1]
    assert "the views themselves" in diagnosis(method, views / 0, rows, one)[1]


def flags(group, rank, losses, told):
    stop = Signal()
    stop.came = told[rank]
    sparse = torch.sparse_coo_tensor(
        [[0, 0]], torch.tensor([[1.0], [losses[rank]]]), (3, 1), check_invariants=True
    )
    return agreed(torch.tensor(1.0), [sparse, torch.ones(2)], stop)


@pytest.mark.xdist_group("ranks")
def test_one_rank_stops_all_of_them(pool):
    assert pool.run(4, flags, [1.0, 2.0, 3.0, 4.0], [False] * 4) == [([False] * 4, False)] * 4
    assert (
        pool.run(4, flags, [1.0, float("nan"), 3.0, 4.0], [False] * 4)
        == [([False, True, False, False], False)] * 4
    )
    assert (
        pool.run(4, flags, [1.0, 2.0, 3.0, 4.0], [False, False, True, False])
        == [([False] * 4, True)] * 4
    )


def test_clipping_bounds_the_step(tmp_path):
    assert ranks.size() == 1
    with pytest.raises(settings.SettingsError, match="clip is at least 0"):
        replace(RECIPE, clip=-1.0)
    small = replace(
        RECIPE,
        epochs=1,
        clip=1e-9,
        optimizer="SGD(lr=0.05, momentum=0.0, weight_decay=0.0)",
        schedule="Constant()",
    )
    before = {name: p.clone() for name, p in small.make_method(10).named_parameters()}
    after = dict(fit(small, tmp_path / "run", WATCH, say=quiet).method.named_parameters())
    for name, value in before.items():
        if "centers" not in name:
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-8)


ONE_RANK_FAILS = """
import sys, torch, marginlab.augment as augment
from marginlab import ranks
from marginlab.train.__main__ import main
views = augment.Augmentation.views
def broken(self, images, **keywords):
    made = views(self, images, **keywords)
    if ranks.rank() == 1 and keywords.get("first_view") == 1:  # in the second epoch
        open(sys.argv[0] + ".failed", "w").close()
        if sys.argv[1] == "raise":
            raise ValueError("this rank cannot go on")
        made[0] = torch.nan
    return made
augment.Augmentation.views = broken
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "Rank 1: this rank cannot go on"),
        ("nan", "rank 1: the first number that is not finite is in the views"),
    ],
)
def test_a_rank_that_fails_ends_all_within_a_minute_and_says_why(tmp_path, how, said):
    script, recipe = tmp_path / "failing.py", tmp_path / "recipe.toml"
    script.write_text(ONE_RANK_FAILS)
    recipe.write_text(settings.to_toml(RECIPE))
    command = [
        *forked.torchrun(),
        str(script),
        how,
        str(recipe),
        "--folder",
        str(tmp_path / "run"),
        "--measure",
        repr(WATCH),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = forked.run(command, cwd=tmp_path, env=environment, timeout=200)
    ended = time.time()
    assert done.returncode != 0
    assert said in done.stderr
    assert ended - script.with_name("failing.py.failed").stat().st_mtime < 60
    assert checkpoint.latest(tmp_path / "run").name == "step-00000006"  # of the first epoch, whole
