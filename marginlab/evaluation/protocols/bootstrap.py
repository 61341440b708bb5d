"""Bootstrap intervals over identities: people are drawn again, and their pairs with them.

    w_i = number of times that identity i is among I draws from I, with replacement
    weight of a genuine pair of i      w_i
    weight of an impostor pair (i, j)  w_i w_j
    interval = quantiles (1 - c)/2 and (1 + c)/2 of the statistic over draws

Pairs that share a person are not independent. A bootstrap that draws pairs takes them for
independent, and its interval is too narrow. Here people are drawn, each with all of its pairs. The
draws are those of `marginlab.rng`: replicate r draws the same people whatever was drawn before.

Sources: Efron and Tibshirani, "An introduction to the bootstrap", 1993 (percentile interval);
Snijders and Borgatti, "Non-parametric standard errors and tests for network statistics",
Connections 22, 1999 (drawing vertices).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int, Int64, Integer
from torch import Tensor

from marginlab.evaluation.check import Array, as_tensor
from marginlab.rng import Key

_PAIRS = 1 << 20  # pairs whose weights are made at a time


class Interval(NamedTuple):
    """A number, the bounds of its interval, and the number of identities that were drawn from.

    Bounds are NaN where fewer than half of the draws have the number, as where few people have two
    images. A number that is 1 in every draw has the interval [1, 1]: the bootstrap cannot see
    errors of which the sample has none.
    """

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    statistic: Callable[[Float64[Tensor, " I"]], Sequence[float]],
    identities: int,
    *,
    replicates: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """Return numbers with percentile intervals over draws of identities.

    Args:
        statistic: Returns S numbers for the weights (I,) of the identities, which are whole
            numbers in float64. It may return NaN, or raise a ZeroDivisionError, for a draw on
            which the numbers do not exist; this draw is left out.
        identities: Number I of identities, at least 2.
        replicates: Number of draws.
        confidence: Confidence of the intervals.
        seed: Seed of the draws.

    Returns:
        S intervals around the numbers for weights of 1.

    Raises:
        ValueError: There are fewer than 2 identities or replicates, or the confidence is outside
            (0, 1).

    Example:
        >>> height = torch.tensor([1.6, 1.7, 1.8, 1.9], dtype=torch.float64)
        >>> mean = lambda w: [float((w * height).sum() / w.sum())]
        >>> [found] = bootstrap(mean, 4, replicates=200)
        >>> found.low < found.value < found.high
        True
    """
    if identities < 2 or replicates < 2 or not 0 < confidence < 1:
        raise ValueError(
            "A bootstrap draws from at least 2 identities, at least 2 times, for a confidence in "
            f"(0, 1), not from {identities}, {replicates} times, for {confidence}."
        )
    value = statistic(torch.ones(identities, dtype=torch.float64))
    found = np.full((replicates, len(value)), math.nan)
    place, key = torch.arange(identities), Key(seed).named("bootstrap", "identities")
    for replicate in range(replicates):
        drawn = key.at(replicate, place).integers(identities)
        weights = torch.bincount(drawn, minlength=identities).double()
        try:
            found[replicate] = statistic(weights)
        except ZeroDivisionError:
            continue
    sides = ((1 - confidence) / 2, (1 + confidence) / 2)
    intervals = []
    for number, column in zip(value, found.T, strict=True):
        there = column[~np.isnan(column)]
        enough = 2 * len(there) >= replicates
        low, high = np.quantile(there, sides) if enough else (math.nan, math.nan)
        intervals.append(Interval(float(number), float(low), float(high), identities))
    return tuple(intervals)


def pair_weights(
    weights: Float64[Tensor, " I"],
    first: Int[Tensor, " M"],
    second: Int[Tensor, " M"],
) -> Float64[Tensor, " M"]:
    """Return the weights of pairs for the weights of their identities, made a block at a time.

    Args:
        weights: Weights of the identities.
        first: The identity of each pair's first image, from 0 on.
        second: That of its second image.

    Example:
        >>> w = torch.tensor([2.0, 3.0], dtype=torch.float64)
        >>> pair_weights(w, torch.tensor([0, 0]), torch.tensor([0, 1]))
        tensor([2., 6.], dtype=torch.float64)
    """
    out = torch.empty(len(first), dtype=weights.dtype)
    blocks = (x.split(_PAIRS) for x in (out, first, second))
    for into, a, b in zip(*blocks, strict=True):
        once, twice = weights[a], weights[b]
        into.copy_(torch.where(a == b, once, once * twice))
    return out


def people_of_pairs(
    first: Integer[Array, " M"], second: Integer[Array, " M"], same: Bool[Array, " M"]
) -> tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]:
    """Return the identities of pairs of images of which only the genuine ones tell who is who.

    Images that a chain of genuine pairs joins are one identity. A person whose images no chain
    joins counts as several, and intervals over them are somewhat too narrow.

    Args:
        first: The number of each pair's first image, from 0 on; an image that occurs twice has one
            number.
        second: That of its second image.
        same: Marks the genuine pairs.

    Returns:
        The identity of the first and of the second image of each pair, from 0 on.

    Example:
        >>> a, b = torch.tensor([0, 1, 0]), torch.tensor([1, 2, 3])
        >>> people_of_pairs(a, b, torch.tensor([True, True, False]))
        (tensor([0, 0, 0]), tensor([0, 0, 1]))
    """
    from scipy.sparse import coo_matrix  # takes a while to import
    from scipy.sparse.csgraph import connected_components

    a, b = (as_tensor("images of pairs", x).cpu().long().numpy() for x in (first, second))
    joined = as_tensor("kinds", same).cpu().numpy()
    images, number = np.unique(np.concatenate([a, b]), return_inverse=True)
    at, to = number[: len(a)], number[len(a) :]
    edges = coo_matrix(
        (np.ones(int(joined.sum())), (at[joined], to[joined])), shape=(len(images), len(images))
    )
    identity = torch.from_numpy(connected_components(edges, directed=False)[1].astype(np.int64))
    return identity[torch.from_numpy(at)], identity[torch.from_numpy(to)]
