import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from marginlab.data import load, published
from marginlab.data.__main__ import main
from marginlab.settings import SettingsError

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(20) % 2


def chw(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def npz(folder, **fields):
    np.savez(folder / "made.npz", **fields)
    return f"npz:{folder}/made.npz"


# the embedded sets and scikit-learn's digits


@pytest.mark.parametrize(("spec", "classes"), [("shapes", 10), ("shapes-5", 5)])
def test_the_embedded_sets_have_their_counts_and_balance(spec, classes):
    train, test = load(spec, size=16), load(spec, "test", size=16)
    assert (len(train), len(test)) == (5_000, 2_000)
    assert train.images.shape[1:] == (3, 16, 16)
    assert train.name == spec
    assert len(train.classes) == classes
    for images in (train, test):
        assert torch.bincount(images.labels).tolist() == [len(images) // classes] * classes


def test_the_default_size_is_32():
    assert load("shapes", "test").images.shape == (2_000, 3, 32, 32)


def test_digits_are_those_of_scikit_learn_split_by_class():
    train, test = load("digits"), load("digits", "test")
    source = load_digits()
    assert len(train) + len(test) == 1_797
    counts = np.bincount(source.target)
    assert np.abs(torch.bincount(test.labels).numpy() - counts / 5).max() <= 0.5
    both = torch.cat([train.images, test.images])
    assert torch.equal(both[:, 0], both[:, 2])
    mine = sorted(
        zip(
            torch.cat([train.labels, test.labels]).tolist(),
            both[:, 0].flatten(1).tolist(),
            strict=True,
        )
    )
    theirs = sorted(
        zip(
            source.target.tolist(),
            np.rint(source.data * 255 / 16).astype(int).tolist(),
            strict=True,
        )
    )
    assert mine == theirs  # hence the splits are disjoint and miss nothing


# torchvision's sets, from tiny files of their formats


def pixels(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


@pytest.fixture
def torchvision_root(tmp_path, monkeypatch):
    cifar10, cifar100, stl10 = (
        tmp_path / name for name in ("cifar-10-batches-py", "cifar-100-python", "stl10_binary")
    )
    for place in (cifar10, cifar100, stl10):
        place.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        (cifar10 / name).write_bytes(pickle.dumps({"data": pixels(4, i), "labels": [0, 1, 2, 3]}))
    (cifar10 / "batches.meta").write_bytes(
        pickle.dumps({"label_names": [f"c{k}" for k in range(10)]})
    )
    for i, name in enumerate(["train", "test"]):
        (cifar100 / name).write_bytes(
            pickle.dumps({"data": pixels(6, 10 + i), "fine_labels": [0, 1, 2, 99, 98, 97]})
        )
        (stl10 / f"{name}_X.bin").write_bytes(
            np.arange(3 * 3 * 96 * 96, dtype=np.uint32).astype(np.uint8).tobytes()
        )
        (stl10 / f"{name}_y.bin").write_bytes(bytes([1, 10, 2]))
    (cifar100 / "meta").write_bytes(
        pickle.dumps({"fine_label_names": [f"f{k}" for k in range(100)]})
    )
    (stl10 / "class_names.txt").write_text("\n".join(f"s{k}" for k in range(10)))
    for kind in (datasets.CIFAR10, datasets.STL10):  # CIFAR100 inherits
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.* classes have no (train|test) image")  # tiny files
def test_torchvision_folders_are_read(torchvision_root, monkeypatch):
    monkeypatch.setenv("MARGINLAB_DATA", str(torchvision_root))
    train, test = load("cifar10"), load("cifar10", "test")
    assert torch.equal(
        train.images,
        torch.cat([torch.from_numpy(pixels(4, i)) for i in range(5)]).view(-1, 3, 32, 32),
    )
    assert torch.equal(test.images, torch.from_numpy(pixels(4, 5)).view(-1, 3, 32, 32))
    assert train.labels.tolist() == [0, 1, 2, 3] * 5
    assert train.classes == tuple(f"c{k}" for k in range(10))
    assert load("cifar100", "test").labels.tolist() == [0, 1, 2, 99, 98, 97]
    assert len(load("cifar100").classes) == 100
    stl10 = load("stl10", "test")
    assert stl10.images.shape == (3, 3, 96, 96)
    assert stl10.labels.tolist() == [0, 9, 1]
    assert stl10.classes[9] == "s9"
    assert load("stl10", size=32).images.shape == (3, 3, 32, 32)
    with pytest.raises(ValueError, match="take 82,944 bytes in memory, above the budget of 1,000"):
        load("stl10", budget=1_000)


def test_an_npz_file_comes_before_the_torchvision_folder(torchvision_root):
    np.savez(torchvision_root / "cifar10.npz", train_images=IMAGES, train_labels=LABELS)
    assert torch.equal(load("cifar10", root=torchvision_root).images, chw(IMAGES))
    assert load("cifar10", root=torchvision_root).name == "cifar10"


def test_only_the_word_of_numpy_on_the_age_of_pickles_is_silenced(monkeypatch, tmp_path):
    def warn(text):
        return lambda *arguments, **more: warnings.warn(
            text, np.exceptions.VisibleDeprecationWarning, stacklevel=1
        )

    monkeypatch.setattr(
        datasets,
        "CIFAR10",
        warn("dtype(): align should be passed as Python or NumPy boolean but got `align=0`."),
    )
    assert published.torchvision_set("cifar10", "train", tmp_path) is None
    monkeypatch.setattr(datasets, "CIFAR10", warn("another word"))
    with pytest.raises(np.exceptions.VisibleDeprecationWarning, match="another word"):
        published.torchvision_set("cifar10", "train", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_an_absent_published_set_says_what_to_do_and_is_not_downloaded(tmp_path, monkeypatch, name):
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda *arguments, **more: pytest.fail("the network was used")
    )
    monkeypatch.setenv("MARGINLAB_DATA", str(tmp_path))
    remedies = (
        f"Put {name}.npz there, or set MARGINLAB_DATA .*`python -m marginlab.data inspect {name} "
        f"--root {tmp_path}`"
    )
    with pytest.raises(
        FileNotFoundError, match=f"{name} is not in the folder {tmp_path} .*{remedies}"
    ):
        load(name)
    monkeypatch.delenv("MARGINLAB_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{name} is not in the folder data "):
        load(name)


# the door and the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shape",), "no data 'shape': did you mean 'shapes'"),
        (("cifar",), "no data 'cifar': did you mean 'cifar10'"),
        (("npz:",), "no data 'npz:'"),
        (("zip:a",), "no data 'zip:a'"),
        (("shapes", "tests"), "no split 'tests': did you mean 'test'.*train, test"),
    ],
)
def test_unknown_specs_and_splits_are_refused(arguments, message):
    with pytest.raises(SettingsError, match=message):
        load(*arguments)


def test_wrong_numbers_are_refused():
    for more in ({"size": -1}, {"budget": 0}):
        with pytest.raises(
            SettingsError, match="size is 0 or a number of pixels and budget a number of bytes"
        ):
            load("shapes", **more)
    with pytest.raises(
        ValueError, match="shapes: 5,000 images of 2000 x 2000 take 60,000,000,000 bytes"
    ):
        load("shapes", size=2_000)


def test_the_command_describes_a_spec(tmp_path, capsys):
    main([npz(tmp_path, images=IMAGES, labels=LABELS)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[1] for line in lines if line.startswith("npz:")] == [
        f"{s}: {n} images of 6 x 5, 2 classes: 0, 1" for s, n in (("train", 16), ("test", 4))
    ]
    with pytest.raises(SystemExit) as exit_:
        main(["shape"])
    assert exit_.value.code == 2
    assert "did you mean 'shapes'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.* classes have no (train|test) image")  # tiny files
def test_the_command_downloads_what_is_absent_and_nothing_else(
    torchvision_root, monkeypatch, capsys
):
    asked = []
    whole = published.torchvision_set

    def watched(name, split, root, *, download=False):
        asked.append((name, split, download))
        return whole(name, split, root, download=download)

    monkeypatch.setattr("marginlab.data.__main__.torchvision_set", watched)
    monkeypatch.setattr(
        "urllib.request.urlopen",
        lambda *arguments, **more: pytest.fail("what is there was fetched again"),
    )
    main(["cifar10", "--root", str(torchvision_root), "--size", "8"])
    assert asked == [("cifar10", "train", True), ("cifar10", "test", True)]
    assert "cifar10 train: 20 images of 8 x 8, 10 classes: c0, c1" in capsys.readouterr().out

    def refused(*arguments, **more):
        raise OSError("no route to host")

    monkeypatch.undo()
    monkeypatch.setattr("urllib.request.urlopen", refused)
    with pytest.raises(SystemExit):
        main(["cifar100", "--root", str(torchvision_root / "other")])
    assert "cifar100 could not be downloaded into" in capsys.readouterr().err


def test_classes_that_are_not_trained_are_a_split_of_their_own(tmp_path):
    from PIL import Image

    for place, shade in (
        ("train/a", 10),
        ("train/b", 20),
        ("test/a", 30),
        ("test/b", 40),
        ("unseen/c", 50),
        ("unseen/d", 60),
    ):
        (tmp_path / "folder" / place).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (6, 6), (shade + number,) * 3).save(
                tmp_path / "folder" / place / f"{number}.png"
            )
    found = load(f"folder:{tmp_path}/folder", "unseen")
    assert found.classes == ("c", "d")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.images[:, 0, 0, 0].tolist() == [50, 51, 60, 61]
    images, labels = np.full((4, 6, 6), 7, np.uint8), np.array([0, 0, 1, 1])
    parts = {
        "unseen_images": images + 1,
        "unseen_labels": labels,
        "unseen_classes": np.array(["c", "d"]),
    }
    np.savez(
        tmp_path / "with.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
        **parts,
    )
    found = load(f"npz:{tmp_path}/with.npz", "unseen")
    assert (found.classes, len(found), int(found.images[0, 0, 0, 0])) == (("c", "d"), 4, 8)
    np.savez(tmp_path / "without.npz", images=images, labels=labels)
    for spec in (
        f"npz:{tmp_path}/without.npz",
        f"folder:{tmp_path}/folder/train",
        "digits",
        "shapes",
    ):
        with pytest.raises(SettingsError, match=r"no split 'unseen'\. Such are of omniglot"):
            load(spec, "unseen")
    for spec in (f"folder:{tmp_path}/nowhere", f"npz:{tmp_path}/nowhere.npz"):
        with pytest.raises(FileNotFoundError, match="there is no f"):
            load(spec, "unseen")
    with pytest.raises(SettingsError, match="There is no split 'uunseen'"):
        load("digits", "uunseen")
