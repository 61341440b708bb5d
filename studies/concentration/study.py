"""Does the concentration of augmented data tell how well contrastive learning will do?

The question is asked of an augmentation: its concentration, and learning with it.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from marginlab import data, models, settings
from marginlab.study import Cell, Quantity, Run
from marginlab.train import Monitor, Recipe, fit
from marginlab.train import check as check_data

from . import report as pages
from .measure import Measured, concentrate, encoded

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

LADDER = ("abcde", "abcd", "abc", "ab", "a")  # Huang et al. 2023, Table 1
STRENGTHS = (1.0, 0.5, 0.25, 0.125)  # their Table 2: crop and colour, the colour always applied
PAIRS = tuple("".join(pair) for pair in itertools.combinations("abcde", 2))  # their Figure 3
GRIDS = ("ladder", "strength", "pairs")


@dataclass(frozen=True)
class Settings:
    """Settings, by default the preset `default`: embedded shapes, a small backbone.

    It takes some minutes on two cores.
    """

    data: str = "shapes"
    """Images: shapes, cifar10, npz:PATH, folder:PATH, ..."""
    image_size: int = 0
    """Resize images to this side; 0 keeps their own."""
    images: int = 2000
    """Training images, class-balanced; 0 takes all."""
    grids: tuple[str, ...] = ("ladder", "pairs")
    """Of ladder (Table 1), strength (Table 2) and pairs (Figure 3)."""
    pairs: tuple[str, ...] = ("ab", "ac", "ad", "ae")
    """The pairs of operations to take, as letters; the paper's are all ten."""
    methods: tuple[str, ...] = ("SimCLR(temperature=0.2)",)
    """Classes of marginlab.methods."""
    optimizers: tuple[str, ...] = ("SGD(lr=0.1)",)
    """Of marginlab.optim: one for each method, or one for all."""
    backbone: str = "Backbone('resnet18', stem='strided', width=0.25)"
    """Of marginlab.models."""
    epochs: int = 10
    batch: int = 64
    precision: str = "auto"
    """float32, bfloat16 by autocast, or auto: bfloat16 where a probe finds it at least 1.15 times
    faster.
    """
    compile: bool = False
    """Compile the forward pass."""
    seeds: tuple[int, ...] = (0,)
    """One training run for each."""
    measure_every: int = 5
    """Epochs between measurements during training; 0 for the first and the last only."""
    monitored: int = 300
    """Training and test images, class-balanced, whose views give alignment, divergence and class
    centers.
    """
    bank: int = 2000
    """Training images for kNN and linear probe, and as many test images; 0 takes all."""
    per_class: int = 30
    """Images of a class whose concentration is measured together (n)."""
    blocks: int = 3
    """Disjoint blocks of so many images of each class, each measured alone: the spread of the
    estimate.
    """
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
    """Images of a class, of these, whose distances are sharpened by a search over the
    augmentation's parameters; 0 leaves it out.
    """

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
            given = f"{self.per_class}, {self.views}, {self.delta}"
            raise settings.SettingsError(
                f"per_class and views are at least 2 and delta is in (0, 1], not {given}."
            )
        if self.blocks < 1 or self.deep_per_class < 2 or self.deep_views < 2:
            given = f"{self.blocks}, {self.deep_per_class}, {self.deep_views}"
            raise settings.SettingsError(
                f"blocks is at least 1, deep_per_class and deep_views are at least 2, not {given}."
            )
        if self.sharpened == 1 or self.sharpened < 0:
            raise settings.SettingsError(
                "sharpened is 0, which leaves it out, or at least 2 images of a class, not "
                f"{self.sharpened}."
            )


# --- the grid -------------------------------------------------------------------------------------


def cells(chosen: Settings) -> list[dict[str, str | int | float]]:
    """One cell for each augmentation of each grid, method and seed."""
    stem = _stem(chosen.backbone)
    grid = [
        {
            "grid": name,
            "letters": letters,
            "strength": strength,
            "method": method,
            "seed": seed,
            "stem": stem,
        }
        for name in chosen.grids
        for letters, strength in _augmentations(name, chosen)
        for method in chosen.methods
        for seed in chosen.seeds
    ]
    for cell in grid:  # a wrong setting is refused before any work
        _recipe(cell, chosen)
    return grid


def check(chosen: Settings) -> str:
    """Refuse settings that do not fit the data or the network; return the digest of the data."""
    for cell in cells(chosen):
        if cell["seed"] == chosen.seeds[0]:
            _recipe(cell, chosen).make_method()
    sets = check_data(_recipe(cells(chosen)[0], chosen))
    counts = torch.bincount(sets[0].labels, minlength=len(sets[0].classes))
    if int(counts.min()) < 2:
        alone = [sets[0].classes[label] for label in (counts < 2).nonzero().flatten().tolist()]
        raise settings.SettingsError(
            f"{chosen.data}: {', '.join(alone)} has fewer than 2 training images, so no distance "
            "within it. Add some."
        )
    _monitor(chosen)
    return " ".join(
        data.load(chosen.data, split, size=chosen.image_size).digest()
        for split in ("train", "test")
    )


@functools.cache
def _stem(backbone: str) -> str:
    return settings.make(backbone, models, models.Backbone).stem


def _augmentations(grid: str, chosen: Settings) -> list[tuple[str, float]]:
    if grid == "strength":
        return [("ad", strength) for strength in STRENGTHS]
    return [(letters, 0.5) for letters in (LADDER if grid == "ladder" else chosen.pairs)]


def _recipe(cell: Any, chosen: Settings) -> Recipe:
    return Recipe(
        data=chosen.data,
        image_size=chosen.image_size,
        images=chosen.images,
        augmentation=_augmentation(cell),
        backbone=chosen.backbone,
        method=cell["method"],
        optimizer=chosen.optimizers[
            chosen.methods.index(cell["method"]) if len(chosen.optimizers) > 1 else 0
        ],
        epochs=chosen.epochs,
        batch=chosen.batch,
        precision=chosen.precision,
        compile=chosen.compile,
        seed=cell["seed"],
    )


def _augmentation(cell: Any) -> str:
    # their strength experiment always jitters
    jitter_p = 1.0 if cell["grid"] == "strength" else 0.8
    return settings.describe(
        "Augmentation", operations=cell["letters"], strength=cell["strength"], jitter_p=jitter_p
    )


def _monitor(chosen: Settings) -> Monitor:
    return Monitor(every=chosen.measure_every, images=chosen.monitored, views=8, bank=chosen.bank)


def _measured(cell: Any, chosen: Settings) -> Measured:
    return Measured(
        chosen.data,
        chosen.image_size,
        _augmentation(cell),
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
    trained = cell.once(
        "training", functools.partial(train, say=cell.say), _recipe(cell, chosen), _monitor(chosen)
    )
    for row in trained["rows"]:
        cell.record(**row)
    cell.say("measures concentration")
    kept = cell.once("concentration", concentrate, _measured(cell, chosen))
    features = cell.once("features", encoded, _measured(cell, chosen), trained["folder"])
    for space, rows in (("pixels", kept["rows"]), ("backbone", features["rows"])):
        for quantity, numbers in rows.items():
            for at, number in numbers.items():
                cell.record(quantity, *number, space=space, at=at)


def train(
    recipe: Recipe, monitor: Monitor, *, say: Callable[[str], None], folder: Path
) -> dict[str, Any]:
    """Return the rows of one training run, and the folder under once/ that keeps its encoder.

    `marginlab.train.load` reads the folder.
    """
    return {
        "folder": folder.name,
        "rows": [
            row._asdict()
            for row in fit(
                recipe, folder / "run", monitor, say=say, precision_in=folder.parent
            ).rows
        ],
    }


# --- the report -----------------------------------------------------------------------------------


def report(run: Run) -> None:
    """Write what was measured, in figures, tables and findings."""
    pixels, features = {}, {}
    for cell in run.cells:
        if cell.finished:
            name = cell["grid"], cell["letters"], cell["strength"]
            pixels[name] = run.once("concentration", concentrate, _measured(cell, run.settings))
            trained = run.once(
                "training", train, _recipe(cell, run.settings), _monitor(run.settings)
            )
            features[(*name, cell["method"], cell["seed"])] = run.once(
                "features", encoded, _measured(cell, run.settings), trained["folder"]
            )
    if pixels:
        pages.write(run, pixels, features)
