"""Does a margin classifier that samples classes verify new identities as well as a full one?

The first sees a sample of the classes at each step, the second sees all. Neither was trained on the
identities that it verifies.
"""

import csv
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from marginlab import data, ranks, settings
from marginlab.evaluation import verify
from marginlab.study import Cell, Quantity, Run, literal
from marginlab.train import Monitor, Recipe, fit
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

    data: str = "omniglot-upright"
    """Training images: omniglot (3,856 classes), omniglot-upright (964), ..."""
    unseen: str = "omniglot-upright"
    """Data set whose split `unseen` is verified."""
    image_size: int = 28
    images: int = 0
    """Training images, class-balanced; 0 takes all."""
    rates: tuple[float, ...] = (1.0, 0.1)
    """Parts of the classes that a step sees."""
    margin: str = "ArcFace(0.3, gradient='straight_through')"
    """A class of marginlab.margins."""
    scale: float = 16.0
    dim: int = 128
    """Of the embedding."""
    augmentation: str = "Augmentation(('ResizedCrop(scale=(0.6, 1.0))',))"
    """Of marginlab.augment; a mirrored character is another one."""
    backbone: str = (
        "Backbone('resnet18', stem='strided', width=0.25, norm='group', activation='silu')"
    )
    """Of marginlab.models; group normalisation is alike on one rank and on many, and SiLU forgives
    rounding.
    """
    optimizer: str = "SGD(lr=0.1)"
    schedule: str = "WarmupPolynomial(warmup=0.3, power=2.0)"
    epochs: int = 8
    batch: int = 64
    clip: float = 1.0
    """Largest norm of the gradient of all but sampled centers; 0 does not clip.

    Without it the first steps multiply what rounding does.
    """
    precision: str = "bfloat16"
    """float32, bfloat16 by autocast, or auto: bfloat16 where a probe finds it at least 1.15 times
    faster.
    """
    seeds: tuple[int, ...] = (0,)
    ranks: int = 1
    """Processes that train together: start the study under torchrun with as many."""
    measure_every: int = 0
    """Epochs between the monitor's measurements; 0 for the first and the last only."""
    monitored: int = 2000
    """Training and test images whose views the monitor measures, of so many"""
    watched: int = 200
    """classes; 0 watches all."""
    bank: int = 4000
    """Training images for kNN, and as many test images; 0 takes all."""
    pairs: int = 6000
    """Pairs of unseen images, half genuine, for the accuracy,"""
    folds: int = 10
    """in so many folds of their own characters."""
    far_pairs: int = 200_000
    """Pairs, half genuine, for the true accept rate"""
    fars: tuple[float, ...] = (0.01, 0.001)
    """at these false accept rates."""

    def __post_init__(self) -> None:
        if not self.rates or not self.seeds or not self.fars:
            raise settings.SettingsError("rates, seeds and fars each name at least one.")
        if not self.unseen:
            raise settings.SettingsError(
                "unseen names the image set to verify, such as omniglot-upright; it is empty."
            )
        for rate in self.rates:
            if not 0 <= rate <= 1:
                raise settings.SettingsError(
                    f"A rate is a part of the classes, in [0, 1], not {rate}."
                )
        _monitor(self)


# --- the grid -------------------------------------------------------------------------------------


def cells(chosen: Settings) -> list[dict[str, str | int | float]]:
    """One training for each rate and seed."""
    grid: list[dict[str, str | int | float]] = [
        {"rate": rate, "seed": seed, "ranks": chosen.ranks}
        for rate in chosen.rates
        for seed in chosen.seeds
    ]
    for cell in grid:  # a wrong setting is refused before any work
        _recipe(cell, chosen)
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
    train, test = check_data(_recipe(cells(chosen)[0], chosen))
    for cell in cells(chosen):
        _recipe(cell, chosen).make_method(len(train.classes))
    unseen = _monitor(chosen).unseen(train, size=chosen.image_size)
    assert unseen is not None
    return " ".join(images.digest() for images in (train, test, unseen))


def _recipe(cell: Any, chosen: Settings) -> Recipe:
    same = (
        "data",
        "image_size",
        "images",
        "augmentation",
        "backbone",
        "optimizer",
        "schedule",
        "epochs",
        "batch",
        "clip",
        "precision",
    )
    method = settings.describe(
        "MarginClassifier",
        margin=chosen.margin,
        scale=chosen.scale,
        sample_rate=cell["rate"],
        dim=chosen.dim,
    )
    return Recipe(
        **{name: getattr(chosen, name) for name in same}, method=method, seed=cell["seed"]
    )


def _monitor(chosen: Settings) -> Monitor:
    return Monitor(
        every=chosen.measure_every,
        images=chosen.monitored,
        views=2,
        bank=chosen.bank,
        classes=chosen.watched,
        verified=chosen.unseen,
        verified_pairs=chosen.pairs,
        folds=chosen.folds,
        far_pairs=chosen.far_pairs,
        fars=chosen.fars,
    )


# --- one cell -------------------------------------------------------------------------------------


def run(cell: Cell) -> None:
    """Train at the rate; the monitor verifies pairs of unseen characters.

    Once in a run, the same pairs are verified by bare pixels.
    """
    chosen: Settings = cell.settings
    trained = cell.once(
        "training", functools.partial(_train, say=cell.say), _recipe(cell, chosen), _monitor(chosen)
    )
    for row in trained["rows"]:
        cell.record(**row)
    cell.record("images_per_second", trained["images_per_second"])
    bare = cell.once("pixels", _pixels, _monitor(chosen), chosen.image_size)
    cell.record("verification_accuracy", *bare["accuracy"], space="pixels")
    for far, rate in bare["tar"]:
        cell.record("tar_at_far", *rate, space="pixels", at=far)


def _train(
    recipe: Recipe, monitor: Monitor, *, say: Callable[[str], None], folder: Path
) -> dict[str, Any]:
    """Rows of the training, and how fast it was."""
    done = fit(recipe, folder / "run", monitor, say=say, precision_in=folder.parent)
    rows = [row._asdict() for row in done.rows]
    return {"rows": rows, "images_per_second": done.images_per_second}


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
    # title of a column of the tables: quantity, at
    shown: dict[str, tuple[str, str | float]] = {
        "verification accuracy": ("verification_accuracy", ""),
        **{f"TAR at FAR {far:g}": ("tar_at_far", far) for far in chosen.fars},
    }
    run.report.title = f"Sampled classes and verification: {literal(chosen.data)}"
    run.report.lead = (
        f"{literal(chosen.margin)} at s = {chosen.scale:g} on {literal(chosen.data)}, "
        f"{chosen.epochs} epochs at batch {chosen.batch} on {chosen.ranks} process(es). Each step "
        f"sees a part `rate` of the classes. Verified: {chosen.pairs:,} pairs of characters of "
        f"{literal(chosen.unseen)}, of other alphabets."
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
        f"Accuracy over {chosen.folds} folds of different characters, TAR on {chosen.far_pairs:,} "
        f"pairs; means over {len(chosen.seeds)} seed(s)."
    )
    run.report.table(table, words)
    figure = go.Figure()
    for rate in chosen.rates:
        angle = run.series("target_angle", rate=rate, seed=chosen.seeds[0])
        figure.add_scatter(x=angle.epochs, y=angle.values, name=f"rate {rate:g}")
    figure.update_xaxes(title="epoch").update_yaxes(title="mean target angle, degrees")
    run.report.figure(
        figure,
        "The angle between embeddings and the center of their class during training, as a mean "
        "over each epoch.",
    )
    intervals = [
        {key: row[key] for key in ("rate", "seed", "quantity", "at", "value", "low", "high")}
        for quantity in ("verification_accuracy", "tar_at_far")
        for row in run.results.select(quantity=quantity, space="projector", epoch=chosen.epochs)
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
