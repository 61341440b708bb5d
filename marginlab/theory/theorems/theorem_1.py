"""Theorem 1: class centers that lie far apart make the nearest-center classifier right.

It is right on main parts within S_eps. rho measures how far apart the centers must lie:

    rho_l  = 2 (1 - sigma) + R_eps / p_l + sigma t                          (printed)
             with  t = (L delta + 2 eps) / r
    rho2_l = 2 (1 - q) + q t                                                (what the proof gives)
             with  q = sigma - R_eps / p_l

Each of these conditions, for all k != l, gives Err(G_f) <= (1 - sigma) + R_eps:

    (P)   mu_l . mu_k  <  r^2 (1 - rho_max - sqrt(2 rho_max) - Delta_mu / 2)     (printed condition)
    (T)   || mu_l - mu_k ||  >  2 r rho2_l
    (T')  || mu_l - mu_k ||  >  2 r D_l
          with  D_l^2 = min( rho2_l^2, [ (1-q)(q - m_l^2) + (1 - q + q t)^2 ] / q )
          and   m_l   = || mu_l || / r

(P) and rho: Huang et al. 2023, Lemma 3.2 and Theorem 1. The printed coefficient of R_eps / p_l is
1. With it the proof's step f(x) . mu_l >= r^2 (1 - rho_l) fails; the step needs 2. The theorem is
true nevertheless, for every number of classes. For (P) implies (T'), and (T') is a sufficient
condition: r D_l is the largest possible distance of a good point from its own center. (T) implies
(T') as well, but (P) does not imply (T): with two classes, sigma = 1, t = 0, R_eps / p_l = 1/2 and
antipodal centers, (P) holds and (T) does not. All proofs: docs/derivations.md, 2.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.theory.bound import LOST, SLACK, Bound
from marginlab.theory.inputs import fraction, gram_matrix, not_negative, positive, priors


@dataclass(frozen=True, eq=False)
class Theorem1:
    """The result of `theorem_1`: its quantities, and the bound in each form.

    Attributes:
        rho: rho_l, printed, (C,).
        rho2: rho2_l, (C,).
        radius: D_l in units of r, (C,).
        Delta_mu: 1 - min_l ||mu_l||^2 / r^2.
        threshold: The right side of (P), in units of r^2.
        printed: The bound under (P).
        distance: The bound under (T).
        with_lengths: The bound under (T').
    """

    rho: Float[Tensor, " C"]
    rho2: Float[Tensor, " C"]
    radius: Float[Tensor, " C"]
    Delta_mu: float
    threshold: float
    printed: Bound
    distance: Bound
    with_lengths: Bound


def theorem_1(
    *,
    p: Float[Tensor, " C"],
    gram: Float[Tensor, "C C"],
    sigma: float,
    R_epsilon: float,
    epsilon: float,
    stretch: float,
    r: float = 1.0,
    error: float = float("nan"),
) -> Theorem1:
    """Bound Err(G_f) by (1 - sigma) + R_eps under (P), (T) and (T').

    Args:
        p: Class priors.
        gram: Inner products mu_k . mu_l of the class centers, with squared lengths on the diagonal.
            Off the diagonal, upper bounds will do, as Theorems 3 and 4 give them: all conditions
            are decreasing in them.
        sigma: Least share of a class that is in its main part.
        R_epsilon: P[two views of x lie more than epsilon apart].
        epsilon: That epsilon, in feature space.
        stretch: L delta, with f L-Lipschitz and delta the pixel size of the main parts. Without a
            Lipschitz constant, any bound of the distance of the features of the nearest views of
            two points of a main part: the feature-space delta if the parts were chosen by feature
            distances (`clique_part` of features), or the largest distance observed
            (`observed_stretch`).
        r: Length of the features.
        error: Err(G_f), where it is known.

    Raises:
        ValueError: A quantity cannot be what it is named.

    Example:
        >>> antipodal = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> half = torch.tensor([0.5, 0.5])
        >>> known = {"sigma": 0.75, "R_epsilon": 0.0, "epsilon": 0.0, "stretch": 0.0}
        >>> theorem = theorem_1(p=half, gram=antipodal, **known)
        >>> theorem.printed.certifies, theorem.distance.certifies, theorem.distance.right
        (True, True, 0.25)
    """
    p = priors(p)
    positive(r=r)
    gram = gram_matrix(gram, len(p), r) / r**2
    not_negative(epsilon=epsilon, stretch=stretch)
    t = (stretch + 2 * epsilon) / r
    a = fraction("R_epsilon", R_epsilon) / p
    printed = 2 * (1 - fraction("sigma", sigma)) + a + sigma * t
    q = (sigma - a).clamp(min=0)
    rho2, lengths = rho_2(q, torch.full_like(q, t)), gram.diagonal().clamp(min=0)
    radius = center_radius(q, torch.full_like(q, t), lengths)
    Delta_mu = 1 - float(lengths.min())
    most = float(printed.max())
    threshold = 1 - most - math.sqrt(2 * most) - Delta_mu / 2
    off = ~torch.eye(len(p), dtype=torch.bool, device=p.device)
    largest = float(gram[off].max())
    right = 1 - sigma + R_epsilon
    fails = (
        f"(P) fails: the largest mu_l . mu_k is {largest:.4g} r^2, not below {threshold:.4g} r^2."
    )
    return Theorem1(
        printed,
        rho2,
        radius,
        Delta_mu,
        threshold,
        Bound(
            "Theorem 1 under (P), printed",
            error,
            right,
            1.0,
            "" if largest + SLACK < threshold else fails,
        ),
        Bound(
            "Theorem 1 under (T), distances", error, right, 1.0, _near("(T)", "rho2", gram, rho2)
        ),
        Bound(
            "Theorem 1 under (T'), distances and lengths",
            error,
            right,
            1.0,
            _near("(T')", "D", gram, radius),
        ),
    )


def rho_2(q: Float[Tensor, " C"], t: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Return rho2 = 2 (1 - q) + q t, at most 2.

    r rho2 bounds the distance of a good point from its center, where a share q of the class is
    good. rho2 never increases in q and never decreases in t. Good points lie within r t of each
    other, in any views.
    """
    return 2 * (1 - q) + q * t.clamp(max=2)


def center_radius(
    q: Float[Tensor, " C"], t: Float[Tensor, " C"], lengths: Float[Tensor, " C"]
) -> Float[Tensor, " C"]:
    """Return D_l, in units of r: how far from its center a good point can lie.

    `lengths` are ||mu_l||^2 / r^2. D_l is at most rho2 (docs/derivations.md, 2.3).

    Example:
        >>> one = torch.ones(1)
        >>> center_radius(one / 2, one * 0, one).round(decimals=6)  # all features are at the center
        tensor([0.])
        >>> rho_2(one / 2, one * 0)
        tensor([1.])
    """
    # || mu_l - q f(x) || <= r (1 - q + q t); its square is written without a difference of close
    # numbers, over q
    t = t.clamp(max=2)
    squared = (
        (1 - q) * ((1 - lengths).clamp(min=0) + LOST) / q.clamp(min=1e-9)
        + 2 * (1 - q) * t
        + q * t.square()
    )
    return torch.minimum(rho_2(q, t), torch.where(q > 0, squared.clamp(min=0).sqrt(), 2.0))


def separated(gram: Float[Tensor, "C C"], radius: Float[Tensor, " C"]) -> Float[Tensor, "C C"]:
    """Return ||mu_l - mu_k||^2 - (2 radius_l)^2 of each pair (l, k), +inf on the diagonal.

    It is positive (by more than SLACK) where l is told from k.
    """
    lengths = gram.diagonal()
    apart = lengths[:, None] + lengths - 2 * gram - 4 * radius.square()[:, None]
    return apart.fill_diagonal_(math.inf)


def _near(condition: str, name: str, gram: Tensor, radius: Tensor) -> str:
    gap = separated(gram, radius)
    if float(gap.min()) > SLACK:
        return ""
    row, column = divmod(int(gap.argmin()), len(gap))
    apart = math.sqrt(max(float(gap[row, column] + 4 * radius[row] ** 2), 0.0))
    return (
        f"{condition} fails: centers {row} and {column} lie {apart:.4g} r apart, not more than 2 "
        f"{name} = {2 * float(radius[row]):.4g} r."
    )


def largest_rho(num_classes: int) -> tuple[float, float]:
    """Return (rho, rho2) below which (P) and (T) can hold at all.

    Centers then lie as far apart as C points can: mu_l . mu_k = -r^2 / (C - 1), Delta = 0. The
    values come from rho + sqrt(2 rho) < C / (C - 1), and from 2 rho2 < sqrt(2 C / (C - 1)).

    Raises:
        ValueError: There are fewer than two classes.

    Example:
        >>> [tuple(round(x, 3) for x in largest_rho(C)) for C in (2, 10, 100)]
        [(0.764, 1.0), (0.316, 0.745), (0.272, 0.711)]
    """
    if num_classes < 2:
        raise ValueError(f"Classes are told apart when there are at least two, not {num_classes}.")
    best = num_classes / (num_classes - 1)
    return (math.sqrt(1 + 2 * best) - 1) ** 2 / 2, math.sqrt(best / 2)


def divergence_limit(rho2: float) -> float:
    """Return the largest Delta_mu where every class has a good point.

    It is 1 - (1 - rho2)^2, or 1 for rho2 > 1, since ||mu_l|| >= r (1 - rho2_l).

    Example:
        >>> divergence_limit(0.5)
        0.75
    """
    not_negative(rho2=rho2)
    return 1 - max(1 - rho2, 0.0) ** 2
