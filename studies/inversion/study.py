"""How much do a trained network and an embedding tell of a face or a character?

Images are generated from networks that the lab trains by four losses, for classes and for
embeddings, and a judge that took no part looks at them. The same embeddings are read through a
linear map, and under defences.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from marginlab import settings
from marginlab.data.sheet import contact_sheet, encode_picture
from marginlab.files import write
from marginlab.inversion import InversionSettings, frechet_distance, kernel_distance
from marginlab.statistics import unit_vectors
from marginlab.study import Cell, Quantity, Run
from marginlab.train import Recipe

from . import attacks, figures, maps, networks, records

PARTS = ("known", "public")
headline = (
    Quantity("cosine", "judge"),
    Quantity("rank1", "judge"),
    "map_rank1",
    "verification",
)
kept = (
    *(Quantity(name, space) for name in records.SCORES for space in ("own", "judge")),
    *(Quantity(name, "shuffled") for name in records.SCORES),
    *(Quantity(name, "difference") for name in ("cosine", "rank1")),
    *(Quantity(name, space) for name in records.DISTANCES for space in ("generated", "real")),
    *("map_cosine", "map_rank1", "verification", "verification_lost", "probe", "identities"),
    *(f"objective_{name}" for name in ("identity", "batch_norm", "total_variation", "l2")),
)


CROP = "Augmentation(('ResizedCrop(scale=(0.6, 1.0))',))"
RECIPE = Recipe(
    data="omniglot-upright",
    image_size=20,
    augmentation=CROP,
    backbone="Backbone('resnet18', stem='strided', width=0.25)",
    optimizer="SGD(lr=0.1)",
    epochs=6,
    batch=32,
)
JUDGE = settings.replaced(
    RECIPE,
    {
        "backbone": "Backbone('resnet34', stem='strided', width=0.25)",
        "method": "MarginClassifier(margin='CosFace(0.2)', scale=16.0, dim=64)",
        "epochs": 8,
        "seed": 1000,
    },
)
INVERSION = InversionSettings(steps=150, within_range=True)


@dataclass(frozen=True)
class Settings:
    """The defaults are the preset `default`: characters, one seed, four losses."""

    recipe: Recipe = RECIPE
    """Training of the networks that are inverted; the study sets its method and its seed."""
    judge: Recipe = JUDGE
    """Training of the judge, on the other half of the images, of the same size."""
    inversion: InversionSettings = INVERSION
    losses: tuple[str, ...] = (
        "NoMargin()",
        "SphereFace(1.35, gradient='straight_through')",
        "CosFace(0.2)",
        "ArcFace(0.3, gradient='straight_through')",
    )
    """Margins of marginlab.margins; NoMargin is the normalised softmax."""
    scale: float = 16.0
    dim: int = 64
    """Of the embedding."""
    seeds: tuple[int, ...] = (0,)
    """Of the networks; each has targets of its own."""
    targets: int = 40
    """Images that are made for a seed, of as many identities."""
    terms: tuple[str, ...] = ("no BN", "no TV", "no l2", "free pixels")
    """Terms left out, one at a time, with the last loss; "free pixels" may leave [0, 1]."""
    defences: tuple[str, ...] = ("FewerDimensions(16)", "Quantised(1)", "SecretRotation(7)")
    """Classes of marginlab.inversion, for the last loss."""
    least_images: int = 4
    """Fewest images of a trained identity, of whom"""
    identities: int = 200
    """so many are trained, those with most images first; 0 takes all."""
    unseen_images: int = 10
    """Images of each identity that no network has seen; 0 takes all."""
    judged: float = 0.5
    """The judge is asked among the most people of whom it finds so many of the images it has not
    seen, those with most images first,"""
    least_people: int = 64
    """and at least among so many."""
    pairs: tuple[int, ...] = (50, 200, 800)
    """Pairs of embeddings from which a map into the judge's space is fitted, beside all pairs."""
    dims: tuple[int, ...] = (4, 8, 16, 32)
    """Principal coordinates that the map is given."""
    verified: int = 3000
    """Pairs that are verified under each defence, of identities that no network has seen, in"""
    folds: int = 10
    """folds of other identities."""
    attributes: str = ""
    """A csv of class and attribute for the probe; by default the alphabet of a character."""

    def __post_init__(self) -> None:
        if not self.losses or not self.seeds:
            raise settings.SettingsError("losses and seeds each name at least one.")
        same = ("data", "image_size")
        if any(getattr(self.recipe, name) != getattr(self.judge, name) for name in same):
            raise settings.SettingsError("recipe and judge have one data set and one image size.")
        if wrong := [name for name in self.terms if name not in attacks.TERMS]:
            near = settings.nearest(wrong[0], attacks.TERMS)
            raise settings.SettingsError(f"There is no term {wrong[0]!r} to leave out: {near}")
        for name, least in (("targets", 2), ("least_images", 4), ("least_people", 2), ("folds", 2)):
            if getattr(self, name) < least:
                raise settings.SettingsError(
                    f"{name} is at least {least}, not {getattr(self, name)}."
                )
        for text in self.defences:
            maps.defence_of(text)


def cells(chosen: Settings) -> list[dict[str, str]]:
    """Return inversions of all losses; then of the last loss without terms and under defences."""
    last = chosen.losses[-1]
    rows = [(loss, attack, "all", "none") for loss in chosen.losses for attack in attacks.ATTACKS]
    rows += [(last, attack, terms, "none") for terms in chosen.terms for attack in attacks.ATTACKS]
    rows += [(loss, "map", "-", "none") for loss in chosen.losses]
    rows += [(last, "map", "-", defence) for defence in chosen.defences]
    rows += [(last, "open", "all", defence) for defence in chosen.defences]
    for loss in chosen.losses:
        networks.recipe_of(chosen, loss, 0).make_method(4)
    return [dict(zip(("loss", "attack", "terms", "defence"), row, strict=True)) for row in rows]


def check(chosen: Settings) -> str:
    """Refuse data that cannot be split; return the digests of the parts."""
    parts = networks.parts_of(chosen)
    return " ".join(images.digest() for images in parts[:4])


def run(cell: Cell) -> None:
    """Invert, or read by a map, for every seed; record what is found over all identities."""
    judged = _judge(cell)
    cell.record("identities", judged["people"], space="judged", n=judged["people"])
    cell.record("identities", judged["rank1"], space="rank-1 of the judge among them")
    cell.record("identities", judged["all"], space="rank-1 of the judge among all")
    if cell["attack"] == "map":
        found = [_read(cell, seed, str(cell["defence"])) for seed in cell.settings.seeds]
        records.record_maps(cell, found, _undefended(cell))
        return
    case = {name: str(cell[name]) for name in ("loss", "attack", "terms", "defence")}
    made = _attacks(cell, case)
    records.record_scores(cell, made)
    for other in _references(cell, case):
        label = other["loss"] if other["terms"] == case["terms"] else "all terms"
        records.record_difference(cell, made, _attacks(cell, other), label)
    kept = [_images(cell, each) for each in made]
    joined = {name: torch.cat([each[name] for each in kept]) for name in kept[0]}
    unit = {name: unit_vectors(joined[name]) for name in ("judged", "real", "another")}
    for space, rows in (("generated", unit["judged"]), ("real", unit["another"])):
        cell.record("kernel_distance", kernel_distance(rows, unit["real"]), space=space)
        cell.record("frechet_distance", frechet_distance(rows, unit["real"]), space=space)
        records.record_verification(cell, space, rows, unit["real"])
    n = min(24, len(kept[0]["generated"]))
    sheet = torch.stack([kept[0]["pictures"][:n], kept[0]["generated"][:n]], 1).flatten(0, 1)
    write(cell.folder / "sheet.png", encode_picture(contact_sheet(sheet, columns=12)))


def _judge(cell: Cell) -> dict[str, Any]:
    train: Any = functools.partial(networks.train_judge, say=cell.say)
    found: dict[str, Any] = cell.once("judge", train, cell.settings)
    return found


def _network(cell: Cell, loss: str, seed: int) -> str:
    train: Any = functools.partial(networks.train, say=cell.say)
    return str(cell.once("training", train, cell.settings, loss, seed))


def _embedded(cell: Cell, network: str, *parts: str) -> str:
    return str(cell.once("embeddings", networks.embed, cell.settings, network, parts))


def _attacks(cell: Cell, case: dict[str, str]) -> list[dict[str, Any]]:
    """Return what is found of the images of each seed."""
    attack: Any = functools.partial(attacks.attack, say=cell.say)
    judge = _judge(cell)
    theirs = _embedded(cell, judge["folder"], *PARTS, "judge")
    found = []
    for seed in cell.settings.seeds:
        network = _network(cell, case["loss"], seed)
        asked = {**case, "seed": seed, "people": judge["people"]}
        networks, kept = (network, judge["folder"]), (_embedded(cell, network, *PARTS), theirs)
        found.append(cell.once("inversion", attack, cell.settings, asked, networks, kept))
    return found


def _references(cell: Cell, case: dict[str, str]) -> list[dict[str, str]]:
    """Return the cases that this one is compared with, image by image: the targets are the same."""
    if case["defence"] != "none":
        return []
    if case["terms"] != "all":
        return [{**case, "terms": "all"}]
    losses = cell.settings.losses
    return [{**case, "loss": loss} for loss in losses[: losses.index(case["loss"])]]


def _read(cell: Cell, seed: int, defence: str) -> dict[str, Any]:
    judge, loss = _judge(cell), str(cell["loss"])
    own = _embedded(cell, _network(cell, loss, seed), *PARTS)
    theirs = _embedded(cell, judge["folder"], *PARTS, "judge")
    case = {"loss": loss, "defence": defence, "seed": seed, "people": judge["people"]}
    found: dict[str, Any] = cell.once("map", maps.read, cell.settings, case, own, theirs)
    return found


def _undefended(cell: Cell) -> list[dict[str, Any]]:
    """Return the maps without a defence, of the same loss."""
    return [_read(cell, seed, "none") for seed in cell.settings.seeds]


def _images(cell: Cell, made: dict[str, Any]) -> dict[str, torch.Tensor]:
    return records.kept_images(cell.run_folder / "once" / made["folder"])


def report(run: Run) -> None:
    """Write the tables and figures."""
    figures.report(run)
