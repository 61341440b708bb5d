"""The study of margins: presets, refusals, small runs on drawn characters, people and records."""

import csv
import importlib
import math

import numpy as np
import pytest
import torch
from insightface_files import write_training_folder
from report_pages import assert_report

from marginlab import data, settings, study
from marginlab.study.__main__ import main

HERE = study.load("margins")
tables = importlib.import_module(f"{HERE.module.__name__}.tables")
folds = importlib.import_module(f"{HERE.module.__name__}.folds")
figures = importlib.import_module(f"{HERE.module.__name__}.figures")
PRESETS = sorted(path.stem for path in (HERE.home / "presets").glob("*.toml"))
SMALL = {
    "backbones": ("Backbone('resnet18', stem='strided', width=0.0625)",),
    "dim": 8,
    "recipe": {"image_size": 16, "images": 0, "epochs": 2, "batch": 24, "precision": "float32"},
    "monitor": {
        "images": 24, "bank": 24, "angles": 60, "verified_pairs": 40, "folds": 2,
        "far_pairs": 100, "fars": (0.1,),
    },
}  # fmt: skip


def small(changes):
    """The default settings at a test's size, under changes."""
    return settings.replaced(settings.replaced(HERE.module.Settings(), SMALL), changes)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_reads_and_makes_the_method_of_every_cell(preset):
    chosen = HERE.settings(preset)
    grid = HERE.grid(chosen)
    number = max(1, len(chosen.folds))
    assert len(grid) == len(chosen.losses) * len(chosen.backbones) * len(chosen.seeds) * number
    assert preset == "default" or len(chosen.seeds) >= 3
    narrow = settings.replaced(chosen, {"backbones": SMALL["backbones"], "dim": 8})
    for cell in HERE.grid(narrow)[:: len(chosen.seeds) * number]:
        recipe = HERE.module.recipe_of(cell, narrow)
        assert repr(recipe.make_method(4)).startswith(recipe.method.partition("(")[0])


def test_rows_of_a_step_and_weights_are_those_of_every_loss():
    """Two views of half the images are as many rows; the seed alone decides the weights."""
    chosen = HERE.module.Settings(losses=("arcface", "arcface+triplet", "triplet", "softmax"))
    for cell in HERE.grid(chosen):
        recipe = HERE.module.recipe_of(cell, chosen)
        assert recipe.batch * recipe.make_method(4).n_views == chosen.recipe.batch
        assert recipe.seed == 0


def test_the_published_rows_are_those_of_the_papers():
    published = tables.published_angles(HERE.home)
    assert published["arcface"]["W-EC"] == 14.29
    assert "W-EC" not in published["triplet"]
    with (HERE.home / "published.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({(r["table"], r["loss"], r["name"]) for r in rows}) == len(rows) == 28 + 57
    assert all(0 < float(row["value"]) < 100 and row["source"] for row in rows)


def test_orders_are_compared_by_pairs():
    ours = [
        {"loss": "arcface", **dict.fromkeys(tables.ANGLES, 1.0)},
        {"loss": "triplet", **dict.fromkeys(tables.ANGLES, 2.0)},
        {"loss": "norm-softmax", **dict.fromkeys(tables.ANGLES, 3.0)},
        {"loss": "cosface", **dict.fromkeys(tables.ANGLES, 0.0)},
    ]
    ours[1]["W-EC"] = math.nan
    rows = {row["angle"]: row for row in tables.orders(ours, tables.published_angles(HERE.home))}
    assert rows["W-EC"]["here"] == rows["W-EC"]["published"] == "arcface < norm-softmax"
    assert (rows["W-EC"]["agree"], rows["W-EC"]["of"]) == (1, 1)
    # published: norm-softmax 59.23, arcface 65.83, triplet 50.23
    assert rows["Inter1"]["published"] == "triplet < norm-softmax < arcface"
    assert (rows["Inter1"]["agree"], rows["Inter1"]["of"]) == (1, 3)


def test_intervals_over_seeds_are_students():
    mean, half = tables.over_seeds([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / 3**0.5)
    assert math.isnan(tables.over_seeds([1.0])[1])


def test_curves_of_margins_fall_and_a_straight_slope_is_one():
    for text in ("ArcFace(0.5)", "CosFace(0.35)", "MagFace()"):
        degrees, value, slope = figures.curve(text)
        assert len(degrees) == len(value) == len(slope) == 179
        assert value == sorted(value, reverse=True)
    assert set(figures.curve("ArcFace(0.5, gradient='straight_through')")[2]) == {1.0}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"losses": ("arcfaces",)}, "no loss 'arcfaces': did you mean 'arcface'"),
        ({"seeds": ()}, "each name at least one"),
        ({"monitor": {"angles": 0}}, "verifies a set and measures angles"),
        ({"gradient": "none", "losses": ("arcface",)}, "gradient is not 'none'"),
        ({"sample_rate": 0.5, "losses": ("arcface+intra",)}, "Terms are of all classes"),
        ({"monitor": {"verified": "digits"}}, "no split 'unseen'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(changes, sentence, characters, unchecked):
    with pytest.raises(settings.SettingsError, match=sentence):
        HERE.module.check(
            settings.replaced(settings.replaced(HERE.module.Settings(), SMALL), changes)
        )


def started(chosen, folder, capsys):
    """Run the study by a preset of these settings; return the rows of its table."""
    (folder / "small.toml").write_text(settings.to_toml(chosen))
    run = folder / "run"
    assert main(["margins", "--preset", str(folder / "small.toml"), "--folder", str(run)]) == 0
    capsys.readouterr()
    with (run / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_small_run_gives_angles_histograms_verification_and_a_report(characters, capsys):
    losses = ("softmax", "triplet", "arcface", "norm-softmax+both")
    rows = started(small({"losses": losses}), characters, capsys)
    last = [row for row in rows if row["epoch"] == "2" and row["space"] == "projector"]
    angles = {
        (r["loss"], r["at"]): float(r["value"]) for r in last if r["quantity"] == "class_angle"
    }
    assert {at for loss, at in angles if loss == "arcface"} == set(tables.ANGLES.values())
    assert not {"W_EC", "W_Inter"} & {at for loss, at in angles if loss == "triplet"}
    assert all(0 < value < 180 for value in angles.values())
    shares = [r for r in last if r["quantity"] == "target_angle_share" and r["loss"] == "softmax"]
    assert len(shares) == 18
    assert sum(float(row["value"]) for row in shares) == pytest.approx(1)
    for loss in losses:
        (row,) = (r for r in last if r["quantity"] == "verification_accuracy" and r["loss"] == loss)
        assert 0.5 < float(row["value"]) <= 1
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    assert_report(characters / "run" / "report.html")
    report = (characters / "run" / "report.html").read_text(encoding="utf-8")
    for words in ("half width", "W-EC", "Target value and slope", "CASIA", "agree"):
        assert words in report


@pytest.fixture
def people(tmp_path, monkeypatch):
    """A set like LFW: people of two lists, of whom some have one image."""
    random = np.random.default_rng(1)
    counts = [8] * 6 + [1] * 2 + [6] * 6
    labels = np.repeat(np.arange(14), counts)
    color = random.integers(0, 200, (14, 1, 1, 3))
    images = color[labels] + random.integers(0, 40, (len(labels), 16, 16, 3))
    firsts = np.searchsorted(labels, np.arange(14))
    pairs = [(firsts[k], firsts[k] + 1, 1) for k in (0, 1, 8, 9)]
    pairs += [(firsts[k], firsts[k + 1], 0) for k in (2, 3, 10, 11)]
    at = np.arange(len(labels))
    np.savez(
        tmp_path / "lfw.npz",
        images=images.astype(np.uint8),
        labels=labels,
        classes=np.array([f"Person_{k}" for k in range(14)]),
        pairs=np.array(pairs),
        fold=np.array([0, 0, 1, 1] * 2),
        dev_train=at[labels < 8],
        dev_test=at[labels >= 8],
    )
    monkeypatch.setenv("MARGINLAB_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_person_is_on_both_sides(people, capsys):
    chosen = HERE.settings("lfw")
    train = data.load(chosen.recipe.data, "train")
    unseen = data.load(chosen.monitor.verified, "unseen")
    assert not set(train.classes) & set(unseen.classes)
    assert (len(train.classes), len(unseen.classes)) == (
        6,
        6,
    )  # the two with one image are left out
    changes = {
        "losses": ("arcface",),
        "recipe": {"data": chosen.recipe.data, "batch": 12},
        "monitor": {"verified": chosen.monitor.verified, "angles": 12},
    }
    rows = started(small(changes), people, capsys)
    assert {"verification_accuracy", "class_angle"} <= {row["quantity"] for row in rows}


def test_folds_are_judged_by_trainings_on_other_people(people, capsys):
    changes = {
        "losses": ("arcface",),
        "folds": (1, 2),
        "recipe": {"data": "lfw?min_per_class=2", "batch": 12},
        "monitor": {
            "verified": "lfw?max_per_class=10", "angles": 12, "verified_pairs": 8, "far_pairs": 20,
        },
    }  # fmt: skip
    rows = started(small(changes), people, capsys)
    accuracy = {r["fold"]: r for r in rows if r["quantity"] == "fold_accuracy"}
    assert set(accuracy) == {"1", "2"}
    assert all(row["n"] == "4" and 0 <= float(row["value"]) <= 1 for row in accuracy.values())
    assert "LFW&#x27;s folds" in (people / "run" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(settings.SettingsError, match="folds are of LFW, and the data are omniglot"):
        settings.replaced(HERE.module.Settings(), {"folds": (1,)})


def test_the_best_threshold_is_that_of_trying_all():
    draw = np.random.default_rng(0)
    scores, same = torch.from_numpy(draw.normal(size=50)), torch.from_numpy(draw.random(50) < 0.5)
    right = [int(((scores >= t) == same).sum()) for t in [*scores.tolist(), math.inf]]
    found = folds.best_threshold(scores, same)
    assert int(((scores >= found) == same).sum()) == max(right)


def test_a_person_on_both_sides_is_refused(tmp_path):
    """The records to train on and those to verify number their people alike."""
    write_training_folder(tmp_path / "faces", people=8, shots=8)
    for suffix in ("rec", "idx"):
        source = tmp_path / "faces" / f"train.{suffix}"
        source.with_name(f"unseen.{suffix}").write_bytes(source.read_bytes())
    spec = f"record:{tmp_path / 'faces'}"
    chosen = small({"recipe": {"data": spec}, "monitor": {"verified": spec}})
    with pytest.raises(settings.SettingsError, match=r"7 other classes of .* are trained on by"):
        HERE.module.check(chosen)


@pytest.mark.parametrize(("preset", "loss"), [("ms1mv3", "arcface"), ("webface12m", "cosface-0.4")])
def test_a_recipe_for_faces_runs_on_made_up_records(preset, loss, people, capsys):
    """The preset, with the sizes of a test and a folder of records in insightface's layout."""
    write_training_folder(people / "faces", people=8, shots=8)
    chosen = HERE.settings(preset)
    changes = SMALL | {"losses": (loss,), "seeds": (0,)}
    changes["recipe"] = SMALL["recipe"] | {"data": "record:faces"}
    changes["monitor"] = SMALL["monitor"] | {"bank": 12, "images": 16}
    chosen = settings.replaced(chosen, changes)
    rows = started(chosen, people, capsys)
    assert {"verification_accuracy", "class_angle"} <= {row["quantity"] for row in rows}
