"""New images: images that training has not seen, checked, or a share of the images put aside."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from marginlab.measures.views.alignment import alignment
from marginlab.rng import Key
from marginlab.statistics import unit_vectors


class NewImages(NamedTuple):
    """M new images, checked.

    Attributes:
        features: Features of length one, in float64.
        labels: The class of each, 0..C-1; 0 where it has no center.
        known: True where the class has a center.
        diameters: Largest distance of two views of each image.
    """

    features: Float[Tensor, "M W D"]
    labels: Int[Tensor, " M"]
    known: Bool[Tensor, " M"]
    diameters: Float[Tensor, " M"]


def checked(
    new: tuple[Float[Tensor, "M W D"], Int[Tensor, " M"]],
    names: Int[Tensor, " C"],
    dim: int,
    *,
    unknown: bool = False,
) -> NewImages:
    """Check new images and their classes.

    Args:
        new: Features and labels of the new images.
        names: Labels of the classes that have a center.
        dim: Dimension of the features.
        unknown: Allow images of a class without a center, which count as wrong.

    Raises:
        ValueError: A class without a center is not allowed, features are of another dimension, or
            there is no image.
    """
    f, y = unit(new[0], "The new features"), new[1]
    if f.shape[2] != dim or y.shape != (len(f),) or len(f) == 0:
        raise ValueError(
            f"New features are (M, V, {dim}) with labels (M,), not {tuple(f.shape)} and "
            f"{tuple(y.shape)}."
        )
    known = torch.isin(y, names)
    if not unknown and not bool(known.all()):
        raise ValueError(
            f"New images are of the classes {names.tolist()}, not also of "
            f"{y[~torch.isin(y, names)].unique().tolist()}."
        )
    place = torch.where(known, torch.searchsorted(names, y), 0)
    return NewImages(f, place, known, alignment(f, normalize=False)[1])


def put_aside(labels: Int[Tensor, " N"], share: float, seed: int) -> Bool[Tensor, " N"]:
    """Draw the images to count: a simple random sample of this share, at least one and not all.

    The sample does not have so many of each class. With at least one of each, rare classes would
    weigh more than in the population, and the limit would be of another error.

    Example:
        >>> put_aside(torch.tensor([0, 0, 0, 0, 1, 1]), 0.5, seed=0).sum()
        tensor(3)
    """
    if not 0 < share < 1:
        raise ValueError(
            f"The share of the images that is put aside lies between 0 and 1, not at {share}."
        )
    n = len(labels)
    if n < 2:
        raise ValueError(f"Of {n} image(s) no share can be put aside: give more, or new images.")
    order = Key(seed).named("put aside").permutation(n).to(labels.device)
    aside = torch.zeros_like(labels, dtype=torch.bool)
    aside[order[: min(max(round(share * n), 1), n - 1)]] = True
    return aside


def unit(features: Tensor, name: str) -> Tensor:
    """Return features at length one, in float64; refuse features without a length."""
    f = features.detach().double()
    if (
        f.ndim != 3
        or f.shape[1] < 2
        or not bool(f.isfinite().all())
        or bool((f == 0).all(-1).any())
    ):
        raise ValueError(
            f"{name} are finite, not zero, and of at least two views, (N, V, D), the image itself "
            f"first: {tuple(f.shape)} are not."
        )
    return unit_vectors(f)
