"""The study of wrong labels: presets, refusals, and small runs on drawn characters with reports."""

import csv

import numpy as np
import pytest
import torch
from drawn_characters import draw_characters
from report_pages import assert_report

from marginlab import settings, study
from marginlab.rng import Key
from marginlab.settings import SettingsError
from marginlab.study.__main__ import main

HERE = study.load("purify")
PRESETS = sorted(path.stem for path in (HERE.home / "presets").glob("*.toml"))
SMALL = """--recipe.image-size 16 --recipe.epochs 3 --recipe.batch 8 --scale 12.0 --dim 16
--classes 8 --monitor.verified-pairs 80 --monitor.folds 2 --monitor.far-pairs 200
--monitor.fars 0.1""".split()
FEW_PAIRS = {"verified_pairs": 80, "folds": 2, "far_pairs": 200, "fars": (0.1,)}
BACKBONE = "Backbone('resnet18', stem='strided', width=0.0625)"


@pytest.fixture
def characters(tmp_path, monkeypatch):
    """A set like Omniglot: 12 characters of 2 alphabets to learn, and 8 of 2 others."""
    return draw_characters(tmp_path, monkeypatch, 8, lambda part, k: f"{part} {k % 2}")


def table(folder):
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_reads_and_gives_a_grid(preset):
    chosen = HERE.settings(preset)
    grid = HERE.grid(chosen)
    assert {cell["seed"] for cell in grid} == set(chosen.seeds)
    assert {cell["noise"] for cell in grid} >= set(chosen.noises)
    assert {cell["stage"] for cell in grid} <= set(HERE.module.STAGES)


def test_every_number_of_the_published_table_has_a_source():
    with (HERE.home / "published.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(0 < float(row["value"]) < 100 and row["source"] for row in rows)
    shares = [float(r["value"]) for r in rows if (r["table"], r["setting"]) == ("figure 7", "K=3")]
    assert sum(shares) == pytest.approx(100, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"noises": ("flips",)}, "no noise 'flips'"),
        ({"seeds": ()}, "name at least one"),
        ({"shares": (0.0,)}, r"in \(0, 1\)"),
        ({"fixed": (5,)}, "subcenters has no 5"),
        ({"monitor": {"verified": ""}}, "it is empty"),
        ({"classes": 13}, "has 12 classes, and 13"),
        ({"noises": ("outliers",), "classes": 0}, "Choose fewer"),
        ({"recipe": {"data": "digits"}, "noises": ("alphabet",), "classes": 0}, "no alphabets"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(changes, sentence, characters):
    small = settings.replaced(HERE.module.Settings(classes=8), {"monitor": FEW_PAIRS})
    with pytest.raises(SettingsError, match=sentence):
        HERE.module.check(settings.replaced(small, changes))


def test_a_small_run_finds_flips_and_trains_again_without_them(characters):
    flags = [*SMALL, "--recipe.backbone", BACKBONE, "--fixed", "1", "--mixture", "3"]
    flags += ["--seeds", "0", "--folder", "run"]
    assert main(["purify", *flags]) == 0
    rows = table(characters / "run")
    cells = {(r["noise"], r["stage"], r["subcenters"]) for r in rows}
    stages = {("planted", "1"), ("planted", "3"), ("fixed", "1"), ("mixture", "3"), ("right", "1")}
    assert cells == {("uniform", *stage) for stage in stages} | {("none", "planted", "1")}

    def values(quantity, space, at="", **columns):
        columns |= {"quantity": quantity, "space": space, "at": at}
        return [float(r["value"]) for r in rows if all(r[k] == v for k, v in columns.items())]

    for K in ("1", "3"):
        own = {"noise": "uniform", "subcenters": K, "stage": "planted"}
        assert values("auc", "angle", "fixed", **own)[0] > 0.6
        shares = [values(name, "figure 7", **own)[0] for name in HERE.module.figures.SHARES]
        assert sum(shares) == pytest.approx(1)
        assert shares[1] + shares[3] == pytest.approx(0.4, abs=0.01)
        recalls = [values("recall", "curve", str(angle), **own)[0] for angle in (60, 75, 90)]
        assert recalls == sorted(recalls, reverse=True)
    assert len(values("auc", "confidence")) == 1  # of K = 1 alone
    assert values("kept_wrong", "images", stage="right") == [0.0]
    assert values("kept", "images", stage="right")[0] == pytest.approx(0.6, abs=0.01)
    accuracies = values("verification_accuracy", "projector")
    assert len(accuracies) == len(cells)
    assert all(0.4 < accuracy <= 1 for accuracy in accuracies)
    assert_report(characters / "run" / "report.html")
    page = (characters / "run" / "report.html").read_text()
    for words in ("right labels only", "as in figure 7", "known share", "57.24"):
        assert words in page


def test_a_small_run_says_how_twins_and_small_classes_fare(characters):
    flags = [*SMALL, "--recipe.backbone", BACKBONE, "--noises", "twins", "tail", "--clean"]
    flags += [
        "--seeds",
        "0",
        "--subcenters",
        "1",
        "--fixed",
        "--mixture",
        "--rates",
        "1.0",
        "0.5",
        "--shares",
    ]
    flags += ["0.5", "--filters", "0.4", "--recipe.batch", "4", "--recipe.epochs", "1"]
    assert main(["purify", *flags, "--folder", "run"]) == 0
    found = {
        (r["noise"], r["rate"], r["filter"], r["quantity"], r["space"], r["at"]): float(r["value"])
        for r in table(characters / "run")
    }
    assert found["twins", "1.0", "0.4", "twins_seen", "steps", ""] == 1
    assert 0 < found["twins", "0.5", "0.4", "twins_seen", "steps", ""] < 1
    for noise in ("twins", "tail"):
        full, half = (
            found[noise, rate, "0.4", "passive", "steps", "cut"] for rate in ("1.0", "0.5")
        )
        assert full > half > 0
        # smaller classes are labels more rarely
        assert full > found[noise, "1.0", "0.4", "passive", "steps", "whole"]
        assert 0 < found[noise, "1.0", "0.4", "center_angle", "centers", "cut"] < 130
    assert found["twins", "1.0", "0.4", "recall", "pairs", "70"] >= 0
    page = (characters / "run" / "report.html").read_text()
    assert "rows that meet their twin" in page
    assert "nearer than an angle" in page


def test_passive_updates_and_twins_are_those_of_a_loop(characters):
    module = HERE.module
    chosen = settings.replaced(
        module.Settings(classes=8),
        {"noises": ("twins",), "rates": (0.5,), "recipe": {"batch": 4, "epochs": 2}},
    )
    cell = module._cell("twins", 0.5, 1, 0.5, 0.0, BACKBONE, "planted", 0)
    recipe, truth = module._recipe(cell, chosen), module.planted(module._planting(cell, chosen))
    found = {(f.quantity, f.at): f.value for f in module.conflict.of_steps(recipe, truth)}
    twin = {}
    for a, x in enumerate(truth.origin.tolist()):
        for b, y in enumerate(truth.origin.tolist()):
            if a != b and x == y:
                twin[a] = b
    assert len(twin) == 8
    shares, seen, passive, active = [], [], [], []
    for labels, classes in module.conflict.sampled_steps(recipe, truth.images):
        sample, own = set(classes.tolist()), set(labels.tolist())
        assert own <= sample
        negatives = sample - own
        if negatives:
            shares.append(sum(twin.get(c) in own for c in negatives) / len(negatives))
        else:
            shares.append(0.0)
        seen += [twin[y] in sample for y in labels.tolist() if y in twin]
        passive += [c for c in negatives if c in twin]
        active += [c for c in own if c in twin]
    assert found["twin_negatives", ""] == pytest.approx(np.mean(shares))
    assert found["twins_seen", ""] == pytest.approx(np.mean(seen))
    assert found["passive", "cut"] == pytest.approx(len(passive) / len(active))


def test_planted_sets_are_of_the_same_classes_whatever_is_planted(characters):
    module = HERE.module
    sets = {}
    for noise in ("none", *module.WRONG, *module.CONFLICT):
        asked = module.Planting("omniglot-upright", 16, 8, noise, 0.5 * (noise != "none"), 4, 3)
        sets[noise] = module.planted(asked)
    names = sets["none"].images.classes
    drawn = Key(3).named("purify", "classes").permutation(12)[:8]
    assert len(names) == len(set(names)) == len(drawn) == 8
    for noise, found in sets.items():
        assert found.images.classes[:8] == names
        assert int(found.wrong.sum()) == (64 if noise in module.WRONG else 0)
    flipped = sets["alphabet"]
    before = sets["none"].images.labels
    alphabets = torch.tensor([int(name.split("/")[0][-1]) for name in names])
    assert torch.equal(alphabets[flipped.images.labels], alphabets[before])
    assert int(sets["twins"].whole.sum()) == 4
    assert sorted(torch.bincount(sets["tail"].images.labels).tolist()) == [4] * 4 + [16] * 4
