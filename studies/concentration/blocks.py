"""Blocks of images of all classes, with views of their own, and their concentration."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from marginlab import data
from marginlab.augment import Augmentation
from marginlab.data import ImageSet
from marginlab.measures import Between, Concentration, ConcentrationResult

# of the views whose distances are measured: not those of any training seed in use
VIEW_SEED = 1_000_003
# bytes of views and distances held at a time; beyond it the measure takes fewer images, and says so
BUDGET = 2**33


@dataclass(frozen=True)
class Measured:
    """The settings of the study that decide the numbers of an augmentation."""

    data: str
    image_size: int
    augmentation: str
    per_class: int
    blocks: int
    views: int
    delta: float
    deep_views: int
    deep_per_class: int
    sharpened: int


class Block(NamedTuple):
    """Images of all classes, equally many of each, and the number of the first.

    The numbers of the images name the draws of their views.
    """

    images: ImageSet
    first: int

    def views(self, augmentation: Augmentation, rows: Tensor, n_views: int) -> Tensor:
        """Views of some of the images, the image itself first."""
        return augmentation.views(
            self.images.images[rows],
            index=rows + self.first,
            n_views=n_views,
            seed=VIEW_SEED,
            identity=True,
        )


def blocks(measured: Measured) -> list[Block]:
    """Return the blocks of training images.

    Where the smallest class does not have as many images as asked for, there are fewer images of a
    class, then fewer blocks.
    """
    images = data.load(measured.data, "train", size=measured.image_size)
    smallest = int(torch.bincount(images.labels).min())
    n = min(measured.per_class, smallest)
    parts = images.blocks(n, max(1, min(measured.blocks, smallest // n)))
    return [Block(part, number * len(part)) for number, part in enumerate(parts)]


class Both(NamedTuple):
    """Concentration within the classes, and in groups drawn across them.

    Where asked for, it includes the part between the classes.
    """

    within: ConcentrationResult
    control: ConcentrationResult
    between: Between | None


def measure_block(
    block: Block, augmentation: Augmentation, levels: tuple[int, ...], *, between: bool = False
) -> Both:
    """Measure a block's concentration by number of views, within and across classes."""
    labels = block.images.labels
    within, control = (
        Concentration(levels, budget=BUDGET, controls=wanted, sync_on_compute=False)
        for wanted in (between, False)
    )
    for rows in torch.arange(len(labels)).split(256):  # a measure copies what it is given
        views = block.views(augmentation, rows, levels[-1])
        within.update(views, labels[rows])
        control.update(views, across_classes(labels)[rows])
    found = within.compute()
    return Both(found, control.compute(), found.between)


def across_classes(labels: Tensor) -> Tensor:
    """Draw groups across classes, as many and as large as these.

    The images of each class are dealt to the groups in turn.
    """
    place = torch.stack(
        [(labels == label).long().cumsum(0) - 1 for label in range(int(labels.max()) + 1)]
    ).gather(0, labels[None])[0]
    return (place + labels) % (int(labels.max()) + 1)
