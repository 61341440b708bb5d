"""Purification of a labelled set by a trained classifier with sub-centers.

    embed every image once -> cosines with its class's sub-centers -> votes -> keep rule

`marginlab.purify.purification` has the rule, `marginlab.purify.streaming` the pass over the images.

Source: Deng et al. 2022 (ArcFace, TPAMI), section 3.2.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from marginlab.data import ImageSet
from marginlab.purify.embedding import Head, check_classes, embedder
from marginlab.purify.purification import Purification, check_angle, judged
from marginlab.purify.streaming import cosines_of


def purify(
    model: nn.Module,
    images: ImageSet,
    *,
    max_angle: float | Literal["mixture"] = 75.0,
    head: Head | None = None,
    batch: int = 512,
    folder: Path | str | None = None,
    device: torch.device | str | None = None,
    say: Callable[[int, int], None] | None = None,
) -> Purification:
    """Judge which images of a set are of their class, by a classifier trained on it.

    Memory is that of a block of embeddings and of K numbers for each image, also for streamed sets.
    On several ranks (the group of the classifier) each embeds a part of the images; all get the
    whole result.

    Args:
        model: A trained `MarginClassifier`, or a module of your own from images to embeddings.
        images: The set that it was trained on. It stays as it is.
        max_angle: Largest angle in degrees between an image and the dominant sub-center of its
            class, or "mixture" to take it from the angles (`mixture_threshold`).
        head: The classifier of a module of your own.
        batch: Images that are embedded at a time.
        folder: Where finished blocks are kept. A second call with the same arguments continues
            there, and ends with the same result, bit for bit.
        device: Where the model runs; by default where it is.
        say: Is called with the images that are done, and their number in all.

    Raises:
        ValueError: A model without class centers, or trained on other classes; an angle or a batch
            that makes no sense; a folder that holds the pass of another model or set.

    Example:
        >>> from marginlab.data import load
        >>> from marginlab.methods import MarginClassifier
        >>> from marginlab.models import Backbone
        >>> digits = load("digits", "test", size=16)
        >>> backbone = Backbone("resnet18", stem="strided", width=0.125)
        >>> model = MarginClassifier(backbone, 10, dim=8, subcenters=3)  # here not trained
        >>> found = purify(model, digits, max_angle=100.0)
        >>> found.votes.shape, len(found.apply(digits)) == int(found.keep.sum())
        (torch.Size([10, 3]), True)
    """
    check_angle(max_angle)
    found = embedder(model, head)
    check_classes(images, model, found.head)
    where = None if folder is None else Path(folder)
    cosines = cosines_of(images, found, batch=batch, folder=where, device=device, say=say)
    return judged(cosines, images.labels, images.classes, max_angle=max_angle)
