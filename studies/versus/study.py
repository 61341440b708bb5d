"""Contrastive or margin: which learns better, on the same backbone, images and steps?

One factor at a time is moved around a base cell: the augmentation, the share of labels, their
noise, the backbone, the data. Each method is measured with the same quantities, and each of these
is held against the error that it might predict.
"""

from dataclasses import dataclass
from typing import Any

from marginlab import methods as rooms
from marginlab import settings
from marginlab.methods import MarginClassifier, SupCon
from marginlab.settings import SettingsError
from marginlab.study import Cell, Quantity, Run
from marginlab.train import Monitor, Recipe
from marginlab.train import check as check_data

from . import report as pages
from .measure import Labels, Predictors, pixels, predict, seen, train

headline = (
    Quantity("error", "backbone", "kNN"),
    Quantity("error", "backbone", "linear"),
    "labels_seen",
)
kept = (
    "error",
    "labels_seen",
    "predictor",
    "predictor_control",
    Quantity("certified", "projector", "new_images"),
    Quantity("new_error", "projector"),
    Quantity("InfoNCE_L_2", "projector"),
    Quantity("CrossCorrelation_L_2", "projector"),
    Quantity("alignment", "projector"),
    Quantity("divergence_mean", "projector"),
    Quantity("theorem_3_mean_product", "projector"),
    Quantity("verification_accuracy", "backbone"),
)
FAMILIES = ("contrastive", "supervised contrastive", "margin")


@dataclass(frozen=True)
class Settings:
    """Settings, by default the preset `default`: silhouettes, six methods, one seed.

    It takes some ten minutes on two cores.
    """

    recipe: Recipe = Recipe(
        data="shapes",
        images=500,
        augmentation="Augmentation('ade')",
        backbone="Backbone('resnet18', stem='strided', width=0.25)",
        epochs=8,
        batch=50,
        precision="float32",
    )
    """The base cell. Method, optimizer and seed are the grid's."""
    monitor: Monitor = Monitor(every=4, images=100, views=8, bank=500, bounds=True)
    """Measured during training."""
    methods: tuple[str, ...] = (
        "SimCLR(temperature=0.2, hidden=256, dim=64)",
        "BarlowTwins(hidden=256, dim=256)",
        "SupCon(temperature=0.1, hidden=256, dim=64)",
        "MarginClassifier(margin='NoMargin()', scale=8.0, dim=64)",
        "MarginClassifier(margin='CosFace(0.3)', scale=8.0, dim=64)",
        "MarginClassifier(margin='ArcFace(0.5)', scale=8.0, dim=64)",
    )
    """Classes of marginlab.methods."""
    optimizers: tuple[str, ...] = ("SGD(lr=0.1)",)
    """Of marginlab.optim: one for each method, or one for all."""
    augmentations: tuple[str, ...] = (
        "Augmentation('a')",
        "Augmentation('e')",
        "Augmentation('ad')",
        "Augmentation('abcde')",
    )
    """Moved around the base cell's."""
    labels: tuple[float, ...] = (0.1,)
    """Shares of the training labels that may be seen."""
    noise: tuple[float, ...] = (0.4,)
    """Shares of the training labels that are flipped."""
    backbones: tuple[str, ...] = (
        "Backbone('vit_tiny_patch16_224', stem='imagenet', image_size=32)",
    )
    """Of marginlab.models."""
    data: tuple[str, ...] = ()
    """More data sets, as `marginlab.data.load` names them."""
    seeds: tuple[int, ...] = (0,)
    neighbours: int = 20
    """Neighbours that vote in kNN."""
    measured: int = 200
    """Test images whose views give the predictors, class-balanced."""
    views: int = 8
    """Views of each of them."""

    def __post_init__(self) -> None:
        if not self.methods or not self.seeds:
            raise SettingsError("methods and seeds each name at least one.")
        if len(self.optimizers) not in (1, len(self.methods)):
            raise SettingsError(
                f"{len(self.optimizers)} optimizers for {len(self.methods)} methods: give one, or "
                "one for each."
            )
        for name, least in (("labels", 0.0), ("noise", -1e-9)):
            for share in getattr(self, name):
                if not least < share < 1 + 1e-9:
                    raise SettingsError(f"{name} are shares of the labels, not {share}.")
        if self.neighbours < 1 or self.measured < 2 or self.views < 2:
            given = f"{self.neighbours}, {self.measured}, {self.views}"
            raise SettingsError(
                f"neighbours is at least 1, measured and views are at least 2, not {given}."
            )


def levels(chosen: Settings) -> list[tuple[str, str]]:
    """Return each factor with each of its levels, the base cell first."""
    found = [("base", "base")]
    for factor in ("augmentations", "labels", "noise", "backbones", "data"):
        found += [(factor, str(level)) for level in getattr(chosen, factor)]
    return found


def cells(chosen: Settings) -> list[dict[str, Any]]:
    """Every method and seed at each level of each factor."""
    grid = [
        {"factor": factor, "level": level, "method": method, "seed": seed}
        for factor, level in levels(chosen)
        for method in chosen.methods
        for seed in chosen.seeds
    ]
    for cell in grid:
        recipe_of(cell, chosen)
    return grid


def family(method: str) -> str:
    """Return the family of a method in call notation: one of `FAMILIES`."""
    name = method.partition("(")[0]
    if name not in rooms.__all__:
        raise SettingsError(f"There is no method {name!r}: {settings.nearest(name, rooms.__all__)}")
    kind = getattr(rooms, name)
    if issubclass(kind, MarginClassifier):
        return "margin"
    return "supervised contrastive" if issubclass(kind, SupCon) else "contrastive"


def recipe_of(cell: Any, chosen: Settings) -> Recipe:
    """Return the recipe of a cell."""
    place = chosen.methods.index(cell["method"]) if len(chosen.optimizers) > 1 else 0
    changes = {
        "method": cell["method"],
        "optimizer": chosen.optimizers[place],
        "seed": cell["seed"],
    }
    field = {"augmentations": "augmentation", "backbones": "backbone", "data": "data"}
    if cell["factor"] in field:
        changes[field[cell["factor"]]] = cell["level"]
    return settings.replaced(chosen.recipe, changes)


def labels_of(cell: Any) -> Labels:
    """Return what a cell's training may see of the labels."""
    return Labels(
        share=float(cell["level"]) if cell["factor"] == "labels" else 1.0,
        noise=float(cell["level"]) if cell["factor"] == "noise" else 0.0,
        sees=family(cell["method"]) != "contrastive",
        seed=cell["seed"],
    )


def predictors_of(cell: Any, chosen: Settings) -> Predictors:
    """Return the settings of the predictors: views of the base augmentation or of the cell's."""
    recipe = recipe_of(cell, chosen)
    return Predictors(
        recipe.data, recipe.image_size, recipe.augmentation, chosen.measured, chosen.views
    )


def check(chosen: Settings) -> str:
    """Refuse settings that do not fit the data or the networks; return the digest of the data."""
    sets = {}
    tried = set()
    for cell in cells(chosen):
        recipe, labels = recipe_of(cell, chosen), labels_of(cell)
        if (recipe.data, recipe.seed) not in sets:
            sets[recipe.data, recipe.seed] = check_data(recipe)
            chosen.monitor.unseen(sets[recipe.data, recipe.seed][0], size=recipe.image_size)
        images, _ = sets[recipe.data, recipe.seed]
        seen(images, labels)
        if (recipe.backbone, recipe.method, recipe.data) not in tried:
            tried.add((recipe.backbone, recipe.method, recipe.data))
            recipe.make_method(len(images.classes))
    return " ".join(images.digest() for two in sets.values() for images in two)


def run(cell: Cell) -> None:
    """Train with what the method may see, judge it, and measure what might predict the error."""
    chosen: Settings = cell.settings
    recipe, labels = recipe_of(cell, chosen), labels_of(cell)
    trained = train(cell, recipe, chosen.monitor, labels, chosen.neighbours)
    for row in trained["rows"]:
        cell.record(**row)
    for at, (value, low, high, n) in trained["errors"].items():
        cell.record("error", value, low, high, n, space="backbone", at=at)
    cell.record("images_seen", trained["images_seen"])
    cell.record("labels_seen", trained["labels_seen"])
    asked = predictors_of(cell, chosen)
    found = {
        "pixels": cell.once("pixels", pixels, asked),
        "backbone": cell.once("predictors", predict, asked, trained["folder"]),
    }
    for space, numbers in found.items():
        for name, (value, control) in numbers.items():
            cell.record("predictor", value, space=space, at=name)
            cell.record("predictor_control", control, space=space, at=name)


def report(run: Run) -> None:
    """Write who learns better where, and which quantity predicts the error."""
    pages.write(run, levels(run.settings), {m: family(m) for m in run.settings.methods})
