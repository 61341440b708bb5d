"""Lemma 4.1 and Theorem 4: bounds by the two parts of the cross-correlation loss.

L_1 bounds the alignment, and L_2 the inner products of class centers. With F = M = E f(x_1)
f(x_2)^T,

    L_1 = sum_i (1 - F_ii)^2,     L_2 = ||F - I||_F^2,     tau' = ||M - B||_F^2 = ||Sigma_W||_F^2

    L_align  <=  2 sqrt(d L_1)                                                    (Lemma 4.1)
                 if E f_i^2 = 1;  in general plus 2 (E ||f||^2 - d)
    |mu_k . mu_l|  <=  sqrt( 2 / (p_k p_l) (L_2 + tau' - (d - C) / 2) )           (printed)
    |mu_k . mu_l|  <=  sqrt( ((sqrt L_2 + sqrt tau')^2 - (d - C)                  (refined)
                             - sum_i (p_i ||mu_i||^2 - 1)^2) / (2 p_k p_l) )

Printed forms: Huang et al. 2023, Lemma 4.1 and Theorem 4. Its tau' is in an appendix; here it is
the exact one, or a closed one from sigma, delta and epsilon.

Theorem 4 needs no normalisation of the features. The paper asks for E f_i = 0, E f_i^2 = 1 and
||f|| = sqrt d at once, which no trained encoder meets. `Normalisation` says how far each is from
true, and Lemma 4.1 is corrected for the one that it needs.

The refined form is never above the printed one. It uses the triangle inequality instead of 2a^2 +
2b^2, both symmetric entries, and the known diagonal. Its radicand shows a tension: (sqrt L_2 + sqrt
tau')^2 >= d - C always, so decorrelation and class collapse exclude each other when d > C. Proofs:
docs/derivations.md, 5.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from marginlab.theory.bound import LOST, Bound, PairBound, off_diagonal
from marginlab.theory.inputs import fraction, gram_matrix, not_negative, positive, priors
from marginlab.theory.population import Population

NORMAL = 1e-6  # a deviation that float32 features cannot tell from none


@dataclass(frozen=True)
class Normalisation:
    """Deviations of features from the paper's assumptions.

    Attributes:
        mean: max |E f_i|.
        square: max |E f_i^2 - 1|.
        length: max | ||f||^2 / d - 1 |.
        excess: E ||f||^2 - d.
    """

    mean: float
    square: float
    length: float
    excess: float


@dataclass(frozen=True, eq=False)
class Theorem4:
    """Both forms for all pairs of classes, and the tension sqrt(d-C) <= sqrt(L_2) + sqrt(tau')."""

    printed: PairBound
    refined: PairBound
    tension: Bound


def normalisation(population: Population) -> Normalisation:
    """Return the deviations of a population's features from E f_i = 0, E f_i^2 = 1, ||f|| = sqrt d.

    Example:
        >>> import torch
        >>> f = torch.tensor([[[1.0, 1.0]], [[-1.0, -1.0]]])
        >>> normalisation(Population(f, torch.tensor([0, 1])))
        Normalisation(mean=0.0, square=0.0, length=0.0, excess=0.0)
    """
    f, d = population.f, population.f.shape[2]
    square = population.w @ f.square().mean(1)
    mean = population.w @ population.nu
    length = f.square().sum(-1) / d
    return Normalisation(
        float(mean.abs().max()),
        float((square - 1).abs().max()),
        float((length - 1).abs().max()),
        float(square.sum()) - d,
    )


def lemma_4_1(
    *, L_1: float, dim: int, deviation: Normalisation, L_align: float = float("nan")
) -> tuple[Bound, Bound]:
    """Bound L_align by L_1, printed and corrected for E ||f||^2 - d.

    Args:
        L_1: sum_i (1 - F_ii)^2.
        dim: d.
        deviation: Deviation of the features from the paper's normalisation. The printed form is
            refused where E f_i^2 is not 1.
        L_align: L_align, where it is known.

    Raises:
        ValueError: A quantity cannot be what it is named.

    Example:
        >>> normal = Normalisation(mean=0.0, square=0.0, length=0.0, excess=0.0)
        >>> [round(bound.right, 9) for bound in lemma_4_1(L_1=0.5, dim=2, deviation=normal)]
        [2.0, 2.0]
    """
    positive(dim=dim)
    not_negative(L_1=L_1)
    right, trivial = 2 * math.sqrt(dim * L_1), 2 * (dim + deviation.excess)
    premise = (
        f"E f_i^2 is not 1 but up to {deviation.square:.3g} off: standardise each coordinate."
        if deviation.square > NORMAL
        else ""
    )
    # the first two terms may cancel
    corrected = right + 2 * deviation.excess + LOST * (right + 2 * dim + 2 * abs(deviation.excess))
    return Bound("Lemma 4.1, printed", L_align, right, trivial, premise), Bound(
        "Lemma 4.1, any scale", L_align, corrected, trivial
    )


def theorem_4(
    *,
    p: Float[Tensor, " C"],
    gram: Float[Tensor, "C C"],
    L_2: float,
    tau: float,
    dim: int,
    r: float,
) -> Theorem4:
    """Bound |mu_k . mu_l| by L_2 and tau'.

    Args:
        p: Class priors.
        gram: Inner products of the class centers. The refined form uses the squared lengths on its
            diagonal, and nothing beside it.
        L_2: ||F - I||_F^2.
        tau: tau' = ||Sigma_W||_F^2, or an upper bound of it (`closed_tau`).
        dim: d.
        r: Length of the features, or an upper bound of it: |mu_k . mu_l| <= r^2 is trivial. The
            paper has sqrt d.

    Raises:
        ValueError: A quantity cannot be what it is named, or no encoder has this L_2 and tau'.

    Example:
        Two classes, collapsed onto the axes at length sqrt 2:

        >>> import torch
        >>> half, axes = torch.tensor([0.5, 0.5]), torch.eye(2) * 2.0
        >>> theorem = theorem_4(p=half, gram=axes, L_2=0.0, tau=0.0, dim=2, r=2**0.5)
        >>> bool(theorem.printed.right[0, 1] < 1e-6), bool(theorem.refined.right[0, 1] < 1e-6)
        (True, True)
    """
    p = priors(p)
    C = len(p)
    positive(dim=dim, r=r)
    gram = gram_matrix(gram, C, r)
    not_negative(L_2=L_2, tau=tau)
    weight = p[:, None] * p
    both = (math.sqrt(L_2) + math.sqrt(tau)) ** 2
    lengths = float((p * gram.diagonal() - 1).square().sum())
    if both - (dim - C) - lengths < -1e-6 * max(both, dim, lengths):
        raise ValueError(
            f"No encoder has L_2 = {L_2:.4g} and tau' = {tau:.4g} in {dim} dimensions with these "
            f"{C} centers: (sqrt L_2 + sqrt tau')^2 is at least {dim - C + lengths:.4g}. Take all "
            "of them from the same features, not from estimates of each."
        )
    # the radicands are differences, which would else be 0 for centers that are 1e-6 off orthogonal
    printed = (
        2 / weight * (max(L_2 + tau - (dim - C) / 2, 0.0) + LOST * (L_2 + tau + dim + C))
    ).sqrt()
    refined = (
        (max(both - (dim - C) - lengths, 0.0) + LOST * (both + dim + C + lengths)) / (2 * weight)
    ).sqrt()
    left = off_diagonal(gram.abs())
    return Theorem4(
        PairBound("Theorem 4, printed", left, off_diagonal(printed), r**2),
        PairBound("Theorem 4, refined", left, off_diagonal(refined), r**2),
        Bound("Theorem 4, tension", math.sqrt(max(dim - C, 0)), math.sqrt(both), math.inf),
    )


def closed_tau(
    *,
    p: Float[Tensor, " C"],
    sigma: float,
    R_epsilon: float,
    epsilon: float,
    stretch: float,
    r: float,
) -> float:
    """Return an upper bound of tau' from the concentration and the alignment.

    Parameters are as in `theorem_1`. The bound is 0 at sigma = 1 and all others 0.

    sqrt tau' <= tr Sigma_W <= sum_k p_k V_k, and V_k <= r^2 min{ 1, q^2 t^2 / 2 + 2 (1 - q^2) }.
    For V_k is half the mean squared distance of two independent features of the class. They are at
    most r t apart if both are good, and at most 2r apart otherwise.

    Raises:
        ValueError: As in `theorem_1`.

    Example:
        >>> import torch
        >>> half = torch.tensor([0.5, 0.5])
        >>> closed_tau(p=half, sigma=1.0, R_epsilon=0.0, epsilon=0.5, stretch=0.0, r=1.0)
        0.25
    """
    p = priors(p)
    positive(r=r)
    not_negative(epsilon=epsilon, stretch=stretch)
    q = (fraction("sigma", sigma) - fraction("R_epsilon", R_epsilon) / p).clamp(min=0)
    t = min((stretch + 2 * epsilon) / r, 2.0)
    spread = (q.square() * t**2 / 2 + 2 * (1 - q.square())).clamp(max=1)
    return float(r**2 * (p @ spread)) ** 2
