"""Theorem 2: well aligned features are aligned on most images.

It bounds R_eps by eta(eps) sqrt(L_align). A sharper form is linear in L_align.

A view is one of m discrete transformations (each with probability 1/(2m)) or a continuous one of n
parameters (uniform on the unit cube, 1/2), in which the image is M-Lipschitz. f is L-Lipschitz.
With c = 2 sqrt(n) L M and h <= 1 the side of a cube,

    R_eps  <=  eta sqrt(L_align)                                         (printed)
               with  eta = inf over h < eps/c of
                           4 max{1, m^2 h^2n} / (h^2n (eps - c h))
    R_eps  <=  L_align inf_h 4 max{1, m^2 h^2n} / (h^2n (eps - c h)^2)   (linear, Markov on squares)
    R_eps  <=  L_align inf_h 2 max{h^-n, m} / (eps - c h)^2              (variance)

eta and the printed form: Huang et al. 2023, Theorem 2. Each infimum is reached in closed form, at h
= min{ a eps / (b c), m^(-1/n) } with a/b = 2n/(2n+1), n/(n+1), n/(n+2). The printed order O(1/eps)
of eta is right only where m^(-1/n) is the smaller. For small eps, eta is of order eps^-(2n+1), and
the variance form of order eps^-(n+2) in L_align.

The variance form (ours, docs/derivations.md, 3) rests on E ||f_1 - f_2||^2 = 2 min_c E ||f - c||^2
>= 2 ab/(a+b) gap^2 for two sets of masses a, b that lie `gap` apart: one mass of a set, and no
product of two. It is below the printed form wherever that is below 1. If all views are discrete, V
of them equally likely, a = b = 1/V and there is no cube. Between the two sides of that form lies
the alignment of the worst pair of views (Zhao et al., ICLR 2023, ArCL), R_eps <= E diam^2 / eps^2
<= V L_align / eps^2.
"""

import math
from dataclasses import dataclass

from marginlab.theory.bound import Bound
from marginlab.theory.inputs import fraction, not_negative, positive


@dataclass(frozen=True)
class Theorem2:
    """The bounds of R_eps, and eta, the factor of sqrt(L_align) in the printed one."""

    eta: float
    printed: Bound
    linear: Bound
    variance: Bound


def theorem_2(
    *,
    L_align: float,
    epsilon: float,
    n: int,
    m: int,
    L: float,
    M: float,
    R_epsilon: float = float("nan"),
) -> Theorem2:
    """Bound R_eps by L_align, for n continuous parameters and m discrete transformations.

    Args:
        L_align: E ||f(x_1) - f(x_2)||^2, the two views of an image independent.
        epsilon: A distance of features, positive.
        n: Number of continuous parameters. 0 means one more discrete transformation, of probability
            1/2.
        m: Number of discrete transformations, at least 1: the identity.
        L: Lipschitz constant of f in pixels.
        M: Lipschitz constant of the continuous transformations in their parameters.
        R_epsilon: R_eps, where it is known.

    Raises:
        ValueError: A quantity cannot be what it is named.

    Example:
        >>> theorem = theorem_2(L_align=1e-4, epsilon=0.5, n=1, m=1, L=1.0, M=0.3)
        >>> forms = theorem.printed, theorem.linear, theorem.variance
        >>> round(theorem.eta, 2), *(round(form.right, 4) for form in forms)
        (77.76, 0.7776, 0.0369, 0.0065)
    """
    not_negative(L_align=L_align)
    factor = eta(epsilon, n=n, m=m, L=L, M=M)
    c = 2 * math.sqrt(n) * L * M
    h = _side(n / (n + 1), epsilon, c, n, m)
    linear = 4 * max(_power(h, -2 * n), m**2) / (epsilon - c * h) ** 2
    h = _side(n / (n + 2), epsilon, c, n, m)
    variance = 2 * max(_power(h, -n), m) / (epsilon - c * h) ** 2
    return _forms(R_epsilon, L_align, factor, linear, variance)


def theorem_2_discrete(
    *, L_align: float, epsilon: float, V: int, R_epsilon: float = float("nan")
) -> Theorem2:
    """Bound R_eps by L_align for V equally likely views and no continuous ones.

    The bounds are V^2 sqrt(L_align) / eps, V^2 L_align / eps^2, and V L_align / eps^2. The last is
    the sharpest. L_align is over views drawn with replacement.

    Raises:
        ValueError: As in `theorem_2`.

    Example:
        >>> theorem_2_discrete(L_align=0.125, epsilon=1.0, V=2).variance.right
        0.25
    """
    positive(epsilon=epsilon, V=V)
    not_negative(L_align=L_align)
    return _forms(R_epsilon, L_align, V**2 / epsilon, V**2 / epsilon**2, V / epsilon**2)


def theorem_2_worst_view(
    *, L_worst: float, epsilon: float, R_epsilon: float = float("nan")
) -> Bound:
    """Bound R_eps by E max over views ||f(x_u) - f(x_v)||^2 / eps^2, the worst pair of views.

    For V equally likely views it is never above V L_align / eps^2 of `theorem_2_discrete`.

    Args:
        L_worst: E diam(x)^2, diam(x) the largest distance of two views.
        epsilon: A distance of features, positive.
        R_epsilon: R_eps, where it is known.

    Raises:
        ValueError: A quantity cannot be what it is named.

    Example:
        >>> theorem_2_worst_view(L_worst=0.125, epsilon=1.0).right
        0.125
    """
    positive(epsilon=epsilon)
    not_negative(L_worst=L_worst)
    if not math.isnan(R_epsilon):
        fraction("R_epsilon", R_epsilon)
    return Bound("Theorem 2, worst view", R_epsilon, L_worst / epsilon**2, 1.0)


def eta(epsilon: float, *, n: int, m: int, L: float, M: float) -> float:
    """Return the factor of sqrt(L_align) in Theorem 2, in closed form.

    Parameters are as in `theorem_2`.

    Example:
        >>> round(eta(0.5, n=1, m=4, L=1.0, M=0.3), 3)
        182.857
    """
    positive(epsilon=epsilon)
    not_negative(n=n, L=L, M=M)
    if m < 1:
        raise ValueError(f"There is at least one discrete transformation, the identity, not {m}.")
    c = 2 * math.sqrt(n) * L * M
    h = _side(2 * n / (2 * n + 1), epsilon, c, n, m)
    return 4 * max(_power(h, -2 * n), m**2) / (epsilon - c * h)


def _power(x: float, exponent: float) -> float:
    """Return x^exponent, infinite beyond float64.

    A bound in many dimensions says nothing, and then shows that it is infinite.
    """
    try:
        return math.pow(x, exponent)
    except OverflowError:
        return math.inf


def _side(share: float, epsilon: float, c: float, n: int, m: int) -> float:
    """Return the best side of the cubes: the stationary point, but at most m^(-1/n).

    Beyond m^(-1/n) discrete views are the rarest pair anyway.
    """
    if n == 0:
        return 1.0
    return min(share * epsilon / c if c > 0 else math.inf, math.pow(m, -1 / n))


def _forms(
    R_epsilon: float, L_align: float, factor: float, linear: float, variance: float
) -> Theorem2:
    if not math.isnan(R_epsilon):
        fraction("R_epsilon", R_epsilon)
    return Theorem2(
        factor,
        Bound(
            "Theorem 2, printed", R_epsilon, factor * math.sqrt(L_align) if L_align else 0.0, 1.0
        ),
        Bound("Theorem 2, linear", R_epsilon, linear * L_align if L_align else 0.0, 1.0),
        Bound("Theorem 2, variance form", R_epsilon, variance * L_align if L_align else 0.0, 1.0),
    )
