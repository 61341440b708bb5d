"""Unit vectors, and what is left of them without a direction.

    u = x / |x|,  |x|^2 = sum_d x_d^2,  v' = v - <v, u> u

In float32 the squares of entries beyond 1.8e19 are infinite, and those of entries below 1e-23 lose
their digits, though the lengths themselves are ordinary numbers. Rows of such entries are first
multiplied by a power of two. This is exact and leaves the direction unchanged. Any other row is
divided by its length as it is.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def unit_vectors(x: Float[Tensor, "*rows D"], *, shortest: float = 0.0) -> Float[Tensor, "*rows D"]:
    """Return the directions of the rows: each row divided by its length.

    It works for every length that the type holds. It is differentiable any number of times, without
    host synchronisation, and usable under torch.func and torch.compile.

    Args:
        x: Rows; half precision is computed and returned in float32.
        shortest: A row shorter than this has no direction. A loss asks for 1e-12, because the
            gradient of a direction grows as the inverse of the row's length.

    Returns:
        Rows of length 1. A row without direction (of length 0, or below `shortest`) becomes zero
        and gets no gradient. NaN and inf make NaN.

    Example:
        >>> unit_vectors(torch.tensor([[3e30, 4e30], [3e-40, 4e-40], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.shape[-1] == 0:
        return x
    scaled, factor = in_range(x, x.detach().abs().amax(-1, keepdim=True))
    square = scaled.square().sum(-1, keepdim=True)
    short = (square == 0) | (square.detach().sqrt() < shortest * factor)
    # The length of a short row is not differentiated, because its derivative at 0 is not a number
    return torch.where(short, 0.0, scaled / square.masked_fill(short, 1.0).sqrt())


def remove_direction(
    embeddings: Float[Tensor, "B D"], center: Float[Tensor, " D"]
) -> Float[Tensor, "B D"]:
    """Return unit embeddings without their part along a direction: v' = v - <v, u> u.

    Both are scaled to length 1 first, so v' is orthogonal to u, and |v'|^2 = 1 - <v, u>^2.

    Example:
        >>> remove_direction(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 2.0]))
        tensor([[0.6000, 0.0000]])
    """
    v, u = unit_vectors(embeddings), unit_vectors(center)
    kind = torch.promote_types(v.dtype, u.dtype)
    v, u = v.to(kind), u.to(kind)
    return v - (v @ u)[:, None] * u


def in_range(x: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply by powers of two that bring entries up to `largest` to where squares are exact.

    Args:
        x: Numbers in float32 or float64.
        largest: The largest absolute entry of each part of x that shares a power; it broadcasts.

    Returns:
        The product, with entries between 2^-50 and 2^50 in size (2^400 in float64), and the powers.
    """
    far = 2.0**400 if x.dtype == torch.float64 else 2.0**50
    factor = torch.ones_like(largest, dtype=x.dtype)
    factor = factor.masked_fill(largest > far, far**-2).masked_fill(largest < 1 / far, far**2)
    return x * factor, factor
