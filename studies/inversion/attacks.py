"""Inversion of one network for the targets of one seed, and what the judge says of the images."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from marginlab import inversion, settings
from marginlab.data import ImageSet
from marginlab.inversion import identity_ranks, invert, nearest_rows
from marginlab.train import load

from . import maps, people
from .networks import Say, embedded, embeddings, gallery, parts_of

ATTACKS = ("closed", "open")
TERMS = {
    "no BN": {"batch_norm": 0.0},
    "no TV": {"total_variation": 0.0},
    "no l2": {"l2": 0.0},
    "free pixels": {"within_range": False},
}


class Targets(NamedTuple):
    """Targets of an inversion, and the embeddings that it is compared with.

    Attributes:
        identities: (n,) identities in the gallery; another set of them for each seed.
        asked: (n,) classes or (n, D) embeddings.
        goal: (n, D) and the gallery (C, D) in the network's own space, undefended;
        judged, judges: the same in the judge's space.
        pictures: A real image of each, that stands beside the generated one.
        others: Another real image of each identity, and one more.
    """

    identities: Tensor
    asked: Tensor
    goal: Tensor
    gallery: Tensor
    judged: Tensor
    judges: Tensor
    pictures: Tensor
    others: tuple[Tensor, Tensor]


def targets_of(
    chosen: Any, case: dict[str, Any], own: dict[str, Tensor], judge: dict[str, Tensor]
) -> Targets:
    """Choose the identities of a seed, and their targets.

    Args:
        chosen: The settings.
        case: attack, seed, and the number of people.
        own: Embeddings by the network, and its class centers.
        judge: Embeddings by the judge.
    """
    parts, seed, pool = parts_of(chosen), case["seed"], case["people"]
    closed = case["attack"] == "closed"
    shown: ImageSet = parts.own if closed else parts.known
    if not closed and parts.unseen:
        pool = len(shown.classes)
    ids = people.chosen(pool, min(chosen.targets, pool), seed)
    taken = people.one_image(shown.labels, ids, seed)
    second = people.next_image(shown.labels, taken)
    pictures = shown.images[taken]
    real = shown.images[second], shown.images[people.next_image(shown.labels, second)]
    C = len(shown.classes)
    if closed:
        centers = own["centers"]
        judges = gallery(judge["judge"], parts.judge.labels, C)[:pool]
        return Targets(ids, ids, centers[ids], centers[:pool], judges[ids], judges, pictures, real)
    spaces = []
    for found in (own["known"], judge["known"]):
        spaces += [found[taken], gallery(found, shown.labels, C, taken)[:pool]]
    return Targets(ids, spaces[0], *spaces, pictures, real)


def attack(
    chosen: Any,
    case: dict[str, Any],
    networks: tuple[str, str],
    kept: tuple[str, str],
    *,
    say: Say,
    folder: Path,
) -> dict[str, Any]:
    """Invert one network for the targets of one seed; return what is found of each image.

    Args:
        chosen: The settings.
        case: attack, terms, defence, loss, seed, and the number of people.
        networks: The folders of the trainings of the network and of the judge.
        kept: The folders of their embeddings.
        say: Is told the progress.
        folder: Where the images are kept.
    """
    network, judging = (load(folder.parent / name / "run") for name in networks)
    classifier: Any = network.classifier
    ours = {**embedded(folder, kept[0]), "centers": classifier.centers.detach()[:, 0]}
    targets = targets_of(chosen, case, ours, embedded(folder, kept[1]))
    changes: dict[str, Any] = TERMS.get(case["terms"], {})
    defence = maps.defence_of(case["defence"])
    asked, model = targets.asked, network
    if defence is not None:
        axes = maps.principal_axes(ours["public"])
        asked = maps.defended(asked, defence, axes)
        if isinstance(defence, inversion.FewerDimensions):
            model = maps.Projected(network, axes[:, : defence.kept])
    made = invert(
        model,
        asked,
        settings.replaced(chosen.inversion, {"seed": case["seed"], **changes}),
        size=chosen.recipe.image_size,
        folder=folder,
        save_every=100,
        say=lambda done, _: say(f"{case['attack']} seed {case['seed']}: {done} steps"),
    )
    own_found, found = embeddings(network, made.images), embeddings(judging, made.images)
    real, another = (embeddings(judging, part) for part in targets.others)
    np.savez(
        folder / "images.npz",
        generated=(made.images * 255).round().byte().numpy(),
        pictures=targets.pictures.numpy(),
        judged=found.numpy(),
        real=real.numpy(),
        another=another.numpy(),
    )
    return {
        "folder": folder.name,
        "identity": targets.identities.tolist(),
        **_scores("own", own_found, targets.goal, targets.gallery, targets.identities),
        **_scores("judge", found, targets.judged, targets.judges, targets.identities),
        **_nearest(targets, made.images, parts_of(chosen).own),
        "objective": made.terms[:, -1].mean(0).tolist(),
    }


def _scores(space: str, found: Tensor, goal: Tensor, center: Tensor, ids: Tensor) -> dict[str, Any]:
    """Return cosine and rank of each image, with its own target and with its neighbour's."""
    shuffled = torch.arange(len(ids)).roll(1)
    cosine = functools.partial(nn.functional.cosine_similarity, found)
    return {
        f"{space} cosine": cosine(goal).tolist(),
        f"{space} rank": identity_ranks(found, center, ids).tolist(),
        f"{space} cosine shuffled": cosine(goal[shuffled]).tolist(),
        f"{space} rank shuffled": identity_ranks(found, center, ids[shuffled]).tolist(),
    }


def _nearest(targets: Targets, made: Tensor, trained: ImageSet) -> dict[str, Any]:
    """Return the cosine of grey pixels with the nearest training image: is one memorised?"""

    def grey(images: Tensor) -> Tensor:
        flat = images.float().mean(1).flatten(1)
        return flat - flat.mean(1, keepdim=True)

    bank = grey(trained.images)
    nearest = {"pixels generated": made, "pixels real": targets.others[0]}
    return {name: nearest_rows(grey(images), bank)[1].tolist() for name, images in nearest.items()}
