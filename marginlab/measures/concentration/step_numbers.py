"""Single numbers of the step function 1 - sigma: its area, and where it is first small enough.

    area        = 1/delta_max integral over [0, delta_max] of 1 - sigma(delta)
    delta_at(s) = the smallest delta with 1 - sigma(delta) <= s

sigma is given as a function from deltas (T,) to its lower and upper bounds (T,) each, and `values`
(ascending, 0 the first) are the values of d_A. 1 - sigma falls at them and nowhere else.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Sigma = Callable[[Float[Tensor, " T"]], tuple[Float[Tensor, " T"], Float[Tensor, " T"]]]


def area(
    sigma: Sigma, values: Float[Tensor, " U"], delta_max: float, points: int
) -> tuple[float, float]:
    """Return lower and upper bounds of the area, from `points` deltas or, if fewer, every step.

    Args:
        sigma: Bounds of sigma.
        values: The values of d_A.
        delta_max: End of the range of delta.
        points: Most deltas.
    """
    end = min(delta_max, float(values[-1]))  # from the largest d_A on 1 - sigma is 0
    steps = values[(values > 0) & (values < end)]
    if len(steps) >= points:
        steps = torch.linspace(
            float(steps[0]), end, points, dtype=values.dtype, device=values.device
        )[:-1]
    edges = torch.cat([steps.new_zeros(1), steps, steps.new_full((1,), end)])
    low, high = (1 - bound for bound in sigma(edges)[::-1])
    left, right = (
        torch.searchsorted(values, edges[:-1], right=True),
        torch.searchsorted(values, edges[1:]),
    )
    # no value of d_A lies strictly between, so there is no step
    least = torch.where(left == right, low[:-1], low[1:])
    width = edges.diff() / delta_max
    return float(least @ width), float(high[:-1] @ width)


def delta_at(
    sigma: Sigma, values: Float[Tensor, " U"], one_minus_sigma: float
) -> tuple[float, float]:
    """Return lower and upper bounds of the smallest delta at which 1 - sigma is small enough.

    Args:
        sigma: Bounds of sigma.
        values: The values of d_A.
        one_minus_sigma: The value that 1 - sigma is at most.
    """
    enough = 1 - one_minus_sigma - 1e-9  # fractions of n are rounded

    def first(side: int) -> float:
        place = _first(lambda places: sigma(values[places])[side] >= enough, len(values))
        return float(values[place])

    return first(1), first(0)


def _first(holds: Callable[[Tensor], Tensor], n: int) -> int:
    """Return the first place in 0..n-1 at which a monotone condition holds.

    The condition holds at all places after it and at n - 1. It is asked at 16 places at once.
    """
    first, last = 0, n - 1
    while first < last:
        places = torch.linspace(first, last - 1, 16, dtype=torch.float64).round().long().unique()
        found = holds(places).tolist()
        known = found.index(True) if True in found else len(found)
        if known < len(found):
            last = int(places[known])
        if known > 0:
            first = int(places[known - 1]) + 1
    return first
