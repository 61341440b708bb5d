"""How well do sub-centers find wrong labels, and what does a training gain without them?

Faults are planted in the labels of a set. A margin classifier is trained on it, says which images
are not of their class, and is trained again without them. Each verifies identities it has not seen.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marginlab import settings
from marginlab.methods import MarginClassifier
from marginlab.settings import SettingsError
from marginlab.study import Cell, Quantity, Run
from marginlab.train import Monitor, Recipe, fit, load

from . import conflict, figures, judging
from .planting import CONFLICT, WRONG, Planting, planted

SPACE = "projector"
headline = (
    Quantity("precision", "angle"),
    Quantity("recall", "angle"),
    Quantity("verification_accuracy", SPACE),
    Quantity("tar_at_far", SPACE),
)
kept = (
    *(Quantity(name) for name in ("precision", "recall", "auc", "threshold", "separated")),
    *(Quantity(name, SPACE) for name in ("verification_accuracy", "tar_at_far")),
    *(Quantity(name, "images") for name in ("kept", "kept_wrong", "classes_lost")),
    *(Quantity(name, "figure 7") for name in figures.SHARES),
    *(Quantity(name, "votes") for name in ("dead_subcenters",)),
    *(Quantity(name, "steps") for name in ("twin_negatives", "twins_seen", "passive")),
    *(Quantity(name, "centers") for name in ("center_angle", "center_cosine")),
)
RECIPE = Recipe(
    data="omniglot-upright",
    image_size=28,
    augmentation="Augmentation(('ResizedCrop(scale=(0.6, 1.0))',))",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="MarginClassifier()",
    optimizer="SGD(lr=0.2)",
    schedule="WarmupPolynomial(warmup=0.2, power=2.0)",
    epochs=14,
    batch=32,
    clip=1.0,
)
MONITOR = Monitor(verified="omniglot-upright")
STAGES = ("planted", "fixed", "mixture", "right")


@dataclass(frozen=True)
class Settings:
    """The defaults are the preset `default`: 100 characters, some ten minutes of one core."""

    recipe: Recipe = RECIPE
    """The training; the grid sets its method, backbone and seed."""
    monitor: Monitor = MONITOR
    """The pairs that are verified; nothing is measured during training."""
    classes: int = 100
    """Classes drawn by the seed; 0 takes all."""
    noises: tuple[str, ...] = ("uniform",)
    """Faults: uniform, alphabet or outliers (wrong labels), twins or tail (classes at odds)."""
    shares: tuple[float, ...] = (0.4,)
    """Shares of wrong labels, of split classes or of small ones."""
    clean: tuple[int, ...] = (1,)
    """Sub-centers of the trainings without faults; none where it is empty."""
    subcenters: tuple[int, ...] = (1, 3)
    """Sub-centers K of the trainings with faults"""
    rates: tuple[float, ...] = (1.0,)
    """and the parts of the classes that a step of them sees."""
    filters: tuple[float, ...] = (0.0,)
    """Inter-class filters, as cosines; 0 for none."""
    backbones: tuple[str, ...] = ()
    """Of marginlab.models; empty for that of the recipe."""
    fixed: tuple[int, ...] = (3,)
    """Sub-centers whose purification at `max_angle` is trained again with one center."""
    mixture: tuple[int, ...] = (1, 3)
    """Sub-centers whose purification at the angle from the data is trained again."""
    right: bool = True
    """Train on the right labels of a noisy set alone."""
    max_angle: float = 75.0
    tail_images: int = 4
    """Images that a small class keeps."""
    margin: str = "CosFace(0.3)"
    scale: float = 16.0
    dim: int = 64
    """Of the embedding."""
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        for noise in self.noises:
            if noise not in WRONG + CONFLICT:
                near = settings.nearest(noise, WRONG + CONFLICT)
                raise SettingsError(f"There is no noise {noise!r}: {near}")
        if not all((self.noises, self.shares, self.subcenters, self.rates, self.seeds)):
            raise SettingsError("noises, shares, subcenters, rates and seeds name at least one.")
        if any(not 0 < share < 1 for share in self.shares):
            raise SettingsError(f"A share is in (0, 1), not {self.shares}: `clean` asks for none.")
        if odd := [K for K in self.fixed + self.mixture if K not in self.subcenters]:
            raise SettingsError(f"subcenters has no {odd[0]}, whose purification is asked for.")
        if not self.monitor.verified:
            raise SettingsError("monitor.verified names the set to verify; it is empty.")


def cells(chosen: Settings) -> list[dict[str, str | int | float]]:
    """One training for each fault, share, K, rate, filter, backbone, stage and seed."""
    grid: list[dict[str, str | int | float]] = []
    for seed in chosen.seeds:
        for backbone in chosen.backbones or (chosen.recipe.backbone,):
            grid += [
                _cell("none", 0.0, K, rate, 0.0, backbone, "planted", seed)
                for rate in (chosen.rates if set(chosen.noises) & set(CONFLICT) else (1.0,))
                for K in chosen.clean
            ]
            for noise in chosen.noises:
                for share in chosen.shares:
                    grid += _of_fault(chosen, noise, share, backbone, seed)
    for cell in grid:  # a wrong setting is refused before any work
        _recipe(cell, chosen)
    return grid


def _of_fault(
    chosen: Settings, noise: str, share: float, backbone: str, seed: int
) -> list[dict[str, str | int | float]]:
    """The cells of one fault, share, backbone and seed."""
    out = []
    for rate, K in itertools.product(chosen.rates, chosen.subcenters):
        stages = [("planted", bound) for bound in chosen.filters]
        if noise in WRONG and K in chosen.fixed:
            stages.append(("fixed", 0.0))
        if noise in WRONG and K in chosen.mixture:
            stages.append(("mixture", 0.0))
        out += [_cell(noise, share, K, rate, f, backbone, stage, seed) for stage, f in stages]
    if noise in WRONG and chosen.right:
        out.append(_cell(noise, share, 1, 1.0, 0.0, backbone, "right", seed))
    return out


def _cell(*values: str | int | float) -> dict[str, str | int | float]:
    names = ("noise", "share", "subcenters", "rate", "filter", "backbone", "stage", "seed")
    return dict(zip(names, values, strict=True))


def check(chosen: Settings) -> str:
    """Refuse settings that do not fit the data; return the digest of the data."""
    digests = []
    for noise in ("none", *chosen.noises):
        share = chosen.shares[-1] if noise != "none" else 0.0
        asked = _cell(noise, share, 1, 1.0, 0.0, chosen.recipe.backbone, "planted", chosen.seeds[0])
        images = planted(_planting(asked, chosen)).images
        digests.append(images.digest())
        unseen = chosen.monitor.unseen(images, size=chosen.recipe.image_size)
        assert unseen is not None, "the settings name it"
    return " ".join([*digests, unseen.digest()])


def _planting(cell: Any, chosen: Settings) -> Planting:
    recipe = chosen.recipe
    size, n = recipe.image_size, chosen.classes
    noise, share, seed = cell["noise"], cell["share"], cell["seed"]
    return Planting(recipe.data, size, n, noise, share, chosen.tail_images, seed)


def _recipe(cell: Any, chosen: Settings, *, single: bool = False) -> Recipe:
    """The recipe of a cell, or of its retraining with a single center of each class."""
    method = settings.describe(
        "MarginClassifier",
        margin=chosen.margin,
        scale=chosen.scale,
        subcenters=1 if single else cell["subcenters"],
        sample_rate=1.0 if single else cell["rate"],
        interclass_filter=None if single else cell["filter"] or None,
        dim=chosen.dim,
    )
    changes = {"method": method, "backbone": cell["backbone"], "seed": cell["seed"]}
    return settings.replaced(chosen.recipe, changes)


def run(cell: Cell) -> None:
    """Train, verify unseen identities, and hold what the classifier says against the truth."""
    chosen: Settings = cell.settings
    asked, recipe = _planting(cell, chosen), _recipe(cell, chosen)
    truth = planted(asked)
    train = functools.partial(_train, truth=truth, say=cell.say)
    if cell["stage"] == "right":
        kept = ~truth.wrong
    else:
        model = _model(cell, cell.once("training", train, recipe, asked))
        kept = None
        if cell["stage"] != "planted":
            kept = judging.kept(model, truth, str(cell["stage"]), chosen.max_angle)
    if kept is not None:
        again = functools.partial(train, keep=kept)
        single, angle = _recipe(cell, chosen, single=True), chosen.max_angle
        what = (cell["stage"], cell["subcenters"], cell["rate"], angle)
        model = _model(cell, cell.once("retraining", again, single, asked, *what))
        for found in judging.left(kept, truth):
            cell.record(found.quantity, found.value, space=found.space, at=found.at)
    unseen = chosen.monitor.unseen(truth.images, size=asked.image_size)
    assert unseen is not None, "the settings name it"
    for row in chosen.monitor.verify(model, unseen, recipe.epochs):
        if row.space == SPACE:
            cell.record(**row._asdict())
    if cell["stage"] != "planted":
        return
    if cell["noise"] in WRONG:
        rows = [*judging.by_angle(model, truth, chosen.max_angle)]
        if cell["subcenters"] == 1:
            rows += judging.by_rivals(model, truth, int(cell["seed"]))
    else:
        rows = [*conflict.of_steps(recipe, truth), *conflict.of_centers(model, truth)]
    for found in rows:
        cell.record(found.quantity, found.value, space=found.space, at=found.at)


def _model(cell: Cell, folder: str) -> MarginClassifier:
    model = load(cell.run_folder / "once" / folder / "run")
    assert isinstance(model, MarginClassifier), "the recipe says so"
    return model


def _train(
    recipe: Recipe,
    *_: Any,
    truth: Any,
    say: Callable[[str], None],
    folder: Path,
    keep: Any = None,
) -> str:
    """Train on the planted images, or on those that are kept; return the name of the folder.

    The positional arguments behind the recipe name the images in the run.
    """
    images = truth.images if keep is None else truth.images.where(keep, dense=True)
    fit(recipe, folder / "run", Monitor.none(), data=(images, images), say=say)
    return folder.name


def report(run: Run) -> None:
    """Report what was found, what retraining gained, and what was published."""
    figures.write(run)
