"""Theorem 3: the second part L_2 of InfoNCE bounds the inner products of class centers, in the
printed form and in one that can certify.

    L_2 = E log( e^{f(x_1) . f(x_2)} + e^{f(x_1) . f(x^-)} ),     ||f|| = 1,     phi(u, v) = log(e^u + e^v),     a_k = 1 - A_k / 2 = E_{C_k} ||nu||^2

    mu_k . mu_l  <=  log( exp( (L_2 + tau) / (p_k p_l) ) - exp(1 - eps) ),       tau = R_eps log( (1 + e^{2-eps}) / 2 )              (printed)
    sum_{k,l} p_k p_l phi(a_k, mu_k . mu_l)  <=  L_2                                                                                 (*)

The printed form: Huang et al. 2023, Theorem 3, whose tau is in an appendix; the tau here is ours
and needs neither sigma nor delta. (*) has no tau: phi is jointly convex, and given the classes the
expectations of its two arguments are exactly a_k and mu_k . mu_l. It holds for every encoder of
length 1, every temperature and number of negatives. As L_2 >= log 2 and p_k p_l <= 1/4, the printed
right side is never below log(16 - e) = 2.59, above the trivial 1: as a number it says nothing of
any encoder. From (*) a bound of one pair is had by keeping both of its orders, subtracting the
terms of equal classes, and bounding the other pairs from below by mu_i . mu_j >= -||mu_i||
||mu_j||. It is never above the printed one. Proofs: docs/derivations.md, 4.
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

# of L_2: at low temperature it depends on the centers only in its last digits, and its rounding
# must not become a certificate
DIGITS = 1e-12


@dataclass(frozen=True, eq=False)
class Theorem3:
    """(*) as a bound of its left side by L_2; of each mu_k . mu_l, and of their average over k !=
    l, weighted by p_k p_l (one negative only).
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
    """mu_k . mu_l from L_2 and R_eps, without temperature and with one negative, as printed.

    Args:
        p, gram: class priors, and the inner products of the centers: only the left side.
        L_2: of the InfoNCE of features of length 1.
        R_epsilon, epsilon: as of `theorem_1`; epsilon at most 1 - log(1 - 1/e) = 1.4587, where
            terms stop being positive.

    Raises:
        ValueError: a quantity that cannot be what it is named.

    >>> theorem_3_printed(p=torch.tensor([0.5, 0.5]), gram=torch.eye(2), L_2=0.6932, R_epsilon=0.0, epsilon=0.0).reason
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
            f"Theorem 3 drops terms that are positive for epsilon from 0 to "
            f"{LARGEST_EPSILON:.4f}, not {epsilon}."
        )
    exponent = (L_2 + tau(R_epsilon, epsilon)) / (p[:, None] * p)
    # exp(exponent) overflows where a class is rare
    right = exponent + torch.log1p(-torch.exp((1 - epsilon - exponent).clamp(max=0)))
    return PairBound("Theorem 3, printed", off_diagonal(gram), off_diagonal(right), 1.0)


def tau(R_epsilon: float, epsilon: float) -> float:
    """The tau of Theorem 3, R_eps log( (1 + e^{2-eps}) / 2 ): what images outside S_eps can take
    from phi.

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
    """What L_2 says of the class centers by (*), with the temperature T and M negatives.

    Args:
        p: class priors.
        gram: inner products of the class centers. The bounds of pairs and of the average use the
            squared lengths on its diagonal only.
        A: A_k, the mean squared distance of two views of an image of class k.
        L_2: E log(e^{s_+/T} + sum over M negatives of e^{s_j/T}) of features of length 1, the
            negatives drawn from the whole population; where it is estimated, an upper limit.
        temperature, negatives: T and M. With more than one negative the bounds of pairs and of the
            average are not made (their premise says so).

    Raises:
        ValueError: a quantity that cannot be what it is named.

    >>> L_2 = 0.5 * math.log(2 * math.e) + 0.5 * math.log(math.e + 1 / math.e)          # two classes, collapsed onto antipodal points
    >>> antipodal = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> theorem = theorem_3(p=torch.tensor([0.5, 0.5]), gram=antipodal, A=torch.zeros(2), L_2=L_2)
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
            f"A_k is at most 2 for features of length 1 (1 - A_k / 2 = E ||nu||^2), not "
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
            f"{alike + float(least.sum()):.6g}. "
            "Take all of them from the same features of length 1, and of an estimate its "
            "upper limit."
        )
    L_2 += DIGITS * max(1.0, abs(L_2))
    others = least.sum() - least - least.T  # all ordered pairs but (k, l) and (l, k)
    pairs = off_diagonal(
        temperature * _solved(a[:, None], a, (L_2 - alike - others) / weight).maximum(floor)
    )
    across = weight.sum(1) - p.square()  # p_k (1 - p_k)
    average = (L_2 - alike) / float(across.sum())
    typical = (across @ a) / across.sum()
    lowest = (off_diagonal(floor) * weight).nansum() / across.sum()
    right = temperature * float(
        _solved(typical, typical, torch.full_like(typical, 2 * average)).maximum(lowest)
    )
    return Theorem3(
        jensen,
        PairBound(f"{name}: pairs", off_diagonal(gram), pairs, 1.0),
        Bound(f"{name}: average", mean, right, 1.0),
    )


def _solved(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """The v with phi(a, v) + phi(b, v) = total: y = e^v solves (e^a + y)(e^b + y) = e^total; -inf
    where no v does.

    With z = total - a - b: y^2 + (e^a + e^b) y = e^{a+b} (e^z - 1), whose root is written without a
    difference of close numbers, and in logs, because total is large where a class is rare.
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
