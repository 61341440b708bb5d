"""Theorem 3: the second part L_2 of InfoNCE bounds the inner products of class centers.

There are two forms, the printed one and one that can certify. With ||f|| = 1,

    L_2         = E log( e^{f(x_1) . f(x_2)} + e^{f(x_1) . f(x^-)} )
    phi(u, v)   = log(e^u + e^v)
    a_k         = 1 - A_k / 2 = E_{C_k} ||nu||^2

    mu_k . mu_l  <=  log( exp( (L_2 + tau) / (p_k p_l) ) - exp(1 - eps) )          (printed)
                     with  tau = R_eps log( (1 + e^{2-eps}) / 2 )
    sum_{k,l} p_k p_l phi(a_k, mu_k . mu_l)  <=  L_2                               (*)

The printed form: Huang et al. 2023, Theorem 3, whose tau is in an appendix. The tau here is ours
and needs neither sigma nor delta. (*) has no tau: phi is jointly convex, and given the classes the
expectations of its two arguments are exactly a_k and mu_k . mu_l. It holds for every encoder of
length 1, every temperature and number of negatives. As L_2 >= log 2 and p_k p_l <= 1/4, the printed
right side is never below log(16 - e) = 2.59, which is above the trivial 1. As a number it says
nothing about any encoder.

A bound of one pair follows from (*) in three steps: keep both orders of the pair, subtract the
terms of equal classes, and bound the other pairs from below by mu_i . mu_j >= -||mu_i|| ||mu_j||.
It is never above the printed one. Proofs: docs/derivations.md, 4.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.theory.bound import Bound, PairBound, off_diagonal
from marginlab.theory.inputs import fraction, gram_matrix, of_each_class, positive, priors
from marginlab.theory.logsum import expected_log_sum

# up to here phi(1 - eps, v) >= 0 for all v >= -1, so that terms may be dropped
LARGEST_EPSILON = 1 - math.log(1 - 1 / math.e)

# relative to L_2: at low temperature L_2 depends on the centers only in its last digits, and its
# rounding must not become a certificate
DIGITS = 1e-12


@dataclass(frozen=True, eq=False)
class Theorem3:
    """The bounds of `theorem_3`.

    Attributes:
        jensen: (*), a bound of its left side by L_2.
        pairs: The bound of each mu_k . mu_l (one negative only).
        average: The bound of their average over k != l, weighted by p_k p_l (one negative only).
    """

    jensen: Bound
    pairs: PairBound
    average: Bound


def theorem_3_printed(
    *,
    p: Float[Tensor, " C"],
    gram: Float[Tensor, "C C"],
    L_2: float,
    R_epsilon: float,
    epsilon: float,
) -> PairBound:
    """Bound mu_k . mu_l by L_2 and R_eps, at temperature 1 with one negative, as printed.

    Args:
        p: Class priors.
        gram: Inner products of the centers, which are only the left side.
        L_2: L_2 of the InfoNCE of features of length 1.
        R_epsilon: As in `theorem_1`.
        epsilon: As in `theorem_1`; at most 1 - log(1 - 1/e) = 1.4587, where terms stop being
            positive.

    Raises:
        ValueError: A quantity cannot be what it is named.

    Example:
        >>> half = torch.tensor([0.5, 0.5])
        >>> known = {"L_2": 0.6932, "R_epsilon": 0.0, "epsilon": 0.0}
        >>> theorem_3_printed(p=half, gram=torch.eye(2), **known).reason
        'The least right side, 2.587, is not below 1, which holds of every encoder.'
    """
    p = priors(p)
    gram = gram_matrix(gram, len(p), 1.0)
    if not math.log(2) - 1e-6 <= L_2 < math.inf:
        raise ValueError(
            f"L_2 of features of length 1 at T = 1 is finite and at least log 2, not {L_2}."
        )
    if not 0 <= epsilon <= LARGEST_EPSILON:
        raise ValueError(
            f"Theorem 3 drops terms that are positive for epsilon from 0 to {LARGEST_EPSILON:.4f}, "
            f"not {epsilon}."
        )
    exponent = (L_2 + tau(R_epsilon, epsilon)) / (p[:, None] * p)
    # exp(exponent) overflows where a class is rare
    right = exponent + torch.log1p(-torch.exp((1 - epsilon - exponent).clamp(max=0)))
    return PairBound("Theorem 3, printed", off_diagonal(gram), off_diagonal(right), 1.0)


def tau(R_epsilon: float, epsilon: float) -> float:
    """Return the tau of Theorem 3, R_eps log( (1 + e^{2-eps}) / 2 ).

    It bounds what images outside S_eps can take from phi.

    Example:
        >>> round(tau(1.0, 0.0), 3)
        1.434
    """
    if not 0 <= epsilon <= 2:
        raise ValueError(
            f"epsilon is a distance between points of the unit sphere, from 0 to 2, not {epsilon}."
        )
    return fraction("R_epsilon", R_epsilon) * math.log((1 + math.exp(2 - epsilon)) / 2)


def theorem_3(
    *,
    p: Float[Tensor, " C"],
    gram: Float[Tensor, "C C"],
    A: Float[Tensor, " C"],
    L_2: float,
    temperature: float = 1.0,
    negatives: int = 1,
) -> Theorem3:
    """Bound the inner products of class centers by L_2 with (*), temperature T and M negatives.

    Args:
        p: Class priors.
        gram: Inner products of the class centers. The bounds of pairs and of the average use only
            the squared lengths on its diagonal.
        A: A_k, the mean squared distance of two views of an image of class k.
        L_2: E log(e^{s_+/T} + sum over M negatives of e^{s_j/T}) of features of length 1, the
            negatives drawn from the whole population. If it is estimated, give an upper limit.
        temperature: T.
        negatives: M. With more than one negative the bounds of pairs and of the average are not
            made (their premise says so).

    Raises:
        ValueError: A quantity cannot be what it is named.

    Example:
        Two classes, collapsed onto antipodal points:

        >>> L_2 = 0.5 * math.log(2 * math.e) + 0.5 * math.log(math.e + 1 / math.e)
        >>> antipodal = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> half, none = torch.tensor([0.5, 0.5]), torch.zeros(2)
        >>> theorem = theorem_3(p=half, gram=antipodal, A=none, L_2=L_2)
        >>> round(float(theorem.pairs.right[0, 1]), 6), round(theorem.average.right, 6)
        (-1.0, -1.0)
    """
    p = priors(p)
    gram = gram_matrix(gram, len(p), 1.0)
    positive(temperature=temperature)
    if not math.isfinite(L_2):
        raise ValueError(f"L_2 is finite, not {L_2}.")
    a = (1 - of_each_class("A", A, len(p)) / 2) / temperature
    if not bool((a >= -1e-9).all()):
        raise ValueError(
            "A_k is at most 2 for features of length 1 (1 - A_k / 2 = E ||nu||^2), not "
            f"{A.tolist()}: normalize the features."
        )
    a = a.clamp(min=0)
    name = f"Theorem 3, exact, T = {temperature:g}, M = {negatives}"
    summed = float(p @ expected_log_sum(a, gram / temperature, p, negatives))
    jensen = Bound(f"{name}: (*)", summed, L_2, math.inf)
    mean = float((off_diagonal(gram) * p[:, None] * p).nansum() / (1 - p.square().sum()))
    if negatives != 1:
        more = (
            f"Of {negatives} negatives only (*) itself is had: solve for a pair with one negative."
        )
        nothing = off_diagonal(torch.full_like(gram, math.inf))
        return Theorem3(
            jensen,
            PairBound(f"{name}: pairs", off_diagonal(gram), nothing, 1.0, more),
            Bound(f"{name}: average", mean, math.inf, 1.0, more),
        )
    weight = p[:, None] * p
    lengths = gram.diagonal().clamp(min=0)
    alike = float((p.square() * torch.logaddexp(a, lengths / temperature)).sum())
    floor = -(lengths[:, None] * lengths).sqrt() / temperature
    least = off_diagonal(weight * torch.logaddexp(a[:, None].expand_as(floor), floor)).nan_to_num(
        nan=0.0
    )
    if alike + float(least.sum()) > L_2 + 1e-6 * max(1.0, abs(L_2)):
        raise ValueError(
            f"No encoder has L_2 = {L_2:.6g} with centers of these lengths: it is at least "
            f"{alike + float(least.sum()):.6g}. Take all of them from the same features of length "
            "1, and of an estimate its upper limit."
        )
    L_2 += DIGITS * max(1.0, abs(L_2))
    others = least.sum() - least - least.T  # all ordered pairs but (k, l) and (l, k)
    pairs = off_diagonal(
        temperature * solved(a[:, None], a, (L_2 - alike - others) / weight).maximum(floor)
    )
    across = weight.sum(1) - p.square()  # p_k (1 - p_k)
    average = (L_2 - alike) / float(across.sum())
    typical = (across @ a) / across.sum()
    lowest = (off_diagonal(floor) * weight).nansum() / across.sum()
    right = temperature * float(
        solved(typical, typical, torch.full_like(typical, 2 * average)).maximum(lowest)
    )
    return Theorem3(
        jensen,
        PairBound(f"{name}: pairs", off_diagonal(gram), pairs, 1.0),
        Bound(f"{name}: average", mean, right, 1.0),
    )


def solved(
    a: Float[Tensor, "*S"], b: Float[Tensor, "*Z"], total: Float[Tensor, "*G"]
) -> Float[Tensor, "*G"]:
    """Return the v with phi(a, v) + phi(b, v) = total; -inf where no v solves it.

    y = e^v solves (e^a + y)(e^b + y) = e^total. With z = total - a - b: y^2 + (e^a + e^b) y =
    e^{a+b} (e^z - 1). Its root is written without a difference of close numbers, and in logs,
    because total is large where a class is rare.
    """
    a, b = torch.broadcast_tensors(a, b)
    z = total - a - b
    half = torch.logaddexp(a, b) - math.log(2)
    # log of e^{a+b} (e^z - 1), for z > 0
    log_c = (
        a
        + b
        + torch.where(
            z > 1,
            z + torch.log1p(-torch.exp(-z.clamp(min=1e-300))),
            z.clamp(min=1e-300, max=2).expm1().log(),
        )
    )
    # half + sqrt(half^2 + c), and y = c / that
    root = torch.logaddexp(half, 0.5 * torch.logaddexp(2 * half, log_c))
    return torch.where(z > 0, log_c - root, -math.inf)
