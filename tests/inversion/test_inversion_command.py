"""The command: classes and pictures of a trained run, files that are no pictures, wrong words."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from marginlab.inversion.__main__ import main
from marginlab.train import Monitor, Recipe, fit, load


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    trained(folder)
    return folder


def trained(folder, subcenters=1):
    backbone = "Backbone('resnet18', stem='strided', width=0.125)"
    method = f"MarginClassifier(margin='CosFace(0.2)', scale=16.0, dim=8, subcenters={subcenters})"
    recipe = Recipe(images=60, image_size=16, backbone=backbone, method=method, epochs=1, batch=30,
                    augmentation="Augmentation('e')")  # fmt: skip
    fit(recipe, folder, Monitor.none(), say=lambda line: None)


def table(file):
    return list(csv.DictReader(file.read_text().splitlines()))


def test_classes(run, tmp_path, capsys):
    arguments = [str(run), "--size", "16", "--classes", "0", "3", "--out", str(tmp_path)]
    assert main([*arguments, "--steps", "4"]) == 0
    assert "2 images" in capsys.readouterr().out
    with np.load(tmp_path / "images.npz") as held:
        assert held["images"].shape == (2, 16, 16, 3)
    rows = table(tmp_path / "terms.csv")
    assert len(rows) == 4
    assert set(rows[0]) == {"batch", "step", "identity", "batch_norm", "total_variation", "l2"}
    found = table(tmp_path / "found.csv")
    assert all(-1 <= float(row["cosine"]) <= 1 and 1 <= int(row["rank"]) <= 2 for row in found)
    assert (tmp_path / "generated.png").exists()


def test_of_sub_centers_the_nearest_one_counts(tmp_path):
    trained(tmp_path / "run", subcenters=3)
    out = tmp_path / "out"
    arguments = [str(tmp_path / "run"), "--size", "16", "--classes", "0", "3", "--out", str(out)]
    assert main([*arguments, "--steps", "2"]) == 0
    model = load(tmp_path / "run")
    with np.load(out / "images.npz") as archive:
        images = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        embeddings = model.eval().project(model.encode(images))
    centers = model.classifier.centers.detach()[torch.tensor([0, 3])]
    cosines = torch.nn.functional.cosine_similarity(embeddings[:, None, None], centers[None], dim=3)
    for n, row in enumerate(table(out / "found.csv")):
        nearest = cosines[n, n].max()
        assert float(row["cosine"]) == pytest.approx(float(nearest), abs=0.01)
        assert int(row["rank"]) == 1 + int((cosines[n, 1 - n] >= nearest).sum())


def test_a_folder_of_others_is_refused(run, tmp_path, capsys):
    (tmp_path / "images.npz").write_text("mine")
    assert main([str(run), "--size", "16", "--classes", "1", "--out", str(tmp_path)]) == 2
    assert "something else than an inversion" in capsys.readouterr().err
    assert (tmp_path / "images.npz").read_text() == "mine"


def test_pictures_and_files_that_are_none(run, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    (photos / "notes.txt").write_text(json.dumps("no picture"))
    out = tmp_path / "out"
    arguments = [str(run), "--size", "16", "--images", str(photos), "--out", str(out)]
    assert main([*arguments, "--steps", "2"]) == 0
    assert "notes.txt" in capsys.readouterr().err
    assert (out / "targets.png").exists()
    assert torch.load(out / "inversion.pt", weights_only=True)["done"] == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--classes", "99"], "no class 99"),
        (["--images", "nowhere"], "no folder nowhere"),
    ],
)
def test_wrong_words_take_no_folder(run, tmp_path, capsys, wrong, said):
    out = tmp_path / "out"
    assert main([str(run), "--size", "16", "--out", str(out), *wrong]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_wrong_setting_is_named(run, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(run), "--size", "16", "--classes", "1", "--out", str(out)]
    with pytest.raises(SystemExit):
        main([*arguments, "--steps", "0"])
    assert "steps is at least 1" in capsys.readouterr().err
    assert not out.exists()
