"""Does a margin classifier that samples classes verify new identities as well as a full one?

The first sees a sample of the classes at each step, the second sees all. Neither was trained on the
identities that it verifies.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from marginlab import data, ranks, settings
from marginlab.evaluation import verify
from marginlab.study import Cell, Quantity, Run, literal
from marginlab.train import Monitor, Recipe, train_cell
from marginlab.train import check as check_data

headline = (
    Quantity("verification_accuracy", "projector"),
    Quantity("tar_at_far", "projector"),
    "target_angle",
    "images_per_second",
)
kept = (
    *headline,
    Quantity("verification_accuracy", "pixels"),
    Quantity("tar_at_far", "pixels"),
    "loss",
    *(
        Quantity(name, "projector")
        for name in ("knn_error", "alignment", "divergence_mean", "divergence_max")
    ),
)


@dataclass(frozen=True)
class Settings:
    """The defaults are the preset `default`: 964 upright characters, some minutes on two cores."""

    recipe: Recipe = Recipe(
        data="omniglot-upright",
        image_size=28,
        augmentation="Augmentation(('ResizedCrop(scale=(0.6, 1.0))',))",
        backbone="Backbone('resnet18', stem='strided', width=0.25, norm='group', "
        "activation='silu')",
        method="MarginClassifier(margin=\"ArcFace(0.3, gradient='straight_through')\", scale=16.0, "
        "dim=128)",
        optimizer="SGD(lr=0.1)",
        schedule="WarmupPolynomial(warmup=0.3, power=2.0)",
        epochs=8,
        batch=64,
        clip=1.0,
        precision="bfloat16",
    )
    """Each training; the grid replaces its seed and the sample rate of its method.

    A mirrored character is another one, so views are not flipped. Group normalisation is alike on
    one rank and on many, and SiLU forgives rounding. Without the clip the first steps multiply what
    rounding does.
    """
    monitor: Monitor = Monitor(images=2000, views=2, bank=4000, verified="omniglot-upright")
    """Measurements during training, and the pairs of unseen images that are verified."""
    rates: tuple[float, ...] = (1.0, 0.1)
    """Parts of the classes that a step sees."""
    seeds: tuple[int, ...] = (0,)
    ranks: int = 1
    """Processes that train together: start the study under torchrun with as many."""

    def __post_init__(self) -> None:
        if not self.rates or not self.seeds or not self.monitor.fars:
            raise settings.SettingsError("rates, seeds and monitor.fars each name at least one.")
        if not self.monitor.verified:
            raise settings.SettingsError(
                "monitor.verified names the image set to verify, such as omniglot-upright; it is "
                "empty."
            )
        for rate in self.rates:
            if not 0 <= rate <= 1:
                raise settings.SettingsError(
                    f"A rate is a part of the classes, in [0, 1], not {rate}."
                )


# --- the grid -------------------------------------------------------------------------------------


def cells(chosen: Settings) -> list[dict[str, str | int | float]]:
    """One training for each rate and seed."""
    grid: list[dict[str, str | int | float]] = [
        {"rate": rate, "seed": seed, "ranks": chosen.ranks}
        for rate in chosen.rates
        for seed in chosen.seeds
    ]
    for cell in grid:  # a wrong setting is refused before any work
        recipe_of(cell, chosen)
    return grid


def check(chosen: Settings) -> str:
    """Refuse settings that do not fit the data or the ranks; return the digest of the data."""
    if ranks.size() != chosen.ranks:
        command = (
            f"torchrun --nproc-per-node {chosen.ranks} -m marginlab.study partial_fc --ranks "
            f"{chosen.ranks}"
        )
        raise settings.SettingsError(
            f"The setting is ranks = {chosen.ranks}, and here are {ranks.size()} processes. Start "
            f"`{command}`."
        )
    train, test = check_data(recipe_of(cells(chosen)[0], chosen))
    for cell in cells(chosen):
        recipe_of(cell, chosen).make_method(len(train.classes))
    unseen = chosen.monitor.unseen(train, size=chosen.recipe.image_size)
    assert unseen is not None
    return " ".join(images.digest() for images in (train, test, unseen))


def recipe_of(cell: Any, chosen: Settings) -> Recipe:
    """Return the recipe of a cell."""
    method = settings.with_arguments(chosen.recipe.method, sample_rate=cell["rate"])
    return settings.replaced(chosen.recipe, {"method": method, "seed": cell["seed"]})


# --- one cell -------------------------------------------------------------------------------------


def run(cell: Cell) -> None:
    """Train at the rate; the monitor verifies pairs of unseen characters.

    Once in a run, the same pairs are verified by bare pixels.
    """
    chosen: Settings = cell.settings
    train_cell(cell, recipe_of(cell, chosen), chosen.monitor)
    bare = cell.once("pixels", _pixels, chosen.monitor, chosen.recipe.image_size)
    cell.record("verification_accuracy", *bare["accuracy"], space="pixels")
    for far, rate in bare["tar"]:
        cell.record("tar_at_far", *rate, space="pixels", at=far)


def _pixels(monitor: Monitor, size: int, *, folder: Path) -> dict[str, Any]:
    """The monitor's verification with the grey values of the pixels as features.

    Under torchrun each rank does all of it, alike.
    """
    unseen = data.load(monitor.verified, "unseen", size=size)
    asked = {
        "n": monitor.verified_pairs,
        "folds": monitor.folds,
        "far_pairs": monitor.far_pairs,
        "seed": monitor.seed,
    }
    found = verify(
        unseen.images[:, 0].float().flatten(1) / 255, unseen.labels, fars=monitor.fars, **asked
    )
    return {"accuracy": found.accuracy, "tar": list(found.tar.items())}


# --- the report -----------------------------------------------------------------------------------


def report(run: Run) -> None:
    """Report verification by rate, beside that of pixels.

    The target angle over training and the published tables follow.
    """
    chosen: Settings = run.settings
    recipe, monitor = chosen.recipe, chosen.monitor
    # title of a column of the tables: quantity, at
    shown: dict[str, tuple[str, str | float]] = {
        "verification accuracy": ("verification_accuracy", ""),
        **{f"TAR at FAR {far:g}": ("tar_at_far", far) for far in monitor.fars},
    }
    run.report.title = f"Sampled classes and verification: {literal(recipe.data)}"
    run.report.lead = (
        f"{literal(recipe.method)} on {literal(recipe.data)}, {recipe.epochs} epochs at batch "
        f"{recipe.batch} on {chosen.ranks} process(es). Each step sees a part `rate` of the "
        f"classes. Verified: {monitor.verified_pairs:,} pairs of characters of "
        f"{literal(monitor.verified)}, of other alphabets."
    )
    table: list[dict[str, Any]] = [
        {
            "rate": f"{rate:g}",
            **{
                title: run.last(name, space="projector", at=at, rate=rate)
                for title, (name, at) in shown.items()
            },
            "images_per_second": run.last("images_per_second", rate=rate),
        }
        for rate in chosen.rates
    ]
    untrained = {
        title: next(iter(run.series(name, space="projector", at=at).values), math.nan)
        for title, (name, at) in shown.items()
    }
    pixels = {title: run.last(name, space="pixels", at=at) for title, (name, at) in shown.items()}
    table += [{"rate": "untrained network", **untrained}, {"rate": "pixels", **pixels}]
    words = (
        f"Accuracy over {monitor.folds} folds of different characters, TAR on "
        f"{monitor.far_pairs:,} pairs; means over {len(chosen.seeds)} seed(s)."
    )
    run.report.table(table, words)
    figure = go.Figure()
    for rate in chosen.rates:
        for of, look in run.parts("seed", rate=rate):
            angle = run.series("target_angle", **of)
            figure.add_scatter(x=angle.epochs, y=angle.values, name=f"rate {rate:g}", **look)
    figure.update_xaxes(title="epoch").update_yaxes(title="mean target angle, degrees")
    run.report.figure(
        figure,
        "The angle between embeddings and the center of their class during training, as a mean "
        f"over each epoch and {len(chosen.seeds)} seed(s).",
    )
    intervals = [
        {key: row[key] for key in ("rate", "seed", "quantity", "at", "value", "low", "high")}
        for quantity in ("verification_accuracy", "tar_at_far")
        for row in run.results.select(quantity=quantity, space="projector", epoch=recipe.epochs)
    ]
    run.report.table(
        intervals,
        "With 95 % intervals: of the accuracy from the spread over folds, of a TAR as if pairs "
        "were independent.",
    )
    with (run.home / "published.csv").open(encoding="utf-8") as file:
        published = [
            {key: row[key] for key in ("data", "backbone", "rate", "name", "value", "source")}
            for row in csv.DictReader(file)
        ]
    run.report.text("## Published\n\nFaces, of 85,742 to 2,059,906 identities; percent.")
    run.report.table(published, "What others have measured at full and at small rates.")
