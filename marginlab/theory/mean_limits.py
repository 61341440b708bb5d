"""Exact limits of means of bounded values, by betting.

X_1, X_2, ... are independent values in [0, 1] of mean mu. A player who believes that the mean is
below m stakes a share lambda_t of the capital, fixed before X_t is seen, on X_t < m:

    K(m)  =  prod over t of ( 1 + lambda_t (m - X_t) ),      0 <= lambda_t < 1

At m = mu every factor has the mean 1, so that E K(mu) = 1 and P[K(mu) >= 1 / alpha] <= alpha. K
increases in m. So the m at which K reaches 1 / alpha, or 1, is an upper limit of mu at confidence
1 - alpha. The stakes follow the variance seen so far, which makes the limit short where values
vary little: by log(1 / alpha) / n where they do not vary. No sample size is too small for it.

Source: Waudby-Smith and Ramdas, Journal of the Royal Statistical Society B 86, 2024; the derivation
is the paragraph above (docs/derivations.md, 4.1).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

STAKE = 0.75  # the largest share of the capital
HALVINGS = 40  # of the interval in which the limit is


def upper_mean(
    values: Float[Tensor, "n *S"], counts: Int[Tensor, "*S"], risk: float
) -> Float[Tensor, "*S"]:
    """Return upper limits of the means of columns of values, each with the risk that it fails.

    Args:
        values: Independent values in [0, 1]; a column holds `counts` of them, and then any numbers.
        counts: Number of values of a column. Of none the limit is 1.
        risk: The probability with which a limit may be below its mean.

    Example:
        >>> values, counts = torch.full((100, 1), 0.5).double(), torch.tensor([100])
        >>> upper_mean(values, counts, 0.05).round(decimals=3)
        tensor([0.5410], dtype=torch.float64)
    """
    n = len(values)
    place = torch.arange(n, device=counts.device).view(-1, *[1] * counts.ndim)
    inside = place < counts
    x = torch.where(inside, values.double(), 0.0)
    if n == 0:
        return torch.ones_like(counts, dtype=torch.float64)
    seen = place + 1.0
    mean = (0.5 + x.cumsum(0)) / (seen + 1)
    variance = (0.25 + (x - mean).square().cumsum(0)) / (seen + 1)
    # the stake on X_t knows X_1..X_{t-1} only
    before = torch.cat((torch.full_like(variance[:1], 0.25), variance[:-1]))
    stake = (2 * math.log(1 / risk) / (counts.clamp(min=1) * before)).sqrt().clamp(max=STAKE)
    stake = torch.where(inside, stake, 0.0)
    low, high = torch.zeros_like(mean[0]), torch.ones_like(mean[0])
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        won = torch.log1p(stake * (middle - x)).sum(0) >= -math.log(risk)
        low, high = torch.where(won, low, middle), torch.where(won, middle, high)
    return high


def lower_mean(
    values: Float[Tensor, "n *S"], counts: Int[Tensor, "*S"], risk: float
) -> Float[Tensor, "*S"]:
    """Return lower limits of means: as `upper_mean`, of 1 - X.

    Example:
        >>> values, counts = torch.full((100, 1), 0.5).double(), torch.tensor([100])
        >>> lower_mean(values, counts, 0.05).round(decimals=3)
        tensor([0.4590], dtype=torch.float64)
    """
    return 1 - upper_mean(1 - values.double(), counts, risk)
