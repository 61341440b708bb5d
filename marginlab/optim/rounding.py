"""Stochastic rounding to bfloat16: up or down at random, with the number itself as the mean.

    round(x) = up with probability (x - down) / (up - down), else down
               down <= x < up neighbours in bfloat16

Gupta et al. 2015, "Deep learning with limited numerical precision". A bfloat16 is the upper half of
a float32. So, with u uniform in 0..2^16 - 1, adding u to the word of x and dropping the lower half
rounds away from zero with probability (lower half) / 2^16. This is exact: 16 bits are all that a
float32 has below a bfloat16, and the mean has no bias, whatever the exponent. (Fewer bits, b, would
lose up to 2^-b of a spacing.)

The sixteen bits of an element are tabulated: u[i, j] = upper half of odd * (R[i] xor C[j]), where R
and C are Philox words of (row, step) and of (column, step). All u along a row are independent, all
u along a column are, and any three of the matrix are. So the variance of any linear function of the
rounding errors is that of independent draws (Patrascu and Thorup 2012, "The power of simple
tabulation hashing"). The product by `odd` is for other properties: without it the leading bits of
the matrix have rank one, and the spectral norm of its errors is ten times what it should be.
Tabulation costs n + D Philox counters and a few passes, where a draw for each element costs a
hundred integer passes over n x D / 8.
"""

from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Float32, Int, Int32
from torch import Tensor

from marginlab.rng import Key

# 2^32 over the golden ratio, odd: multiplying by it permutes the int32
_ODD = 0x9E3779B1 - (1 << 32)


class Tables(NamedTuple):
    """Random words of a matrix's rows and columns, for the bits of two matrices of that shape."""

    rows: Int32[Tensor, "2 n 1"]
    columns: Int32[Tensor, "2 1 D"]

    def bits(self, which: int) -> Int32[Tensor, "n D"]:
        """Return numbers uniform in [0, 2**16) for each element of matrix 0 or 1."""
        return (
            (self.rows[which] ^ self.columns[which])
            .mul_(_ODD)
            .bitwise_right_shift_(16)
            .bitwise_and_(0xFFFF)
        )


def tables(key: Key, rows: Int[Tensor, " n"], columns: int) -> Tables:
    """Draw the words of these rows and of columns 0..columns-1.

    Args:
        key: A key with room for two more indices.
        rows: (n,) indices of the rows, in [0, 2**32).
        columns: The number of columns.

    Example:
        >>> every = tables(Key(0), torch.arange(9), 4).bits(0)
        >>> one = tables(Key(0), torch.tensor([5]), 4).bits(0)
        >>> bool((every[5] == one).all())
        True
    """
    index = torch.cat([rows.long(), torch.arange(columns, device=rows.device)])
    kind = torch.ones_like(index)
    kind[: len(rows)] = 0
    words = torch.stack(key.at(index, kind).words()[:2]).to(torch.int32)  # wraps: the bits are kept
    return Tables(words[:, : len(rows), None], words[:, None, len(rows) :])


def stochastic_round(
    x: Float32[Tensor, "n D"], bits: Int32[Tensor, "n D"]
) -> BFloat16[Tensor, "n D"]:
    """Round to bfloat16 at random, by bits uniform in [0, 2**16).

    A number is rounded away from zero where the dropped half of x plus `bits` carries over. A
    number that bfloat16 holds is kept exactly, also infinities and NaN. Beyond the largest finite
    one, 3.39e38, up is infinity.

    Example:
        >>> x = torch.full((1, 4), 1.0 + 2.0**-9)  # a quarter of the way from 1 to 1.0078125
        >>> stochastic_round(x, torch.tensor([[0, 1 << 14, 49151, 49152]], dtype=torch.int32))
        tensor([[1.0000, 1.0000, 1.0000, 1.0078]], dtype=torch.bfloat16)
    """
    word = (x.contiguous().view(torch.int32) + bits).bitwise_and_(-(1 << 16))
    # a NaN may carry over into a number
    return word.view(torch.float32).to(torch.bfloat16).masked_fill_(x.isnan(), torch.nan)
