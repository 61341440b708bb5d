"""The result of a theorem: an inequality left <= right with both sides.

Where it certifies nothing, it says in words why.

A bound certifies something when its premise holds and its right side is below `trivial`, the value
that holds for every encoder. All three are shown: the bounds of the theory often say nothing, and a
reader must see which of the two is to blame.

A premise that is a strict inequality counts as true only if it is true by more than `SLACK` in
squares of the radius. A difference that float64 cannot tell from equality is no certificate.
"""

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SLACK = 1e-12
ROUNDING = 1e-9  # between the sides of an inequality, relative to the left one, or to 1 if larger
# relative to the terms of a difference, which is rounded by it to the safe side
LOST = 64 * torch.finfo(torch.float64).eps


def rounded_up(value: float, digits: int = 4) -> str:
    """Return the least decimal with `digits` digits that is not below the value.

    A bound printed lower than its value would not hold.

    Example:
        >>> rounded_up(0.09521), rounded_up(0.1), rounded_up(0.4360, 3)
        ('0.0953', '0.1000', '0.436')
    """
    if not math.isfinite(value):
        return str(value)
    exact = Decimal(repr(float(value)))  # the shortest decimal that is this float
    return str(exact.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING))


@dataclass(frozen=True)
class Bound:
    """One inequality, left <= right.

    Args:
        name: The theorem and its form.
        left: The bounded quantity, NaN where it was not given.
        right: The value of the theorem.
        trivial: The value that holds for every encoder.
        premise: A sentence on what fails of the theorem's premise, "" where it holds.

    Example:
        >>> bound = Bound("Theorem 2", left=0.0, right=3.5, trivial=1.0)
        >>> bound.certifies, bound.reason
        (False, 'The right side, 3.5, is not below 1, which holds of every encoder.')
    """

    name: str
    left: float
    right: float
    trivial: float
    premise: str = ""

    @property
    def certifies(self) -> bool:
        """Return whether the premise holds and the right side is below the trivial value."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Reason why this certifies nothing; empty if it certifies something."""
        if self.premise:
            return self.premise
        vacuous = (
            f"The right side, {self.right:.4g}, is not below {self.trivial:.4g}, which holds of "
            "every encoder."
        )
        return "" if self.right < self.trivial else vacuous

    @property
    def holds(self) -> bool:
        """Return whether left <= right up to rounding.

        It does where quantities are exact and the premise holds. An unknown left side violates
        nothing.
        """
        return math.isnan(self.left) or self.left <= self.right + ROUNDING * max(
            1.0, abs(self.left)
        )


@dataclass(frozen=True, eq=False)
class PairBound:
    """An inequality for each pair of classes: matrices (C, C) with NaN on the diagonal.

    The fields are those of `Bound`.

    Example:
        >>> off = torch.tensor([[torch.nan, 0.2], [0.2, torch.nan]])
        >>> PairBound("Theorem 3", left=off, right=off + 0.3, trivial=1.0).certifies
        tensor([[False,  True],
                [ True, False]])
    """

    name: str
    left: Float[Tensor, "C C"]
    right: Float[Tensor, "C C"]
    trivial: float
    premise: str = ""

    @property
    def certifies(self) -> Bool[Tensor, "C C"]:
        """Return for which pairs the bound says something."""
        return (self.right < self.trivial) & (self.premise == "")

    @property
    def reason(self) -> str:
        """Reason why no pair is certified; empty if some pair is."""
        if self.premise:
            return self.premise
        least = float(self.right.nan_to_num(nan=math.inf).min())
        return (
            ""
            if least < self.trivial
            else f"The least right side, {least:.4g}, is not below {self.trivial:.4g}, which "
            f"holds of every encoder."
        )

    @property
    def holds(self) -> bool:
        """Return whether left <= right for all pairs, up to rounding."""
        excess = self.left - self.right - ROUNDING * self.left.abs().clamp(min=1)
        return bool((excess.nan_to_num(nan=-1.0) <= 0).all())


def off_diagonal(matrix: Float[Tensor, "C C"]) -> Float[Tensor, "C C"]:
    """Return the matrix with NaN on its diagonal: a class forms no pair with itself."""
    return matrix.masked_fill(
        torch.eye(len(matrix), dtype=torch.bool, device=matrix.device), torch.nan
    )
