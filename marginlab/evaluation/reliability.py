"""Reliability of a quality score: the share of correct decisions at each of its levels.

P(correct | score in a level),   with the interval of Clopper and Pearson 1934
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from marginlab.evaluation.check import Array, as_tensor
from marginlab.statistics.intervals import clopper_pearson


class Reliability(NamedTuple):
    """Share of correct decisions by level of the score, with Clopper-Pearson intervals."""

    quality: Float64[Tensor, " n"]
    correct: Float64[Tensor, " n"]
    low: Float64[Tensor, " n"]
    high: Float64[Tensor, " n"]
    decisions: Int64[Tensor, " n"]


def reliability(
    quality: Float[Array, " M"],
    correct: Bool[Array, " M"],
    *,
    bins: int = 10,
    confidence: float = 0.95,
) -> Reliability:
    """Return how often decisions are correct at each level of the score.

    Levels hold about equally many decisions. Equal scores are in one level, so there may be fewer
    levels than asked for.

    Args:
        quality: The score of each decision.
        correct: Marks the correct decisions.
        bins: Number of levels.
        confidence: Confidence of the intervals, for independent decisions.

    Raises:
        ValueError: Shapes differ, scores are not finite, there is no decision, or `bins` or
            `confidence` is out of range.

    Example:
        >>> found = reliability(torch.arange(4.0), torch.tensor([False, False, True, True]), bins=2)
        >>> found.correct.tolist(), found.decisions.tolist()
        ([0.0, 1.0], [2, 2])
    """
    q = as_tensor("scores", quality).double().cpu()
    right = as_tensor("decisions", correct).cpu()
    if q.ndim != 1 or right.shape != q.shape or right.dtype != torch.bool or not len(q):
        raise ValueError(
            f"Scores and decisions are (M,) numbers and (M,) bools, M at least 1, not "
            f"{tuple(q.shape)} and {right.dtype} {tuple(right.shape)}."
        )
    if not bool(q.isfinite().all()):
        raise ValueError("Scores are finite, but some are NaN or infinite: leave these out.")
    if bins < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"bins is at least 1 and confidence in (0, 1), not {bins} and {confidence}."
        )
    _, level, sizes = q.unique(return_inverse=True, return_counts=True)
    middle = sizes.cumsum(0).double() - sizes / 2
    group = (middle * bins / len(q)).long().clamp(max=bins - 1)[level]
    _, group = group.unique(return_inverse=True)
    count = torch.bincount(group)
    hits = torch.zeros_like(count).index_add_(0, group, right.long())
    total = torch.zeros(len(count), dtype=torch.float64).index_add_(0, group, q)
    low, high = clopper_pearson(hits, count, confidence)
    return Reliability(total / count, hits / count, low, high, count)
