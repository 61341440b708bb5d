"""Confidence intervals of estimates and of rates.

    normal             x +- 1.96 e                                           95 %
    Wilson             (p + z^2/2n +- z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    Clopper, Pearson   quantiles of beta distributions                       exact
    Student            mean +- t s / sqrt(n) of a few repetitions            95 %

z = 1.96. Sources: Wilson, JASA 22, 1927; Clopper and Pearson, Biometrika 26, 1934.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from scipy import special
from torch import Tensor

Z_95 = 1.96  # quantile of the normal distribution on both sides of 95 %


def normal_interval(value: float, error: float) -> tuple[float, float]:
    """Return the 95 % interval of an unbiased, normal estimate; NaN if it has no error.

    Args:
        value: The estimate.
        error: Its standard error, NaN if there is none.

    Example:
        >>> [round(end, 3) for end in normal_interval(0.5, 0.1)]
        [0.304, 0.696]
    """
    return value - Z_95 * error, value + Z_95 * error


def wilson(p: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a rate.

    Args:
        p: The rate.
        n: Number of trials.

    Example:
        >>> [round(end, 4) for end in wilson(0.0, 10)]
        [0.0, 0.2775]
    """
    z = Z_95
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (
        max(0.0, (middle - half) / (1 + z * z / n)),
        min(1.0, (middle + half) / (1 + z * z / n)),
    )


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % Student interval of the mean of repetitions, such as seeds; NaN for one.

    Args:
        values: The repetitions.

    Example:
        >>> [round(end, 3) for end in student_interval([0.1, 0.2, 0.3])]
        [-0.048, 0.448]
    """
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(special.stdtrit(n - 1, 0.975)) * spread / math.sqrt(n)
    return mean - half, mean + half


def clopper_pearson(
    successes: Int[Tensor, " E"], n: int | Int[Tensor, " E"], confidence: float = 0.95
) -> tuple[Float[Tensor, " E"], Float[Tensor, " E"]]:
    """Return the exact binomial confidence interval of a probability.

    Its ends are quantiles of beta distributions.

    Args:
        successes: Numbers of successes.
        n: Number of trials, of all or of each.
        confidence: Confidence of the interval.

    Returns:
        The lower and the upper ends.

    Example:
        >>> clopper_pearson(torch.tensor([0]), 10)
        (tensor([0.], dtype=torch.float64), tensor([0.3085], dtype=torch.float64))
    """
    k, tail = successes.cpu().double().numpy(), (1 - confidence) / 2
    of = n.cpu().double().numpy() if isinstance(n, Tensor) else n
    # without successes the lower end is 0
    lower = torch.from_numpy(special.betaincinv(k, of - k + 1, tail)).nan_to_num(nan=0.0)
    upper = torch.from_numpy(special.betaincinv(k + 1, of - k, 1 - tail)).nan_to_num(nan=1.0)
    return lower.to(successes.device), upper.to(successes.device)


def within(value: float, least: float, most: float) -> float:
    """Cut an end of an interval to the possible values; NaN stays NaN.

    Example:
        >>> within(1.2, 0.0, 1.0)
        1.0
    """
    return value if math.isnan(value) else min(max(value, least), most)
