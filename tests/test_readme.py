"""The README keeps its word: its commands and its Python run, on a folder of a user's own images
where they ask for one.
"""

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from insightface_files import write_pack, write_training_folder
from PIL import Image

from marginlab.data import Shapes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.strip().splitlines()
]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
# Added to every command that trains, so that it ends within seconds; flags that come later win.
SHORT_STUDY = (
    "--grids pairs --pairs ad --recipe.epochs 1 --recipe.images 60 --monitor.every 0 "
    "--monitor.images 20 --monitor.views 2 --monitor.bank 40 --methods SimCLR(hidden=8,dim=8)"
).split()
SHORT_STUDY += "--per-class 4 --blocks 2 --views 3 --deep-views 4 --sharpened 2".split()
SHORT_STUDY += ["--recipe.backbone", "Backbone('resnet18', stem='strided', width=0.125)"]
SHORT_BOUNDS = (
    "--recipe.epochs 1 --recipe.images 100 --monitor.images 20 --monitor.views 3 --monitor.bank 50 "
    "--methods SupCon(hidden=8,dim=8) --optimizers SGD(lr=0.1)"
).split()
SHORT_BOUNDS += [
    "--augmentations",
    "Augmentation('e')",
    "--recipe.backbone",
    "Backbone('resnet18', stem='strided', width=0.125)",
]
SHORT_MARGINS = (
    "--losses arcface --recipe.epochs 1 --recipe.images 24 --recipe.batch 24 "
    "--recipe.image-size 16 --monitor.verified-pairs 40 --monitor.folds 2 "
    "--monitor.far-pairs 100 --monitor.fars 0.1 --monitor.bank 24 --monitor.images 24 "
    "--monitor.angles 24"
).split()
SHORT_TRAIN = "--epochs 1 --images 64 --batch 32 --backbone".split()
SHORT_TRAIN += ["Backbone('resnet18', stem='strided', width=0.125)"]
SHORT_TRAIN += ["--measure", "Monitor(images=20, views=2, bank=40)"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's folder: photos, the recipe of the README, and a small CIFAR-10."""
    folder = tmp_path_factory.mktemp("user")
    photos = Shapes().load("train", 200)
    for number, (image, label) in enumerate(
        zip(photos.images, photos.labels.tolist(), strict=True)
    ):
        place = folder / "photos" / photos.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((48, 40)).save(
            place / f"{number}.png"
        )
    write_training_folder(folder / "faces", people=20, shots=10)
    write_pack(folder / "faces" / "lfw.bin")
    (recipe,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    (folder / "recipe.toml").write_text(recipe)
    arrays = {"images": photos.images.movedim(1, 3).numpy(), "labels": photos.labels.numpy()}
    characters = np.random.default_rng(0).integers(0, 256, (240, 16, 16), dtype=np.uint8)
    drawn = {"images": characters, "labels": np.arange(240) // 20}
    np.savez(
        folder / "omniglot.npz",
        **{
            f"{part}_{key}": array
            for part in ("background", "evaluation")
            for key, array in {
                **drawn,
                "classes": np.array([f"{part}/{number}" for number in range(12)]),
            }.items()
        },
    )
    np.savez(
        folder / "cifar10.npz",
        **{f"{split}_{key}": array for split in ("train", "test") for key, array in arrays.items()},
    )
    return folder


@pytest.mark.parametrize("command", [line for line in COMMANDS if not line.startswith("make ")])
def test_every_command_runs(home, command):
    words = shlex.split(command)
    if words[0] == "torchrun":
        words[:1] = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    else:
        assert words[0] == "python"
        words[0] = sys.executable
    if "concentration" in words and "--help" not in words:
        words += [
            *SHORT_STUDY,
            *([] if "--batch" in words else ["--recipe.batch", "20"]),
        ]
    if "bounds" in words:
        words += SHORT_BOUNDS
    if "margins" in words:
        words += SHORT_MARGINS
    if "marginlab.train" in words:
        words += SHORT_TRAIN
    if "marginlab.evaluation" in words and not (home / "runs" / "faces").exists():
        (training,) = [line for line in COMMANDS if "runs/faces --data" in line]
        test_every_command_runs(home, training)  # in another process of the tests
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MARGINLAB_DATA": str(home),
        "PYTHONPATH": str(ROOT),
    }
    done = forked.run(words, cwd=home, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 40


def test_make_knows_its_targets():
    targets = [line.removeprefix("make ") for line in COMMANDS if line.startswith("make ")]
    assert targets == ["concentration", "test"]
    for target in (*targets, "bench", "lint"):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_its_ten_lines_print_what_they_say():
    (block,) = re.findall(r"```pycon\n(.*?)```", README, re.S)
    examples = doctest.DocTestParser().get_examples(block)
    found = doctest.DocTestRunner(verbose=False).run(
        doctest.DocTest(examples, {}, "README", "README.md", 0, block)
    )
    assert (found.failed, found.attempted) == (0, len(examples))
    assert len(examples) >= 10


def test_its_python_runs(home, monkeypatch):
    library, classifier, theory, reading = PYTHON
    names: dict[str, object] = {}
    exec(library, names)
    exec(classifier, names)
    assert names["head"].centers.grad.coalesce().indices().shape == (1, 10_000)
    monkeypatch.chdir(home)
    exec(theory, names)
    assert names["certificate"].best("new images").value < 0.1
    assert (home / "certificate.html").stat().st_size > 10_000
    assert 0 < names["lower"] <= names["upper"] <= 1
    assert names["views"].shape[1] == 16
    words = ["recipe.toml", "--folder", "runs/photos", *SHORT_TRAIN]
    command = [sys.executable, "-m", "marginlab.train", *words]
    done = forked.run(command, cwd=home, env=dict(os.environ), timeout=200)
    assert done.returncode == 0, done.stderr
    exec(reading, names)
    assert names["features"].shape == (8, 64)
    assert bool(torch.isfinite(names["features"]).all())


def test_what_it_links_to_is_there():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
