"""Rows that need no backward pass, and a bound of what leaving them out changes.

A row that leaves 1 - p to all other classes has gradients of its scaled cosines that sum to 1 - p
over the others, in absolute value, and to psi' (1 - p) at its own class. Rows and centers are of
unit length, so with the upstream gradients u_i and the scale s, leaving rows out changes the
gradient of all directions, of the rows as of the centers, by at most

    s sum_i u_i (1 - p_i) (1 + psi'_i)        in the Frobenius norm, over the rows left out.

Projection off a direction only shortens a gradient. A gradient of vectors that are not of unit
length is divided by their lengths.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class LeftOut(NamedTuple):
    """Rows of a batch that were left out of the backward pass.

    Attributes:
        rows: Their number.
        bound: The largest change of the gradient of all directions, per unit of upstream gradient.

    Example:
        >>> print(LeftOut(torch.tensor(3), torch.tensor(2e-5)))
        3 rows left out of the backward pass; gradients of directions change by at most 2.0e-05
    """

    rows: Int[Tensor, ""]
    bound: Float[Tensor, ""]

    def __str__(self) -> str:
        said = "1 row" if int(self.rows) == 1 else f"{int(self.rows)} rows"
        return (
            f"{said} left out of the backward pass; gradients of directions change by at most "
            f"{float(self.bound):.1e}"
        )


def left_out(
    others: Tensor, slope: Tensor, counted: Tensor, share: Tensor | None, scale: float
) -> LeftOut:
    """Return how many rows are left out, and the bound.

    Args:
        others: (B,), 1 - p of each row.
        slope: (B,), the gradient of the loss with respect to the scaled own cosine.
        counted: (B,), the rows that are left out.
        share: (B,), upstream gradients of the rows' losses; None: 1.
        scale: s.
    """
    upper = scale * (others + slope.abs())
    upper = upper if share is None else upper * share.abs()
    return LeftOut(counted.sum(), torch.where(counted, upper, 0.0).sum())
