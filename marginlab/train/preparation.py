"""Preparation of a run before it claims its folder: images, method, optimizers, precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from marginlab import ranks
from marginlab.data import ImageSet
from marginlab.methods import Method
from marginlab.train import keeping, precision
from marginlab.train.images import passes, together, viewable
from marginlab.train.monitor import Monitor
from marginlab.train.recipe import Recipe


class Prepared(NamedTuple):
    """Method, optimizers and images of a run, checked against its recipe.

    Attributes:
        device: Where it trains.
        method: The method before its first step, on the device.
        optimizers: The optimizers of its parameters.
        train: The training images.
        test: The test images.
        unseen: The images whose pairs are verified, or None.
    """

    device: torch.device
    method: Method
    optimizers: list[torch.optim.Optimizer]
    train: ImageSet
    test: ImageSet
    unseen: ImageSet | None

    def digests(self) -> str:
        """Return the digests of all its images, as the claim to the folder keeps them."""
        sets = (self.train, self.test, self.unseen)
        return " ".join(s.digest() for s in sets if s is not None) + "\n"


def prepared(
    recipe: Recipe, monitor: Monitor, folder: Path, device: torch.device, reading: dict[str, Any]
) -> Prepared:
    """Load the images, make the method and its optimizers, and refuse what cannot be trained.

    All ranks call it. Nothing is written.

    Args:
        recipe: What is trained.
        monitor: What is measured.
        folder: The run folder. Where it holds no checkpoint, the weights of `recipe.start` are
            loaded.
        device: Where the method is put.
        reading: root, budget, workers and data, as in `check`.
    """
    train, test, unseen = together(recipe, monitor, device, reading)
    method = recipe.make_method(len(train.classes))
    method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.start and keeping.newest(folder, device) is None:
        keeping.start(method, recipe.start, train)
    passes(method, train, recipe, device)
    viewable(recipe, monitor, train)
    optimizers = method.optimizers(recipe.make_optimizer())
    return Prepared(device, method, optimizers, train, test, unseen)


def dtype_of(
    recipe: Recipe, ready: Prepared, record: Path, say: Callable[[str], None] | None
) -> torch.dtype | None:
    """Return the type of autocast, None for none, by a probe where the recipe says "auto".

    Args:
        recipe: What is trained.
        ready: Its method and images.
        record: The folder of `precision.json`.
        say: Is told what a probe found; None prints it.
    """
    n = recipe.batch // (recipe.accumulate * ranks.size()) * ready.method.n_views
    shape = torch.Size((n, *ready.train.images.shape[1:]))
    took, told = precision.chosen(recipe.precision, ready.method.backbone, shape, record)
    if told and ranks.rank() == 0:
        (say or print)(told)
    return precision.PRECISIONS[took]


def own_device() -> torch.device:
    """Return this rank's GPU, or the CPU if there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", ranks.rank() % torch.cuda.device_count())
