"""Wang and Isola: InfoNCE with many negatives is alignment plus uniformity, how fast it becomes so,
and its analytic floor on the sphere.

    lim over M of (L_M - log M)  =  -E f . f' / T  +  E_x log E_x- e^{f(x) . f(x-) / T}
    -(e^{2/T} - 1)^2 / (8 M)  <=  (L_M - log M) - limit  <=  e^{2/T} / M
    limit  >=  -1/T + log 0F1( ; d/2; 1/(4 T^2) )                        L_unif(t) = log E e^{-t ||f - f'||^2}  >=  -2t + log 0F1( ; d/2; t^2 )

The limit: Wang and Isola 2020, Theorem 1, who state the rate O(M^{-1/2}); the two-sided bound of
order 1/M at fixed T is ours (docs/derivations.md, 8). The floors are reached by perfect alignment
and the uniform law on the unit sphere of R^d, for which E e^{kappa u . v} = 0F1(; d/2; kappa^2 /
4).
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
    """The two parts of the limit, their sum, its floor, and the bounds of limit - (L_M - log M) and
    of its negative at M negatives.
    """

    alignment: float
    uniformity: float
    limit: float
    floor: float
    below: Bound
    above: Bound


def infonce_limit(population: Population, *, temperature: float, negatives: int) -> InfoNCELimit:
    """The limit of InfoNCE for a finite population of features of length 1, and how near M
    negatives come to it.

    The negatives are drawn from the whole population, x itself included. Raises ValueError for
    features of another length, or a temperature or number of negatives that is not positive.

    >>> f = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])
    >>> result = infonce_limit(Population(f, torch.tensor([0, 1])), temperature=1.0, negatives=100)
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
    # a weight is one more coordinate
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
    """The least limit of L_M - log M that features of length 1 in R^d have: perfect alignment, and
    the uniform law on the sphere.

    >>> round(infonce_floor(128, 0.5), 4)
    -1.9844
    """
    positive(dim=dim, temperature=temperature)
    return log_mean_exp(dim, 1 / temperature) - 1 / temperature


def uniformity_floor(dim: int, t: float = 2.0) -> float:
    """The least L_unif(t) that features of length 1 in R^d have: that of the uniform law on the
    sphere. It falls to -2t as d grows.

    >>> round(math.exp(uniformity_floor(2)), 4), round(uniformity_floor(128), 2)
    (0.207, -3.94)
    """
    positive(dim=dim, t=t)
    return log_mean_exp(dim, 2 * t) - 2 * t


def log_mean_exp(dim: int, kappa: float) -> float:
    """The logarithm of E e^{kappa u . v} for independent u, v uniform on the unit sphere of R^d, in
    any dimension.

    E = sum_j (kappa^2/4)^j / (j! (d/2)_j) = 0F1(; d/2; kappa^2/4).


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
