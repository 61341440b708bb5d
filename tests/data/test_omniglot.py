"""Omniglot from a small npz file and from torchvision's folder: drawings, turns, splits, and that
unseen classes are unseen.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from marginlab.data import load
from marginlab.data.__main__ import main
from marginlab.settings import SettingsError

RANDOM = np.random.default_rng(0)
BACKGROUND = RANDOM.integers(0, 2, (60, 6, 6), dtype=np.uint8) * 255  # 3 characters by 20 drawers
EVALUATION = RANDOM.integers(0, 2, (40, 6, 6), dtype=np.uint8) * 255  # 2 characters
NAMES = ("A/character01", "A/character02", "B/character01")
UNSEEN = ("C/character01", "C/character02")


@pytest.fixture
def root(tmp_path):
    fields = {
        f"{part}_{key}": value
        for part, images, names in (
            ("background", BACKGROUND, NAMES),
            ("evaluation", EVALUATION, UNSEEN),
        )
        for key, value in (
            ("images", images),
            ("labels", np.repeat(np.arange(len(names)), 20)),
            ("classes", np.array(names)),
        )
    }
    np.savez(tmp_path / "omniglot.npz", **fields)
    return tmp_path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for part, images, names in (
        ("background", BACKGROUND, NAMES),
        ("evaluation", EVALUATION, UNSEEN),
    ):
        for number, pixels in enumerate(images):
            place = tmp_path / "omniglot-py" / f"images_{part}" / names[number // 20]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).convert("1").save(place / f"0001_{number % 20 + 1:02d}.png")
    monkeypatch.setattr(datasets.Omniglot, "_check_integrity", lambda self: True)
    monkeypatch.setattr("marginlab.data.omniglot._SIDE", 6)
    return tmp_path


def grey(images):
    return torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1)


def test_upright_drawings_are_split_by_drawer_and_other_alphabets_are_unseen(root):
    train, test, unseen = (
        load("omniglot-upright", split, root) for split in ("train", "test", "unseen")
    )
    learnt = np.arange(60) % 20 < 16
    assert torch.equal(train.images, grey(BACKGROUND[learnt]))
    assert torch.equal(test.images, grey(BACKGROUND[~learnt]))
    assert torch.equal(unseen.images, grey(EVALUATION))
    assert train.labels.tolist() == [0] * 16 + [1] * 16 + [2] * 16
    assert test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert train.classes == test.classes == NAMES
    assert unseen.classes == UNSEEN
    assert {images.name for images in (train, test, unseen)} == {"omniglot-upright"}


@pytest.mark.parametrize("split", ["train", "test", "unseen"])
def test_quarter_turns_are_classes_of_their_own(root, split):
    upright, turned = load("omniglot-upright", split, root), load("omniglot", split, root)
    assert len(turned) == 4 * len(upright)
    assert turned.classes[:4] == tuple(
        f"{upright.classes[0]}@{angle}" for angle in (0, 90, 180, 270)
    )
    assert turned.classes[4] == f"{upright.classes[1]}@0"
    for k in range(4):
        own = turned.labels % 4 == k
        assert torch.equal(turned.labels[own] // 4, upright.labels)
        assert torch.equal(
            turned.images[own], torch.from_numpy(np.rot90(upright.images.numpy(), k, (2, 3)).copy())
        )
    assert torch.bincount(turned.labels).unique().tolist() == [
        {"train": 16, "test": 4, "unseen": 20}[split]
    ]


def test_drawings_need_not_stand_by_character(tmp_path):
    order = RANDOM.permutation(60)
    for_all = {
        "background_labels": np.repeat(np.arange(3), 20)[order],
        "background_classes": np.array(NAMES),
    }
    np.savez(tmp_path / "omniglot.npz", background_images=BACKGROUND[order], **for_all)
    train, test = (
        load("omniglot-upright", "train", tmp_path),
        load("omniglot-upright", "test", tmp_path),
    )
    assert torch.bincount(train.labels).tolist() == [16] * 3
    assert torch.bincount(test.labels).tolist() == [4] * 3
    both = torch.cat([train.images, test.images])[:, 0].flatten(1).tolist()
    assert sorted(both) == sorted(torch.from_numpy(BACKGROUND).flatten(1).tolist())


def test_torchvisions_folder_gives_the_same(folder):
    for split in ("train", "test", "unseen"):
        from_folder = load("omniglot", split, folder)
        sized = load("omniglot", split, folder, size=4)
        fields = {
            f"{part}_images": images
            for part, images in (("background", BACKGROUND), ("evaluation", EVALUATION))
        }
        fields |= {
            "background_labels": np.repeat(np.arange(3), 20),
            "evaluation_labels": np.repeat(np.arange(2), 20),
        }
        np.savez(
            folder / "omniglot.npz",
            background_classes=np.array(NAMES),
            evaluation_classes=np.array(UNSEEN),
            **fields,
        )
        assert from_folder.digest() == load("omniglot", split, folder).digest()
        assert sized.digest() == load("omniglot", split, folder, size=4).digest()
        assert sized.images.shape[2:] == (4, 4)
        (folder / "omniglot.npz").unlink()


def test_a_file_that_has_changed_is_read_again(root):
    before = load("omniglot-upright", "unseen", root)
    np.savez(
        root / "omniglot.npz",
        evaluation_images=EVALUATION[:20],
        evaluation_labels=np.arange(20) % 2,
        evaluation_classes=np.array(UNSEEN),
    )
    assert len(before) == 40
    assert len(load("omniglot-upright", "unseen", root)) == 20


def test_what_cannot_be_loaded_is_refused(root, tmp_path, monkeypatch):
    with pytest.raises(
        SettingsError, match=r"shapes has no images of classes .* no split 'unseen'"
    ):
        load("shapes", "unseen")
    with pytest.raises(SettingsError, match="no split 'seen': did you mean 'unseen'"):
        load("omniglot", "seen", root)
    with pytest.raises(SettingsError, match="no data 'omniglott': did you mean 'omniglot'"):
        load("omniglott")
    with pytest.raises(
        ValueError,
        match="omniglot: 192 images of 6 x 6 take 20,736 bytes in memory, above the budget of "
        "10,000",
    ):
        load("omniglot", "train", root, budget=10_000)
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda *arguments, **more: pytest.fail("the network was used")
    )
    (root / "omniglot.npz").rename(root / "other.npz")
    with pytest.raises(
        FileNotFoundError,
        match=f"omniglot is not in the folder {root} .*Put omniglot.npz there.*python -m "
        f"marginlab.data inspect omniglot",
    ):
        load("omniglot-upright", "test", root)
    np.savez(root / "omniglot.npz", images=BACKGROUND)
    with pytest.raises(ValueError, match="has no 'background_images'; its keys are: images"):
        load("omniglot", "train", root)
    np.savez(
        root / "omniglot.npz",
        background_images=BACKGROUND[:, :5],
        background_labels=np.repeat(np.arange(3), 20),
        background_classes=NAMES,
    )
    with pytest.raises(ValueError, match="images of 5 x 6 have no quarter turns"):
        load("omniglot", "train", root)


def test_the_command_describes_all_three_splits(root, capsys):
    main(["omniglot", "--root", str(root), "--size", "4"])
    lines = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    lines = [line for line in lines if line.startswith("omniglot")]
    assert lines == ["omniglot train", "omniglot test", "omniglot unseen"]


def test_the_real_set_has_its_counts(real_images):
    train, test, unseen = (
        load("omniglot", split, real_images, size=28) for split in ("train", "test", "unseen")
    )
    assert (len(train), len(test), len(unseen)) == (4 * 964 * 16, 4 * 964 * 4, 4 * 659 * 20)
    assert len(train.classes) + len(unseen.classes) == 6_492
    assert not set(train.classes) & set(unseen.classes)
    assert 0.8 < float(unseen.images.float().mean()) / 255 < 0.97  # ink on white paper
