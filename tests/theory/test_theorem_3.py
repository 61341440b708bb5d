"""Theorem 3 on exact populations, at every temperature and number of negatives.

Inequality (*) of `marginlab.theory.theorems.theorem_3` and the bounds of pairs hold. The printed
form is vacuous.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from populations import MANY, epsilons, samples

from marginlab.theory import Population, tau, theorem_1, theorem_3, theorem_3_printed

VACUOUS = math.log(16 - math.e)


def collapsed(points, p=None):
    """Classes collapsed onto points of the unit sphere."""
    f = torch.nn.functional.normalize(torch.tensor(points, dtype=torch.float64), dim=1)[:, None]
    return Population(
        f, torch.arange(len(points)), None if p is None else torch.tensor(p, dtype=torch.float64)
    )


def exact(population, temperature=1.0, negatives=1):
    _, L_2 = population.infonce(temperature, negatives)
    return theorem_3(
        p=population.p,
        gram=population.gram,
        A=population.A,
        L_2=L_2,
        temperature=temperature,
        negatives=negatives,
    )


@MANY
@given(samples(r=1.0), st.sampled_from([1.0, 1.0, 0.5, 0.1]), st.data())
def test_theorem_3_holds_exact_and_printed_and_the_exact_form_is_never_weaker(
    sample, temperature, data
):
    population = sample.population
    result = exact(population, temperature)
    for bound in (result.jensen, result.pairs, result.average):
        assert bound.holds, bound
    epsilon = min(data.draw(epsilons(sample)), 1.4)
    _, L_2 = population.infonce()
    R = min(population.R(epsilon), 1.0)
    printed = theorem_3_printed(
        p=population.p, gram=population.gram, L_2=L_2, R_epsilon=R, epsilon=epsilon
    )
    assert printed.holds
    assert float(printed.right.nan_to_num(nan=math.inf).min()) >= VACUOUS - 1e-9
    assert not bool(printed.certifies.any())
    assert "holds of every encoder" in printed.reason
    excess = exact(population).pairs.right - printed.right
    assert bool((excess.nan_to_num(nan=-1.0) <= 1e-9).all())


@MANY
@given(
    samples(r=1.0, most_classes=3, most_views=2),
    st.sampled_from([1.0, 0.2]),
    st.sampled_from([2, 5, 1000]),
)
def test_the_exact_form_holds_with_any_number_of_negatives(sample, temperature, negatives):
    result = exact(sample.population, temperature, negatives)
    assert result.jensen.holds
    assert result.jensen.left >= (1 - 2) / temperature  # (*) is a number, not minus infinity
    assert "Of" in result.pairs.reason
    assert not bool(result.pairs.certifies.any())
    assert not result.average.certifies


@MANY
@given(samples(r=1.0), st.floats(0, 2), st.floats(-1, 1))
def test_what_images_that_are_not_aligned_take_is_at_most_tau(sample, epsilon, v):
    """E phi(f_1 . f_2, v) >= phi(1 - eps, v) - tau: the step where the printed form needs tau."""
    population = sample.population
    u = torch.einsum("nvd,nud->nvu", population.f, population.f)
    mean = float(population.w @ torch.logaddexp(u, torch.full_like(u, v)).flatten(1).mean(1))
    R = min(population.R(epsilon), 1.0)
    assert mean >= math.log(math.exp(1 - epsilon) + math.exp(v)) - tau(R, epsilon) - 1e-12


def test_tau_is_what_the_worst_image_takes():
    for epsilon in (0.0, 0.3, 1.0, 2.0):
        worst = torch.logaddexp(torch.tensor(1 - epsilon), torch.tensor(-1.0)) - torch.logaddexp(
            torch.tensor(-1.0), torch.tensor(-1.0)
        )
        assert abs(tau(0.25, epsilon) - 0.25 * float(worst)) < 1e-6
    assert tau(0.0, 0.0) == 0.0


def test_collapse_onto_antipodal_points_is_recovered_exactly_where_the_printed_form_says_5_6():
    population = collapsed([[1.0, 0.0], [-1.0, 0.0]])
    _, L_2 = population.infonce()
    assert abs(L_2 - 1.410) < 1e-3
    printed = theorem_3_printed(
        p=population.p, gram=population.gram, L_2=L_2, R_epsilon=0.0, epsilon=0.0
    )
    assert abs(float(printed.right[0, 1]) - 5.6) < 0.05
    result = exact(population)
    assert abs(float(result.pairs.right[0, 1]) + 1) < 1e-9
    assert abs(result.average.right + 1) < 1e-9
    # so L_2 gives the corollary Err <= (1 - sigma) + R_eps: Theorem 1 takes the upper bounds of
    # mu_k . mu_l in place of these products
    upper = population.gram.clone()
    upper[0, 1] = upper[1, 0] = float(result.pairs.right[0, 1])
    theorem = theorem_1(
        p=population.p, gram=upper, sigma=0.95, R_epsilon=0.0, epsilon=0.0, stretch=0.0
    )
    assert theorem.printed.certifies


def test_the_simplex_is_recovered_on_average():
    C = 6
    population = collapsed((torch.eye(C) - 1 / C).tolist())
    result = exact(population)
    assert abs(result.average.right + 1 / (C - 1)) < 1e-9
    assert result.average.certifies
    # one pair alone could be farther only if others were nearer
    assert float(result.pairs.right[0, 1]) > -1 / (C - 1)
    assert abs(exact(population, 0.5).average.right + 1 / (C - 1)) < 1e-7
    # e^{1.2 / T} = 3e10: what L_2 says of the centers drowns in its digits, and the bound says
    # less, not more
    cold = exact(population, 0.05).average
    assert cold.holds
    assert cold.right < 0


def test_the_least_printed_right_side_is_approached():
    """L_2 = log 2 exactly where all features are orthogonal to nothing: two balanced classes around
    0, each spread over the whole sphere.
    """
    f = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]] * 2, dtype=torch.float64)
    population = Population(f, torch.tensor([0, 1]))
    _, L_2 = population.infonce()
    assert math.log(2) < L_2 < 1.0
    least = theorem_3_printed(
        p=population.p, gram=population.gram, L_2=math.log(2), R_epsilon=0.0, epsilon=0.0
    )
    assert abs(float(least.right[0, 1]) - VACUOUS) < 1e-12


def test_rare_classes_do_not_overflow():
    population = collapsed([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.3]], [0.9989, 0.001, 0.0001])
    result = exact(population)
    assert result.pairs.holds
    printed = theorem_3_printed(
        p=population.p,
        gram=population.gram,
        L_2=population.infonce()[1],
        R_epsilon=0.1,
        epsilon=0.1,
    )
    assert bool(printed.right[0, 1].isfinite())
    assert printed.holds


def test_what_cannot_be_is_refused():
    p, gram = torch.tensor([0.5, 0.5]), torch.eye(2)
    with pytest.raises(ValueError, match=r"1\.4587"):
        theorem_3_printed(p=p, gram=gram, L_2=1.0, R_epsilon=0.0, epsilon=1.5)
    with pytest.raises(ValueError, match="at most 2"):
        theorem_3(p=p, gram=gram, A=torch.tensor([0.0, 2.5]), L_2=1.0)
    with pytest.raises(ValueError, match="temperature is positive"):
        theorem_3(p=p, gram=gram, A=torch.zeros(2), L_2=1.0, temperature=0.0)
    for L_2, words in (
        (math.nan, "finite"),
        (0.0, "No encoder has L_2 = 0 with centers of these lengths"),
        (0.5, "it is at least"),
    ):
        with pytest.raises(ValueError, match=words):
            theorem_3(p=p, gram=gram, A=torch.zeros(2), L_2=L_2)
        with pytest.raises(ValueError, match="at least log 2"):
            theorem_3_printed(p=p, gram=gram, L_2=L_2, R_epsilon=0.0, epsilon=0.0)
    with pytest.raises(ValueError, match="no longer than these, not 3 long"):
        theorem_3(p=p, gram=9 * gram, A=torch.zeros(2), L_2=1.0)
    with pytest.raises(ValueError, match="unit sphere"):
        tau(0.5, 2.5)
