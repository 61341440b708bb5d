"""A checkpoint that somebody made by hand is refused by a sentence, and not waited for."""

import json
import os
import pickle
import shutil
import threading

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from marginlab.train import Recipe, contents, load, restore, save

RECIPE = Recipe(
    data="shapes-5", images=32, augmentation="Augmentation('ae')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="MoCo(hidden=8, dim=8, queue=64)", epochs=2, batch=16, optimizer="SGD(lr=0.05)",
)  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    return save(folder, RECIPE, RECIPE.make_method(), step=1, classes=("cat", "dog"))


@pytest.fixture
def place(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "step-00000001")


def refusal(place, function=load):
    """The ValueError of a function that may not take longer than a moment."""
    caught = []

    def attempt():
        try:
            function(place)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(60)
    assert caught, "it waits, or it was loaded"
    assert type(caught[0]) is ValueError
    assert len(str(caught[0])) < 1000
    return str(caught[0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ranks", "x"), ("ranks", None), ("ranks", 0), ("num_classes", "x"),
        ("classes", 5), ("classes", None), ("classes", {"a": 1}), ("classes", [1, 2]),
        ("classes", [["x"], ["y"]]), ("format", True), ("format", 1.0), ("format", [[]]),
    ],
)  # fmt: skip
def test_progress_of_other_types_is_refused(place, key, value):
    file = place / "progress.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    contents.write_sums(place, {})
    assert "progress.json" in refusal(place)


@pytest.mark.parametrize(
    "name", ["progress.json", "recipe.toml", ".metadata", "__0_0.distcp", contents.SUMS, "x"]
)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(place, name, kind):
    (place / name).unlink(missing_ok=True)
    {
        "pipe": os.mkfifo,
        "folder": os.mkdir,
        "device": lambda path: path.symlink_to("/dev/zero"),
    }[kind](place / name)
    if name == "x":
        with (place / contents.SUMS).open("a") as file:
            file.write("0  x\n")
    assert name in refusal(place)
    assert name in refusal(place, lambda place: restore(place, RECIPE.make_method(), recipe=RECIPE))


def nested():
    """A tuple of 40 tuples in memory, and of 2**40 as text."""
    inner = "a"
    for _ in range(40):
        inner = (inner, inner)
    return inner


@pytest.mark.parametrize(
    "change",
    [
        {"relative_path": nested()}, {"offset": nested()}, {"length": nested()},
        {"relative_path": "a.distcp"}, {"relative_path": "__x_0.distcp"}, {"relative_path": None},
    ],
)  # fmt: skip
def test_metadata_of_other_types_is_refused(place, change):
    found = contents.Reader(place).read_metadata()
    index = next(iter(found.storage_data))
    vars(found.storage_data[index]).update(change)
    (place / ".metadata").write_bytes(pickle.dumps(found))
    contents.write_sums(place, {})
    assert ".metadata cannot be read" in refusal(place)


def test_metadata_that_names_a_tensor_by_a_number_is_refused(place):
    found = contents.Reader(place).read_metadata()
    index = next(iter(found.storage_data))
    found.storage_data[MetadataIndex(5)] = found.storage_data.pop(index)
    (place / ".metadata").write_bytes(pickle.dumps(found))
    contents.write_sums(place, {})
    assert "by no text" in refusal(place)


def test_a_recipe_of_more_memory_than_there_is_takes_none(place):
    """A queue of 300 billion embeddings of 8 numbers: 9.6 TB."""
    file = place / "recipe.toml"
    file.write_text(file.read_text().replace("queue=64", "queue=300000000000"))
    contents.write_sums(place, {})
    assert "holds (64, 8)" in refusal(place)


def test_a_network_that_is_sketched_first_is_the_same(kept):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    again = load(kept)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(
        torch.equal(v, again.state_dict()[k]) for k, v in RECIPE.make_method().state_dict().items()
    )
