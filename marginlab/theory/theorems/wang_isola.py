"""Wang and Isola: InfoNCE with many negatives is alignment plus uniformity.

The bounds say how fast it becomes so. On the sphere the limit has an analytic floor.

    lim over M of (L_M - log M)  =  -E f . f' / T  +  E_x log E_x- e^{f(x) . f(x-) / T}
    -(e^{2/T} - 1)^2 / (8 M)  <=  (L_M - log M) - limit  <=  e^{2/T} / M
    limit  >=  -1/T + log 0F1( ; d/2; 1/(4 T^2) )
    L_unif(t) = log E e^{-t ||f - f'||^2}  >=  -2t + log 0F1( ; d/2; t^2 )

The limit: Wang and Isola 2020, Theorem 1, who state the rate O(M^{-1/2}). The two-sided bound of
order 1/M at fixed T is ours (docs/derivations.md, 8). Perfect alignment and the uniform law on the
unit sphere of R^d reach the floors; for this law E e^{kappa u . v} = 0F1(; d/2; kappa^2 / 4).
"""

import math
from dataclasses import dataclass

import torch

from marginlab.kernels import logsumexp
from marginlab.theory.bound import Bound
from marginlab.theory.inputs import positive
from marginlab.theory.population import Population


@dataclass(frozen=True)
class InfoNCELimit:
    """The limit of InfoNCE: its parts, its floor, and the rate.

    Attributes:
        alignment: The first part of the limit.
        uniformity: The second part of the limit.
        limit: The sum of the two parts.
        floor: The floor of the limit.
        below: The bound of limit - (L_M - log M) at M negatives.
        above: The bound of its negative at M negatives.
    """

    alignment: float
    uniformity: float
    limit: float
    floor: float
    below: Bound
    above: Bound


def infonce_limit(population: Population, *, temperature: float, negatives: int) -> InfoNCELimit:
    """Return the limit of InfoNCE for a finite population, and how near M negatives come to it.

    The features have length 1. The negatives are drawn from the whole population, x itself
    included.

    Args:
        population: The population.
        temperature: T.
        negatives: M.

    Raises:
        ValueError: Features are of another length, or a temperature or number of negatives is not
            positive.

    Example:
        >>> f = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])
        >>> population = Population(f, torch.tensor([0, 1]))
        >>> result = infonce_limit(population, temperature=1.0, negatives=100)
        >>> round(result.uniformity, 4), result.above.left <= result.above.right
        (0.4338, True)
    """
    positive(temperature=temperature, negatives=negatives)
    if abs(population.radius - 1) > 1e-6:
        raise ValueError(
            f"The limits are of features of length 1, not {population.radius:.6g}: normalize them."
        )
    f, V = population.f, population.f.shape[1]
    views, atoms = f.flatten(0, 1), (population.w / V).repeat_interleave(V)
    views, atoms = views[atoms > 0], atoms[atoms > 0]
    rows = torch.cat((views / temperature, torch.ones_like(views[:, :1])), 1)
    # the log of a weight enters as one more coordinate
    uniformity = float(atoms @ logsumexp(rows, torch.cat((views, atoms.log()[:, None]), 1)))
    first, second = population.infonce(temperature, negatives)
    gap = first + second - math.log(negatives) - (first + uniformity)
    widest = math.exp(min(2 / temperature, 300.0))
    return InfoNCELimit(
        first,
        uniformity,
        first + uniformity,
        infonce_floor(f.shape[2], temperature),
        Bound(
            "Wang and Isola, rate from below", -gap, (widest - 1) ** 2 / (8 * negatives), math.inf
        ),
        Bound("Wang and Isola, rate from above", gap, widest / negatives, math.inf),
    )


def infonce_floor(dim: int, temperature: float) -> float:
    """Return the least limit of L_M - log M that features of length 1 in R^d can have.

    Perfect alignment and the uniform law on the sphere reach it.

    Example:
        >>> round(infonce_floor(128, 0.5), 4)
        -1.9844
    """
    positive(dim=dim, temperature=temperature)
    return log_mean_exp(dim, 1 / temperature) - 1 / temperature


def uniformity_floor(dim: int, t: float = 2.0) -> float:
    """Return the least L_unif(t) that features of length 1 in R^d can have.

    The uniform law on the sphere has it. It falls to -2t as d grows.

    Example:
        >>> round(math.exp(uniformity_floor(2)), 4), round(uniformity_floor(128), 2)
        (0.207, -3.94)
    """
    positive(dim=dim, t=t)
    return log_mean_exp(dim, 2 * t) - 2 * t


def log_mean_exp(dim: int, kappa: float) -> float:
    """Return log E e^{kappa u . v} for independent u, v uniform on the unit sphere of R^d.

    E = sum_j (kappa^2/4)^j / (j! (d/2)_j) = 0F1(; d/2; kappa^2/4), in any dimension.

    Example:
        >>> round(log_mean_exp(3, 1.0), 6) == round(math.log(math.sinh(1.0)), 6)
        True
    """
    positive(dim=dim, kappa=kappa)
    # beyond kappa each term is under a quarter of the one before
    j = torch.arange(int(2 * kappa) + 64, dtype=torch.float64)
    half = torch.tensor(dim / 2, dtype=torch.float64)
    terms = (
        2 * j * math.log(kappa / 2)
        - torch.lgamma(j + 1)
        - torch.lgamma(half + j)
        + torch.lgamma(half)
    )
    return float(torch.logsumexp(terms, 0))
