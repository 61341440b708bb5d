"""The learning rate that suits a method with an augmentation.

The rate is chosen once, on abcde, and then frozen for the study of concentration.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from marginlab import settings
from marginlab.study import Cell, Quantity, Run, literal
from marginlab.train import Monitor, Recipe, fit
from marginlab.train import check as check_data

headline = (Quantity("knn_error", "backbone"), Quantity("linear_error", "backbone"), "loss")


@dataclass(frozen=True)
class Settings:
    """Settings, by default those of the preset `cifar10-cpu` of the study concentration.

    Its augmentations are not taken over.
    """

    data: str = "cifar10"
    images: int = 5000
    """Training images, class-balanced; 0 takes all."""
    augmentation: str = "Augmentation('abcde', strength=0.5)"
    backbone: str = "Backbone('resnet18', stem='strided', width=0.25)"
    method: str = "SimCLR(temperature=0.5)"
    optimizers: tuple[str, ...] = (
        "SGD(lr=0.03)",
        "SGD(lr=0.06)",
        "SGD(lr=0.12)",
        "SGD(lr=0.25)",
        "SGD(lr=0.5)",
    )
    """Of marginlab.optim: the candidates."""
    epochs: int = 16
    batch: int = 128
    precision: str = "bfloat16"
    """float32, bfloat16 by autocast, or auto: bfloat16 where a probe finds it at least 1.15 times
    faster.
    """
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
        _recipe(cell, chosen)
    return grid


def check(chosen: Settings) -> str:
    """Refuse settings that do not fit the data or the network; return the digest of the data."""
    recipe = _recipe(cells(chosen)[0], chosen)
    recipe.make_method()
    return " ".join(images.digest() for images in check_data(recipe))


def _recipe(cell: Any, chosen: Settings) -> Recipe:
    same = ("data", "images", "augmentation", "backbone", "method", "epochs", "batch", "precision")
    return Recipe(
        **{name: getattr(chosen, name) for name in same},
        optimizer=cell["optimizer"],
        seed=cell["seed"],
    )


def run(cell: Cell) -> None:
    """Train with the candidate, and record its errors on the test images and its loss."""
    train: Callable[..., Any] = functools.partial(_train, say=cell.say)
    for row in cell.once("training", train, _recipe(cell, cell.settings)):
        cell.record(**row)


def _train(recipe: Recipe, *, say: Callable[[str], None], folder: Path) -> list[dict[str, Any]]:
    return [
        row._asdict()
        for row in fit(
            recipe, folder / "run", Monitor(images=300), say=say, precision_in=folder.parent
        ).rows
    ]


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
    figure = go.Figure(
        [
            go.Scatter(x=[e["optimizer"] for e in table], y=[e[t] for e in table], name=t)
            for t in ("kNN error", "linear error")
        ]
    )
    figure.update_yaxes(title="test error")
    made, data = literal(f"{chosen.method} with {chosen.augmentation}"), literal(chosen.data)
    run.report.lead = f"{made} on {data}, {chosen.epochs} epochs at batch {chosen.batch}."
    run.report.figure(
        figure,
        f"Errors on the test images after the last epoch, mean over {len(chosen.seeds)} seed(s).",
    )
    run.report.table(table, "The same, in numbers, with the loss of the last epoch.")
