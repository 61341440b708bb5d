"""Does the concentration of augmented data tell how well contrastive learning will do?

The question is asked of an augmentation: its concentration, and learning with it.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from marginlab import data, models, settings
from marginlab.study import Cell, Quantity, Run
from marginlab.train import Monitor, Recipe, once_trained
from marginlab.train import check as check_data

from . import report as pages
from .blocks import Measured
from .grids import GRIDS, PAIRS, augmentation, augmentations
from .measure import concentrate, encoded

headline = (
    Quantity("one_minus_sigma", "pixels", ""),
    Quantity("one_minus_sigma", "pixels", "control"),
    Quantity("knn_error", "backbone"),
    Quantity("nearest_center_error", "backbone"),
    Quantity("linear_error", "backbone"),
)
kept = (  # by the command `keep`
    *headline,
    *(
        Quantity("one_minus_sigma", "pixels", at)
        for at in ("worst_class", "sharpened", "sharpened_control", "most_views", "anchor_form")
    ),
    *(
        Quantity(name, "pixels")
        for name in (
            "one_minus_sigma_by_block",
            "one_minus_sigma_by_views",
            "area",
            "delta_at_half",
            "median_d_A",
            "smallest_d_A",
            "delta_max",
        )
    ),
    *(
        Quantity(name, "backbone", at)
        for name in ("one_minus_sigma", "area")
        for at in ("", "control")
    ),
    Quantity("alignment", "backbone"),
    Quantity("divergence_mean", "backbone"),
    "loss",
)


@dataclass(frozen=True)
class Settings:
    """Settings, by default the preset `default`: embedded shapes, a small backbone.

    It takes some minutes on two cores.
    """

    recipe: Recipe = Recipe(
        images=2000,
        backbone="Backbone('resnet18', stem='strided', width=0.25)",
        epochs=10,
        batch=64,
        precision="auto",
    )
    """Each training; the grid replaces its augmentation, method, optimizer and seed."""
    monitor: Monitor = Monitor(every=5, images=300, views=8, bank=2000)
    """Measurements during training."""
    grids: tuple[str, ...] = ("ladder", "pairs")
    """Of ladder (Table 1), strength (Table 2) and pairs (Figure 3)."""
    pairs: tuple[str, ...] = ("ab", "ac", "ad", "ae")
    """The pairs of operations to take, as letters; the paper's are all ten."""
    methods: tuple[str, ...] = ("SimCLR(temperature=0.2)",)
    """Classes of marginlab.methods."""
    optimizers: tuple[str, ...] = ("SGD(lr=0.1)",)
    """Of marginlab.optim: one for each method, or one for all."""
    seeds: tuple[int, ...] = (0,)
    """One training run for each."""
    per_class: int = 30
    """Images of a class whose concentration is measured together (n)."""
    blocks: int = 3
    """Disjoint blocks of so many images of each class, each measured alone, for the spread."""
    views: int = 32
    """Views of each of them, the clean image first (V)."""
    delta: float = 0.5
    """Distance at which 1-sigma is set against error, in units of delta_max, the 90 % quantile of
    the clean within-class distances.
    """
    deep_views: int = 64
    """The curve in V goes up to so many views,"""
    deep_per_class: int = 12
    """on so many images of a class (at most per_class)."""
    sharpened: int = 4
    """Images of a class, of these, whose distances a search sharpens; 0 leaves it out."""

    def __post_init__(self) -> None:
        for grid in self.grids:
            if grid not in GRIDS:
                raise settings.SettingsError(
                    f"There is no grid {grid!r}: {settings.nearest(grid, GRIDS)}"
                )
        if not self.grids or not self.methods or not self.seeds:
            raise settings.SettingsError("grids, methods and seeds each name at least one.")
        for pair in self.pairs:
            if pair not in PAIRS:
                raise settings.SettingsError(
                    f"{pair!r} is no pair of operations: {settings.nearest(pair, PAIRS)}"
                )
        if len(self.optimizers) not in (1, len(self.methods)):
            raise settings.SettingsError(
                f"{len(self.optimizers)} optimizers for {len(self.methods)} methods: give one, or "
                "one for each."
            )
        if self.per_class < 2 or self.views < 2 or not 0 < self.delta <= 1:
            raise settings.SettingsError(
                "per_class and views are at least 2 and delta is in (0, 1], not "
                f"{self.per_class}, {self.views}, {self.delta}."
            )
        if self.blocks < 1 or self.deep_per_class < 2 or self.deep_views < 2:
            raise settings.SettingsError(
                "blocks is at least 1, deep_per_class and deep_views are at least 2, not "
                f"{self.blocks}, {self.deep_per_class}, {self.deep_views}."
            )
        if self.sharpened == 1 or self.sharpened < 0:
            raise settings.SettingsError(
                "sharpened is 0, which leaves it out, or at least 2 images of a class, not "
                f"{self.sharpened}."
            )


# --- the grid -------------------------------------------------------------------------------------


def cells(chosen: Settings) -> list[dict[str, str | int | float]]:
    """One cell for each augmentation of each grid, method and seed."""
    stem = _stem(chosen.recipe.backbone)
    grid = [
        {"grid": name, "letters": letters, "strength": strength}
        | {"method": method, "seed": seed, "stem": stem}
        for name in chosen.grids
        for letters, strength in augmentations(name, chosen.pairs)
        for method in chosen.methods
        for seed in chosen.seeds
    ]
    for cell in grid:  # a wrong setting is refused before any work
        recipe_of(cell, chosen)
    return grid


def check(chosen: Settings) -> str:
    """Refuse settings that do not fit the data or the network; return the digest of the data."""
    for cell in cells(chosen):
        if cell["seed"] == chosen.seeds[0]:
            recipe_of(cell, chosen).make_method()
    recipe = recipe_of(cells(chosen)[0], chosen)
    train, _ = check_data(recipe)
    counts = torch.bincount(train.labels, minlength=len(train.classes))
    if int(counts.min()) < 2:
        alone = [train.classes[label] for label in (counts < 2).nonzero().flatten().tolist()]
        raise settings.SettingsError(
            f"{recipe.data}: {', '.join(alone)} has fewer than 2 training images, so no distance "
            "within it. Add some."
        )
    whole = (data.load(recipe.data, split, size=recipe.image_size) for split in ("train", "test"))
    return " ".join(images.digest() for images in whole)


@functools.cache
def _stem(backbone: str) -> str:
    return settings.make(backbone, models, models.Backbone).stem


def recipe_of(cell: Any, chosen: Settings) -> Recipe:
    """Return the recipe of a cell."""
    place = chosen.methods.index(cell["method"]) if len(chosen.optimizers) > 1 else 0
    changes = {
        "augmentation": augmentation(cell),
        "method": cell["method"],
        "optimizer": chosen.optimizers[place],
        "seed": cell["seed"],
    }
    return settings.replaced(chosen.recipe, changes)


def _measured(cell: Any, chosen: Settings) -> Measured:
    return Measured(
        chosen.recipe.data,
        chosen.recipe.image_size,
        augmentation(cell),
        chosen.per_class,
        chosen.blocks,
        chosen.views,
        chosen.delta,
        chosen.deep_views,
        chosen.deep_per_class,
        chosen.sharpened,
    )


# --- one cell -------------------------------------------------------------------------------------


def run(cell: Cell) -> None:
    """Train with the augmentation, measure its concentration, and record both.

    The concentration is measured in pixels and in the features of the trained network.
    """
    chosen: Settings = cell.settings
    trained = once_trained(cell, recipe_of(cell, chosen), chosen.monitor)
    trained.record(cell)
    cell.say("measures concentration")
    measured = _measured(cell, chosen)
    kept = cell.once("concentration", concentrate, measured)
    features = cell.once("features", encoded, measured, trained.folder.parent.name)
    for space, rows in (("pixels", kept["rows"]), ("backbone", features["rows"])):
        for quantity, numbers in rows.items():
            for at, number in numbers.items():
                cell.record(quantity, *number, space=space, at=at)


# --- the report -----------------------------------------------------------------------------------


def report(run: Run) -> None:
    """Write what was measured, in figures, tables and findings."""
    chosen: Settings = run.settings
    pixels, features = {}, {}
    for cell in run.cells:
        if cell.finished:
            name = cell["grid"], cell["letters"], cell["strength"]
            measured = _measured(cell, chosen)
            trained = once_trained(run, recipe_of(cell, chosen), chosen.monitor)
            pixels[name] = run.once("concentration", concentrate, measured)
            features[(*name, cell["method"], cell["seed"])] = run.once(
                "features", encoded, measured, trained.folder.parent.name
            )
    if pixels:
        pages.write(run, pixels, features)
