"""Lengths and directions of vectors in float64, at every length that their type holds.

    unit(x) = x / |x|

It is 0 where x is so short that it has no direction.
"""

import torch
from torch import Tensor

from marginlab.statistics import in_range

SHORTEST = 1e-35  # a shorter vector has no direction: its cosine with everything is 0 and it gets
SHORTEST_DOUBLE = 1e-300  # no gradient, which is as large as the vector is short


def shortest(x: Tensor) -> float:
    """Return the length below which vectors of a dtype have no direction."""
    return SHORTEST_DOUBLE if x.dtype == torch.float64 else SHORTEST


def power(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the power of two by which a vector's (..., D) largest entry lies in [0.5, 1)."""
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1).to(dtype)
    most = 1000 if dtype == torch.float64 else 126  # and so has the power's reciprocal its digits
    return torch.exp2(-largest.frexp().exponent.to(dtype).clamp(-most, most))


def inverse(norm: Tensor, short: Tensor | float) -> Tensor:
    """Return 1 / norm, and 0 where the norm is short and gives no direction."""
    return norm.reciprocal().masked_fill_(norm < short, 0.0)


def measured(x: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of vectors (..., D) and their inverses, (..., 1), float64: 0 without a direction."""
    if x.dtype != torch.float64:  # float64 holds their squares
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
        return norm, inverse(norm, SHORTEST)
    x, factor = in_range(x, torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True))
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm / factor, inverse(norm, SHORTEST_DOUBLE * factor) * factor


def unit(x: Tensor) -> Tensor:
    """Return vectors (..., D) at unit length, float64; 0 for a vector without direction."""
    return x.double() * measured(x)[1]
