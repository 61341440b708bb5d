"""The study of certificates: its presets, a small run whole and resumed, what its report says, and
what it refuses.
"""

import csv
import importlib
import math
import os
import re
import sys

import forked
import pytest
import torch
from report_pages import assert_report
from scipy import stats
from torch.nn.functional import normalize

from marginlab import settings, study
from marginlab.data import load
from marginlab.losses.functional import info_nce
from marginlab.study.run import Rows

HERE = study.load("bounds")
figures, over_seeds, risk, unseen = (
    importlib.import_module(f"{HERE.module.__name__}.{name}")
    for name in ("figures", "over_seeds", "risk", "unseen")
)
SMALL = [
    *"--recipe.data digits --recipe.image-size 16 --recipe.images 60 --recipe.epochs 1 "
    "--recipe.batch 20 --recipe.precision float32 --monitor.every 1 --monitor.images 40 "
    "--monitor.views 3 --monitor.bank 60 --monitor.measures".split(),
    *["NeuralCollapse()", "AugmentationConfusion()"],
    *[
        "--methods",
        "SimCLR(hidden=8, dim=8)",
        "MarginClassifier(margin='CosFace(0.3)', scale=16.0, dim=8)",
    ],
    *[
        "--optimizers",
        "SGD(lr=0.1)",
        "SGD(lr=0.1)",
        "--augmentations",
        "Augmentation('a')",
        "Augmentation('a')",
        "--monitor.augmentation",
        "Augmentation('e')",
    ],
    *["--recipe.backbone", "Backbone('resnet18', stem='strided', width=0.125)"],
    *"--unseen 50 --fixing 40".split(),
]


def run(*arguments, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "marginlab.study", "bounds", *arguments]
    return forked.run(command, cwd=folder, env=environment, timeout=300)


@pytest.mark.parametrize(
    "preset", sorted(path.stem for path in (HERE.home / "presets").glob("*.toml"))
)
def test_every_preset_reads_and_gives_a_grid(preset):
    chosen = HERE.settings(preset)
    assert len(HERE.grid(chosen)) == len(chosen.methods) * len(chosen.seeds)
    assert settings.to_toml(chosen)


def test_a_small_run_is_whole_resumed_and_reported(tmp_path):
    done = run(*SMALL, "--folder", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    with (tmp_path / "run" / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    seen = {
        (
            row["method"].partition("(")[0],
            int(row["epoch"]),
            row["quantity"],
            row["at"],
        ): float(row["value"])
        for row in rows
        if row["space"] == "projector"
    }
    for method in ("SimCLR", "MarginClassifier"):
        for epoch in (0, 1):
            forms = {
                form: seen[method, epoch, quantity, at]
                for form, (quantity, at) in figures.FORMS.items()
            }
            assert all(0 <= value <= 1 for value in forms.values())
            assert forms["T'"] <= min(forms["P"], forms["T"]) + 1e-6
            assert forms["new, fixed"] >= forms["new"] >= seen[method, epoch, "new_error", ""]
            assert seen[method, epoch, "theorem_3_printed", ""] > 1
            assert {
                (method, epoch, "AugmentationConfusion", "ACR"),
                (method, epoch, "NeuralCollapse", "NC1"),
            } <= set(seen)
        told = {at: seen[method, 1, "certified_unseen", at] for at in unseen.FORMS}
        assert told["new_images"] >= told["image_wise"] >= seen[method, 1, "error_unseen", ""]
        assert told["prototypes"] >= seen[method, 1, "error_unseen", "prototypes"]
        assert told["population_T"] >= told["population"] > 0
        assert told["theorem_3"] >= told["products"] > 0
        loss = {
            at: value
            for (name, _, quantity, at), value in seen.items()
            if (name, quantity) == (method, "pac_bayes_unseen")
        }
        assert loss["risk_prior"] < loss["bound_prior"] < loss["loss_range"]
        assert loss["held_out"] < loss["bound_prior"]
        assert loss["divergence_prior"] == 0 < min(loss["divergence_4"], loss["divergence_64"])
        assert seen[method, 1, "term_unseen", "prototypes_prototypes"] in (1, 3, 10)
    assert {int(row["n"]) for row in rows if row["quantity"] == "certified_unseen"} == {50}
    assert_report(tmp_path / "run" / "report.html")
    page = re.sub(
        r"<script.*?</script>",
        "",
        (tmp_path / "run" / "report.html").read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    headings = (
        "What is certified: digits",
        "By images that training has not seen",
        "While they train",
        "Which term is to blame",
        "The geometry of the embeddings",
    )
    for words in (*headings, "The theorems on the losses", "Published"):
        assert words in page
    before = (tmp_path / "run" / "results.csv").read_bytes()
    (tmp_path / "run" / "results.csv").unlink()
    again = run("--resume", "run", folder=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (tmp_path / "run" / "results.csv").read_bytes() == before


def test_methods_want_an_optimizer_and_an_augmentation_each():
    chosen = HERE.settings("default", ["--optimizers", "SGD(lr=0.1)"])
    with pytest.raises(
        settings.SettingsError, match=r"There are 6 methods, but 1 optimizers\. Give one for each"
    ):
        HERE.module.check(chosen)
    with pytest.raises(settings.SettingsError, match="names no class"):
        settings.replaced(chosen, {"monitor": {"augmentation": "Agumentation('e')"}})


def test_the_monitor_records_the_bounds():
    chosen = settings.replaced(HERE.module.Settings(), {"monitor": {"bounds": False}})
    with pytest.raises(settings.SettingsError, match=r"monitor\.bounds is true"):
        HERE.module.check(chosen)


@pytest.mark.parametrize("changes", [{"unseen": -1}, {"fixing": 1}])
def test_numbers_of_images_are_refused_before_work_starts(changes):
    chosen = settings.replaced(HERE.module.Settings(), changes)
    with pytest.raises(settings.SettingsError, match="is a number of images, at least"):
        HERE.module.check(chosen)


def test_unseen_silhouettes_are_no_test_images_and_of_the_same_classes():
    recipe = settings.replaced(HERE.settings("contrastive").recipe, {"image_size": 16})
    test = load("shapes-5", "test", size=recipe.image_size).subset(50)
    new = unseen.unseen_images(recipe, test, 60)
    assert (len(new), new.classes, new.images.shape) == (60, test.classes, (60, 3, 16, 16))
    assert torch.bincount(new.labels).tolist() == [12] * 5
    # the first ones are those behind the test images that were handed over
    rendered = load("shapes-5", "test", size=recipe.image_size)
    assert torch.equal(new.images, rendered.images[50:110])
    digits = load("digits", "test", size=16)
    recipe = settings.replaced(recipe, {"data": "digits", "images": 0})
    assert len(unseen.unseen_images(recipe, digits, 5000)) == len(digits)
    # and what the recipe leaves out of the training images
    recipe = settings.replaced(recipe, {"images": 1000, "seed": 2})
    new, whole = unseen.unseen_images(recipe, digits, 5000), load("digits", "train", size=16)
    rows = {image.numpy().tobytes() for image in whole.subset(1000, seed=2).images}
    assert len(new) == len(digits) + len(whole) - 1000
    assert not any(image.numpy().tobytes() in rows for image in new.images)


def test_the_loss_of_a_batch_is_info_nce_behind_the_map_and_training_lowers_it():
    features = torch.randn(100, 3, 8)
    batches = risk.batches_of(features)
    assert batches.shape == (6, 16, 2, 8)
    assert torch.allclose(batches[1, 2, 1], normalize(features[18, 1], dim=0))
    A = torch.eye(8) + 0.1 * torch.randn(8, 8)
    z = normalize(batches @ A.T, dim=-1)
    expected = [info_nce(*both.unbind(1), temperature=0.5) for both in z]
    found = risk.loss_of(batches)(A)
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)
    assert bool((found <= risk.ENDS.high).all())
    found = risk.bounds_of(features)
    assert found["bound_64"] > found["risk_64"]


def test_differences_are_paired_by_the_seed():
    mean, half = over_seeds.interval([0.1, 0.2, 0.4])
    exact = stats.t.interval(0.95, 2, mean, stats.sem([0.1, 0.2, 0.4]))
    assert (mean - half, mean + half) == pytest.approx(exact)
    assert math.isnan(over_seeds.interval([0.5])[1])
    rows = []
    for seed, shared in enumerate((0.1, 0.3, 0.2)):
        for method, off in (("one", 0.05), ("two", 0.0)):
            for at, more in (("image_wise", 0.0), ("new_images", 0.01 * seed)):
                columns = {"method": method, "seed": seed, "space": "projector", "at": at}
                rows.append(
                    columns | {"quantity": "certified_unseen", "value": shared + off + more}
                )

    table = over_seeds._differences(Rows(rows), {"one": "1", "two": "2"})
    forms, _, methods = (row["first less second"] for row in table)
    half = stats.t.ppf(0.975, 2) * stats.sem([0.0, 0.01, 0.02])
    assert forms == f"0.0100 ({0.01 - half:.4f} to {0.01 + half:.4f})"
    # what the seeds share is gone: the difference has no spread
    assert methods == "0.0500 (0.0500 to 0.0500)"
