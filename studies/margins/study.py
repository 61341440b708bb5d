"""Does a margin make a better embedding of classes that were not trained on?

Losses are trained on the same images from the same weights, and verified on other classes. The
angles of ArcFace's table are measured over training, beside the published ones.
"""

import csv
from dataclasses import dataclass
from typing import Any

from marginlab import settings
from marginlab.study import Cell, Quantity, Run, literal
from marginlab.train import Monitor, Recipe, train_cell
from marginlab.train import check as check_data

from . import figures, tables
from .folds import judged

headline = (Quantity("verification_accuracy", "projector"), Quantity("class_angle", at="W_EC"))
kept = (
    Quantity("verification_accuracy", "projector"),
    Quantity("tar_at_far", "projector"),
    "class_angle",
    "target_angle_share",
    "target_angle",
    "images_per_second",
    "fold_accuracy",
    "fold_eer",
)
MARGINS = {
    "norm-softmax": "NoMargin()",
    "sphereface": "SphereFace(1.35, {g})",
    "cosface": "CosFace(0.35, {g})",
    "cosface-0.4": "CosFace(0.4, {g})",
    "arcface": "ArcFace(0.5, {g})",
    "arcface-exact": "ArcFace(0.5)",
    "combined-1": "CombinedMargin(1.0, 0.3, 0.2, {g})",
    "combined-2": "CombinedMargin(0.9, 0.4, 0.15, {g})",
    "adaface": "AdaFace(0.4, {g})",
    "curricularface": "CurricularFace(0.5, {g})",
    "magface": "MagFace({g})",
}
TERMS = {
    "intra": ("IntraClass()",),
    "inter": ("InterClass()",),
    "both": ("IntraClass()", "InterClass()"),
    "triplet": ("AngularTriplet(0.35)",),
}
BASES = ("norm-softmax", "arcface", "cosface")  # what terms are added to: "arcface+intra"
LOSSES = (
    "softmax",
    "triplet",
    *MARGINS,
    *(f"{base}+{term}" for base in BASES for term in TERMS),
)

RECIPE = Recipe(
    data="omniglot-upright",
    image_size=28,
    images=5784,
    augmentation="Augmentation(('ResizedCrop(scale=(0.6, 1.0))',))",
    optimizer="SGD(lr=0.1)",
    schedule="WarmupPolynomial(warmup=0.2, power=2.0)",
    epochs=4,
    batch=64,
)
MONITOR = Monitor(
    every=2,
    images=64,
    views=2,
    bank=400,
    classes=32,
    angles=2892,
    verified="omniglot-upright?max_per_class=4",
    verified_pairs=3000,
    far_pairs=6000,
    fars=(0.1, 0.01),
)


@dataclass(frozen=True)
class Settings:
    """Settings, by default those of the preset `default`: four losses, one seed."""

    losses: tuple[str, ...] = ("softmax", "norm-softmax", "cosface", "arcface")
    """Names of losses; `--losses x` lists them."""
    backbones: tuple[str, ...] = ("Backbone('resnet18', stem='strided', width=0.125)",)
    """Each loss is trained on each of them; they replace that of the recipe."""
    seeds: tuple[int, ...] = (0,)
    gradient: str = "straight_through"
    """Gradient of all margins but arcface-exact: straight_through or exact."""
    scale: float = 16.0
    """s of all softmaxes but the plain one."""
    dim: int = 64
    """Of the embedding. 0 for a backbone that ends in an embedding layer."""
    sample_rate: float = 1.0
    """Part of the classes that a step sees; below 1 there are no terms."""
    folds: tuple[int, ...] = ()
    """Folds of LFW's View 2, counted from 1. Each is judged by trainings on the people of no pair
    in it; recipe.data and monitor.verified are then lfw.
    """
    recipe: Recipe = RECIPE
    """Trained by each cell, which replaces method, backbone and seed."""
    monitor: Monitor = MONITOR
    """Measures the trainings."""

    def __post_init__(self) -> None:
        if not self.losses or not self.seeds or not self.backbones:
            raise settings.SettingsError("losses, backbones and seeds each name at least one.")
        for loss in self.losses:
            if loss not in LOSSES:
                raise settings.SettingsError(
                    f"There is no loss {loss!r}: {settings.nearest(loss, LOSSES)}"
                )
        specs = (self.recipe.data, self.monitor.verified)
        if self.folds and not all(spec.partition("?")[0] == "lfw" for spec in specs):
            raise settings.SettingsError(
                f"folds are of LFW, and the data are {specs[0]} and {specs[1]}. Take recipe.data "
                "and monitor.verified lfw, or no folds."
            )
        if not self.monitor.verified or not self.monitor.angles:
            raise settings.SettingsError(
                "The monitor of this study verifies a set and measures angles: monitor.verified "
                "names one with a split unseen, and monitor.angles is above 0."
            )


# --- the grid -------------------------------------------------------------------------------------


def cells(chosen: Settings) -> list[dict[str, str | int | float]]:
    """One training for each backbone, loss and seed, and for each fold where there are folds."""
    grid: list[dict[str, str | int | float]] = [
        {"loss": loss, "backbone": backbone, "seed": seed}
        for backbone in chosen.backbones
        for loss in chosen.losses
        for seed in chosen.seeds
    ]
    if not chosen.folds:
        return grid
    return [{**cell, "fold": fold} for cell in grid for fold in chosen.folds]


def check(chosen: Settings) -> str:
    """Refuse settings that do not fit the data; return the digest of the data.

    A class that is trained and verified is refused: the people or characters are others.
    """
    grid = cells(chosen)
    digests = []
    by_data = {recipe_of(cell, chosen).data: cell for cell in grid}
    for cell in by_data.values():
        train, test = check_data(recipe_of(cell, chosen))
        unseen = monitor_of(cell, chosen).unseen(train, size=chosen.recipe.image_size)
        assert unseen is not None  # the settings name it
        digests += [images.digest() for images in (train, test, unseen)]
    for cell in grid:
        recipe_of(cell, chosen).make_method(len(train.classes))
    return " ".join(digests)


def method_of(loss: str, chosen: Settings) -> str:
    """Return the method of a loss, in call notation."""
    dim = chosen.dim
    if loss == "softmax":
        return f"SoftmaxClassifier(dim={dim})"
    if loss == "triplet":
        return f"AngularTriplet(margin=0.35, dim={dim})"
    base, _, term = loss.partition("+")
    margin = MARGINS[base].format(g=f"gradient={chosen.gradient!r}")
    more: dict[str, Any] = {"terms": TERMS[term]} if term else {}
    if term == "triplet":  # a batch of many classes holds hardly two images of one
        more["views"] = 2
    if chosen.sample_rate < 1:
        more["sample_rate"] = chosen.sample_rate
    return settings.describe("MarginClassifier", margin=margin, scale=chosen.scale, dim=dim, **more)


def recipe_of(cell: Any, chosen: Settings) -> Recipe:
    """Return the recipe of a cell."""
    method = method_of(cell["loss"], chosen)
    changes: dict[str, Any] = {
        "method": method,
        "backbone": cell["backbone"],
        "seed": cell["seed"],
    }
    if "views=2" in method or cell["loss"] == "triplet":  # as many rows a step as the others
        changes["batch"] = chosen.recipe.batch // 2
    changes["data"] = _of_fold(cell, chosen.recipe.data)
    return settings.replaced(chosen.recipe, changes)


def monitor_of(cell: Any, chosen: Settings) -> Monitor:
    """Return the monitor of a cell."""
    verified = _of_fold(cell, chosen.monitor.verified)
    return settings.replaced(chosen.monitor, {"verified": verified})


def _of_fold(cell: Any, spec: str) -> str:
    return spec.replace("lfw", f"lfw-fold-{cell['fold']}", 1) if "fold" in cell else spec


def run(cell: Cell) -> None:
    """Train by the loss; the monitor verifies and measures angles. A fold's pairs are judged."""
    chosen: Settings = cell.settings
    trained = train_cell(cell, recipe_of(cell, chosen), monitor_of(cell, chosen))
    if "fold" in cell:
        size, epoch = chosen.recipe.image_size, chosen.recipe.epochs
        for quantity, value, n in judged(trained.folder, int(cell["fold"]), size):
            cell.record(quantity, value, n=n, epoch=epoch, space="projector")


# --- the report -----------------------------------------------------------------------------------


def report(run: Run) -> None:
    """Report verification and angles by loss, beside the published ones."""
    chosen: Settings = run.settings
    run.report.title = f"Margins: {literal(chosen.recipe.data)}"
    run.report.lead = (
        f"{len(chosen.losses)} losses on {literal(chosen.recipe.data)}, {chosen.recipe.epochs} "
        f"epochs at batch {chosen.recipe.batch}, s = {chosen.scale:g}. Verified: pairs of classes "
        f"of {literal(chosen.monitor.verified)} that are not trained."
    )
    last = chosen.recipe.epochs
    for backbone in chosen.backbones:
        table = [tables.verified(run, loss, backbone, last) for loss in chosen.losses]
        words = f"{backbone}: verification of unseen classes; 95 % intervals over seeds (Student)."
        run.report.table(table, words)
        if chosen.folds:
            of_folds = [tables.over_folds(run, loss, backbone) for loss in chosen.losses]
            run.report.table(of_folds, "The pairs of LFW's folds; 95 % intervals over seeds.")
        angles = [{"loss": loss, **tables.angles_of(run, loss, backbone)} for loss in chosen.losses]
        run.report.table(angles, "Angles in degrees after training, means over seeds.")
        run.report.table(
            tables.orders(angles, tables.published_angles(run.home)),
            "Losses from the smallest angle to the largest, here and published.",
        )
        picture = figures.histograms(run, backbone, chosen.losses)
        run.report.figure(picture, "Angles between training images and the weight of their class.")
        picture = figures.over_training(run, backbone, chosen.losses)
        run.report.figure(picture, "Mean target angle over training.")
    curves = {n: m.format(g=f"gradient={chosen.gradient!r}") for n, m in MARGINS.items()}
    curves = {n: text for n, text in curves.items() if n in chosen.losses}
    if curves:
        run.report.figure(figures.margin_curves(curves), "Target value and slope by the angle.")
    with (run.home / "published.csv").open(encoding="utf-8") as file:
        published = list(csv.DictReader(file))
    run.report.text("## Published\n\nFaces, CASIA and ResNet-50: degrees, and percent accuracy.")
    run.report.table(published, "The ablation of the paper, which has 10,575 identities.")
