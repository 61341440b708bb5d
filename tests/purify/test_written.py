"""Files that a purification writes: an index, folders of links or copies, record files."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from marginlab.data import load
from marginlab.purify import files_of, write_folder, write_index, write_record
from marginlab.purify.__main__ import main
from marginlab.train import Monitor, Recipe, fit

NAMES = ("ant", "bee", "cow")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Class folders of train and test, of images of one color each."""
    top = tmp_path_factory.mktemp("data") / "pets"
    draws = np.random.default_rng(0)
    for split, each in (("train", 12), ("test", 2)):
        for c, name in enumerate(NAMES):
            (top / split / name).mkdir(parents=True)
            for n in range(each):
                pixels = draws.integers(0, 60, (16, 16, 3), dtype=np.uint8)
                pixels[..., c] += 150
                Image.fromarray(pixels).save(top / split / name / f"{n:02d}.png")
    return top


def bytes_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sets(data, **arguments):
    return {split: load(f"folder:{data}", split, **arguments) for split in ("train", "test")}


def thinned(parts):
    """Without the second class, and without every third image."""
    return {
        split: part.where((part.labels != 1) & (torch.arange(len(part)) % 3 > 0), dense=True)
        for split, part in parts.items()
    }


def same(written, parts):
    for split, part in parts.items():
        found = load(written, split)
        expected = torch.cat(list(part.images.split(50)))
        assert torch.equal(found.images, expected)
        assert torch.equal(found.labels, part.labels)


def test_each_form_reads_back_the_same_and_is_written_the_same(data, tmp_path):
    before = bytes_of(data)
    held, streamed = thinned(sets(data)), thinned(sets(data, budget=1, workers=0))
    assert files_of(held["train"]) is None
    for number in (0, 1):
        out = tmp_path / str(number)
        out.mkdir()
        write_index(out / "left.csv", streamed)
        same(f"index:{out / 'left.csv'}", held)
        for name, links, parts in (("links", True, streamed), ("files", False, streamed),
                                   ("pixels", False, held)):  # fmt: skip
            write_folder(out / name, parts, links=links)
            same(f"folder:{out / name}", held)
        write_record(out / "records", streamed)
        write_record(out / "of_pixels", held)
        for name in ("records", "of_pixels"):
            for split in ("train", "test"):
                found = load(f"record:{out / name}", split)
                assert torch.equal(found.images, held[split].images)
                assert found.labels.tolist() == held[split].labels.tolist()
    written = [
        {name: data for name, data in bytes_of(tmp_path / n).items() if "marginlab" not in name}
        for n in "01"
    ]
    assert set(written[0]) == set(written[1])
    for name, content in written[0].items():
        if name.endswith((".csv", ".png", ".rec", ".idx", "property")):
            assert written[1][name] == content, name
    assert (tmp_path / "0/links/train/ant").is_dir()
    assert next((tmp_path / "0/links/train/ant").iterdir()).is_symlink()
    assert bytes_of(data) == before


def test_one_set_has_no_split_and_bad_names_are_refused_or_numbered(data, tmp_path):
    images = sets(data, budget=1, workers=0)["train"]
    write_index(tmp_path / "one.csv", {"train": images})
    assert (tmp_path / "one.csv").read_text().startswith("path,label\n")
    odd = images.with_labels(images.labels, ("a/b", " c", "d"))
    with pytest.raises(ValueError, match="begins or ends with a blank"):
        write_index(tmp_path / "odd.csv", {"train": odd})
    write_folder(tmp_path / "odd", {"train": odd})
    assert (tmp_path / "odd/0000002").is_dir()
    write_folder(tmp_path / "alike", {"train": images.with_labels(images.labels, ("A", "a", "b"))})
    assert (tmp_path / "alike/0000002").is_dir()
    with pytest.raises(ValueError, match="exists already"):
        write_folder(tmp_path / "odd", {"train": odd})
    held = sets(data)["train"]
    with pytest.raises(ValueError, match="no files"):
        write_index(tmp_path / "two.csv", {"train": held})
    with pytest.raises(ValueError, match="is called NAME"):
        write_index(tmp_path / "two.txt", {"train": images})


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    trained(data, folder)
    return folder


def trained(data, folder):
    backbone = "Backbone('resnet18', stem='strided', width=0.125)"
    method = "MarginClassifier(margin='CosFace(0.2)', scale=16.0, dim=8, subcenters=2)"
    recipe = Recipe(data=f"folder:{data}", image_size=16, backbone=backbone, method=method,
                    epochs=1, batch=12, augmentation="Augmentation('e')")  # fmt: skip
    fit(recipe, folder, Monitor.none(), say=lambda line: None)


def test_the_command(data, run, tmp_path, capsys):
    out, before = tmp_path / "out", bytes_of(data)
    arguments = [str(run), str(out), "--data", f"folder:{data}", "--max-angle", "130"]
    arguments += ["--conflicts", "100"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "of 36 images stay" in said
    rows = list(csv.DictReader((out / "images.csv").read_text().splitlines()))
    assert len(rows) == 36
    assert all((float(row["angle"]) < 130) == (row["keep"] == "1") for row in rows)
    left = load(f"index:{out / 'purified.csv'}", "train")
    assert len(left) == sum(row["keep"] == "1" for row in rows)
    assert len(load(f"index:{out / 'purified.csv'}", "test")) == 6
    text = (out / "report.html").read_text()
    assert "<script src" not in text
    assert "Angles of all images" in text
    first = bytes_of(out)
    assert main(arguments) == 0
    assert bytes_of(out) == first
    assert main([*arguments, "--write", "links"]) == 0
    assert len(load(f"folder:{out / 'purified'}", "train")) == len(left)
    assert bytes_of(data) == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--max-angle", "many"], "number of degrees"),
        (["--max-angle", "190"], "between 0 and 180"),
        (["--conflicts", "0"], "--conflicts"),
        (["--batch", "0"], "--batch"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--data", "digits"], "10 classes"),
        (["--data", "folder:nowhere"], "no folder"),
    ],
)
def test_wrong_words_take_no_folder(data, run, tmp_path, capsys, wrong, said):
    out = tmp_path / "out"
    assert main([str(run), str(out), "--data", f"folder:{data}", *wrong]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_names_that_no_index_can_hold_are_refused_before_the_pass(data, tmp_path, capsys):
    pets = tmp_path / "pets"
    shutil.copytree(data, pets)
    for split in ("train", "test"):
        (pets / split / "cow").rename(pets / split / "cow ")
    folder = tmp_path / "run"
    trained(pets, folder)
    out = tmp_path / "out"
    arguments = [str(folder), str(out), "--data", f"folder:{pets}", "--max-angle", "130"]
    assert main(arguments) == 2
    assert "begins or ends with a blank" in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, "--write", "none"]) == 0
    assert (out / "images.csv").exists()


def test_folders_of_others_and_of_the_data_are_refused(data, run, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    for out, said in ((tmp_path, "other files"), (data / "out", "lies in the data")):
        assert main([str(run), str(out), "--data", f"folder:{data}"]) == 2
        assert said in capsys.readouterr().err
    assert not (data / "out").exists()
    assert main([str(tmp_path / "no"), str(tmp_path / "o"), "--data", f"folder:{data}"]) == 2
    assert "no recipe.toml" in capsys.readouterr().err
