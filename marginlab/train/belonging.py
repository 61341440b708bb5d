"""Checks that a checkpoint belongs to a recipe (its settings) and a method (its tensors)."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from marginlab import settings
from marginlab.methods import Method
from marginlab.train.recipe import Recipe


def of_recipe(checkpoint: Path, recipe: Recipe) -> None:
    """Refuse a checkpoint of another recipe, even where all shapes are the same."""
    with settings.as_data():
        theirs = settings.read(Recipe, checkpoint / "recipe.toml")
    for field in dataclasses.fields(Recipe):
        before, now = getattr(theirs, field.name), getattr(recipe, field.name)
        if before != now:
            raise ValueError(
                f"{checkpoint / 'recipe.toml'} has {field.name} = {before!r}, and this run "
                f"{now!r}: it is the checkpoint of another run. Choose another folder, or put the "
                "run's own checkpoint back."
            )


def of_method(checkpoint: Path, there: dict[str, Any], method: nn.Module) -> None:
    """Refuse a checkpoint whose tensors are not those of this method."""
    for name, value in method.state_dict().items():
        held = there.get(f"method.{name}")
        shape = tuple(held.size) if isinstance(held, TensorStorageMetadata) else None
        if isinstance(value, Tensor) and shape != tuple(value.shape):
            what = "does not hold it" if held is None else f"holds {shape}"
            raise ValueError(
                f"{checkpoint} is of another method, or of data with other classes: here {name} is "
                f"{tuple(value.shape)}, and it {what}. Choose another folder, or the recipe and "
                "data that it was trained with."
            )


def sketch(recipe: Recipe, classes: int) -> Method | None:
    """Make the method without memory for its tensors; None if its code does not allow that.

    A method or backbone of the user's own code may be such a case.
    """
    try:
        with torch.device("meta"):
            return recipe.make_method(classes)
    except (RuntimeError, NotImplementedError):
        return None
