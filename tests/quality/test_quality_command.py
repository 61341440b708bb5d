"""The command: scores of own images, files that are none, sheets, and what is refused."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from marginlab import quality
from marginlab.data.decoding import decoded
from marginlab.data.pixels import resized
from marginlab.quality.__main__ import main, overlaid
from marginlab.train import Monitor, Recipe, fit, load

SHAPE = {
    "images": 60,
    "image_size": 16,
    "backbone": "Backbone('resnet18', stem='strided', width=0.125)",
    "epochs": 1,
    "batch": 30,
    "optimizer": "SGD(lr=0.02)",
}
INDEX = "Recognizability(image_size=16, scale=16.0, dim=8, instances=20, tight=0.0)"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of Recognizability."""
    folder = tmp_path_factory.mktemp("run") / "run"
    recipe = Recipe(method=INDEX, augmentation="Augmentation('e')", **SHAPE)
    fit(recipe, folder, Monitor.none(), say=lambda line: None)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Five pictures of several sizes, two of them deeper, a text, and half a picture."""
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    for number in range(5):
        draw = np.random.default_rng(number)
        pixels = draw.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
        place = folder / ("deep/er" if number > 2 else ".") / f"{number}.png"
        Image.fromarray(pixels).save(place)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("left alone")
    whole = (folder / "0.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    return folder


def table(file):
    return list(csv.DictReader(file.read_text().splitlines()))


def test_scores_of_a_folder(run, photos, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--out", str(out), "--scores", "index", "norm", "ser-fiq", "gradients", "gallery"]
    assert main([str(run), str(photos), *words, "--gallery", str(photos), "--batch", "2"]) == 0
    said = capsys.readouterr()
    assert "of 5 images" in said.out
    assert "notes.txt" in said.err
    rows = table(out / "scores.csv")
    names = ["0.png", "1.png", "2.png", "deep/er/3.png", "deep/er/4.png"]
    assert [row["image"] for row in rows] == names
    assert [(row["height"], row["width"]) for row in rows] == [
        (str(20 + n), "24") for n in range(5)
    ]
    assert [row["file"] for row in table(out / "unreadable.csv")] == ["broken.png", "notes.txt"]
    files = [decoded(photos / name, "photos", 16, 2**30)[None] for name in names]
    images = torch.cat([resized(image, 16) for image in files])
    model = load(run)
    own = quality.embeddings_of(model, images)
    due = {
        "index": quality.PredictedIndex(model),
        "norm": quality.FeatureNorm(model),
        "ser-fiq": quality.SerFiq(model),
        "gradients": quality.BatchNormGradients(model),
        "gallery": quality.HighestGalleryCosine(model, own),
    }
    for name, score in due.items():
        found = [float(row[name]) for row in rows]
        assert found == pytest.approx(score.quality(images).tolist(), rel=1e-4, abs=1e-5)
    assert all(float(row["gallery"]) == pytest.approx(1, abs=1e-5) for row in rows)
    assert (out / "sheet.png").is_file()
    assert (out / "heat.png").is_file()


def test_the_sheet_is_in_the_order_of_the_first_score(run, photos, tmp_path):
    assert main([str(run), str(photos), "--out", str(tmp_path / "out"), "--show", "2"]) == 0
    rows = sorted(table(tmp_path / "out" / "scores.csv"), key=lambda row: float(row["index"]))
    sheet = np.asarray(Image.open(tmp_path / "out" / "sheet.png"))
    for place, row in enumerate((rows[0], rows[-1])):  # the lowest and the highest of five
        image = resized(decoded(photos / row["image"], "photos", 16, 2**30)[None], 16)[0]
        large = image.repeat_interleave(4, 1).repeat_interleave(4, 2).permute(1, 2, 0).numpy()
        left = 2 + place * (64 + 2)
        np.testing.assert_array_equal(sheet[2:66, left : left + 64], large)


def test_a_set_by_its_spec_and_a_run_without_a_head(tmp_path, capsys):
    recipe = Recipe(method="MarginClassifier(scale=16.0, dim=8)", **SHAPE)
    fit(recipe, tmp_path / "run", Monitor.none(), say=lambda line: None)
    words = [str(tmp_path / "run"), "digits", "--split", "test", "--out", str(tmp_path / "out")]
    assert main([*words, "--show", "9"]) == 0
    assert "norm: " in capsys.readouterr().out
    rows = table(tmp_path / "out" / "scores.csv")
    assert len(rows) == 359
    assert rows[0]["image"].endswith("/0")
    assert not (tmp_path / "out" / "heat.png").exists()
    assert not (tmp_path / "out" / "unreadable.csv").exists()
    words[-1] = str(tmp_path / "other")
    assert main([*words, "--scores", "index"]) == 2
    assert "MarginClassifier predicts no recognizability index" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_heat_is_drawn_from_its_least_to_its_largest_value():
    heat = torch.stack([torch.tensor([[0.2, 0.4]]), torch.tensor([[0.5, 0.5]])])
    found = overlaid(torch.zeros(2, 3, 1, 2, dtype=torch.uint8), heat)
    torch.testing.assert_close(found[0, :, 0], torch.tensor([[0, 0.5], [0, 0], [0.5, 0]]))
    torch.testing.assert_close(found[1, 0], torch.full((1, 2), 0.25))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "There is no data 'nowhere'"),
        (["folder:nowhere"], "There is no folder nowhere"),
        (["{photos}/deep/none"], "There is no data"),
        (["{empty}"], "holds no files"),
        (["{texts}"], "None of 1 files can be read as an image"),
        (["{photos}", "--size", "4"], "--size is 8 to 1024"),
        (["{photos}", "--size", "64"], "flattens maps"),
        (["{photos}", "--batch", "0"], "at least 1"),
        (["{photos}", "--device", "nonsense"], "cannot be used"),
        (["{photos}", "--scores", "gallery"], "go together"),
        (["{photos}", "--gallery", "{photos}"], "go together"),
        (["{photos}", "--scores", "gallery", "--gallery", "{texts}"], "no image that can be read"),
        (["{photos}", "--split", "test"], "There is no data"),
    ],
)
def test_what_is_refused_leaves_no_folder(run, photos, tmp_path, capsys, words, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    places = {name: str(tmp_path / name) for name in ("photos", "empty", "texts")}
    out = tmp_path / "out"
    words = [word.format(**places) for word in words]
    assert main([str(run), *words, "--out", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_of_others_and_a_run_that_is_none_are_refused(run, photos, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "scores.csv").write_text("mine")
    assert main([str(run), str(photos), "--out", str(tmp_path / "mine")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "mine" / "scores.csv").read_text() == "mine"
    assert main([str(photos), str(photos), "--out", str(tmp_path / "out")]) == 2
    assert "photos" in capsys.readouterr().err
