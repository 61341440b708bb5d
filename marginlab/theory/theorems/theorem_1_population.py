"""Theorem 1 of the distribution that images come from, by limits from new images.

For each class a point c and reaches s_1 < ... < s_R are fixed on other images. far(x) is the
distance of the farthest view of x from the c of its class, q_j is a lower limit of P[far <= s_j],
and a point is good if far <= s_R. With r_j = q_j - q_{j-1}, s = s_R and q = q_R, for features of
length 1, mu the true center of the class and any view g of a good point,

    || mu - q c ||  <=  e    = sum_j r_j s_j + 1 - q
    || g - mu ||    <=  rho  = sum_j r_j (s + s_j) + 2 (1 - q),  and  <=  D of Theorem 1 (T')
                        with q t = sum_j r_j (s + s_j)  and  || mu || >= q || c || - e

With one reach these are q s + 1 - q and 2 q s + 2 (1 - q). Where one of these conditions holds for
all l != k, the good points of class k are read as k by G_f, the nearest of the true centers:

    (T)   || q_k c_k - q_l c_l || - e_k - e_l  >  2 rho_k       so  || mu_k - mu_l || > 2 rho_k
    (G)   || c_k - q_l c_l ||     - s_k - e_l  >  D_k           so  || g - mu_l || > || g - mu_k ||

    Err(G_f)  <=  sum over classes that hold of p_k (1 - q_k)  +  sum over the others of p_k

(T) is Theorem 1 of Huang et al. 2023 by distances, with sigma and R_eps counted together and class
by class. (T) implies (G). The centers mu_k are those of the distribution: nobody has them, and the
bound is of the classifier that the theory speaks of. Derived in docs/derivations.md, 2.11.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marginlab.theory.bound import LOST, SLACK, Bound
from marginlab.theory.inputs import fractions, of_each_class, priors
from marginlab.theory.theorems.theorem_1 import center_radius, rho_2

NONE_HOLDS = (
    "No class holds: the centers are not far enough apart for what lies outside the reaches."
)


@dataclass(frozen=True, eq=False)
class Theorem1Population:
    """The result of `theorem_1_population`.

    Attributes:
        spread: e_k: how far mu_k may lie from q_k c_k, (C,).
        rho: rho_k, (C,).
        radius: The smaller of rho_k and D_k, (C,).
        room_T: By how much (T) holds for each class, negative where it fails, (C,).
        room: By how much (G) holds, (C,).
        holds_T: Classes for which (T) holds, (C,).
        holds: Classes for which (G) or (T) holds, (C,).
        distance: The bound under (T).
        bound: The bound under (G) or (T).
    """

    spread: Float[Tensor, " C"]
    rho: Float[Tensor, " C"]
    radius: Float[Tensor, " C"]
    room_T: Float[Tensor, " C"]  # noqa: N815  # (T) is its name
    room: Float[Tensor, " C"]
    holds_T: Bool[Tensor, " C"]  # noqa: N815
    holds: Bool[Tensor, " C"]
    distance: Bound
    bound: Bound


def theorem_1_population(
    *,
    p: Float[Tensor, " C"],
    centers: Float[Tensor, "C D"],
    q: Float[Tensor, "*R C"],
    reach: Float[Tensor, "*R C"],
    error: float = float("nan"),
) -> Theorem1Population:
    """Bound Err(G_f), G_f the nearest of the true class centers, from fixed points and reaches.

    Args:
        p: Class priors of the distribution.
        centers: c_k, at most of length 1.
        q: P[all views within reach of c_k | class k], for one reach or a row for each. Lower limits
            that hold for all classes and reaches at once give a bound at their confidence.
        reach: The reaches, from the smallest: (C,), or (R, C).
        error: Err(G_f), where it is known.

    Raises:
        ValueError: A quantity cannot be what it is named.

    Example:
        >>> two, centers = torch.ones(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> theorem = theorem_1_population(p=two / 2, centers=centers, q=0.9 * two, reach=0.1 * two)
        >>> theorem.holds_T.tolist(), round(theorem.bound.right, 6)
        ([True, True], 0.1)
    """
    p = priors(p)
    if (
        centers.ndim != 2
        or len(centers) != len(p)
        or not bool(centers.isfinite().all())
        or float(centers.norm(dim=1).max()) > 1 + 1e-6
    ):
        raise ValueError(
            f"Centers of {len(p)} classes are points of the unit ball, ({len(p)}, D), as features "
            f"have length 1, not {tuple(centers.shape)}, or longer."
        )
    q, reach = q.view(-1, len(p)), reach.view(-1, len(p))
    if q.shape != reach.shape or bool((reach.diff(dim=0) < 0).any()):
        raise ValueError(
            f"There is a q for each reach, and reaches begin with the smallest: {tuple(q.shape)} "
            f"and {reach.tolist()}."
        )
    levels = torch.stack([fractions("q", row, len(p)) for row in q]).cummax(0).values
    s = torch.stack([of_each_class("reach", row, len(p)) for row in reach]).clamp(max=2)
    found = conditions(centers.double(), levels, s)
    q, room_T, room = levels[-1], found.room_T, found.room
    holds_T = room_T > SLACK
    holds = (room > SLACK) | holds_T
    return Theorem1Population(
        *found,
        holds_T,
        holds,
        _bound("Theorem 1 for the population under (T)", p, q, holds_T, error),
        _bound("Theorem 1 for the population", p, q, holds, error),
    )


class Conditions(NamedTuple):
    """The first fields of `Theorem1Population`, of one or of many choices of reaches."""

    spread: Float[Tensor, "*G C"]
    rho: Float[Tensor, "*G C"]
    radius: Float[Tensor, "*G C"]
    room_T: Float[Tensor, "*G C"]  # noqa: N815  # (T) is its name
    room: Float[Tensor, "*G C"]


class Spread(NamedTuple):
    """The two quantities that limits and reaches of a class give.

    Attributes:
        center: e_k: how far mu_k may lie from q_k c_k.
        t: How far, on average, good points lie from each other at most: q t is the sum in rho_k.
    """

    center: Float[Tensor, "*G C"]
    t: Float[Tensor, "*G C"]


def spread_of(q: Float[Tensor, "*G R C"], s: Float[Tensor, "*G R C"]) -> Spread:
    """Return e_k and t_k from limits q and reaches s, which do not decrease along R."""
    outer, last = s[..., -1, :], q[..., -1, :]
    more = q.diff(dim=-2, prepend=torch.zeros_like(q[..., :1, :]))
    t = (more * (outer[..., None, :] + s)).sum(-2) / last.clamp(min=1e-300)
    return Spread((more * s).sum(-2) + 1 - last, t)


def least_lengths(
    centers: Float[Tensor, "*H C D"], q: Float[Tensor, "*G C"], spread: Float[Tensor, "*G C"]
) -> Float[Tensor, "*G C"]:
    """Return a lower limit of || mu_k ||^2, from || mu_k - q_k c_k || <= e_k."""
    least: Tensor = (q * centers.norm(dim=-1) - spread).clamp(min=0)
    return least.square()


def conditions(
    centers: Float[Tensor, "*H C D"], q: Float[Tensor, "*G R C"], s: Float[Tensor, "*G R C"]
) -> Conditions:
    """Return by how much (T) and (G) hold, for each of many limits q and reaches s.

    They do not decrease along R. Nothing is checked.
    """
    outer, last = s[..., -1, :], q[..., -1, :]
    spread, t = spread_of(q, s)
    lengths = least_lengths(centers, last, spread)
    flat = last.flatten(), t.flatten()
    rho = rho_2(*flat).view_as(t)
    radius = center_radius(*flat, lengths.flatten()).view_as(t)
    gram = centers @ centers.mT
    other = spread[..., None, :]
    itself = torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device)
    # || q_k c_k - q_l c_l || - e_k - e_l, and || c_k - q_l c_l || - s_k - e_l
    both = _apart(gram, last, last) - spread[..., None] - other
    one = _apart(gram, torch.ones_like(last), last) - outer[..., None] - other
    room_T, room = (apart.masked_fill(itself, math.inf).amin(-1) for apart in (both, one))
    return Conditions(spread, rho, radius, room_T - 2 * rho, room - radius)


def _apart(gram: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return || a_k c_k - b_l c_l || of each pair (k, l), rounded down."""
    lengths: Tensor = gram.diagonal(dim1=-2, dim2=-1)
    first, second = (a.square() * lengths)[..., None], (b.square() * lengths)[..., None, :]
    product = a[..., None] * b[..., None, :] * gram
    squared = first + second - 2 * product - LOST * (first + second)
    apart: Tensor = squared.clamp(min=0).sqrt()
    return apart


def _bound(name: str, p: Tensor, q: Tensor, holds: Tensor, error: float) -> Bound:
    right = float(p @ torch.where(holds, 1 - q, 1.0))
    return Bound(name, error, right, 1.0, "" if bool(holds.any()) else NONE_HOLDS)
