"""Does the recognizability index tell what can be recognised, and what do its losses change?

A margin classifier is trained on full images, then fine-tuned on images of low resolution by the
terms of Chai et al. 2023. Network and quality scores are judged on classes never trained on.
"""

from dataclasses import dataclass
from typing import Any

from marginlab import settings
from marginlab.settings import SettingsError
from marginlab.study import Cell, Run
from marginlab.train import Monitor, Recipe, once_trained
from marginlab.train import check as check_data

from . import figures, pooling
from .judging import judge, read
from .protocol import Protocol, choose

PROTOCOL = Protocol()
ALL = "all"  # the seed of a cell that takes all seeds together
FROZEN = "frozen"
TERMS = {  # which of L1, LID and LMSE join the classification loss
    "classification": (0, 0, 0),
    "L1": (1, 0, 0),
    "L1+LID": (1, 1, 0),
    "LMSE": (0, 0, 1),
    "full": (1, 1, 1),
}
headline = ("rank1", "rank1_gain", "spearman_resolution")
kept = (
    *headline,
    *("tpir", "spearman_within", "discard_area", "discard_gain", "center_cosine"),
    *("resultant", "index", "index_spearman", "bank_cosine", "bank_share", "bank_ratio"),
    *("centers_cosine", "bank_accepted", "attention_share", "attention_gain"),
    *("deletion", "deletion_gain", "insertion", "insertion_gain"),
)


@dataclass(frozen=True)
class Settings:
    """The defaults are the preset `default`: rendered shapes, some minutes on two cores."""

    recipe: Recipe = Recipe(
        data="shapes",
        image_size=32,
        images=2000,
        augmentation="Augmentation(('ResizedCrop(scale=(0.6, 1.0))',))",
        backbone="Backbone('resnet18', stem='strided', width=0.125)",
        method="MarginClassifier(margin='CosFace(0.2)', scale=16.0, dim=64)",
        optimizer="SGD(lr=0.05)",
        epochs=6,
        batch=64,
        clip=5.0,
    )
    """First training, on full images, by a MarginClassifier."""
    monitor: Monitor = Monitor.none()
    """Measurements during the trainings."""
    variants: tuple[str, ...] = (FROZEN, *TERMS)
    """The first network as it is, and losses of the second training."""
    tuning_images: int = 1000
    """Training images of the second training, class-balanced; 0 takes all."""
    tuning_epochs: int = 3
    tuning_optimizer: str = "SGD(lr=0.02)"
    low: tuple[int, int] = (6, 32)
    """Lowest and highest rows of pixels of the second training."""
    ruined: int = 3
    """Rows of pixels of images that are taken for unrecognizable."""
    weights: tuple[float, ...] = (1.0, 0.02, 1.0)
    """Weights of L1, LID and LMSE."""
    clamp: float = 8.0
    """Largest recognizability index; 0 does not clamp."""
    protocol: Protocol = PROTOCOL
    """Images and numbers of the judgement."""
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds or len(self.weights) != 3:
            raise SettingsError("variants and seeds name at least one, and weights has three.")
        for variant in self.variants:
            if variant not in (FROZEN, *TERMS):
                near = settings.nearest(variant, (FROZEN, *TERMS))
                raise SettingsError(f"There is no variant {variant!r}: {near}")
        if not self.recipe.method.startswith("MarginClassifier(") or not self.recipe.image_size:
            raise SettingsError(
                "The first training is by a MarginClassifier at an image_size, not by "
                f"{self.recipe.method} at {self.recipe.image_size}."
            )
        for rows in (*self.low, self.ruined, *self.protocol.rows, *self.protocol.probed):
            if not 1 <= rows <= self.recipe.image_size:
                raise SettingsError(
                    f"Rows of pixels are 1 to {self.recipe.image_size}, not {rows}."
                )


def cells(chosen: Settings) -> list[dict[str, str]]:
    """One judgement for each variant and seed, then for each variant over all seeds."""
    seeds = [*map(str, chosen.seeds), ALL]
    return [{"variant": variant, "seed": seed} for seed in seeds for variant in chosen.variants]


def check(chosen: Settings) -> str:
    """Refuse settings that do not fit the data; return the digest of the data."""
    train, test = check_data(chosen.recipe)
    for variant in chosen.variants:
        second(chosen, variant, chosen.seeds[0], "").make_method(len(train.classes))
    people = choose(chosen.protocol, chosen.recipe.data, chosen.recipe.image_size)
    return " ".join([train.digest(), test.digest(), people.digest])


def first(chosen: Settings, seed: int) -> Recipe:
    """Return the recipe of the first training."""
    return settings.replaced(chosen.recipe, {"seed": seed})


def second(chosen: Settings, variant: str, seed: int, start: str) -> Recipe:
    """Return the recipe of the second training; of "frozen" that of the first."""
    if variant == FROZEN:
        return first(chosen, seed)
    l1, lid, lmse = (on * weight for on, weight in zip(TERMS[variant], chosen.weights, strict=True))
    named = {"image_size": chosen.recipe.image_size, "regression": l1, "diversion": lid}
    named |= {"attention": lmse, "clamp": chosen.clamp, "tight": 0.0}
    named["ruin"] = f"LowResolution(rows=({chosen.ruined}, {chosen.ruined}))"
    own = settings.describe("Recognizability", **named).removesuffix(")")
    rest = chosen.recipe.method.removeprefix("MarginClassifier(")
    degraded = f"LowResolution(rows=({chosen.low[0]}, {chosen.low[1]}))"
    operations = chosen.recipe.make_augmentation().composed
    changes = {
        "method": f"{own}, {rest}" if rest != ")" else f"{own})",
        "augmentation": settings.describe(
            "Augmentation", operations=(*map(settings.named_repr, operations), degraded)
        ),
        "images": chosen.tuning_images,
        "epochs": chosen.tuning_epochs,
        "optimizer": chosen.tuning_optimizer,
        "seed": seed,
        "start": start,
    }
    return settings.replaced(chosen.recipe, changes)


def run(cell: Cell) -> None:
    """Train both stages once, judge them, and record the numbers of this variant."""
    chosen: Settings = cell.settings
    seeds = chosen.seeds if cell["seed"] == ALL else (int(cell["seed"]),)
    judged = [_judged(cell, str(cell["variant"]), seed) for seed in seeds]
    beside = None
    if cell["variant"] not in (FROZEN, "classification") and "classification" in chosen.variants:
        beside = [_judged(cell, "classification", seed) for seed in seeds]
    replicates = chosen.protocol.replicates if cell["seed"] == ALL else 0
    for row in pooling.rows(chosen.protocol, judged, beside, replicates=replicates):
        cell.record(**row)


def _judged(cell: Cell, variant: str, seed: int) -> Any:
    """Return the arrays of one variant and seed, trained and judged by the cell that asks first."""
    chosen: Settings = cell.settings
    one = once_trained(cell, first(chosen, seed), chosen.monitor).folder
    two = once_trained(cell, second(chosen, variant, seed, str(one)), chosen.monitor).folder
    names = [str(folder.relative_to(cell.run_folder)) for folder in (one, two)]
    cell.say(f"judging {variant}, seed {seed}")
    alone = settings.replaced(chosen, {"variants": (variant,), "seeds": (seed,)})
    told = cell.once("judged", judge, alone, variant, *names)
    return read(cell.run_folder / "once" / told["folder"])


def report(run: Run) -> None:
    """Tables and figures of each question, the pictures, and the published figure."""
    figures.write(run)
