"""Ranks that would not train the same are told so before the first step, all of them, and each
names the ranks.
"""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe, contents, fit, images, keeping, save

pytestmark = pytest.mark.xdist_group("ranks")
RECIPE = Recipe(
    data="cifar10",
    augmentation="Augmentation('e')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="SimCLR(hidden=16, dim=16)",
    epochs=1,
    batch=8,
    optimizer="SGD(lr=0.05)",
)


def root(tmp_path, name, n=16, pixel=None, label=None, names="abcdefghij"):
    """A copy of the data, as one node holds it."""
    draws = np.random.default_rng(0)
    made = {}
    for split in ("train", "test"):
        images = draws.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)[:n]
        labels = np.arange(n) % 10
        if split == "train" and pixel is not None:
            images[0, 0, 0, 0] ^= pixel
        if split == "train" and label is not None:
            labels[:2] = label
        made |= {f"{split}_images": images, f"{split}_labels": labels}
    (tmp_path / name).mkdir()
    np.savez(tmp_path / name / "cifar10.npz", classes=np.array(list(names)), **made)
    return tmp_path / name


class Nothing(Monitor):
    def __call__(self, *arguments, **named):
        return []


def trained(group, rank, roots, recipes, folder):
    try:
        fit(recipes[rank], folder, Nothing(), root=roots[rank], say=lambda line: None)
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def heard(pool, tmp_path, *, one=None, other=None, recipes=None):
    roots = [root(tmp_path, "one", **(one or {})), root(tmp_path, "other", **(other or {}))]
    roots += [roots[0], roots[0]]
    folder = tmp_path / "run"
    said = pool.run(4, trained, roots, recipes or [RECIPE] * 4, folder)
    assert not folder.exists()
    return said


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"pixel": 1},
            r"digest of train images and labels is '\w+' on ranks 0, 2, 3 and '\w+' on rank 1",
        ),
        (
            {"label": [1, 0]},
            r"digest of train labels is '\w+' on ranks 0, 2, 3 and '\w+' on rank 1",
        ),
        (
            {"names": "abcdefghiX"},
            r"train classes is \('a', .*'j'\) on ranks 0, 2, 3 and \('a', .*'X'\) on rank 1",
        ),
        (
            {"n": 32},
            r"train images is \(16, 3, 8, 8\) on ranks 0, 2, 3 and \(32, 3, 8, 8\) on rank 1",
        ),
    ],
    ids=["pixels", "labels", "classes", "number"],
)
def test_other_data_on_one_rank_is_refused_on_all_before_anything_is_written(
    pool, tmp_path, other, words
):
    said = heard(pool, tmp_path, other=other)
    assert len(set(said)) == 1
    assert said[0].startswith("SettingsError: The ranks do not call fit alike: ")
    assert re.search(words, said[0])
    assert "Give every rank the same recipe, the same files" in said[0]


def test_what_one_rank_cannot_read_or_train_on_none_waits_for(pool, tmp_path):
    said = heard(pool, tmp_path, other={"n": 4})
    assert said[1].startswith("SettingsError: A batch of 8 is more than the 4 training images")
    assert said[0] == said[2] == said[3]
    assert said[0].startswith("SettingsError: Rank 1 of 4 refused its images: A batch of 8 is more")


def test_a_rank_without_the_file_ends_all(pool, tmp_path):
    one = root(tmp_path, "one")
    roots = [one, tmp_path / "nowhere", one, one]
    said = pool.run(4, trained, roots, [RECIPE] * 4, tmp_path / "run")
    assert said[1].startswith("FileNotFoundError")
    assert said[0].startswith("SettingsError: Rank 1 of ")


def test_another_recipe_on_one_rank(pool, tmp_path):
    recipes = [RECIPE, replace(RECIPE, seed=1), RECIPE, RECIPE]
    said = heard(pool, tmp_path, recipes=recipes)
    assert len(set(said)) == 1
    assert "recipe.seed is 0 on ranks 0, 2, 3 and 1 on rank 1" in said[0]


def test_the_same_data_is_trained_on(pool, tmp_path):
    roots = [root(tmp_path, "one"), root(tmp_path, "other")] * 2
    assert pool.run(4, trained, roots, [RECIPE] * 4, tmp_path / "run") == ["trained"] * 4


def test_one_process_exchanges_nothing(tmp_path):
    with pytest.raises(SettingsError, match="is more than the 16 training images"):
        fit(
            Recipe(**vars(RECIPE) | {"batch": 64}),
            tmp_path / "run",
            Nothing(),
            root=root(tmp_path, "one"),
        )


def in_folders(group, rank, root, recipe, folders, homes):
    """Train where each rank has its own folder, and its own place from which paths are read."""
    here = Path.cwd()
    os.chdir(homes[rank])
    keeping.PATIENCE = 0.2
    try:
        fit(recipe, folders[rank], Nothing(), root=root, say=lambda line: None)
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        os.chdir(here)
    return "trained"


@pytest.mark.parametrize("kind", ["stale", "empty"])
def test_ranks_that_do_not_see_the_same_folder_are_told_so(pool, tmp_path, kind):
    """Otherwise one goes on from a checkpoint, and waits for others that begin anew."""
    data, folders = root(tmp_path, "one"), [tmp_path / "run"] * 4
    fit(RECIPE, folders[0], Nothing(), root=data, say=lambda line: None)
    folders[1] = tmp_path / "other"
    if kind == "stale":
        shutil.copytree(folders[0], folders[1])
        (place,) = (folders[1] / "checkpoints").iterdir()
        (place / "progress.json").write_text((place / "progress.json").read_text() + " ")
        contents.write_sums(place, {})
    said = pool.run(4, in_folders, data, RECIPE, folders, [tmp_path] * 4)
    if kind == "stale":
        for heard_there in said:
            assert re.search(
                r"its checksums is '\w+' on ranks 0, 2, 3 and '\w+' on rank 1", heard_there
            )
            assert "They do not see the same" in heard_there
    else:
        assert said[1].startswith("SettingsError: ")
        assert "holds no recipe here, but the first rank has written it there" in said[1]
        assert said[0] == said[2] == said[3]
        assert "Rank 1 of 4 refused its folder: " in said[0]
        assert not folders[1].exists()


def test_ranks_that_start_from_different_copies_of_a_run_are_told_so(pool, tmp_path):
    data, homes = (
        root(tmp_path, "one"),
        [tmp_path / "a", tmp_path / "b", tmp_path / "a", tmp_path / "a"],
    )
    for seed, home in enumerate(homes[:2]):
        recipe = replace(RECIPE, seed=seed)
        save(home / "start", recipe, recipe.make_method(10), step=1, classes="abcdefghij")
    recipe, folder = replace(RECIPE, start="start"), tmp_path / "run"
    said = pool.run(4, in_folders, data, recipe, [folder] * 4, homes)
    assert len(set(said)) == 1
    assert re.search(r"its checksums is '\w+' on ranks 0, 2, 3 and '\w+' on rank 1", said[0])
    assert "They hold different copies of start" in said[0]
    assert not folder.exists()
    shutil.rmtree(homes[1])
    homes[1].mkdir()
    said = pool.run(4, in_folders, data, recipe, [folder] * 4, homes)
    assert said[1].startswith("FileNotFoundError: start holds no whole checkpoint")
    assert "Rank 1 of 4 refused its start: " in said[0]


def short_of_memory(group, rank, root, folder):
    check = images.check

    def full(*arguments, **named):
        raise MemoryError

    images.check = full if rank == 1 else check
    try:
        fit(RECIPE, folder, Nothing(), root=root, say=lambda line: None)
    except (ValueError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        images.check = check


def test_a_rank_whose_memory_is_full_ends_all(pool, tmp_path):
    said = pool.run(4, short_of_memory, root(tmp_path, "one"), tmp_path / "run")
    assert said[1] == "MemoryError: "
    assert said[0] == said[2] == said[3]
    assert said[0].startswith("SettingsError: Rank 1 of 4 refused its images: MemoryError")
