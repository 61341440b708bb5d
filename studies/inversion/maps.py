"""Defences as an attacker meets them, and what embeddings tell without the network.

A map from pairs of embeddings leads into the judge's space; a probe reads an attribute. Both are
fitted to public identities and asked of known ones.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from marginlab import inversion, settings
from marginlab.evaluation import linear_probe, pairs, verification_accuracy
from marginlab.inversion import identity_ranks, map_between
from marginlab.methods import Method
from marginlab.rng import Key
from marginlab.statistics import unit_vectors

from . import networks, people


class Projected(nn.Module):
    """The network as an attacker inverts it who is given k principal coordinates of embeddings."""

    def __init__(self, method: Method, axes: Tensor):
        super().__init__()
        self.method, self.axes = method, axes
        self.mean, self.std = method.backbone.mean, method.backbone.std

    def forward(self, pixels: Tensor) -> Tensor:
        """Return coordinates (B, k) of the directions of images in [0, 1]."""
        found = self.method.project(self.method.backbone(pixels))
        coordinates: Tensor = unit_vectors(found) @ self.axes
        return coordinates


def principal_axes(features: Tensor) -> Tensor:
    """Return the axes (D, D) of directions, those of the largest second moments first."""
    x = unit_vectors(features).double()
    return torch.linalg.eigh(x.T @ x / len(x)).eigenvectors.flip(1).float()


def defence_of(text: str) -> Any:
    """Make a defence of `marginlab.inversion` from its text; None of "none"."""
    return None if text == "none" else settings.make(text, inversion, object)


def defended(features: Tensor, defence: Any, axes: Tensor) -> Tensor:
    """Return embeddings as they are stored under a defence."""
    if defence is None:
        return features
    if isinstance(defence, inversion.FewerDimensions):
        features = features @ axes
    stored: Tensor = defence(features)
    return stored


def read(
    chosen: Any, case: dict[str, Any], own: str, judge: str, *, folder: Path
) -> dict[str, Any]:
    """Read embeddings through a linear map into the judge's space, and verify by them.

    Args:
        chosen: The settings.
        case: defence, loss, seed, and the number of people.
        own: The folder of the network's embeddings.
        judge: That of the judge's.
        folder: Is not used.
    """
    parts, seed = networks.parts_of(chosen), case["seed"]
    ours, theirs = networks.embedded(folder, own), networks.embedded(folder, judge)
    axes, defence = principal_axes(ours["public"]), defence_of(case["defence"])
    pool = len(parts.known.classes) if parts.unseen else case["people"]
    ids = torch.arange(pool)
    taken = people.one_image(parts.known.labels, ids, seed)
    labels, C = parts.known.labels, len(parts.known.classes)
    center = networks.gallery(theirs["known"], labels, C, taken)[:pool]
    order = Key(seed).named("pairs").permutation(len(parts.public))

    def through(stored: Any, n: int, asked: Any) -> dict[str, Any]:
        chosen_pairs = order[:n]
        found = map_between(stored(ours["public"][chosen_pairs]), theirs["public"][chosen_pairs])
        guess = found(asked(ours["known"][taken])).float()
        cosine = nn.functional.cosine_similarity(guess, theirs["known"][taken])
        ranks = identity_ranks(guess, center, ids)
        return {"cosine": cosine.tolist(), "rank1": (ranks == 1).double().tolist()}

    def store(features: Tensor) -> Tensor:
        return defended(features, defence, axes)

    n = [each for each in chosen.pairs if each < len(order)] + [len(order)]
    result: dict[str, Any] = {"identity": ids.tolist(), "pairs": n}
    result["by pairs"] = [through(store, each, store) for each in n]
    stored = store(ours["public"])
    if stored.shape == ours["public"].shape:
        result["alone"] = through(lambda features: features, n[-1], store)
    if case["defence"] == "none":
        real = identity_ranks(theirs["known"][taken], center, ids)
        result["real"] = (real == 1).double().tolist()
        kept = [k for k in chosen.dims if k <= len(axes)]
        fewer = [inversion.FewerDimensions(k) for k in kept]
        narrow = [functools.partial(defended, defence=each, axes=axes) for each in fewer]
        result["dims"] = kept
        result["by dims"] = [through(each, n[-1], each) for each in narrow]
        result["probe"] = _probe(chosen, parts, ours)
    drawn = pairs(parts.public.labels, chosen.verified, folds=chosen.folds)
    verified = verification_accuracy(
        stored[drawn.first], stored[drawn.second], drawn.same, chosen.folds
    )
    return {**result, "folds": list(verified.folds)}


def _probe(chosen: Any, parts: people.Parts, ours: dict[str, Tensor]) -> dict[str, float]:
    """Read an attribute by a linear probe: fitted to public identities, asked of known ones."""
    told = [people.attributes_of(part, chosen.attributes) for part in (parts.public, parts.known)]
    if not all(told):
        return {}
    words = sorted(set(told[0]))
    fitted = torch.tensor([words.index(word) for word in told[0]])
    asked = torch.tensor([words.index(word) if word in words else -1 for word in told[1]])
    there = asked >= 0
    found = linear_probe(ours["public"], fitted, ours["known"][there], asked[there])
    chance = int(torch.bincount(fitted).argmax())
    pixels = [part.images.float().mean(1).flatten(1) / 255 for part in (parts.public, parts.known)]
    bare = linear_probe(pixels[0], fitted, pixels[1][there], asked[there])
    return {
        "embeddings": found.accuracy,
        "pixels": bare.accuracy,
        "most frequent": float((asked[there] == chance).double().mean()),
        "n": int(there.sum()),
        "classes": len(words),
    }
