"""Settings of a classifier, made of its arguments and checked, and its class weights checked."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from marginlab.kernels.margin_settings import MarginSettings
from marginlab.losses.faults import check_tensor
from marginlab.losses.pair import check_word
from marginlab.margins import Margin

# read once: torch.compile traces a lookup of names, but not `fields`
_NAMES = tuple(field.name for field in fields(MarginSettings))


def settings_among(arguments: Mapping[str, Any]) -> MarginSettings:
    """Return the settings that are among the arguments of a loss, checked.

    Args:
        arguments: The loss's arguments by name, as `locals()` gives them at its start.

    Raises:
        ValueError, TypeError: As `check_settings`.

    Example:
        >>> from marginlab.margins import ArcFace
        >>> settings_among({"embeddings": None, "margin": ArcFace(0.5), "scale": 8.0}).scale
        8.0
    """
    settings = MarginSettings(**{name: arguments[name] for name in _NAMES if name in arguments})
    check_settings(settings)
    return settings


def check_settings(settings: MarginSettings) -> None:
    """Check the settings of a loss.

    Raises:
        ValueError: A setting is invalid.
        TypeError: The margin is not a `Margin`.
    """
    margin, scale, filtered = settings.margin, settings.scale, settings.interclass_filter
    if not isinstance(margin, Margin):
        raise TypeError(
            f"A margin is an object of marginlab.margins, such as ArcFace(0.5), not {margin!r}."
        )
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"A scale is positive and finite, such as 64.0, not {scale}.")
    if not 0 <= settings.label_smoothing < 1:
        raise ValueError(f"label_smoothing lies in [0, 1), not at {settings.label_smoothing}.")
    if filtered is not None and not -1 <= filtered <= 1:
        raise ValueError(f"interclass_filter is a cosine, in [-1, 1], such as 0.4, not {filtered}.")
    if not math.isfinite(settings.dispersion):
        raise ValueError(f"dispersion is a finite weight, such as 0.1, not {settings.dispersion}.")
    check_word("reduction", settings.reduction, ("mean", "sum", "none"))
    if settings.budget is not None and settings.budget <= 0:
        raise ValueError(f"A budget is a positive number of bytes, not {settings.budget}.")
    if not 0 <= settings.negligible < 1:
        raise ValueError(f"negligible is a probability in [0, 1), not {settings.negligible}.")
    if settings.negligible > 0 and (settings.label_smoothing > 0 or margin.hardens):
        why = "label smoothing" if settings.label_smoothing > 0 else type(margin).__name__
        raise ValueError(
            f"negligible={settings.negligible} leaves rows out whose own class has nearly all of "
            f"their softmax. With {why} such rows have a gradient that its bound does not cover: "
            "set negligible=0."
        )
    if settings.operands not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            "operands are torch.float32, bfloat16 or float16, or None for the dtype of the "
            f"centers, not {settings.operands}."
        )


def check_classes(num_classes: int, ignore_index: int | None, class_weights: Tensor | None) -> None:
    """Check ignore_index and the class weights.

    Raises:
        ValueError: ignore_index is a class, or the weights do not fit the number of classes.
    """
    if ignore_index is not None and 0 <= ignore_index < num_classes:
        raise ValueError(
            f"ignore_index is the number of no class, such as -100: {ignore_index} is one of "
            f"0..{num_classes - 1}."
        )
    if class_weights is None:
        return
    check_tensor("Class weights", class_weights, f"({num_classes},) floating point numbers")
    if class_weights.shape != (num_classes,):
        raise ValueError(
            f"Class weights are ({num_classes},), one for each class, not "
            f"{tuple(class_weights.shape)}."
        )
    if not class_weights.is_meta and not bool(
        ((class_weights >= 0) & class_weights.isfinite()).all()
    ):
        raise ValueError(
            "Class weights are finite and not negative, and one is not. A class with weight 0 is "
            "not learned from."
        )
