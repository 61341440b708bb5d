"""Does the concentration of augmented data tell how well contrastive learning will do with an augmentation?"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marginlab import augment, data, models, settings
from marginlab.measures import Concentration
from marginlab.study import Cell, Run
from marginlab.train import Monitor, Recipe, fit
from marginlab.train import check as check_data

from . import figures

headline = ("1-sigma", "knn_error/backbone", "nearest_center_error/backbone", "linear_error/backbone")

LADDER = ("abcde", "abcd", "abc", "ab", "a")  # Huang et al. 2023, Table 1
STRENGTHS = (1.0, 0.5, 0.25, 0.125)  # their Table 2: crop and colour, the colour always applied
PAIRS = tuple("".join(pair) for pair in itertools.combinations("abcde", 2))  # their Figure 3
GRIDS = ("ladder", "strength", "pairs")
VIEW_SEED = 1_000_003  # of the views whose distances are measured: not those of any training seed in use


@dataclass(frozen=True)
class Settings:
    """The defaults are the preset `default`: the embedded shapes, a small backbone, some minutes on two cores."""

    data: str = "shapes"
    """What to look at: shapes, cifar10, npz:PATH, folder:PATH, ..."""
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
    precision: str = "bfloat16"
    """float32, or bfloat16 for autocast."""
    compile: bool = False
    """Compile the forward pass."""
    seeds: tuple[int, ...] = (0,)
    """One training run for each."""
    measure_every: int = 5
    """Epochs between measurements during training; 0 for the first and the last only."""
    bank: int = 2000
    """Training images for kNN and linear probe, and as many test images; 0 takes all."""
    per_class: int = 50
    """Images of a class whose concentration is measured (n)."""
    views: int = 32
    """Views of each of them, the clean image first (V)."""
    delta: float = 0.5
    """Where 1-sigma is set against error, in units of delta_max, the 90 % quantile of the clean within-class distances."""

    def __post_init__(self) -> None:
        for grid in self.grids:
            if grid not in GRIDS:
                raise settings.SettingsError(f"There is no grid {grid!r}: {settings.nearest(grid, GRIDS)}")
        if not self.grids or not self.methods or not self.seeds:
            raise settings.SettingsError("grids, methods and seeds each name at least one.")
        for pair in self.pairs:
            if pair not in PAIRS:
                raise settings.SettingsError(f"{pair!r} is no pair of operations: {settings.nearest(pair, PAIRS)}")
        if len(self.optimizers) not in (1, len(self.methods)):
            raise settings.SettingsError(f"{len(self.optimizers)} optimizers for {len(self.methods)} methods: give one, or one for each.")
        if self.per_class < 2 or self.views < 2 or not 0 < self.delta <= 1:
            given = f"{self.per_class}, {self.views}, {self.delta}"
            raise settings.SettingsError(f"per_class and views are at least 2 and delta is in (0, 1], not {given}.")


# --- the grid ---------------------------------------------------------------------------------------------------------


def cells(chosen: Settings) -> list[dict[str, str | int | float]]:
    """One cell for each augmentation of each grid, method and seed."""
    stem = _stem(chosen.backbone)
    grid = [
        {"grid": name, "letters": letters, "strength": strength, "method": method, "seed": seed, "stem": stem}
        for name in chosen.grids
        for letters, strength in _augmentations(name, chosen)
        for method in chosen.methods
        for seed in chosen.seeds
    ]
    for cell in grid:  # a wrong setting is refused before any work
        _recipe(cell, chosen)
    return grid


def check(chosen: Settings) -> str:
    """Refuse before any work what only the data and the network can tell; the digest of the data."""
    for cell in cells(chosen):
        if cell["seed"] == chosen.seeds[0]:
            _recipe(cell, chosen).make_method()
    sets = check_data(_recipe(cells(chosen)[0], chosen))
    counts = torch.bincount(sets[0].labels, minlength=len(sets[0].classes))
    if int(counts.min()) < 2:
        alone = [sets[0].classes[label] for label in (counts < 2).nonzero().flatten().tolist()]
        raise settings.SettingsError(f"{chosen.data}: {', '.join(alone)} has fewer than 2 training images, so no distance within it. Add some.")
    _monitor(chosen)
    return " ".join(data.load(chosen.data, split, size=chosen.image_size).digest() for split in ("train", "test"))


@functools.cache
def _stem(backbone: str) -> str:
    made = settings.call(backbone, models)
    if not isinstance(made, models.Backbone):
        raise settings.SettingsError(f"{backbone!r} is no backbone. Write such as Backbone('resnet18', stem='strided', width=0.25).")
    return made.stem


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
        optimizer=chosen.optimizers[chosen.methods.index(cell["method"]) if len(chosen.optimizers) > 1 else 0],
        epochs=chosen.epochs,
        batch=chosen.batch,
        precision=chosen.precision,
        compile=chosen.compile,
        seed=cell["seed"],
    )


def _augmentation(cell: Any) -> str:
    jitter_p = 1.0 if cell["grid"] == "strength" else 0.8  # their strength experiment always jitters
    return settings.describe("Augmentation", operations=cell["letters"], strength=cell["strength"], jitter_p=jitter_p)


# --- one cell ---------------------------------------------------------------------------------------------------------


def run(cell: Cell) -> None:
    """Measure the augmentation's concentration, train with it, record both."""
    chosen: Settings = cell.settings
    cell.say("measures concentration")
    kept = cell.once("concentration", concentrate, *_measured(cell, chosen))
    place = _place(kept, chosen)
    for name, of in (("1-sigma", "mean"), ("1-sigma (worst class)", "worst")):
        low, high = (bound[place] for bound in kept["curves"][of])
        cell.record(name, high, low, high, kept["n"])
    cell.record("delta_max", kept["delta_max"], n=kept["n"])
    cell.record("smallest d_A", min(pair["distance"] for pair in kept["pairs"]), n=kept["n"])
    rows = cell.once("training", functools.partial(train, say=cell.say), _recipe(cell, chosen), _monitor(chosen))
    for epoch, name, value, low, high, n in rows:
        cell.record(name, value, low, high, n, epoch)


def _monitor(chosen: Settings) -> Monitor:
    return Monitor(every=chosen.measure_every, images=300, views=8, bank=chosen.bank)


def train(recipe: Recipe, monitor: Monitor, *, say: Callable[[str], None], folder: Path) -> list[list[Any]]:
    """Rows of one training run."""
    return [list(row) for row in fit(recipe, folder / "run", monitor, say=say).rows]


def _measured(cell: Any, chosen: Settings) -> tuple[str, int, str, int, int, float]:
    return chosen.data, chosen.image_size, _augmentation(cell), chosen.per_class, chosen.views, chosen.delta


def _place(kept: dict[str, Any], chosen: Settings) -> int:
    """Where on the grid of deltas the headline number is read."""
    return int(np.argmin(np.abs(np.array(kept["deltas"]) - chosen.delta * kept["delta_max"])))


def concentrate(spec: str, size: int, augmentation: str, per_class: int, n_views: int, delta: float, *, folder: Path) -> dict[str, Any]:
    """Concentration curves of an augmentation: the same images, view draws and deltas whatever the augmentation; pictures go into the folder.

    Every class gives as many images as the others, so at most those of the smallest. Under torchrun each rank measures all of it, alike.
    """
    images = data.load(spec, "train", size=size)
    n = min(per_class, int(torch.bincount(images.labels).min()))
    images = images.subset(n * len(images.classes), seed=0)
    made = settings.call(augmentation, augment)
    clean = Concentration(levels=(1,), sync_on_compute=False)
    clean.update(images.images[:, None].float() / 255, images.labels)
    within = clean.compute().distances(level=1)
    delta_max = float(np.quantile(np.concatenate([_upper(matrix) for matrix in within]), 0.9))
    deltas = np.linspace(0, delta_max, 41)

    levels = (*(level for level in (2, 4, 8, 16, 32, 64, 128, 256) if level < n_views), n_views)
    measure = Concentration(levels=levels, sync_on_compute=False)

    def views(rows: Tensor) -> Tensor:
        return made.views(images.images[rows], index=rows, n_views=n_views, seed=VIEW_SEED, identity=True)

    for rows in torch.arange(len(images)).split(256):  # the measure copies what it is given
        measure.update(views(rows), images.labels[rows])
    found = measure.compute()
    place = int(np.argmin(np.abs(deltas - delta * delta_max)))
    curves, worst = found.curves(deltas, reduce="mean"), found.curve(deltas, reduce="min")
    pairs = found.closest(3)
    realised = [(views(torch.tensor([p.i]))[0], views(torch.tensor([p.j]))[0]) for p in pairs]
    np.savez_compressed(
        folder / "pictures.npz",
        views=_pictures(views(torch.arange(3))[:, :8]),
        pairs=_pictures(torch.stack([torch.stack((a[0], a[p.u], b[p.v], b[0])) for p, (a, b) in zip(pairs, realised, strict=True)])),
    )
    return {
        "folder": folder.name,
        "n": int(found.n.min()),
        "subsampled": found.subsampled,
        "deltas": deltas.tolist(),
        "delta_max": delta_max,
        "curves": {name: [curve.lower.tolist(), curve.upper.tolist()] for name, curve in (("mean", curves[-1]), ("worst", worst))},
        "levels": list(levels),
        "by_level": [float(curve.upper[place]) for curve in curves],
        "pairs": [{"class": images.classes[p.label], "distance": p.distance} for p in pairs],
    }


def _upper(matrix: Tensor) -> Any:
    return matrix[torch.triu_indices(len(matrix), len(matrix), 1).unbind()].numpy()


def _pictures(images: Tensor) -> Any:
    """Images (..., 3, H, W) in [0, 1] as bytes (..., H, W, 3)."""
    return (images.movedim(-3, -1) * 255).round().byte().numpy()


# --- the report -------------------------------------------------------------------------------------------------------


def report(run: Run) -> None:
    """Write what was measured, in figures and tables."""
    kept = {}
    for cell in run.cells:
        if cell.finished:
            kept[cell["letters"], cell["strength"], cell["grid"]] = run.once("concentration", concentrate, *_measured(cell, run.settings))
    if kept:
        figures.write(run, kept)
