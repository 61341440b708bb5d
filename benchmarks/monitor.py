"""The cost of the monitor beside training: seconds of a measurement and its share of a run.

    python benchmarks/monitor.py [--recipe RECIPE.toml] [--repeats 3]
        [--out benchmarks/measured/monitor.json]

The share is of training and measuring together, at the monitor's default schedule (the untrained
and the trained network) and the recipe's epochs. `every` is the smallest number of epochs between
measurements at which they take a tenth at most.
"""

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _report import median_seconds, save, show_products

from marginlab import settings
from marginlab.data import load
from marginlab.train import Monitor, Recipe, fit

MOST = 0.1
MEASURES = (
    "NeuralCollapse()",
    "ClassVariance()",
    "Uniformity()",
    "EffectiveRank()",
    "AugmentationConfusion()",
)
MONITORS = {
    "as it is": Monitor(),
    "with bounds": Monitor(bounds=True),
    "with bounds and five measures": Monitor(bounds=True, measures=MEASURES),
}


def measure(recipe: Recipe, repeats: int) -> list[dict[str, Any]]:
    """Seconds of an epoch and of a measurement by each monitor, and what follows."""
    train, test = (
        load(recipe.data, "train").subset(recipe.images, recipe.seed),
        load(recipe.data, "test"),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = fit(
            replace(recipe, epochs=2),
            Path(folder) / "run",
            Monitor(images=20, views=2, bank=20),
            say=lambda _: None,
        )
    device = next(run.method.parameters()).device
    train, test = train.to(device), test.to(device)
    epoch = len(train) / run.images_per_second
    rows = []
    for name, monitor in MONITORS.items():
        ordinary, last = (
            median_seconds(
                lambda last=last, monitor=monitor: monitor(
                    run.method, recipe.make_augmentation(), train, test, 1, last=last
                ),
                repeats,
            )
            for last in (False, True)
        )
        both = 2 * last  # the first and the last measurement also fit a linear probe
        row = {
            "monitor": name,
            "epoch_seconds": epoch,
            "seconds": ordinary,
            "last_seconds": last,
            "epochs": recipe.epochs,
        }
        row["share"] = both / (both + recipe.epochs * epoch)
        row["every"] = math.ceil(ordinary * (1 - MOST) / (MOST * epoch))
        rows.append({**row, "backbone": recipe.backbone, "images": len(train)})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--recipe",
        type=Path,
        help="a TOML file; by default 200 epochs of SimCLR and of a margin classifier on 5,000 "
        "shapes",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/measured/monitor.json"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    show_products()
    small = Recipe(backbone="Backbone('resnet18', stem='strided', width=0.25)", batch=128)
    recipes = [
        small,
        replace(small, method="MarginClassifier(margin='CosFace(0.5)', scale=4.0, dim=16)"),
    ]
    rows = []
    for recipe in [settings.read(Recipe, chosen.recipe)] if chosen.recipe else recipes:
        for row in measure(recipe, chosen.repeats):
            print(
                f"{recipe.method:60.60} {row['monitor']:30} {row['seconds']:5.1f} s of an epoch's "
                f"{row['epoch_seconds']:5.1f}; {100 * row['share']:4.1f} % of {row['epochs']} "
                f"epochs; every {row['every']}",
                flush=True,
            )
            rows.append({"method": recipe.method, **row})
    save("monitor", rows, chosen.out)


if __name__ == "__main__":
    main()
