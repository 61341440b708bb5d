"""Expected log of a sum of M independent terms, exactly, without drawing.

It is E log( a + X_1 + ... + X_M ), X_j i.i.d. over finitely many values. For z > 0, log z =
int_0^inf (e^{-t} - e^{-z t}) dt / t (Frullani), and e^{-(X_1 + ... + X_M) t} has the expectation
phi(t)^M with phi(t) = E e^{-X t}. So for every M it is one integral over t = e^s,

    E log(a + sum X_j)  =  int ( exp(-e^s) - exp(-a e^s) phi(e^s)^M ) ds

The integrand is analytic in the strip |Im s| < pi/2 and vanishes at both ends. So the trapezoidal
rule errs by about exp(-pi^2 / step) (Trefethen and Weideman, SIAM Review 56, 2014), 4e-22 at a step
of 0.2. Everything is first divided by the expectation of the sum, so that the integrand falls as
e^{2s} to the left. This is the second part of InfoNCE with M negatives (Huang et al. 2023, section
4.1, has M = 1).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

FARTHEST = 600.0  # in float64 e^709 is the largest power
STEP = 0.2
LEFT = -19.0  # e^{2 * -19} = 3e-17


def expected_log_sum(
    log_a: Float[Tensor, " R"],
    log_x: Float[Tensor, "R J"],
    weights: Float[Tensor, " J"],
    terms: int,
) -> Float[Tensor, " R"]:
    """Return E log(exp(log_a) + X_1 + ... + X_M) for each of R rows.

    The result is in float64, to about 1e-13.

    Args:
        log_a: Logarithm of a, (R,).
        log_x: Logarithms of the values of the i.i.d. X, (R, J).
        weights: Probabilities of the values, (J,).
        terms: M.

    Raises:
        ValueError: There is less than one term, or the sums lie too far from their mean.

    Example:
        The mean of log 3, log(2 + e) twice, and log(1 + 2e):

        >>> one, half = torch.zeros(1).double(), torch.tensor([0.5, 0.5]).double()
        >>> x = torch.tensor([[0.0, 1.0]]).double()
        >>> expected_log_sum(one, x, half, terms=2)
        tensor([1.5159], dtype=torch.float64)
    """
    if terms < 1:
        raise ValueError(f"A sum has at least one term beside a, not {terms}.")
    log_a, log_x, weights = log_a.double(), log_x.double(), weights.double()
    if terms == 1:
        return torch.logaddexp(log_a[:, None], log_x) @ weights
    mean = torch.logaddexp(log_a, torch.logsumexp(log_x + weights.log(), 1) + math.log(terms))
    a, x = (log_a - mean).exp(), (log_x - mean[:, None]).exp()
    # exp(-z t) dies only beyond t = 1/z
    least = torch.logaddexp(log_a - mean, log_x.amin(1) - mean + math.log(terms)).min()
    if not -float(least) < FARTHEST:
        raise ValueError(
            f"The sums lie within a factor of e^{-float(least):.0f} of their mean, beyond "
            f"e^{FARTHEST:.0f}: take a higher temperature."
        )
    s = torch.arange(LEFT, float(-least) + 4.0, STEP, dtype=a.dtype, device=a.device)
    total = torch.zeros_like(a)
    for t in s.exp():
        # near t = 0 phi is 1 to all digits, and M times its log is not
        log_phi = torch.log1p((torch.expm1(-x * t) @ weights).clamp(min=-1.0))
        total += (-t).exp() - (terms * log_phi - a * t).exp()
    return mean + total * STEP
