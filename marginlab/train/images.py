"""The images of a run: loaded, found fit to be trained on, and the same on every rank."""

import copy
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch

import marginlab
from marginlab import augment, ranks, settings
from marginlab.data import ImageSet
from marginlab.data import load as load_images
from marginlab.data.images import warn_of_absent
from marginlab.data.pixels import BUDGET
from marginlab.data.streaming import default_workers
from marginlab.methods import Method
from marginlab.settings import SettingsError
from marginlab.train.monitor import Monitor
from marginlab.train.recipe import AT_HAND, Recipe


def together(
    recipe: Recipe, monitor: Monitor, device: torch.device, reading: dict[str, Any]
) -> tuple[ImageSet, ImageSet, ImageSet | None]:
    """Load the images of a recipe and those to be verified, and check that all ranks agree.

    Args:
        recipe: What is trained.
        monitor: What is measured.
        device: Where ranks exchange what they have: cuda for NCCL.
        reading: root, budget, workers and data, as in `check`.

    Raises:
        SettingsError: `check` refuses the recipe. Or ranks would train something else than others,
            such as on a stale copy. Every rank raises, and the message names the ranks and what
            each has.
        ValueError: Another rank met some other error of `check`. The rank that met it raises the
            error itself.
    """
    train = test = unseen = None
    error: Exception | None = None
    try:
        train, test = check(recipe, **reading)
        unseen = monitor.unseen(
            train,
            reading["root"],
            recipe.image_size,
            budget=reading["budget"],
            workers=reading["workers"],
        )
    except Exception as raised:  # from a decoder or a full memory too: the other ranks would wait
        error = raised
    said: dict[str, Any] = {}
    if ranks.size() > 1 and error is None:
        said = _said(recipe, monitor, {"train": train, "test": test, "unseen": unseen})
    try:
        ranks.raise_together(0, error, device=device, what="fit", refused="its images", **said)
    except ValueError as differs:
        if differs is error or error is not None:
            raise
        remedy = "Give every rank the same recipe, the same files and the same versions."
        raise SettingsError(f"{differs} {remedy}") from None
    assert train is not None
    assert test is not None
    return train, test, unseen


def _said(recipe: Recipe, monitor: Monitor, sets: dict[str, ImageSet | None]) -> dict[str, Any]:
    """Collect the values that decide the numbers of a run, by name."""
    said: dict[str, Any] = {"version of torch": torch.__version__}
    said["version of marginlab"] = marginlab.__version__
    for name, chosen in (("recipe", recipe), ("monitor", monitor)):
        for field in dataclasses.fields(chosen):
            said[f"{name}.{field.name}"] = getattr(chosen, field.name)
    for split, images in sets.items():
        if images is None:
            said[f"{split} images"] = None
            continue
        labels = images.labels.cpu().contiguous().numpy().tobytes()
        said[f"{split} images"] = tuple(images.images.shape)
        said[f"{split} classes"] = images.classes
        said[f"digest of {split} labels"] = hashlib.sha256(labels).hexdigest()[:16]
        said[f"digest of {split} images and labels"] = images.digest()
    return said


def check(
    recipe: Recipe,
    root: Path | str | None = None,
    *,
    budget: int = BUDGET,
    workers: int | None = None,
    data: tuple[ImageSet, ImageSet] | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Load the training and test images of a recipe, and refuse images that it cannot train on.

    `fit` begins with it. `data.load` may raise further errors.

    Args:
        recipe: What is trained.
        root: As in `fit`.
        budget: As in `fit`.
        workers: As in `fit`.
        data: As in `fit`.

    Returns:
        The training images and the test images.

    Raises:
        SettingsError: The batch exceeds the images or splits unevenly over micro-batches and ranks,
            or the two splits differ in their classes. Or images at hand are of another size than
            the recipe's, or are missing.
    """
    workers = default_workers() if workers is None else workers
    if data is not None:
        train, test = _given(data, recipe.image_size)
    elif recipe.data == AT_HAND:
        raise SettingsError(
            "This recipe trains on images at hand, which no name gives back. Give them again: "
            "fit(recipe, folder, data=(train, test))."
        )
    else:
        train, test = (
            load_images(
                recipe.data, split, root, size=recipe.image_size, budget=budget, workers=workers
            )
            for split in ("train", "test")
        )
    train = train.subset(recipe.images, recipe.seed)
    if 0 < recipe.images < len(train.classes):  # otherwise each class that has images keeps one
        warn_of_absent(train, "train")
    if recipe.batch > len(train):
        raise SettingsError(
            f"A batch of {recipe.batch} is more than the {len(train)} training images of "
            f"{train.name}. Take batch <= {len(train)}."
        )
    if recipe.batch % (recipe.accumulate * ranks.size()):
        raise SettingsError(
            f"A batch of {recipe.batch} is not {recipe.accumulate} micro-batches on {ranks.size()} "
            "ranks. Make it a multiple."
        )
    if train.classes != test.classes:
        raise SettingsError(
            f"{train.name} has classes {train.classes} in train, but {test.classes} in test. Both "
            "want the same."
        )
    return train, test


def _given(data: tuple[ImageSet, ImageSet], size: int) -> tuple[ImageSet, ImageSet]:
    """Return a pair of image sets at hand, if it is one, of images of one size."""
    if (
        not isinstance(data, tuple | list)
        or len(data) != 2
        or not all(isinstance(images, ImageSet) for images in data)
    ):
        raise SettingsError(
            "data is a pair of image sets, (train, test), each a marginlab.data.ImageSet, not "
            f"{type(data).__name__}."
        )
    train, test = data
    height, width = train.images.shape[2:]
    if test.images.shape[2:] != train.images.shape[2:]:
        other = " x ".join(str(side) for side in test.images.shape[2:])
        raise SettingsError(
            f"Training images at hand are {height} x {width}, and test images {other}. Resize one "
            "of them to the size of the other."
        )
    if size and (height, width) != (size, size):
        raise SettingsError(
            f"image_size = {size} resizes images that are loaded by name. The images at hand are "
            f"{height} x {width} and stay as they are: leave image_size at 0, or resize them."
        )
    return train, test


def passes(method: Method, train: ImageSet, recipe: Recipe, device: torch.device) -> None:
    """Refuse images of a size that the backbone cannot take, and too small micro-batches.

    The backbone's layers decide how small a micro-batch may be.
    """
    shape = tuple(train.images.shape[1:])
    method.eval()
    try:
        with torch.no_grad():
            method.encode(torch.zeros(1, *shape, device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        why = str(error).split("\n")[0]
        raise SettingsError(
            f"{recipe.backbone} does not take images of {shape}: {why} Set image_size, of the "
            "recipe or of Backbone(...)."
        ) from error
    method.train()
    # batch normalisation needs more than one value for a variance
    if recipe.batch // (recipe.accumulate * ranks.size()) * method.n_views == 1:
        try:
            with (
                torch.no_grad(),
                torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            ):
                trial = copy.deepcopy(method)
                trial.project(trial.encode(torch.zeros(1, *shape, device=device)))
        except ValueError as error:
            raise SettingsError(
                f"A micro-batch is one view (batch = {recipe.batch}, accumulate = "
                f"{recipe.accumulate}): {error}."
            ) from error


def viewable(recipe: Recipe, monitor: Monitor, train: ImageSet) -> None:
    """Refuse augmentations (of training or monitor) that cannot take images of this size.

    Raises:
        SettingsError: An augmentation makes no views. The message names the setting.
    """
    blank = torch.zeros(1, *train.images.shape[1:], dtype=torch.uint8)
    asked = {"augmentation": recipe.make_augmentation()}
    if monitor.augmentation and not monitor.off:
        asked["the monitor's augmentation"] = settings.make(
            monitor.augmentation, augment, augment.Augmentation
        )
    for name, augmentation in asked.items():
        try:
            augmentation.views(blank, n_views=1)
        except (ValueError, TypeError) as error:
            raise SettingsError(
                f"{name} = {augmentation!r} makes no views of images of {tuple(blank.shape[1:])}: "
                f"{error}"
            ) from error
