"""Training on streamed folders: the numbers of a held one, bit for bit, also when it is stopped and
goes on; ranks and signals end it as a whole.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from marginlab import ranks, settings
from marginlab.data.streaming import Streamed
from marginlab.methods import Method
from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe, check, checkpoint, fit
from marginlab.train.watch import Stopped

BUDGET = 1000  # bytes: no image set fits
WATCH = Monitor(images=12, views=2, bank=30, classes=2)


def quiet(line):
    """Where progress goes in tests."""


def state(run):
    return torch.cat([value.double().flatten() for value in run.method.state_dict().values()])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Of 3 classes, 48 images for training and 12 for the test; half are JPEGs."""
    path, drawn = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("ant", "bee", "cow"):
        (path / name).mkdir()
        for i in range(20):
            image = Image.fromarray(drawn.integers(0, 256, (30 + i % 3, 28, 3), dtype=np.uint8))
            image.save(path / name / f"{i}.{('png', 'jpg')[i % 2]}")
    return Recipe(
        data=f"folder:{path}",
        image_size=16,
        augmentation="Augmentation('ae')",
        backbone="Backbone('resnet18', stem='strided', width=0.125)",
        method="MarginClassifier(margin='AdaFace(momentum=0.5)', scale=16.0, dim=16, "
        "sample_rate=0.7)",
        epochs=3,
        batch=16,
        accumulate=2,
        optimizer="SGD(lr=0.05)",
    )


@pytest.fixture(scope="module")
def held(recipe, tmp_path_factory):
    return fit(recipe, tmp_path_factory.mktemp("held") / "run", WATCH, say=quiet)


def test_a_streamed_run_is_the_held_one_bit_for_bit(recipe, held, tmp_path):
    train, test = check(recipe, budget=BUDGET, workers=0)
    assert isinstance(train.images, Streamed)
    assert isinstance(test.images, Streamed)
    run = fit(recipe, tmp_path / "run", WATCH, say=quiet, budget=BUDGET, workers=0)
    assert torch.equal(state(run), state(held))
    np.testing.assert_equal(run.rows, held.rows)


def test_a_streamed_run_that_is_stopped_goes_on_bit_for_bit_with_another_budget_and_other_workers(
    recipe, held, tmp_path, monkeypatch
):
    after, steps = Method.after_step, []

    def told(self):
        steps.append(1)
        if len(steps) in (2, 6):  # each in the middle of an epoch of three steps
            os.kill(os.getpid(), signal.SIGTERM)
        after(self)

    monkeypatch.setattr(Method, "after_step", told)
    for workers, stopped in ((2, 3), (1, 7)):
        with pytest.raises(Stopped, match=f"Stopped after step {stopped} of 9"):
            fit(recipe, tmp_path / "run", WATCH, say=quiet, budget=BUDGET, workers=workers)
    run = fit(recipe, tmp_path / "run", WATCH, say=quiet)
    assert len(steps) == 9
    assert torch.equal(state(run), state(held))
    np.testing.assert_equal(run.rows, held.rows)


def test_a_choice_of_images_that_fits_the_budget_is_held(recipe):
    train, _ = check(replace(recipe, images=18), budget=18 * 3 * 16 * 16, workers=0)
    assert isinstance(train.images, torch.Tensor)
    assert torch.equal(train.images, check(replace(recipe, images=18))[0].images)
    with pytest.raises(SettingsError, match="workers is a number of processes"):
        check(recipe, workers=-1)


class Unwatched(Monitor):
    """Measures nothing, so that a broken file is met in a batch, by one rank."""

    def __call__(self, *arguments, **named):
        return []


def trained(group, rank, recipe, folder, budget):
    run = fit(recipe, folder, Unwatched(), say=quiet, budget=budget, workers=0)
    return [ranks.to_local(value).clone() for value in run.method.state_dict().values()], repr(
        run.rows
    )


def refused(group, rank, recipe, folder):
    try:
        fit(recipe, folder, Unwatched(), say=quiet, budget=BUDGET, workers=0)
    except ValueError as error:
        return str(error)


@pytest.mark.xdist_group("ranks")
def test_ranks_stream_the_held_run_and_end_together_at_a_file_that_is_cut_short(
    pool, recipe, tmp_path
):
    for split in ("train", "test"):
        shutil.copytree(recipe.data.removeprefix("folder:"), tmp_path / "images" / split)
    own = replace(recipe, data=f"folder:{tmp_path / 'images'}", epochs=1)
    held = pool.run(4, trained, own, tmp_path / "held", 10**9)
    streamed = pool.run(4, trained, own, tmp_path / "streamed", BUDGET)
    for (ours, rows), (theirs, their_rows) in zip(streamed, held, strict=True):
        assert all(map(torch.equal, ours, theirs))
        assert rows == their_rows
    cut = tmp_path / "images" / "train" / "bee" / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:-40])
    said = pool.run(4, refused, own, tmp_path / "cut")
    words = r"folder:.*train/bee/1.jpg cannot be read as an image: .* Remove it, or save it again\."
    found = [rank for rank, text in enumerate(said) if re.fullmatch(words, text)]
    assert len(found) == 1
    for rank, text in enumerate(said):
        assert rank in found or re.fullmatch(
            rf"Rank {found[0]} of 4 refused its images: {words}", text
        )


def session(number):
    """The processes of a session that have not ended."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its = place.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its) == number and state != "Z":
            found.append(int(place.parent.name))
    return found


def left(number, patience=15.0):
    """Return the processes of a session that are left after some seconds, at most."""
    until = time.monotonic() + patience
    while (found := session(number)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


READING = """
import signal, torch
from marginlab.data.streaming import Streamed, batches
images = torch.zeros(64, 3, 2, 2, dtype=torch.uint8)
reading = batches(Streamed(images, torch.arange(64), 1, 2), torch.arange(64).split(4))
next(reading)
print("read", flush=True)
signal.pause()
"""


def test_a_process_that_is_killed_leaves_no_worker():
    run = subprocess.Popen(
        [sys.executable, "-c", READING], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with run.stdout as said:
        assert said.readline() == "read\n"
    assert len(session(run.pid)) >= 4  # itself, the server and two workers
    run.kill()
    run.wait()
    assert not left(run.pid)


def test_sigterm_to_the_whole_group_keeps_the_step_and_leaves_no_process(recipe, tmp_path):
    own, folder = tmp_path / "recipe.toml", tmp_path / "run"
    own.write_text(settings.to_toml(replace(recipe, epochs=10_000)))
    command = [
        sys.executable,
        "-m",
        "marginlab.train",
        str(own),
        "--folder",
        str(folder),
        "--budget-gib",
        "1e-6",
        "--workers",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [*command, "--measure", repr(WATCH)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while checkpoint.latest(folder) is None and run.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert len(session(run.pid)) >= 4  # itself, the server and two workers
    os.killpg(run.pid, signal.SIGTERM)  # as torchrun does
    _, said = run.communicate(timeout=60)
    assert run.returncode == 143, said
    assert re.search(
        r"Stopped after step \d+ of 30000, which is kept in .* The same command goes on "
        r"from there\.",
        said,
    ), said
    assert not left(run.pid)
