"""The study of contrastive and margin training: its presets, its refusals, what a method may see,
its statistics, and a small run with its report.
"""

import csv
import itertools
import sys

import numpy as np
import pytest
import torch
from report_pages import assert_report
from scipy.stats import spearmanr

from marginlab import settings, study
from marginlab.data import load
from marginlab.study.__main__ import main

HERE = study.load("versus")
measure = sys.modules[HERE.module.Labels.__module__]
pages = HERE.module.pages


@pytest.mark.parametrize(
    "preset", sorted(path.stem for path in (HERE.home / "presets").glob("*.toml"))
)
def test_every_preset_reads_and_its_levels_are_moved_one_at_a_time(preset):
    chosen = HERE.settings(preset)
    grid = HERE.grid(chosen)
    levels = HERE.module.levels(chosen)
    assert len(grid) == len(levels) * len(chosen.methods) * len(chosen.seeds)
    base = HERE.module.recipe_of(grid[0], chosen)
    for cell in grid[:: len(chosen.methods) * len(chosen.seeds)]:
        changed = HERE.module.recipe_of(cell, chosen)
        differing = {
            name
            for name in ("data", "augmentation", "backbone", "images", "epochs", "batch")
            if getattr(changed, name) != getattr(base, name)
        }
        assert len(differing) <= 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": ()}, "each name at least one"),
        ({"optimizers": ("SGD(lr=0.1)", "SGD(lr=0.2)")}, "2 optimizers for 6 methods"),
        ({"labels": (0.0,)}, "shares of the labels, not 0.0"),
        ({"noise": (1.5,)}, "shares of the labels, not 1.5"),
        ({"labels": (0.01,)}, "shows no image of"),
        ({"views": 1}, "measured and views are at least 2"),
        ({"augmentations": ("Augmentation('z')",)}, "z"),
        ({"methods": ("SimCRL()",)}, "SimCLR"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(changes, sentence):
    def checked():
        HERE.module.check(settings.replaced(HERE.module.Settings(), changes))

    with pytest.raises((settings.SettingsError, ValueError), match=sentence):
        checked()


def test_the_published_rows_are_whole():
    with (HERE.home / "published.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(60 < float(row["accuracy"]) < 100 and row["source"] for row in rows)
    assert len({(row["data"], row["method"]) for row in rows}) == len(rows)


def test_a_contrastive_method_is_told_apart_from_one_that_sees_labels():
    family = HERE.module.family
    assert family("VICReg(dim=8)") == family("MoCo()") == "contrastive"
    assert family("SupCon()") == "supervised contrastive"
    assert family("MarginClassifier(margin='ArcFace(0.5)')") == "margin"


def test_the_labels_that_are_seen_have_the_share_and_the_noise_that_was_asked_for():
    images = load("digits", "train").subset(400)
    few = measure.seen(images, measure.Labels(share=0.1, noise=0.0, sees=True, seed=0))
    assert len(few) == 40
    assert len(few.labels.unique()) == 10
    noisy = measure.seen(images, measure.Labels(share=1.0, noise=0.25, sees=True, seed=0))
    assert int((noisy.labels != images.labels).sum()) == 100
    assert torch.equal(noisy.images, images.images)


def test_a_method_that_sees_few_images_gets_as_many_steps():
    recipe = settings.replaced(
        HERE.module.Settings().recipe, {"images": 500, "batch": 50, "epochs": 8}
    )
    few = measure._same_steps(recipe, 500, 120)
    assert (few.epochs * (120 // few.batch), few.batch) == (80, 50)
    very_few = measure._same_steps(recipe, 500, 20)
    assert (very_few.epochs, very_few.batch) == (80, 20)


def test_predictors_of_a_known_population():
    e = torch.eye(4)
    features = e[[0, 0, 1, 1]][:, None].repeat(1, 3, 1)  # two classes, each in one point
    found = measure.predictors(features, torch.tensor([0, 0, 1, 1]))
    assert found["alignment"][0] == found["worst_view"][0] == found["class_variance"][0] == 0
    assert found["divergence"][0] == pytest.approx(0, abs=1e-12)
    assert found["rank"][0] == pytest.approx(2)
    mixed = measure.predictors(features, torch.tensor([0, 1, 0, 1]))
    assert mixed["divergence"][0] == pytest.approx(0.5)
    assert np.isnan([found[name][1] for name in ("alignment", "uniformity", "confusion")]).all()


def test_a_shuffled_class_keeps_its_size():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert torch.equal(measure._shuffled(labels).sort().values, labels)


def test_the_prediction_is_the_mean_of_rank_correlations_and_its_test_is_exact():
    draws = np.random.default_rng(0)
    x, control, y = draws.normal(size=(3, 2, 4, 3))
    found = pages.prediction(x, control, y)

    def r(order):
        pairs = zip(x.mean(-1)[:, list(order)], y.mean(-1), strict=True)
        return np.mean([spearmanr(a, b)[0] for a, b in pairs])

    assert found.r == pytest.approx(r(range(4)))
    all_orders = [abs(r(order)) for order in itertools.permutations(range(4))]
    assert found.p == pytest.approx(np.mean([o >= abs(found.r) - 1e-9 for o in all_orders]))
    same = pages.prediction(y[:1], y[:1], y[:1])
    assert same.r == same.control == pytest.approx(1)
    assert same.excess == pytest.approx(0)
    assert same.p == pytest.approx(1 / 12)  # the reverse order is as far from zero


def test_a_small_run_records_what_was_seen_and_reports_it(tmp_path, capsys):
    flags = (
        "--recipe.images 40 --recipe.batch 20 --recipe.epochs 1 --recipe.image_size 16 "
        "--monitor.images 20 --monitor.bank 40 --monitor.views 2 --monitor.no-bounds "
        "--measured 20 --views 2"
    ).split()
    backbone = "Backbone('resnet18', stem='strided', width=0.0625)"
    methods = "SimCLR(hidden=8, dim=4)", "MarginClassifier(margin='CosFace(0.3)', dim=4)"
    lists = ["--augmentations", "Augmentation('a')", "Augmentation('e')", "--backbones"]
    flags += ["--recipe.backbone", backbone, "--methods", *methods, *lists]
    folder = tmp_path / "run"
    assert main(["versus", *flags, "--labels", "0.5", "--noise", "--folder", str(folder)]) == 0
    run = study.open_run(folder)
    assert all(cell.finished for cell in run.cells)
    seen = {
        (row["level"], HERE.module.family(row["method"])): row["value"]
        for row in run.select(quantity="labels_seen")
    }
    assert seen[("base", "contrastive")] == seen[("0.5", "contrastive")] == 0
    assert (seen[("base", "margin")], seen[("0.5", "margin")]) == (40, 20)
    # three augmentations by two methods, and half the labels by the one that sees labels
    assert len(list(folder.glob("once/training-*"))) == 7
    errors = run.select(quantity="error")
    assert len(errors) == 2 * len(run.cells)
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in errors)
    found = {(row["space"], row["at"]) for row in run.select(quantity="predictor")}
    assert ("pixels", "one_minus_sigma") in found
    assert {at for space, at in found if space == "backbone"} == {
        *("alignment", "worst_view", "uniformity", "rank", "confusion"),
        *("divergence", "class_variance", "one_minus_sigma"),
    }
    assert_report(folder / "report.html")
    page = (folder / "report.html").read_text()
    assert "What predicts the error over augmentations" in page
    assert "one seed" not in page
    assert "1 seed(s): no finding" in page
