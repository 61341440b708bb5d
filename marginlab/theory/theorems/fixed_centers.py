"""Corollary for fixed centers: the nearest c tells points near c_k from the other classes.

It needs no mean, Lipschitz constant or rho.

    main_k = { x in C_k : min over views || f(x_v) - c_k || <= delta_k / 2 }
    q_k    = P[main_k and S_eps_k | class k]
    class k holds  if  min over l != k of || c_k - c_l ||  >  delta_k + 2 eps_k
    P[nearest c is wrong]  <=  sum over classes that hold of p_k (1 - q_k)
                               +  sum over the others of p_k

The reason is that || f(x) - c_k || <= delta_k / 2 + eps_k on main_k within S_eps_k. It uses
alignment and concentration of the features only. It is a corollary of the definitions of Huang et
al. 2023, ours, and not their Theorem 1 (docs/derivations.md, 2.6). With c_k, delta_k and eps_k
chosen on other images, q_k of new ones is a plain probability. A certificate needs only a binomial
interval of it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marginlab.statistics import to_nearest_other
from marginlab.theory.bound import SLACK, Bound
from marginlab.theory.inputs import fractions, of_each_class, priors


@dataclass(frozen=True, eq=False)
class FixedCenters:
    """The result of `fixed_centers`.

    Attributes:
        holds: Classes that hold, (C,).
        nearest: Distance of each center from the nearest other one, (C,).
        bound: The bound of the nearest-c error.
    """

    holds: Bool[Tensor, " C"]
    nearest: Float[Tensor, " C"]
    bound: Bound


def fixed_centers(
    *,
    p: Float[Tensor, " C"],
    centers: Float[Tensor, "C D"],
    q: Float[Tensor, " C"],
    delta: Float[Tensor, " C"],
    epsilon: Float[Tensor, " C"],
    error: float = float("nan"),
) -> FixedCenters:
    """Bound the error of the classifier that takes the nearest of fixed centers c_k.

    Args:
        p: Class priors.
        centers: c_k, any points of feature space.
        q: P[some view within delta_k / 2 of c_k, and all views within epsilon_k of each other |
            class k]. A lower confidence limit gives a bound at that confidence.
        delta: delta_k of each class, in feature space.
        epsilon: epsilon_k of each class, in feature space.
        error: Error of the nearest c, where it is known.

    Raises:
        ValueError: A quantity cannot be what it is named.

    Example:
        >>> two, centers = torch.ones(2), torch.eye(2)
        >>> reach = {"delta": 0.5 * two, "epsilon": 0.25 * two}
        >>> fixed_centers(p=two / 2, centers=centers, q=0.75 * two, **reach).bound.right
        0.25
    """
    p = priors(p)
    if centers.ndim != 2 or len(centers) != len(p) or not bool(centers.isfinite().all()):
        raise ValueError(
            f"Centers of {len(p)} classes are finite points ({len(p)}, D), not "
            f"{tuple(centers.shape)}."
        )
    reach = of_each_class("delta", delta, len(p)) + 2 * of_each_class("epsilon", epsilon, len(p))
    q = fractions("q", q, len(p))
    nearest = to_nearest_other(centers.double())
    holds = nearest - reach > SLACK
    right = float(p @ torch.where(holds, 1 - q, 1.0))
    premise = (
        ""
        if bool(holds.any())
        else "No class holds: every center has another within delta_k + 2 epsilon_k of it."
    )
    return FixedCenters(
        holds, nearest, Bound("Corollary, fixed centers", error, right, 1.0, premise)
    )
