"""Theorem 1: class centers that lie far apart, measured by rho, make the nearest-center classifier
right on main parts within S_eps.

    rho_l  = 2 (1 - sigma) + R_eps / p_l + sigma t,          t = (L delta + 2 eps) / r                                    (printed)
    rho2_l = 2 (1 - q) + q t,          q = sigma - R_eps / p_l                                                            (what the proof gives)

    (P)   mu_l . mu_k  <  r^2 (1 - rho_max - sqrt(2 rho_max) - Delta_mu / 2)   for all k != l                             (printed condition)
    (T)   || mu_l - mu_k ||  >  2 r rho2_l                                     for all k != l
    (T')  || mu_l - mu_k ||  >  2 r D_l,       D_l^2 = min( rho2_l^2, [ (1-q)(q - m_l^2) + (1 - q + q t)^2 ] / q ),    m_l = || mu_l || / r

Each gives Err(G_f) <= (1 - sigma) + R_eps. (P) and rho: Huang et al. 2023, Lemma 3.2 and Theorem 1.
With the printed coefficient 1 of R_eps / p_l the proof's step f(x) . mu_l >= r^2 (1 - rho_l) fails,
it needs 2; the theorem is true nevertheless, for every number of classes. For (P) implies (T'), and
(T') is a sufficient condition: r D_l is the largest possible distance of a good point from its own
center. (T) implies (T') as well, but (P) does not imply (T): with two classes, sigma = 1, t = 0,
R_eps / p_l = 1/2 and antipodal centers, (P) holds and (T) does not. All proofs:
docs/derivations.md, 2.
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
    """Both forms of rho (C,), the radius D_l (C,) in units of r, Delta_mu, the right side of (P) in
    units of r^2, and the bound in each form.
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
    """Err(G_f) <= (1 - sigma) + R_eps under (P), (T) and (T').

    Args:
        p: class priors.
        gram: inner products mu_k . mu_l of the class centers, squared lengths on the diagonal.
            Upper bounds off the diagonal, as Theorems 3 and 4 give, will do: all conditions are
            decreasing in them.
        sigma: least share of a class that is in its main part.
        R_epsilon, epsilon: P[two views of x lie more than epsilon apart] and that epsilon, in
            feature space.
        stretch: L delta, with f L-Lipschitz and delta the pixel size of the main parts. Or, with no
            Lipschitz constant, whatever bounds the distance of the features of the nearest views of
            two points of a main part: the feature-space delta if the parts were chosen by feature
            distances (`clique_part` of features), or the largest distance observed
            (`observed_stretch`).
        r: length of the features.
        error: Err(G_f), where it is known.

    Raises:
        ValueError: a quantity that cannot be what it is named.

    >>> antipodal = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> theorem = theorem_1(p=torch.tensor([0.5, 0.5]), gram=antipodal, sigma=0.75, R_epsilon=0.0, epsilon=0.0, stretch=0.0)
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
    """rho2 = 2 (1 - q) + q t, at most 2: r rho2 bounds the distance of a good point from its
    center, where a share q of the class is good.

    Never increasing in q and never decreasing in t; good points lie within r t of each other, in
    any views.
    """
    return 2 * (1 - q) + q * t.clamp(max=2)


def center_radius(
    q: Float[Tensor, " C"], t: Float[Tensor, " C"], lengths: Float[Tensor, " C"]
) -> Float[Tensor, " C"]:
    """D_l, in units of r: how far from its center a good point can lie, given ||mu_l||^2 / r^2 too.

    At most rho2 (docs/derivations.md, 2.3).

    >>> one = torch.ones(1)
    >>> center_radius(one / 2, one * 0, one).round(decimals=6), rho_2(one / 2, one * 0)       # a center of full length is where all features are
    (tensor([0.]), tensor([1.]))
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
    """||mu_l - mu_k||^2 - (2 radius_l)^2 of each pair (l, k), +inf on the diagonal: positive (by
    more than SLACK) where l is told from k.
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
    return f"{condition} fails: centers {row} and {column} lie {apart:.4g} r apart, not more than 2 {name} = {2 * float(radius[row]):.4g} r."


def largest_rho(num_classes: int) -> tuple[float, float]:
    """(rho, rho2) below which (P) and (T) can hold at all, where centers lie as far apart as C
    points can: mu_l . mu_k = -r^2 / (C - 1), Delta = 0.

    From rho + sqrt(2 rho) < C / (C - 1), and from 2 rho2 < sqrt(2 C / (C - 1)). Raises ValueError
    for fewer than two classes.

    >>> [tuple(round(x, 3) for x in largest_rho(C)) for C in (2, 10, 100)]
    [(0.764, 1.0), (0.316, 0.745), (0.272, 0.711)]
    """
    if num_classes < 2:
        raise ValueError(f"Classes are told apart when there are at least two, not {num_classes}.")
    best = num_classes / (num_classes - 1)
    return (math.sqrt(1 + 2 * best) - 1) ** 2 / 2, math.sqrt(best / 2)


def divergence_limit(rho2: float) -> float:
    """The largest Delta_mu where every class has a good point: 1 - (1 - rho2)^2, or 1 for rho2 > 1
    (||mu_l|| >= r (1 - rho2_l)).

    >>> divergence_limit(0.5)
    0.75
    """
    not_negative(rho2=rho2)
    return 1 - max(1 - rho2, 0.0) ** 2
