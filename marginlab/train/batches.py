"""The batches of a run: which rows a rank takes at a step, their images, and their views.

    rows of step t of epoch e    the t-th batch of the e-th permutation, split into micro-batches,
                                 each of them into the shares of the ranks
    views of row i in epoch e    the views V e to V e + V - 1 of image i

Both are drawn from (seed, epoch, image, view), so they are the same whenever they are drawn.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from marginlab import ranks
from marginlab.augment import Augmentation
from marginlab.data import ImageSet
from marginlab.data.streaming import batches
from marginlab.rng import Key
from marginlab.train.recipe import Recipe


class Batches:
    """This rank's part of every batch of a run.

    Args:
        recipe: What is trained.
        train: The training images.
        augmentation: The augmentation of the recipe.
        n_views: Views V of each image.
        device: Where the images are put.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: ImageSet,
        augmentation: Augmentation,
        n_views: int,
        device: torch.device,
    ):
        self.recipe, self.train, self.augmentation = recipe, train, augmentation
        self.n_views, self.device = n_views, device
        self.per_epoch = len(train) // recipe.batch
        self.steps = recipe.epochs * self.per_epoch
        # caches this epoch and the next, which may be read ahead
        self.order = functools.lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> Tensor:
        return Key(self.recipe.seed).named("order").at(epoch).permutation(len(self.train))

    def rows_of(self, step: int) -> list[Tensor]:
        """Return this rank's rows of each micro-batch of a step."""
        epoch, place = divmod(step, self.per_epoch)
        batch, order = self.recipe.batch, self.order(epoch)
        parts = order[place * batch : (place + 1) * batch].split(batch // self.recipe.accumulate)
        return [part[ranks.rank_slice(len(part))] for part in parts]

    def own_rows(self, first: int) -> Iterator[Tensor]:
        """Yield this rank's rows of each micro-batch, from step `first` to the end of the run."""
        for step in range(first, self.steps):
            yield from self.rows_of(step)

    def opened(
        self, first: int
    ) -> contextlib.AbstractContextManager[Iterator[tuple[Tensor, Tensor]]]:
        """Start reading the micro-batches from step `first` on, for `read`; the context ends it."""
        return contextlib.closing(batches(self.train.images, self.own_rows(first)))

    def read(self, parts: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the rows of the next micro-batch and their images.

        If a rank cannot read its images from files, all ranks raise.
        """
        if isinstance(self.train.images, Tensor):
            return next(parts)
        error, found = None, (torch.empty(0, dtype=torch.long),) * 2
        try:
            found = next(parts)
        except Exception as raised:
            error = raised
        ranks.raise_together(len(found[0]), error, device=self.device, refused="its images")
        return found[0], found[1].to(self.device)

    def views(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Return the views of these images in an epoch, the same whenever they are drawn."""
        n = self.n_views
        return self.augmentation.views(
            images, index=rows, n_views=n, seed=self.recipe.seed, first_view=n * epoch
        )

    def views_again(self, rows: Tensor, epoch: int) -> Tensor:
        """Return the views of these rows in an epoch, read and drawn once more."""
        return self.views(self.train.images[rows].to(self.device), rows, epoch)
