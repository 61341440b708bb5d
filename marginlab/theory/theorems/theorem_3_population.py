"""Theorem 3 of the distribution that images come from, pair by pair, and Theorem 1 behind it.

InfoNCE between views of an image of class k and a view of an image of class l, in both orders, has
the second part L_kl. With phi(u, v) = log(e^u + e^v) and features of length 1,

    L_kl  =  ( E phi(f(x_1) . f(x_2), f(x_1) . f(y))  +  E phi(f(y_1) . f(y_2), f(y_1) . f(x)) ) / 2
             x, x_1, x_2 views of an image of class k, y, y_1, y_2 of one of class l
    phi(a_k, mu_k . mu_l) + phi(a_l, mu_k . mu_l)  <=  2 L_kl               a_k = E_{C_k} ||nu||^2

which is (*) of Theorem 3 given both classes. No term of another pair has to be bounded. So an upper
limit of L_kl and lower limits of a_k and a_l give v_kl >= mu_k . mu_l, and with lower limits m_k of
|| mu_k ||^2 the condition (T') of Theorem 1 for the distribution:

    m_k + m_l - 2 v_kl  >  (2 D_k)^2   for all l != k

with D_k the radius of `theorem_1_population`, from reaches and lower limits of the shares within
them. Where it holds, G_f reads the good points of class k as k, and

    Err(G_f)  <=  sum over classes that hold of p_k (1 - q_k)  +  sum over the others of p_k

This is the corollary of Huang et al. 2023, section 4.1, that ties the loss to the error, in numbers
that can be had. Derived in docs/derivations.md, 4.1.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marginlab.theory.bound import LOST, SLACK, Bound, off_diagonal
from marginlab.theory.inputs import fractions, of_each_class, priors
from marginlab.theory.theorems.theorem_1 import center_radius
from marginlab.theory.theorems.theorem_1_population import spread_of
from marginlab.theory.theorems.theorem_3 import DIGITS, solved

FAR = "No class holds: the limits do not put the centers far enough apart for the reaches."


class Room(NamedTuple):
    """How far good points can lie from their center, and the room that is left.

    Attributes:
        radius: D_k.
        room: Least distance of mu_k from another center, less 2 D_k; negative where (T') fails.
    """

    radius: Float[Tensor, "*G C"]
    room: Float[Tensor, "*G C"]


@dataclass(frozen=True, eq=False)
class Theorem3Population:
    """The result of `theorem_3_population`.

    Attributes:
        products: v_kl, upper limits of mu_k . mu_l, (C, C), NaN on the diagonal.
        radius: D_k, (C,).
        room: By how much (T') holds for each class, negative where it fails, (C,).
        holds: Classes for which (T') holds, (C,).
        bound: The bound of the error.
    """

    products: Float[Tensor, "C C"]
    radius: Float[Tensor, " C"]
    room: Float[Tensor, " C"]
    holds: Bool[Tensor, " C"]
    bound: Bound


def theorem_3_population(
    *,
    p: Float[Tensor, " C"],
    loss: Float[Tensor, "C C"],
    aligned: Float[Tensor, " C"],
    lengths: Float[Tensor, " C"],
    q: Float[Tensor, "*R C"],
    reach: Float[Tensor, "*R C"],
    error: float = float("nan"),
) -> Theorem3Population:
    """Bound Err(G_f) by the second part of InfoNCE between classes, alignment and concentration.

    Limits that hold at once give a bound at their confidence.

    Args:
        p: Class priors of the distribution.
        loss: L_kl or upper limits of it, at temperature 1 with one negative, symmetric. The
            diagonal is not used.
        aligned: a_k = E ||nu||^2, or lower limits of it.
        lengths: || mu_k ||^2, or lower limits of it.
        q: P[all views within reach of a fixed point | class k], for one reach or a row for each, or
            lower limits of it.
        reach: The reaches, from the smallest: (C,), or (R, C).
        error: Err(G_f), where it is known.

    Raises:
        ValueError: A quantity cannot be what it is named.

    Example:
        Two classes, collapsed onto antipodal points:

        >>> two = torch.ones(2, dtype=torch.float64)
        >>> loss = torch.full((2, 2), math.log(math.e + 1 / math.e)).double()
        >>> known = {"p": two / 2, "loss": loss, "aligned": two, "lengths": two}
        >>> theorem = theorem_3_population(**known, q=0.9 * two, reach=0.1 * two)
        >>> round(float(theorem.products[0, 1]), 6), round(theorem.bound.right, 6)
        (-1.0, 0.1)
    """
    p = priors(p)
    C = len(p)
    loss = loss.detach().double()
    both = off_diagonal(loss).nan_to_num(nan=1.0)
    if (
        loss.shape != (C, C)
        or not bool(both.isfinite().all())
        or float((both - both.T).abs().max()) > 1e-6
        or float(both.min()) < math.log(2) - 1e-6
    ):
        raise ValueError(
            f"L_kl of {C} classes is symmetric, finite and at least log 2 for features of length "
            f"1, not {loss.tolist()}."
        )
    q, reach = q.view(-1, C), reach.view(-1, C)
    if q.shape != reach.shape or bool((reach.diff(dim=0) < 0).any()):
        raise ValueError(
            f"There is a q for each reach, and reaches begin with the smallest: {tuple(q.shape)} "
            f"and {reach.tolist()}."
        )
    levels = torch.stack([fractions("q", row, C) for row in q]).cummax(0).values
    s = torch.stack([of_each_class("reach", row, C) for row in reach]).clamp(max=2)
    products = product_limits(loss, fractions("aligned", aligned, C))
    radius, room = room_of(products, fractions("lengths", lengths, C), levels, s)
    holds = room > SLACK
    right = float(p @ torch.where(holds, 1 - levels[-1], 1.0))
    bound = Bound("Theorem 3 and Theorem 1", error, right, 1.0, "" if bool(holds.any()) else FAR)
    return Theorem3Population(off_diagonal(products), radius, room, holds, bound)


def product_limits(
    loss: Float[Tensor, "*G C C"], aligned: Float[Tensor, "*G C"]
) -> Float[Tensor, "*G C C"]:
    """Return the v with phi(a_k, v) + phi(a_l, v) = 2 L_kl, at least -1. Nothing is checked."""
    loss = loss * (1 + DIGITS) + DIGITS
    return solved(aligned[..., None], aligned[..., None, :], 2 * loss).clamp(min=-1)


def room_of(
    products: Float[Tensor, "*G C C"],
    lengths: Float[Tensor, "*G C"],
    q: Float[Tensor, "*G R C"],
    s: Float[Tensor, "*G R C"],
) -> Room:
    """Return D_k, and by how much (T') holds with limits of products. Nothing is checked.

    Args:
        products: Upper limits of mu_k . mu_l; the diagonal is not used.
        lengths: Lower limits of || mu_k ||^2.
        q: Lower limits of the shares within the reaches, which do not decrease along R.
        s: The reaches.
    """
    radius = radius_of(lengths, q, s)
    return Room(radius, least_apart(products, lengths) - 2 * radius)


def radius_of(
    lengths: Float[Tensor, "*H C"], q: Float[Tensor, "*G R C"], s: Float[Tensor, "*G R C"]
) -> Float[Tensor, "*G C"]:
    """Return D_k from lower limits of || mu_k ||^2 and of the shares within reaches."""
    last, t = q[..., -1, :], spread_of(q, s).t
    flat = (each.flatten() for each in (last, t, lengths.expand_as(t)))
    return center_radius(*flat).view_as(t)


def least_apart(
    products: Float[Tensor, "*G C C"], lengths: Float[Tensor, "*G C"]
) -> Float[Tensor, "*G C"]:
    """Return a lower limit of the distance of each center from the nearest other one."""
    squared = lengths[..., None] + lengths[..., None, :] - 2 * products - 4 * LOST
    itself = torch.eye(lengths.shape[-1], dtype=torch.bool, device=lengths.device)
    return squared.clamp(min=0).sqrt().masked_fill(itself, math.inf).amin(-1)
