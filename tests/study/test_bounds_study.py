"""The study of certificates: its presets, a small run whole and resumed, what its report says, and
what it refuses.
"""

import csv
import importlib
import os
import re
import sys

import forked
import pytest

from marginlab import settings, study

HERE = study.load("bounds")
figures = importlib.import_module(f"{HERE.module.__name__}.figures")
SMALL = [
    *"--recipe.data digits --recipe.image-size 16 --recipe.images 60 --recipe.epochs 1 "
    "--recipe.batch 20 --monitor.every 1 --monitor.images 40 --monitor.views 3 --monitor.bank 60 "
    "--monitor.measures".split(),
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
]


def run(*arguments, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "marginlab.study", "bounds", *arguments]
    return forked.run(command, cwd=folder, env=environment, timeout=300)


def test_the_default_preset_is_the_defaults():
    assert HERE.settings("default") == HERE.module.Settings()


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
            assert forms["new"] >= seen[method, epoch, "new_error", ""]
            assert seen[method, epoch, "theorem_3_printed", ""] > 1
            assert {
                (method, epoch, "AugmentationConfusion", "ACR"),
                (method, epoch, "NeuralCollapse", "NC1"),
            } <= set(seen)
    page = re.sub(
        r"<script.*?</script>",
        "",
        (tmp_path / "run" / "report.html").read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    headings = (
        "What is certified: digits",
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
