"""The learning rate that suits a method with an augmentation.

The rate is chosen once, on abcde, and then frozen for the study of concentration.
"""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from marginlab import settings
from marginlab.study import Cell, Quantity, Run, literal
from marginlab.train import Monitor, Recipe, once_trained
from marginlab.train import check as check_data

headline = (Quantity("knn_error", "backbone"), Quantity("linear_error", "backbone"), "loss")


@dataclass(frozen=True)
class Settings:
    """Settings, by default those of the preset `cifar10-cpu` of the study concentration.

    Its augmentations are not taken over.
    """

    recipe: Recipe = Recipe(
        data="cifar10",
        images=5000,
        backbone="Backbone('resnet18', stem='strided', width=0.25)",
        epochs=16,
        batch=128,
        precision="bfloat16",
    )
    """Each training; the grid replaces its optimizer and seed."""
    monitor: Monitor = Monitor(images=300)
    """Measurements during training."""
    optimizers: tuple[str, ...] = (
        "SGD(lr=0.03)",
        "SGD(lr=0.06)",
        "SGD(lr=0.12)",
        "SGD(lr=0.25)",
        "SGD(lr=0.5)",
    )
    """Of marginlab.optim: the candidates."""
    seeds: tuple[int, ...] = (0,)


def cells(chosen: Settings) -> list[dict[str, str | int]]:
    """One training for each candidate and seed."""
    if not chosen.optimizers or not chosen.seeds:
        raise settings.SettingsError("optimizers and seeds each name at least one.")
    grid: list[dict[str, str | int]] = [
        {"optimizer": optimizer, "seed": seed}
        for optimizer in chosen.optimizers
        for seed in chosen.seeds
    ]
    for cell in grid:
        recipe_of(cell, chosen)
    return grid


def check(chosen: Settings) -> str:
    """Refuse settings that do not fit the data or the network; return the digest of the data."""
    recipe = recipe_of(cells(chosen)[0], chosen)
    recipe.make_method()
    return " ".join(images.digest() for images in check_data(recipe))


def recipe_of(cell: Any, chosen: Settings) -> Recipe:
    """Return the recipe of a cell."""
    return settings.replaced(chosen.recipe, {"optimizer": cell["optimizer"], "seed": cell["seed"]})


def run(cell: Cell) -> None:
    """Train with the candidate, and record its errors on the test images and its loss."""
    chosen: Settings = cell.settings
    once_trained(cell, recipe_of(cell, chosen), chosen.monitor).record(cell)


def report(run: Run) -> None:
    """Error and loss of the last epoch against the candidates."""
    chosen = run.settings
    table = [
        {
            "optimizer": optimizer,
            "kNN error": run.last("knn_error", space="backbone", optimizer=optimizer),
            "linear error": run.last("linear_error", space="backbone", optimizer=optimizer),
            "loss": run.last("loss", optimizer=optimizer),
        }
        for optimizer in chosen.optimizers
    ]
    figure = go.Figure()
    optimizers = list(chosen.optimizers)
    for of, look in run.parts("seed", optimizer=optimizers):
        for name, quantity in (("kNN error", "knn_error"), ("linear error", "linear_error")):
            y = [run.last(quantity, space="backbone", **{**of, "optimizer": o}) for o in optimizers]
            figure.add_scatter(x=optimizers, y=y, name=name, **look)
    figure.update_xaxes(title="optimizer").update_yaxes(title="test error")
    recipe = chosen.recipe
    made, data = literal(f"{recipe.method} with {recipe.augmentation}"), literal(recipe.data)
    run.report.lead = f"{made} on {data}, {recipe.epochs} epochs at batch {recipe.batch}."
    run.report.figure(
        figure,
        f"Errors on the test images after the last epoch, mean over {len(chosen.seeds)} seed(s).",
    )
    run.report.table(table, "The same, in numbers, with the loss of the last epoch.")
