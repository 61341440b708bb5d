"""The classes that each step of a training saw, replayed from its recipe without training.

    labels of step t     those of the t-th batch of the e-th permutation
    sample of step t     S = draw(seed, t, labels)          (`marginlab.losses.draw`)

Order and sample are drawn from counters, so a step's sample is the same whenever it is drawn, and
on any number of ranks.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from marginlab.data import ImageSet
from marginlab.losses import PartialFC
from marginlab.losses.draw import draw_classes
from marginlab.settings import SettingsError
from marginlab.train.batches import Batches
from marginlab.train.recipe import Recipe


class SampledStep(NamedTuple):
    """A step of a margin classifier.

    Attributes:
        labels: (B,) the labels of the batch of all ranks.
        classes: (n,) the classes that the loss compares with, ascending. The labels are among them.
    """

    labels: Int64[Tensor, " B"]
    classes: Int64[Tensor, " n"]


def sampled_steps(recipe: Recipe, images: ImageSet) -> Iterator[SampledStep]:
    """Yield the classes that each step of a margin classifier's training saw, in order.

    Args:
        recipe: What was trained.
        images: The images that it was trained on.

    Raises:
        SettingsError: The recipe's method has no class centers.

    Example:
        >>> from marginlab.data import load
        >>> method = "MarginClassifier(dim=4, sample_rate=0.5)"
        >>> backbone = "Backbone('resnet18', stem='strided', width=0.125)"
        >>> recipe = Recipe(method=method, backbone=backbone, batch=3, epochs=1)
        >>> step = next(sampled_steps(recipe, load("digits", "test")))
        >>> len(step.labels), len(step.classes)
        (3, 5)
    """
    method = recipe.make_method(len(images.classes))
    head = getattr(method, "classifier", None)
    if not isinstance(head, PartialFC):
        raise SettingsError(
            f"{recipe.method} has no class centers, so no step samples classes. Give the recipe of "
            "a MarginClassifier."
        )
    augmentation, every = recipe.make_augmentation(), torch.arange(head.num_classes)
    batches = Batches(recipe, images, augmentation, method.n_views, torch.device("cpu"))
    labels = images.labels.cpu()
    for step in range(batches.steps):
        epoch, place = divmod(step, batches.per_epoch)
        rows = batches.order(epoch)[place * recipe.batch : (place + 1) * recipe.batch]
        classes = every
        if head.sample_rate < 1:
            drawn = draw_classes(
                labels[rows], head.num_classes, head.size, seed=head.seed, step=step, log_q=False
            )
            classes = drawn.classes
        yield SampledStep(labels[rows], classes)
