"""Checks of inputs that the theorems share, made before anything is computed.

A quantity that cannot be what it is named is an error.
"""

import math

import torch
from torch import Tensor

SUM = 1e-6  # class priors may have been estimated in float32


def priors(p: Tensor) -> Tensor:
    """Return class priors p (C,) as float64.

    Fewer than two classes, an empty class, or a sum other than 1 are refused.
    """
    wide = p.detach().double()
    if (
        wide.ndim != 1
        or len(wide) < 2
        or not bool((wide > 0).all())
        or abs(float(wide.sum()) - 1) > SUM
    ):
        raise ValueError(
            f"Class priors are at least two positive numbers that sum to 1, not {p.tolist()}. Drop "
            "empty classes."
        )
    return wide / wide.sum()


def gram_matrix(gram: Tensor, classes: int, r: float = math.inf) -> Tensor:
    """Return inner products of class centers (C, C) as float64.

    Another shape, values not finite, no symmetry, or centers longer than r are refused.
    """
    wide = gram.detach().double()
    if wide.shape != (classes, classes) or not bool(wide.isfinite().all()):
        raise ValueError(
            f"Inner products of {classes} class centers are finite and ({classes}, {classes}), not "
            f"{tuple(gram.shape)} or not finite."
        )
    scale = float(wide.abs().max())
    if (
        float((wide - wide.T).abs().max()) > 1e-6 * max(scale, 1e-300)
        or float(wide.diagonal().min()) < -1e-6 * scale
    ):
        raise ValueError(
            "Inner products of class centers are symmetric with squared lengths on the diagonal, "
            f"not {wide.tolist()}."
        )
    if float(wide.diagonal().max()) > r**2 * (1 + 1e-6):
        longest = math.sqrt(float(wide.diagonal().max()))
        raise ValueError(
            f"Centers of features of length {r:g} are no longer than these, not {longest:.6g} "
            "long: is r right?"
        )
    return wide


def fraction(name: str, value: float) -> float:
    """Return a probability as float; refuse one outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a probability in [0, 1], not {value}.")
    return float(value)


def fractions(name: str, values: Tensor, classes: int) -> Tensor:
    """Return a probability for each class (C,), as float64."""
    wide = values.detach().double()
    if wide.shape != (classes,) or not bool(((wide >= 0) & (wide <= 1)).all()):
        raise ValueError(
            f"{name} is a probability in [0, 1] for each of {classes} classes, not "
            f"{values.tolist()} of shape {tuple(values.shape)}."
        )
    return wide


def not_negative(**values: float) -> None:
    """Refuse a quantity that is negative, infinite or NaN."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is finite and not negative, not {value}.")


def positive(**values: float) -> None:
    """Refuse a quantity that is not positive and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is positive and finite, not {value}.")


def of_each_class(name: str, values: Tensor, classes: int) -> Tensor:
    """Return a quantity for each class (C,), not negative, as float64."""
    wide = values.detach().double()
    if (
        wide.shape != (classes,)
        or not bool((wide >= 0).all())
        or not bool(torch.isfinite(wide).all())
    ):
        raise ValueError(
            f"{name} is finite and not negative for each of {classes} classes, not "
            f"{values.tolist()} of shape {tuple(values.shape)}."
        )
    return wide
