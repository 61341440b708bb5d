"""Training images/s of `fit`'s own step, beside drawing the views and the network alone.

    python benchmarks/training.py [--recipe RECIPE.toml] [--out benchmarks/measured/training.json]

The network alone runs on views at hand.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _report import median_seconds, save, show_products

from marginlab import settings
from marginlab.data import load
from marginlab.train import Monitor, Recipe, fit
from marginlab.train.precision import PRECISIONS, chosen


def measure(recipe: Recipe, repeats: int) -> list[dict[str, Any]]:
    """Images a second of the whole loop, of the augmentation and of the network, for one recipe."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = load(recipe.data, "train").subset(recipe.batch, 0).to(device)
    augmentation, method = (
        recipe.make_augmentation(),
        recipe.make_method().to(device, memory_format=torch.channels_last),
    )
    optimizer = method.optimizers(recipe.make_optimizer())[0]
    views = augmentation.views(images.images, n_views=2)
    with tempfile.TemporaryDirectory() as folder:  # "auto": as the training itself would choose
        shape = views.flatten(0, 1).shape
        precision, said = chosen(recipe.precision, method.backbone, shape, Path(folder))
    if said:
        print(f"{recipe.backbone} {said}.", flush=True)
    recipe = replace(recipe, precision=precision)

    def network() -> None:
        optimizer.zero_grad()
        with torch.autocast(
            device.type,
            PRECISIONS[recipe.precision],
            enabled=PRECISIONS[recipe.precision] is not None,
        ):
            loss = method(views, images.labels)["loss"]
        loss.backward()
        optimizer.step()

    drawing = median_seconds(lambda: augmentation.views(images.images, n_views=2), repeats)
    alone = median_seconds(network, repeats)
    with tempfile.TemporaryDirectory() as folder:
        whole = fit(
            replace(recipe, epochs=2),
            Path(folder) / "run",
            Monitor(images=20, views=2, bank=20),
            say=lambda _: None,
        ).images_per_second
    rates = {
        "fit": whole,
        "network alone": recipe.batch / alone,
        "views alone": recipe.batch / drawing,
    }
    what = {
        "backbone": recipe.backbone,
        "batch": recipe.batch,
        "precision": recipe.precision,
        "augmentation": recipe.augmentation,
    }
    return [
        {"task": task, "images_per_second": round(rate), **what} for task, rate in rates.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--recipe",
        type=Path,
        help="a TOML file; by default the recipes of the concentration study's small backbones",
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/measured/training.json"))
    options = parser.parse_args()
    show_products()
    small = Recipe(
        images=1024, backbone="Backbone('resnet18', stem='strided', width=0.25)", batch=128
    )
    recipes = [
        *(replace(small, precision=precision) for precision in PRECISIONS),
        replace(
            small, backbone="Backbone('resnet18', stem='strided', width=0.5)", precision="bfloat16"
        ),
        replace(
            small, backbone="Backbone('resnet18', stem='cifar')", precision="bfloat16", images=256
        ),
    ]
    rows = []
    for recipe in [settings.read(Recipe, options.recipe)] if options.recipe else recipes:
        for row in measure(recipe, options.repeats):
            print(
                f"{row['backbone']:60} {row['precision']:9} {row['task']:14} "
                f"{row['images_per_second']:7,} images/s",
                flush=True,
            )
            rows.append(row)
    save("training", rows, options.out)


if __name__ == "__main__":
    main()
