"""A bound of the nearest-center error that assumes nothing: Markov's inequality.

The inequality is applied to the distance of a view from its class center:

    P[a view is misread]  <=  sum_k p_k min{ 1, 4 V_k / min over l != k of || mu_k - mu_l ||^2 }
    V_k = E_{C_k} || f - mu_k ||^2

A view of class k can be misread only if it lies at least half the way to the nearest other center.
The bound stands beside Theorem 1 of Huang et al. 2023. It needs neither augmentation nor alignment.
It is about views, and Theorem 1 about images. Ours: docs/derivations.md, 2.7.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.theory.bound import LOST, Bound
from marginlab.theory.inputs import gram_matrix, of_each_class, priors


def companion(
    *,
    p: Float[Tensor, " C"],
    gram: Float[Tensor, "C C"],
    within: Float[Tensor, " C"],
    view_error: float = float("nan"),
) -> Bound:
    """Bound the probability that a view is nearer to another class's center.

    Args:
        p: Class priors.
        gram: Inner products of the centers.
        within: V_k of each class.
        view_error: The probability, where it is known.

    Raises:
        ValueError: A quantity cannot be what it is named.

    Example:
        >>> half, within = torch.tensor([0.5, 0.5]), torch.tensor([0.125, 0.0])
        >>> round(companion(p=half, gram=torch.eye(2), within=within).right, 9)
        0.125
    """
    p = priors(p)
    gram = gram_matrix(gram, len(p))
    lengths = gram.diagonal()
    both = lengths[:, None] + lengths
    nearest = (both - 2 * gram - LOST * both).clamp(min=0).fill_diagonal_(math.inf).amin(1)
    ratio = torch.where(
        nearest > 0, 4 * of_each_class("within", within, len(p)) / nearest, math.inf
    )
    return Bound("Companion, no assumptions", view_error, float(p @ ratio.clamp(max=1)), 1.0)
