"""Index files: paths and labels in csv, npz and text, splits, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from marginlab.data import load
from marginlab.data.__main__ import main
from marginlab.data.loading import splits
from marginlab.settings import SettingsError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
LABELS = ["bee", "ant"] * 6
EVERY = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())


@pytest.fixture
def place(tmp_path):
    """A folder of images in a subfolder with a blank in its name."""
    (tmp_path / "some images").mkdir()
    for number, image in enumerate(PIXELS):
        Image.fromarray(image).save(tmp_path / "some images" / f"{number}.png")
    return tmp_path


PATHS = [f"some images/{number}.png" for number in range(12)]


def written(place, kind, labels, paths=PATHS, splits=None):
    file = place / f"index.{kind}"
    if kind == "npz":
        more = {} if splits is None else {"splits": np.array(splits)}
        np.savez(file, paths=np.array(paths), labels=np.array(labels), **more)
    elif kind == "csv":
        head = "path,label" if splits is None else "path,label,split"
        columns = [paths, labels] if splits is None else [paths, labels, splits]
        lines = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
        file.write_text("\n".join([head, *lines]), encoding="utf-8-sig")
    else:
        lines = [f"{path}\t{label}" for path, label in zip(paths, labels, strict=True)]
        file.write_text("\n".join(lines) + "\n\n")
    return f"index:{file}"


@pytest.mark.parametrize("kind", ["csv", "npz", "txt", "lst"])
def test_an_index_without_splits_has_a_fifth_of_each_class_for_the_test(place, kind):
    spec = written(place, kind, LABELS)
    train, test = load(spec), load(spec, "test")
    assert train.classes == test.classes == ("ant", "bee")
    assert torch.bincount(test.labels).tolist() == [1, 1]
    assert len(train) == 10
    found = torch.cat([train.images, test.images]).flatten(1).tolist()
    assert sorted(found) == sorted(EVERY.flatten(1).tolist())
    numbers = [found.index(image) for image in EVERY.flatten(1).tolist()]
    labels = torch.cat([train.labels, test.labels])[numbers]
    assert labels.tolist() == [1, 0] * 6
    with pytest.raises(SettingsError, match="no split 'unseen'"):
        load(spec, "unseen")


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_splits_are_those_named_and_unseen_has_its_own_classes(place, kind):
    where = ["train"] * 6 + ["test"] * 2 + ["unseen"] * 4
    labels = ["bee", "ant"] * 4 + ["cow", "dog"] * 2
    spec = written(place, kind, labels, splits=where)
    assert splits(spec) == ("train", "test", "unseen")
    train, test, unseen = (load(spec, split) for split in ("train", "test", "unseen"))
    assert torch.equal(train.images, EVERY[:6])
    assert torch.equal(test.images, EVERY[6:8])
    assert torch.equal(unseen.images, EVERY[8:])
    assert train.classes == test.classes == ("ant", "bee")
    assert unseen.classes == ("cow", "dog")
    assert unseen.labels.tolist() == [0, 1, 0, 1]
    streamed = load(spec, budget=1, workers=0)
    assert torch.equal(torch.cat(list(streamed.images.split(2))), train.images)
    assert streamed.digest() == train.digest()


def test_integers_are_names_in_their_own_order_so_that_no_label_is_without_an_image(place):
    for kind in ("csv", "npz", "txt"):
        train = load(written(place, kind, [10, 2, 30] * 4))
        assert train.classes == ("2", "10", "30")
        assert train.labels.unique().tolist() == [0, 1, 2]


def test_absolute_paths_choices_and_the_command(place, capsys):
    spec = written(place, "csv", LABELS, [str(place / path) for path in PATHS])
    assert torch.bincount(load(f"{spec}?max_per_class=2").labels).tolist() == [2, 2]
    main([spec])
    assert "train: 10 images of 6 x 5, 2 classes: ant, bee" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "file,label\n0.png,a\n", "no column 'path'; its columns are: file, label"),
        ("a.csv", "path,label\nx.png,\n", "line 2 of .* has no label"),
        ("a.csv", "path,label\n", "names no image"),
        ("a.csv", "path,label,split\nx,a,valid\n", "the split 'valid'. A split is one of train"),
        ("a.csv", "path,label,split\nx,a,train\ny,b,\n", "line 3 .* has no split, while others"),
        ("a.txt", "x.png a\ny.png b\nx.png b\n", "line 1 and line 3 .* name the same image, x.png"),
        ("a.txt", "x.png\n", "line 1 of .* has no label"),
        ("a.txt", "x.png a\ny.png a\n", "at least two classes"),
        ("a.txt", "x\0.png a\n", "null character"),
    ],
)
def test_an_index_that_says_too_little_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load(f"index:{tmp_path / name}")


def test_files_that_are_not_there_and_bytes_that_are_no_text_are_said(place):
    paths = [*PATHS[:-1], "some images/no.png"]
    spec = written(place, "csv", LABELS, paths, ["train"] * 12)
    with pytest.raises(FileNotFoundError, match=r"no file .*no\.png, which line 13 of"):
        load(spec)
    with pytest.raises(FileNotFoundError, match="there is no index"):
        load(f"index:{place}/none.csv")
    (place / "latin.csv").write_bytes("path,label\nä.png,a\n".encode("latin-1"))
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        load(f"index:{place}/latin.csv")
    (place / "cut.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match="no whole npz file"):
        load(f"index:{place}/cut.npz")
    np.savez(place / "short.npz", paths=np.array(PATHS), labels=np.arange(3))
    with pytest.raises(ValueError, match="12 paths and 3 labels"):
        load(f"index:{place}/short.npz")
    np.savez(place / "other.npz", paths=np.array(PATHS))
    with pytest.raises(ValueError, match="has no 'labels'; its keys are: paths"):
        load(f"index:{place}/other.npz")
