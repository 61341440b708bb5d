"""Intervals of the largest of several estimated numbers, and of the least.

    low  = max_j ( x_j - t_j(1 - a/2J) e_j )        high = max_j ( x_j + t_j(1 - a/2) e_j )

An estimate of a maximum leans upwards, because noise is chosen with it. So the interval of the
number that happens to be largest covers less than it says. `high` is below the largest number only
if the upper end of that one number is, so it needs no correction. `low` is above it only if one of
J lower ends is above its own number, which has J times the risk (Bonferroni). t_j is Student's t.
Its degrees of freedom are one fewer than the groups behind the jackknife error e_j.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor


class Extreme(NamedTuple):
    """The estimate, and its interval: NaN where one of the numbers has no error."""

    value: float
    low: float
    high: float


def largest(
    estimates: Float[Tensor, " J"],
    errors: Float[Tensor, " J"],
    groups: Int[Tensor, " J"],
    confidence: float = 0.95,
) -> Extreme:
    """Return the largest of the estimates and its interval; NaN for none.

    Args:
        estimates: The estimates, approximately normal, not necessarily independent.
        errors: Their standard errors.
        groups: Number of groups that each error comes from.
        confidence: Confidence of the interval.

    Example:
        >>> import torch
        >>> x, error = torch.tensor([0.1, 0.2]), torch.tensor([0.1, 0.1])
        >>> found = largest(x, error, groups=torch.tensor([20, 20]))
        >>> [round(number, 3) for number in found]
        [0.2, -0.043, 0.409]
    """
    import scipy.stats  # takes a while to import

    if not len(estimates):
        return Extreme(float("nan"), float("nan"), float("nan"))
    x, e, free = (part.cpu().double().numpy() for part in (estimates, errors, groups - 1))
    risk = (1 - confidence) / 2
    freedom = np.where(free >= 1, free, np.nan)
    low = x - scipy.stats.t.ppf(1 - risk / len(x), freedom) * e
    high = x + scipy.stats.t.ppf(1 - risk, freedom) * e
    return Extreme(float(x.max()), float(low.max()), float(high.max()))


def least(
    estimates: Float[Tensor, " J"],
    errors: Float[Tensor, " J"],
    groups: Int[Tensor, " J"],
    confidence: float = 0.95,
) -> Extreme:
    """Return the least of the estimates and its interval; arguments are those of `largest`."""
    value, low, high = largest(-estimates, errors, groups, confidence)
    return Extreme(-value, -high, -low)
