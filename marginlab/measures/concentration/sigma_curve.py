"""The band of 1 - sigma over delta, and the two ways to make one sigma of those of the classes.

sigma(delta) = min over classes k of sigma_k(delta),  or  sum over k of p_k sigma_k(delta)
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

Reduce = Literal["min", "mean"]
Deltas = Float[Tensor, " T"] | Float[np.ndarray, " T"] | Sequence[float]


class Curve(NamedTuple):
    """Bounds `lower` and `upper` of 1 - sigma at each delta, for the sampled graph.

    `views` of each image were used.
    """

    deltas: Float[Tensor, " T"]
    lower: Float[Tensor, " T"]
    upper: Float[Tensor, " T"]
    views: int


def over_classes(
    bound: Float[Tensor, "*S C"], seen: Int[Tensor, " C"], reduce: Reduce
) -> Float[Tensor, "*S"]:
    """Reduce (..., C) -> (...) to the least over classes, or to their mean.

    Args:
        bound: Numbers of the classes.
        seen: Images given of each class, which weigh the classes in a mean.
        reduce: "min" or "mean".

    Raises:
        ValueError: `reduce` is unknown.
    """
    if reduce not in ("min", "mean"):
        raise ValueError(
            "Classes are reduced by 'min' (the theory's sigma) or 'mean' (weighted by p_k), not "
            f"{reduce!r}."
        )
    return bound.amin(-1) if reduce == "min" else bound @ (seen.double() / seen.sum())
