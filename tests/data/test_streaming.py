"""Streamed images: the same as held ones, read when asked for, by workers that end with their
reader and say which file is broken.
"""

import contextlib
import functools
import os
import time
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image

from marginlab.data import ImageSet, load
from marginlab.data.__main__ import main
from marginlab.data.streaming import Streamed, batches, default_workers
from marginlab.settings import SettingsError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 9, 7, 3), dtype=np.uint8)


class Numbers:
    """A source whose image at a row is that number; it records the rows it was asked for."""

    def __init__(self, n):
        self.shape, self.asked = torch.Size((n, 3, 2, 2)), []

    def __getitem__(self, rows):
        self.asked += rows.tolist()
        return rows.to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()


class Processes(Numbers):
    """Gives the number of the process that reads; one of row 13 ends without a word, as one does
    that is killed for its memory.
    """

    def __getitem__(self, rows):
        if 13 in rows.tolist():
            os._exit(1)
        return (
            torch.tensor(list(os.getpid().to_bytes(8, "little")), dtype=torch.uint8)[
                :, None, None, None
            ]
            .expand(-1, 3, 2, 2)
            .contiguous()
        )


def streamed(n=40, budget=1, workers=0, source=Numbers):
    return Streamed(source(n), torch.arange(n), budget, workers)


def gone(process, patience=10.0):
    """Return whether a process ends within some seconds, collected by its parent or not."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.02)
                continue
        return True
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of images of several sizes and kinds."""
    path = tmp_path_factory.mktemp("folder")
    for k, name in enumerate(("ant", "bee", "cow")):
        (path / name).mkdir()
        for i in range(10):
            image = Image.fromarray(PIXELS[(3 * i + k) % 12][: 9 - i % 3])
            image.save(path / name / f"{i}.{('png', 'jpg')[i % 2]}")
    return f"folder:{path}"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_folder_gives_what_a_held_one_gives(folder, workers):
    held, some = load(folder, size=6), load(folder, size=6, budget=300, workers=workers)
    assert isinstance(held.images, torch.Tensor)
    assert isinstance(some.images, Streamed)
    assert (len(some), some.images.shape, some.classes) == (
        len(held),
        held.images.shape,
        held.classes,
    )
    assert torch.equal(some.labels, held.labels)
    assert some.digest() == held.digest()
    assert torch.equal(some.images.held(), held.images)
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))
    parts = order.split(5)
    state = torch.get_rng_state()
    read = list(batches(some.images, iter(parts)))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(read) == len(parts)
    for part, (index, images) in zip(parts, read, strict=True):
        assert torch.equal(index, part)
        assert torch.equal(images, held.images[part])
    assert torch.equal(torch.cat(list(some.images.split(7))), held.images)
    assert torch.equal(some.images[held.labels == 1], held.images[held.labels == 1])


def test_a_folder_within_the_budget_is_held_whoever_asks(folder):
    assert isinstance(load(folder, size=6, workers=2).images, torch.Tensor)
    with pytest.raises(ValueError, match="above the budget of 300"):
        load(folder, size=6, budget=300)
    with pytest.raises(
        SettingsError,
        match="workers is a number of processes, or 0 for none beside this one, not -1",
    ):
        load(folder, size=6, workers=-1)


@given(st.integers(2, 30), st.integers(0, 5), st.integers(1, 500))
def test_a_subset_reads_itself_and_is_held_where_it_fits(n, seed, budget):
    labels, prints = torch.arange(30) % 3, torch.arange(30)
    whole = ImageSet(streamed(30, budget), labels, ("a", "b", "c"), "made", prints)
    held = ImageSet(Numbers(30)[torch.arange(30)], labels, ("a", "b", "c"), "made", prints)
    small, same = whole.subset(n, seed), held.subset(n, seed)
    fits = 12 * n <= budget and n < 30
    assert isinstance(small.images, torch.Tensor) == fits
    assert len(whole.images.source.asked) == (n if fits else 0)
    images = small.images if fits else small.images.held()
    assert torch.equal(images, same.images)
    assert torch.equal(small.labels, same.labels)
    assert small.digest() == same.digest()
    again = small.subset(2, seed)
    assert torch.equal(
        again.images if isinstance(again.images, torch.Tensor) else again.images.held(),
        same.subset(2, seed).images,
    )
    assert small.to("cpu").digest() == small.digest()


def test_a_set_is_told_from_another_by_its_files(folder, tmp_path):
    bright = PIXELS[:2].copy()
    for name, image in zip(("ant", "bee"), PIXELS, strict=False):
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            # not compressed: other pixels leave the length as it is
            Image.fromarray(image).save(tmp_path / name / f"{i}.bmp")
    spec = f"folder:{tmp_path}"
    before = load(spec).digest()
    assert load(spec).digest() == load(spec, budget=1, workers=0).digest() == before
    bright[1, -1, -1] ^= 1
    Image.fromarray(bright[1]).save(tmp_path / "bee" / "0.bmp")
    assert load(spec).digest() == load(spec, budget=1, workers=0).digest() != before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_cut_short_is_named_where_its_batch_is_due(tmp_path, workers):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.fromarray(PIXELS[i]).resize((60, 60)).save(tmp_path / name / f"{i}.jpg")
    for file in (tmp_path / "bee").iterdir():
        file.write_bytes(file.read_bytes()[:-400])
    some = load(f"folder:{tmp_path}", budget=1, workers=workers)
    # of each class one image is for the test
    reading = batches(some.images, torch.arange(8).split(2))
    assert [next(reading)[0].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(
        ValueError,
        match=r"^folder:.*bee/\d.jpg cannot be read as an image: .*truncated.* Remove it, or "
        r"save it again\.$",
    ):
        next(reading)
    with pytest.raises(StopIteration):
        next(reading)


def test_a_file_of_another_size_than_at_first_is_named(folder, tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(PIXELS[i]).save(tmp_path / name / f"{i}.png")
    some = load(f"folder:{tmp_path}", budget=1, workers=0)
    Image.fromarray(PIXELS[0][:1, :1]).save(some_file := tmp_path / "ant" / "0.png")
    Image.fromarray(PIXELS[0][:1, :1]).save(tmp_path / "ant" / "1.png")
    with pytest.raises(
        ValueError,
        match=f"{some_file.parent}/.*png was of 9 x 7 when the work began, and is now of 1 x 1",
    ):
        some.images.held()


def test_workers_read_two_batches_each_ahead_and_no_more():
    drawn = []
    parts = (drawn.append(row) or torch.arange(4 * row, 4 * row + 4) for row in range(10))
    with contextlib.closing(batches(streamed(workers=2), parts)) as reading:
        for taken, _ in enumerate(reading, 1):
            assert len(drawn) == min(taken + 4, 10)


def test_workers_end_with_their_reader_and_are_apart_from_its_signals():
    parts = [torch.full((8,), row) for row in range(12)]
    reading = batches(streamed(workers=2, source=Processes), iter(parts))
    found = {
        int.from_bytes(bytes(images[:, 0, 0, 0].tolist()), "little")
        for _, images in (next(reading) for _ in range(4))
    }
    assert len(found) == 2
    assert os.getpid() not in found
    # Ctrl-C goes to this process's group
    assert {os.getpgid(process) for process in found} == found
    reading.close()
    assert all(gone(process) for process in found)


def test_a_worker_that_ends_is_an_error_and_ends_the_others():
    reading = batches(
        streamed(workers=2, source=Processes),
        iter([torch.full((8,), row) for row in (0, 1, 2, 13, 3, 4)]),
    )
    other = int.from_bytes(bytes(next(reading)[1][:, 0, 0, 0].tolist()), "little")
    with pytest.raises(
        ChildProcessError,
        match=r"A process that reads images ended: .* If memory was short, take fewer workers",
    ) as kept:
        list(reading)
    assert gone(other), kept  # although an error is kept, whose traceback knows the reader


def test_streamed_images_want_fingerprints():
    with pytest.raises(
        ValueError,
        match=r"40 images have 0 fingerprints\. Give one for each; held images need none",
    ):
        ImageSet(streamed(), torch.arange(40) % 2, ("a", "b"), "made")


def test_a_rank_takes_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(12))
    assert default_workers() == 8
    for local, workers in ((2, 6), (5, 2), (20, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
        assert default_workers() == workers


def test_the_command_describes_a_folder_of_any_size_without_decoding_it(
    folder, capsys, monkeypatch
):
    monkeypatch.setattr(
        Image.Image, "convert", lambda *arguments: pytest.fail("an image was decoded")
    )
    monkeypatch.setattr("marginlab.data.__main__.load", functools.partial(load, budget=1))
    main([folder, "--size", "6"])
    assert "24 images of 6 x 6, 3 classes: ant, bee, cow" in capsys.readouterr().out
