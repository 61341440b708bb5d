"""Recipes, folders and checkpoints that cannot be trained are refused before work begins."""

import fcntl
import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_training import SMALL, WATCH, quiet, weights

from marginlab import settings
from marginlab.settings import SettingsError
from marginlab.train import Monitor, fit, load
from marginlab.train.checkpoint import latest, restore


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(SMALL, tmp_path_factory.mktemp("whole") / "run", WATCH, say=quiet)


def test_a_folder_is_of_one_monitor_one_set_of_images_and_one_process(tmp_path):
    data = {
        "images": torch.randint(0, 256, (60, 8, 8, 3), dtype=torch.uint8).numpy(),
        "labels": torch.arange(60).numpy() % 2,
    }
    np.savez(tmp_path / "own.npz", **data)
    recipe = replace(SMALL, data=f"npz:{tmp_path / 'own.npz'}", images=0, batch=16, epochs=1)
    short = Monitor(images=20, views=2, bank=20)
    fit(recipe, tmp_path / "run", short, say=quiet)
    with pytest.raises(SettingsError, match="is measured with views = 2, not 3"):
        fit(recipe, tmp_path / "run", replace(short, views=3), say=quiet)
    with (tmp_path / "run" / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="Another process trains in"):
            fit(recipe, tmp_path / "run", short, say=quiet)
    np.savez(tmp_path / "own.npz", **{**data, "images": 255 - data["images"]})
    with pytest.raises(SettingsError, match="on other images"):
        fit(recipe, tmp_path / "run", short, say=quiet)


@pytest.mark.parametrize(
    "wrong", [{"every": -1}, {"images": 1}, {"views": 1}, {"bank": 1}, {"bank": -1}]
)
def test_a_monitor_refuses_what_it_cannot_measure(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Monitor(**wrong)


def test_a_folder_of_another_recipe_is_refused(whole, tmp_path):
    with pytest.raises(
        SettingsError, match=r"holds a run with epochs = 3, not 4\. Choose another folder"
    ):
        fit(replace(SMALL, epochs=4), whole.folder, say=quiet)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SettingsError, match="is not empty and holds no run"):
        fit(SMALL, tmp_path, say=quiet)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (
            {"batch": 97},
            SettingsError,
            r"batch of 97 is more than the 96 training images of shapes\. Take batch <= 96",
        ),
        ({"data": "shape"}, ValueError, "did you mean 'shapes'"),
        ({"backbone": "Backbone('resnt18')"}, SettingsError, "timm has no model 'resnt18'"),
        ({"backbone": "Projector((2, 3))"}, SettingsError, "is no Backbone"),
        ({"method": "SimCRL()"}, SettingsError, "did you mean 'SimCLR'"),
        (
            {"method": "MarginClassifier(margin='ElasticFace(plus=True)')", "accumulate": 2},
            SettingsError,
            "accumulate = 2 .* all rows of a batch",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(tmp_path, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        fit(replace(SMALL, **changes), tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


def refused(group, rank, recipe, folder):
    try:
        fit(recipe, folder, say=quiet)
    except SettingsError as error:
        return str(error)


@pytest.mark.xdist_group("ranks")
def test_a_view_for_each_rank_is_too_few_for_batch_normalisation(pool, tmp_path):
    small = replace(SMALL, method="MarginClassifier(dim=8)", batch=4, images=8)
    # the last maps are single pixels
    for said in pool.run(4, refused, replace(small, image_size=8), tmp_path / "run"):
        assert (
            "A micro-batch is one view (batch = 4, accumulate = 1): Expected more than 1 value per "
            "channel" in said
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs is at least 1, not 0"),
        ({"batch": 10, "accumulate": 3}, "does not fall into 3 equal micro-batches"),
        ({"batch": 10, "accumulate": 10}, "have at least 2 images, not 10 / 10 = 1"),
        ({"precision": "float16"}, "did you mean 'bfloat16'"),
        ({"augmentation": "Augmentation('az')"}, "z"),
        (
            {"augmentation": "HorizontalFlip()"},
            "is no Augmentation: marginlab.augment has Augmentation",
        ),
        ({"optimizer": "WarmupCosine()"}, "is no OptimizerSettings: marginlab.optim has LARS"),
        ({"schedule": "SGD()"}, "is no Schedule: "),
        ({"optimizer": "SGD(lr=-1)"}, "lr > 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(SettingsError, match=sentence):
        replace(SMALL, **changes)


def test_images_of_a_size_that_a_backbone_does_not_take_are_refused_before_work(tmp_path):
    vit = "Backbone('vit_tiny_patch16_224', stem='imagenet')"
    with pytest.raises(
        SettingsError, match=r"does not take images of \(3, 16, 16\): .* Set image_size"
    ):
        fit(replace(SMALL, backbone=vit), tmp_path / "run", WATCH, say=quiet)
    assert not (tmp_path / "run").exists()
    method = replace(SMALL, backbone=vit.replace(")", ", image_size=32)")).make_method()
    assert method.encode(torch.rand(2, 3, 32, 32)).shape == (2, 192)
    with pytest.raises(SettingsError, match="cannot be made"):
        replace(SMALL, backbone="Backbone(image_size=32)").make_method()


def copied(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    return folder, latest(folder)


def test_a_damaged_checkpoint_is_refused_with_what_is_wrong(whole, tmp_path):
    folder, last = copied(whole, tmp_path)
    (file,) = last.glob("*.distcp")
    content = file.read_bytes()
    for damaged, words in ((content[:-9], "cut short"), (None, "has 0 of")):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        for attempt in (lambda: load(folder), lambda: fit(SMALL, folder, WATCH, say=quiet)):
            with pytest.raises(ValueError, match=words):
                attempt()
    file.write_bytes(content)
    assert torch.equal(weights(load(folder)), weights(whole.method))
    (last / "progress.json").write_text("{")
    with pytest.raises(ValueError, match=r"progress\.json cannot be read: Expecting property name"):
        load(folder)


def test_a_checkpoint_that_is_not_the_runs_is_refused(whole, tmp_path):
    folder, last = copied(whole, tmp_path)
    other = last.rename(last.with_name("step-00000001"))
    with pytest.raises(ValueError, match="says that it is of step 9: it was renamed"):
        load(folder)
    other.rename(last)
    progress = json.loads((last / "progress.json").read_text())
    assert (progress["step"], progress["ranks"], len(progress["classes"])) == (9, 1, 10)
    margin = replace(SMALL, method="MarginClassifier(dim=8)", epochs=1)
    run = fit(margin, tmp_path / "margin", WATCH, say=quiet)
    there = latest(run.folder)
    method = margin.make_method(9)
    with pytest.raises(
        ValueError, match=r"here classifier\.centers is \(9, 1, 8\), and it holds \(10, 1, 8\)"
    ):
        restore(there, method, method.optimizers(margin.make_optimizer()))
    (there / "progress.json").write_text(
        json.dumps(json.loads((there / "progress.json").read_text()) | {"ranks": 0})
    )
    with pytest.raises(ValueError, match=r"progress\.json says no number of ranks, from 1 on"):
        load(run.folder)


def test_rows_without_columns_as_of_an_earlier_version_are_refused(whole, tmp_path):
    folder, last = copied(whole, tmp_path)
    file = last / "progress.json"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    progress = json.loads(file.read_text())
    progress["rows"] = [[0, "loss", 0.5, 0.5, 0.5, 1]]
    file.write_text(json.dumps(progress))
    sums = last / "checksums.sha256"
    after = hashlib.sha256(file.read_bytes()).hexdigest()
    sums.write_text(sums.read_text().replace(before, after))
    with pytest.raises(settings.SettingsError, match="without the columns epoch, space, quantity"):
        fit(SMALL, folder, WATCH, say=quiet)
    assert torch.equal(weights(load(folder)), weights(whole.method))
