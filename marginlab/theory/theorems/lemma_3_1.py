"""Lemma 3.1: the error of a classifier that is right on the aligned part of the main parts.

    If G is right on (union_k C_k^0) and S_eps:
    Err(G)  <=  P[not main or not S_eps]
            <=  sum_k p_k (1 - sigma_k) + R_eps
            <=  (1 - sigma) + R_eps

The last is the printed form (Huang et al. 2023, Lemma 3.1). The first two are the steps of its
proof: the error event lies inside the union, the union bound, and sigma = min_k sigma_k. So each is
never above the next, and the first needs only counts of images.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from marginlab.theory.bound import Bound
from marginlab.theory.inputs import fraction, fractions, priors


@dataclass(frozen=True)
class Lemma31:
    """The three forms, sharpest first.

    They are conclusions of a premise that Theorem 1 and its corollaries give.
    """

    union: Bound
    per_class: Bound
    printed: Bound


def lemma_3_1(
    *,
    p: Float[Tensor, " C"],
    sigma: Float[Tensor, " C"],
    R_epsilon: float,
    outside: float,
    error: float = float("nan"),
    premise: str = "",
) -> Lemma31:
    """Bound the error of a classifier that is right on main parts within S_eps.

    Args:
        p: Class priors.
        sigma: P[x in C_k^0 | class k] of each class.
        R_epsilon: P[x not in S_eps].
        outside: P[x not in its class's main part, or not in S_eps], measured together.
        error: Err(G), where it is known.
        premise: Why G may be wrong on these points, if it may.

    Raises:
        ValueError: A probability is outside [0, 1], class priors do not sum to 1, or shapes do not
            fit.

    Example:
        >>> import torch
        >>> half = torch.tensor([0.5, 0.5])
        >>> sigma = torch.tensor([1.0, 0.75])
        >>> lemma = lemma_3_1(p=half, sigma=sigma, R_epsilon=0.125, outside=0.125)
        >>> lemma.union.right, lemma.per_class.right, lemma.printed.right
        (0.125, 0.25, 0.375)
    """
    p = priors(p)
    sigma = fractions("sigma", sigma, len(p))
    missing = float(p @ (1 - sigma)) + fraction("R_epsilon", R_epsilon)
    worst = 1 - float(sigma.min()) + R_epsilon
    return Lemma31(
        Bound("Lemma 3.1, measured union", error, fraction("outside", outside), 1.0, premise),
        Bound("Lemma 3.1, per class", error, missing, 1.0, premise),
        Bound("Lemma 3.1, printed", error, worst, 1.0, premise),
    )
