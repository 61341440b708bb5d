"""How classes of one identity, and small classes, fare under sampled classes.

A negative is a class that a step compares a row with and that is no label of the batch. A twin of a
class is another class of the same identity.

    twin_negatives    share of a step's negatives that are twins of a label of the batch
    twins_seen        share of the rows of split classes whose twin the step compares them with
    passive           updates of a center as a negative, for each one as a label
    center_cosine     mean cosine between the centers of twins, and of other pairs
    center_angle      mean angle of an image to the center of its class
    precision, recall of the pairs of classes whose centers are nearer than an angle
"""

from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor

from marginlab import purify
from marginlab.methods import MarginClassifier
from marginlab.train import Recipe, sampled_steps

from .judging import Found
from .planting import Planted

ANGLES = (20, 30, 40, 50, 60, 70)  # degrees, of pairs of classes that are called one identity


def of_steps(recipe: Recipe, planted: Planted) -> Iterator[Found]:
    """Yield what the steps of a training did to twins and to centers, by the size of a class."""
    origin, C = planted.origin, len(planted.images.classes)
    passive, active = torch.zeros(C), torch.zeros(C)
    twins, seen, steps, split = 0.0, 0, 0, 0
    sizes = torch.bincount(origin)
    for labels, classes in sampled_steps(recipe, planted.images):
        steps += 1
        positive = torch.zeros(C, dtype=torch.bool)
        positive[labels] = True
        negatives = classes[~positive[classes]]
        there = torch.bincount(origin[positive.nonzero()[:, 0]], minlength=len(sizes)) > 0
        if len(negatives):
            twins += float(there[origin[negatives]].double().mean())
        compared = torch.bincount(origin[classes], minlength=len(sizes))
        own = labels[sizes[origin[labels]] > 1]
        split += len(own)
        seen += int((compared[origin[own]] > 1).sum())
        passive[negatives] += 1
        active[positive] += 1
    if bool((sizes > 1).any()):
        yield Found("twin_negatives", twins / steps, "steps")
        yield Found("twins_seen", seen / max(split, 1), "steps")
    for name, chosen in _groups(planted):
        yield Found("passive", float(passive[chosen].sum() / active[chosen].sum()), "steps", name)


def of_centers(model: MarginClassifier, planted: Planted) -> Iterator[Found]:
    """Yield how the trained centers lie, to each other and to the images of their classes."""
    found = purify.purify(model, planted.images)
    centers = model.classifier.centers.detach()[torch.arange(len(found.dominant)), found.dominant]
    for name, chosen in _groups(planted):
        rows = chosen[planted.images.labels]
        yield Found("center_angle", float(found.angle[rows].mean()), "centers", name)
    if bool(planted.whole.all()) or len(planted.origin.unique()) == len(planted.origin):
        return
    directions = torch.nn.functional.normalize(centers.double(), dim=1)
    cosines = directions @ directions.T
    same = planted.origin[:, None] == planted.origin[None]
    other = ~same
    same.fill_diagonal_(False)
    yield Found("center_cosine", float(cosines[same].mean()), "centers", "twins")
    yield Found("center_cosine", float(cosines[other].mean()), "centers", "other pairs")
    for angle in ANGLES:
        precision, recall = purify.pairs_found(
            purify.conflicts(centers, max_angle=angle), planted.origin
        )
        if precision == precision:  # there are pairs
            yield Found("precision", precision, "pairs", angle)
        yield Found("recall", recall, "pairs", angle)


def _groups(planted: Planted) -> Iterator[tuple[str, Int64[Tensor, " n"]]]:
    """Yield the classes that are left whole and those that are not, as masks, if there are any."""
    for name, chosen in (("whole", planted.whole), ("cut", ~planted.whole)):
        if bool(chosen.any()):
            yield name, chosen
