"""The class centers that a run takes from the run it starts from.

    by name      a class of this run takes the centers of the class of that name; without a common
                 name, class c takes those of class c
    dominant     of more sub-centers than this run has, those that most of this run's images vote
                 for, the one with most votes first
    drawn        classes that the other run does not have

So a purified set, from which classes may have vanished, is trained again from three sub-centers to
one by a recipe's `start` alone.

Source: Deng et al. 2022 (ArcFace, TPAMI), section 3.2, trains the single center from scratch.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from marginlab import ranks
from marginlab.data import ImageSet
from marginlab.encoding import encode
from marginlab.losses import PartialFC, resized
from marginlab.methods import MarginClassifier
from marginlab.train.usage import subcenter_votes

_ROWS = 4096  # images that are embedded at a time, over all ranks


def started_centers(
    centers: Float[Tensor, "C K D"],
    part: PartialFC,
    old: nn.Module,
    images: ImageSet | None,
) -> Float[Tensor, "C2 K2 D"] | None:
    """Return the centers of all classes that a run begins with; all ranks call it.

    Args:
        centers: The centers of all classes of the other run.
        part: The classifier of this run.
        old: The method of the other run, with its weights and the names of its classes.
        images: The training images of this run; without them nothing is known of names and votes.

    Returns:
        The centers, or None where they fit neither in width nor in number of sub-centers.
    """
    C, K = part.num_classes, part.subcenters
    if centers.shape[2] != part.dim or centers.shape[1] < K:
        return None
    if centers.shape[1] > K and (images is None or not isinstance(old, MarginClassifier)):
        return None
    names = () if images is None else images.classes
    number = _numbers(tuple(getattr(old, "classes", ())), names, len(centers), C)
    if images is not None and isinstance(old, MarginClassifier) and centers.shape[1] > K:
        order = _votes(old, images, number).argsort(dim=1, descending=True, stable=True)
        centers = centers.gather(1, order[:, :K, None].to(centers.device).expand(-1, -1, part.dim))
    out = resized(centers[:0], C, seed=part.seed)
    there = (number >= 0).to(centers.device)
    out[there] = centers[number.to(centers.device)[there]]
    return out


def _numbers(
    old: tuple[str, ...], new: tuple[str, ...], there: int, here: int
) -> Int64[Tensor, " C2"]:
    """Return the other run's class of each class, -1 for none."""
    place = {name: c for c, name in enumerate(old)}
    found = torch.tensor([place.get(name, -1) for name in new], dtype=torch.int64)
    if len(new) == here and bool((found >= 0).any()):
        return found
    every = torch.arange(here)
    return every.masked_fill(every >= there, -1)


@torch.no_grad()
def _votes(
    old: MarginClassifier, images: ImageSet, number: Int64[Tensor, " C2"]
) -> Int64[Tensor, "C K"]:
    """Return the votes of this run's images for the other run's sub-centers."""
    head = old.classifier
    labels = number[images.labels.cpu()]
    labels = labels.masked_fill(labels < 0, -100)  # of no class there
    votes = torch.zeros(head.num_classes, head.subcenters, dtype=torch.int64)
    held: Any = images.images
    for rows in torch.arange(len(images)).split(_ROWS):
        own = rows[ranks.rank_slice(len(rows))]
        part = held[own.to(held.device)] if isinstance(held, Tensor) else held.at(own)
        embedded = head.centers.new_empty(0, head.dim)
        if len(own):
            embedded = encode(lambda x: old.project(old.encode(x)), part).to(embedded)
        votes += subcenter_votes(head, embedded, labels[own].to(embedded.device)).cpu()
    return votes
