"""Corollary of Theorem 1's proof, class by class, with measured shares.

Each class has its own main part, delta_l, eps_l and share of good points.

    q_l = P[main and S_eps_l | class l]
    class l holds  if  || mu_l - mu_k || > 2 r D_l(q_l, t_l)  for all k != l
    Err(G_f)  <=  sum over classes that hold of p_l (1 - q_l)  +  sum over the others of p_l

with D_l of Theorem 1 (T') and t_l = (stretch_l + 2 eps_l) / r.

This is ours, not Huang et al.'s Theorem 1 (docs/derivations.md, 2.5). The printed form replaces q_l
by sigma - R_eps / p_l. For C equally likely classes that counts every image outside S_eps C times,
and it asks all classes to hold.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marginlab.theory.bound import SLACK, Bound
from marginlab.theory.inputs import fractions, gram_matrix, of_each_class, positive, priors
from marginlab.theory.theorems.theorem_1 import center_radius, separated


@dataclass(frozen=True, eq=False)
class PerClass:
    """The result of `per_class`.

    Attributes:
        holds: Classes that hold, (C,).
        radius: D_l in units of r, (C,).
        bound: The bound of Err(G_f).
    """

    holds: Bool[Tensor, " C"]
    radius: Float[Tensor, " C"]
    bound: Bound


def per_class(
    *,
    p: Float[Tensor, " C"],
    gram: Float[Tensor, "C C"],
    q: Float[Tensor, " C"],
    epsilon: Float[Tensor, " C"],
    stretch: Float[Tensor, " C"],
    r: float = 1.0,
    error: float = float("nan"),
) -> PerClass:
    """Bound Err(G_f) by the measured share q_l of good points of each class.

    Args:
        p: As in `theorem_1`.
        gram: As in `theorem_1`.
        q: P[x in main part and in S_eps_l | class l].
        epsilon: eps_l of each class.
        stretch: For each class, a bound of the distance of features of nearest views within main
            part l (`theorem_1`).
        r: As in `theorem_1`.
        error: As in `theorem_1`.

    Raises:
        ValueError: A quantity cannot be what it is named.

    Example:
        >>> half, none = torch.tensor([0.5, 0.5]), torch.zeros(2)
        >>> known = {"q": torch.tensor([1.0, 0.5]), "epsilon": none, "stretch": none}
        >>> per_class(p=half, gram=torch.eye(2), **known).bound.right
        0.25
    """
    p = priors(p)
    positive(r=r)
    gram = gram_matrix(gram, len(p), r) / r**2
    q = fractions("q", q, len(p))
    t = (
        of_each_class("stretch", stretch, len(p)) + 2 * of_each_class("epsilon", epsilon, len(p))
    ) / r
    radius = center_radius(q, t, gram.diagonal().clamp(min=0))
    holds = separated(gram, radius).amin(1) > SLACK
    right = float(p @ torch.where(holds, 1 - q, 1.0))
    premise = (
        ""
        if bool(holds.any())
        else "No class holds: every center has another within 2 D_l r of it."
    )
    return PerClass(holds, radius, Bound("Corollary, per class", error, right, 1.0, premise))
