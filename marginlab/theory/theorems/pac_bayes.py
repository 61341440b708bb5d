"""PAC-Bayes: the risk of a random encoder that was trained on the very batches that bound it.

P is a law over encoders, fixed before the batches; Q any law, chosen by them. Of n independent
batches the loss of an encoder lies in [low, high]. With risks and kl in units of this range,

    kl( risk on the batches || risk )  <=  ( KL(Q || P) + log(xi(n) / alpha) ) / n        of all Q
    kl(a || b)  =  a log(a / b) + (1 - a) log((1 - a) / (1 - b))
    xi(n)       =  sum_k C(n, k) (k/n)^k (1 - k/n)^{n-k}  <=  2 sqrt(n)

with probability 1 - alpha. Risks are means over Q. P may come from other images. P and Q normal
with one variance have KL = ||w - w_0||^2 / (2 sigma^2). The risk of Q on the batches is estimated
from draws, whose error is part of the bound. An encoder fixed by other images has the limit
without KL and xi (`held_out`), which is what the bound has to be compared with.

The loss of a batch is bounded for features of length 1 (`Range`): InfoNCE, spectral, VICReg, and
cross-correlation, whatever the features. This is a bound of the loss on new batches, and not of an
error: the losses say nothing of labels.

Sources: McAllester 1999; Maurer 2004 (arXiv cs/0411099) for values in [0, 1]; of the contrastive
risk Nozawa, Germain and Guedj 2020, van Elst and Ghoshdastidar (arXiv 2412.03486). Derived in
docs/derivations.md, 9.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.rng import Key
from marginlab.theory.bound import Bound
from marginlab.theory.inputs import not_negative, positive
from marginlab.theory.mean_limits import upper_mean

HALVINGS = 60


class Range(NamedTuple):
    """The ends between which the loss of a batch lies.

    Example:
        >>> [round(end, 3) for end in Range.info_nce(temperature=0.5, negatives=6)]
        [0.104, 5.795]
    """

    low: float
    high: float

    @classmethod
    def info_nce(cls, *, temperature: float, negatives: int) -> "Range":
        """Range of InfoNCE of features of length 1 with so many negatives of an anchor."""
        positive(temperature=temperature, negatives=negatives)
        most = 2 / temperature
        return cls(*(math.log1p(negatives * math.exp(end)) for end in (-most, most)))

    @classmethod
    def spectral(cls) -> "Range":
        """Range of the spectral loss -2 E f . f+ + E (f . f-)^2 of features of length 1."""
        return cls(-2.0, 3.0)

    @classmethod
    def cross_correlation(cls, *, dim: int, off_diagonal_weight: float) -> "Range":
        """Range of the cross-correlation loss of D features: correlations lie in [-1, 1]."""
        positive(dim=dim)
        not_negative(off_diagonal_weight=off_diagonal_weight)
        return cls(0.0, 4.0 * dim + off_diagonal_weight * dim * (dim - 1))

    @classmethod
    def vicreg(
        cls,
        *,
        dim: int,
        batch: int,
        weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
        gamma: float = 1.0,
    ) -> "Range":
        """Range of VICReg of features of length 1, from batches of so many images.

        `weights` are those of invariance, variance and covariance.
        """
        positive(dim=dim, batch=batch - 1)
        invariance, variance, covariance = weights
        not_negative(invariance=invariance, variance=variance, covariance=covariance, gamma=gamma)
        alike = 2 * covariance * (batch / (batch - 1)) ** 2  # || Cov || <= tr Cov, of both views
        return cls(0.0, (4 * invariance + alike) / dim + variance * gamma)


@dataclass(frozen=True)
class PacBayes:
    """The result of `pac_bayes`.

    Attributes:
        divergence: KL(Q || P).
        risk: Mean loss of the draws from Q on the batches.
        bound: The bound of the risk of Q on new batches, in units of the loss; `high` is trivial.
    """

    divergence: float
    risk: float
    bound: Bound


def pac_bayes(
    losses: Float[Tensor, "S n"],
    ends: Range,
    *,
    divergence: float,
    confidence: float = 0.95,
) -> PacBayes:
    """Bound the risk of a law Q over encoders on new batches.

    Args:
        losses: Losses of S encoders drawn from Q, independently, on each of n independent batches.
        ends: The ends of the loss.
        divergence: KL(Q || P). If Q is the best of G laws each with its own P, add log G.
        confidence: Confidence of the bound; a tenth of the risk is for the draws.

    Raises:
        ValueError: Losses lie outside of the ends, or a quantity cannot be what it is named.

    Example:
        >>> losses = torch.full((200, 1000), 0.1, dtype=torch.float64)
        >>> ends = Range(0.0, 1.0)
        >>> [round(pac_bayes(losses, ends, divergence=kl).bound.right, 3) for kl in (0.0, 50.0)]
        [0.179, 0.276]
    """
    share = _shares(losses, ends)
    not_negative(divergence=divergence)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is between 0 and 1, not {confidence}.")
    risk = 1 - confidence
    S, n = losses.shape
    drawn = share.mean(1, keepdim=True)
    seen = float(upper_mean(drawn, torch.tensor([S], device=drawn.device), risk / 10))
    budget = (divergence + log_xi(n) + math.log(1 / (0.9 * risk))) / n
    right = ends.low + (ends.high - ends.low) * kl_limit(seen, budget)
    name = f"PAC-Bayes, KL = {divergence:.4g}, confidence {confidence:g}"
    mean = ends.low + (ends.high - ends.low) * float(share.mean())
    return PacBayes(divergence, mean, Bound(name, math.nan, right, ends.high))


def held_out(losses: Float[Tensor, " n"], ends: Range, confidence: float = 0.95) -> Bound:
    """Bound the risk of one encoder, fixed by other images, from its losses on n batches.

    Example:
        >>> round(held_out(torch.full((1000,), 0.1).double(), Range(0.0, 1.0)).right, 3)
        0.125
    """
    share = _shares(losses[None], ends)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is between 0 and 1, not {confidence}.")
    limit = kl_limit(float(share.mean()), math.log(1 / (1 - confidence)) / len(losses))
    right = ends.low + (ends.high - ends.low) * limit
    return Bound(f"Held-out risk, confidence {confidence:g}", math.nan, right, ends.high)


def drawn_losses(
    loss: Callable[[Tensor], Tensor],
    weights: Float[Tensor, "*W"],
    sigma: float,
    draws: int,
    seed: int = 0,
) -> Float[Tensor, "S n"]:
    """Return the losses of encoders drawn from the normal law around weights.

    Args:
        loss: Gives the loss of each of n batches, (n,), for weights.
        weights: The mean of Q.
        sigma: Deviation of each weight.
        draws: Number S of encoders.
        seed: Seed of the draws.
    """
    positive(sigma=sigma, draws=draws)
    key = Key(seed).named("pac-bayes")
    index = torch.arange(weights.numel())
    rows = []
    for draw in range(draws):
        noise = key.at(draw, index).normal().view(weights.shape).to(weights)
        rows.append(loss(weights + sigma * noise).double())
    return torch.stack(rows)


def normal_divergence(
    weights: Float[Tensor, "*W"], prior: Float[Tensor, "*W"], sigma: float
) -> float:
    """Return KL between normal laws around two points, of deviation sigma in every coordinate.

    Example:
        >>> normal_divergence(torch.tensor([3.0, 4.0]), torch.zeros(2), sigma=1.0)
        12.5
    """
    positive(sigma=sigma)
    return float((weights.double() - prior.double()).square().sum()) / (2 * sigma**2)


def kl_limit(mean: float, budget: float) -> float:
    """Return the largest b in [mean, 1] with kl(mean || b) <= budget, rounded up.

    Example:
        >>> round(kl_limit(0.0, 0.1), 6) == round(1 - math.exp(-0.1), 6)
        True
    """
    low, high = mean, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if binary_kl(mean, middle) <= budget:
            low = middle
        else:
            high = middle
    return high


def binary_kl(a: float, b: float) -> float:
    """Return kl(a || b) of two probabilities."""
    first = 0.0 if a == 0 else math.inf if b == 0 else a * math.log(a / b)
    rest = 0.0 if a == 1 else math.inf if b == 1 else (1 - a) * math.log((1 - a) / (1 - b))
    return first + rest


def log_xi(n: int) -> float:
    """Return log xi(n), the largest log E e^{n kl(mean || true mean)} of n values in [0, 1].

    Example:
        >>> round(math.exp(log_xi(1)), 6), log_xi(400) < math.log(2 * 400**0.5)
        (2.0, True)
    """
    positive(n=n)
    k = torch.arange(n + 1, dtype=torch.float64)
    whole = torch.tensor(float(n), dtype=torch.float64)
    terms = torch.lgamma(whole + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    terms = terms + torch.xlogy(k, k / n) + torch.xlogy(n - k, 1 - k / n)
    return float(terms.logsumexp(0))


def _shares(losses: Tensor, ends: Range) -> Tensor:
    """Return losses in units of their range; refuse those outside."""
    slack = 1e-6 * max(1.0, abs(ends.low), abs(ends.high))
    wide = losses.detach().double()
    inside = (wide >= ends.low - slack) & (wide <= ends.high + slack)
    if not ends.low < ends.high < math.inf or losses.numel() == 0 or not bool(inside.all()):
        raise ValueError(
            f"Losses of at least one batch lie in [{ends.low:g}, {ends.high:g}], not from "
            f"{wide.min() if losses.numel() else math.nan:.6g} to "
            f"{wide.max() if losses.numel() else math.nan:.6g}: are features of length 1?"
        )
    return ((wide - ends.low) / (ends.high - ends.low)).clamp(0, 1)
