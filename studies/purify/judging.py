"""Planted noise, as a trained classifier finds it: rows of precision, recall, shares and votes."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from marginlab import purify
from marginlab.methods import MarginClassifier

from .planting import Planted

ANGLES = tuple(range(40, 111, 5))  # degrees, of the curve of precision and recall


class Found(NamedTuple):
    """A number of a judgement: the columns of its row."""

    quantity: str
    value: float
    space: str
    at: str | float = ""


def kept(
    model: MarginClassifier, planted: Planted, stage: str, max_angle: float
) -> Bool[Tensor, " N"]:
    """Return which images a purification keeps, at the fixed angle or at that of the mixture."""
    angle: Any = "mixture" if stage == "mixture" else max_angle
    return purify.purify(model, planted.images, max_angle=angle).keep


def by_angle(model: MarginClassifier, planted: Planted, max_angle: float) -> Iterator[Found]:
    """Yield what the angle to the dominant sub-center finds, at each threshold, and figure 7."""
    images, wrong = planted.images, planted.wrong
    fixed = purify.purify(model, images, max_angle=max_angle)
    cosines = model.classifier.cosines(purify.embeddings_of(model, images), images.labels)
    mixture = purify.judged(cosines, images.labels, images.classes, max_angle="mixture")
    for at, found in (("fixed", fixed), ("mixture", mixture)):
        yield from _scored("angle", at, purify.by_subcenter(found), wrong)
    yield Found("separated", float(bool(mixture.threshold.separated)), "angle", "mixture")
    for angle in ANGLES:
        dropped = fixed.angle >= angle
        hit = int((dropped & wrong).sum())
        yield Found("precision", hit / max(int(dropped.sum()), 1), "curve", angle)
        yield Found("recall", hit / int(wrong.sum()), "curve", angle)
    for name, share in purify.noise_shares(fixed, wrong)._asdict().items():
        yield Found(name, share, "figure 7")
    used = fixed.counts[:, 0] > 0
    yield Found("dead_subcenters", float((fixed.votes[used] == 0).double().mean()), "votes")
    yield Found("vanished", len(fixed.vanished), "angle", "fixed")


def by_rivals(model: MarginClassifier, planted: Planted, seed: int) -> Iterator[Found]:
    """Yield what the other scores find, of the same classifier."""
    images, wrong = planted.images, planted.wrong
    embeddings = purify.embeddings_of(model, images)
    losses = purify.image_losses(model.classifier, embeddings, images.labels)
    known = float(wrong.double().mean())
    for space, at, found in (
        ("loss", "mixture", purify.by_loss(losses)),
        ("loss", "known share", purify.by_loss(losses, share=known)),
        ("mean", "mixture", purify.by_mean(embeddings, images.labels)),
        ("confidence", "", purify.by_confidence(embeddings, images.labels, seed=seed)),
    ):
        yield from _scored(space, at, found, wrong)


def _scored(space: str, at: str, found: purify.Suspicion, wrong: Tensor) -> Iterator[Found]:
    """Yield the numbers of one score; a precision or threshold that does not exist is left out."""
    (row,) = purify.comparison({space: found}, wrong)
    for quantity in ("precision", "recall", "auc", "threshold"):
        value = float(row[quantity])
        if math.isfinite(value):
            yield Found(quantity, value, space, at)
    yield Found("dropped", float((~found.keep).double().mean()), space, at)


def left(keep: Tensor, planted: Planted) -> Iterator[Found]:
    """Yield how many images a retraining sees, and how many of them are wrong."""
    yield Found("kept", float(keep.double().mean()), "images")
    yield Found("kept_wrong", float(planted.wrong[keep].double().mean()), "images")
    lost = torch.bincount(planted.images.labels[keep], minlength=len(planted.images.classes)) == 0
    yield Found("classes_lost", float(lost.sum()), "images")
