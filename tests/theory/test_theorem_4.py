"""Lemma 4.1 and Theorem 4 on exact populations of any normalisation, their order, the tension, and
where the printed form cannot certify.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from populations import MANY, ROUND, cases, samples

from marginlab.theory import (
    Normalisation,
    Population,
    closed_tau,
    lemma_4_1,
    normalisation,
    rho_2,
    theorem_4,
)


def theorem(population, r, tau=None):
    exact = float(population.sigma_within.square().sum())
    d = population.features.shape[2]
    return theorem_4(
        p=population.p,
        gram=population.gram,
        L_2=population.correlation[1],
        tau=exact if tau is None else tau,
        dim=d,
        r=r,
    )


def standardised(population):
    """The population with E f_i = 0 and E f_i^2 = 1; coordinates that are constant are left out,
    and if all are it is returned as it is.
    """
    mean = population.w @ population.nu
    f = population.f - mean
    square = population.w @ f.square().mean(1)
    varied = square > 1e-6
    return (
        Population(f[..., varied] / square[varied].sqrt(), population.labels, population.w)
        if bool(varied.any())
        else population
    )


@MANY
@given(samples(), st.booleans())
def test_theorem_4_holds_of_any_features_and_the_refined_form_is_never_weaker(sample, standard):
    population = standardised(sample.population) if standard else sample.population
    r = float(population.f.norm(dim=-1).max())
    result = theorem(population, r)
    for bound in (result.printed, result.refined, result.tension):
        assert bound.holds, bound
    assert bool(
        (
            (result.refined.right - result.printed.right).nan_to_num(nan=-1.0) <= ROUND * (1 + r**2)
        ).all()
    )
    # parallelogram law: L_2 + tau' >= ||B - I||^2 / 2
    B = (population.centers.T * population.p) @ population.centers
    half = float((B - torch.eye(len(B), dtype=B.dtype)).square().sum()) / 2
    assert (
        population.correlation[1] + float(population.sigma_within.square().sum())
        >= half * (1 - 1e-9) - ROUND
    )


@pytest.mark.parametrize("seed", [51, 104, 221, 340, 787])
def test_the_radicand_is_rounded_up(seed):
    """Centers that are almost orthogonal, with a rare class far out: the radicand is 1e-14 of its
    terms, and was rounded below what it bounds.
    """
    generator = torch.Generator().manual_seed(seed)
    f = torch.nn.functional.normalize(
        0.5 + 1e-3 * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64), dim=-1
    )
    population = standardised(
        Population(f, torch.tensor([1, 0]), torch.tensor([0.9945, 0.0055], dtype=torch.float64))
    )
    result = theorem(population, float(population.f.norm(dim=-1).max()))
    assert result.refined.holds, result.refined
    assert float(result.refined.right[0, 1]) < 1e-4
    assert bool(
        (result.refined.right <= result.printed.right)
        .logical_or(result.refined.right.isnan())
        .all()
    )


@MANY
@given(samples())
def test_lemma_4_1_holds_and_refuses_other_scales(sample):
    standard = standardised(sample.population)
    for population in (sample.population, standard):
        d = population.features.shape[2]
        deviation = normalisation(population)
        printed, corrected = lemma_4_1(
            L_1=population.correlation[0], dim=d, deviation=deviation, L_align=population.L_align
        )
        assert corrected.holds
        assert printed.premise or printed.holds
        assert bool(printed.premise) == (deviation.square > 1e-6)
        # L_align = 2 sum_i (1 - F_ii) where E f_i^2 = 1, and with the excess in general
        assert abs(
            population.L_align
            - 2 * float((1 - population.M.diagonal()).sum())
            - 2 * deviation.excess
        ) < 1e-8 * (1 + d)
    assert standard is sample.population or normalisation(standard).square < 1e-8


@MANY
@given(cases())
def test_closed_tau_is_above_the_exact_one(case):
    population = case.population
    q = (case.quantities["sigma"] - min(population.R(case.epsilon), 1.0) / population.p).clamp(
        min=0
    )
    keys = ("p", "sigma", "R_epsilon", "epsilon", "stretch", "r")
    closed = closed_tau(**{key: case.quantities[key] for key in keys})
    exact, r = float(population.sigma_within.square().sum()), case.sample.r
    trace, spread = float(population.sigma_within.trace()), float(population.p @ population.within)
    assert math.sqrt(exact) <= trace + ROUND
    assert trace <= spread + ROUND
    assert spread <= math.sqrt(closed) + 1e-8
    assert closed <= r**4 + ROUND
    t = torch.full_like(q, (case.stretch + 2 * case.epsilon) / r)
    # V_k by the distance from the center instead of from each other
    older = (q * rho_2(q, t).square() + 4 * (1 - q)).clamp(max=1)
    assert math.sqrt(closed) <= r**2 * float(population.p @ older) + 1e-8
    result = theorem(population, r, tau=closed)
    assert result.printed.holds
    assert result.refined.holds


def test_closed_tau_is_reached_where_classes_are_as_spread_as_they_can_be():
    """Many orthogonal features lie sqrt 2 r apart, V = r^2 (1 - 1/n); a small share at the antipode
    has V = 4 r^2 q (1 - q).
    """
    n = 200
    p = torch.tensor([0.5, 0.5])
    orthogonal = Population(torch.eye(n, dtype=torch.float64)[:, None], torch.arange(n) // (n // 2))
    spread = math.sqrt(
        closed_tau(p=p, sigma=1.0, R_epsilon=0.0, epsilon=0.0, stretch=math.sqrt(2) / 2, r=1.0)
    )
    near = 0.25  # half the distance: a quarter of the variance
    assert spread >= near * float(orthogonal.within.mean())
    assert spread <= near * float(orthogonal.within.mean()) * 1.02
    for q in (0.99, 0.999):
        bound = math.sqrt(closed_tau(p=p, sigma=q, R_epsilon=0.0, epsilon=0.0, stretch=0.0, r=1.0))
        assert 4 * q * (1 - q) <= bound <= 4 * q * (1 - q) * 1.01
    assert closed_tau(p=p, sigma=1.0, R_epsilon=0.0, epsilon=0.0, stretch=0.0, r=3.0) == 0.0


def test_collapse_onto_orthogonal_centers_is_recovered_exactly_where_the_printed_form_says_539():
    C, d = 10, 128
    f = (torch.eye(d, dtype=torch.float64)[:C] * math.sqrt(d))[:, None]
    population = Population(f, torch.arange(C))
    _, L_2 = population.correlation
    assert abs(L_2 - (d * d / C - d)) < 1e-9
    result = theorem(population, math.sqrt(d))
    assert abs(float(result.printed.right[0, 1]) - 539) < 0.5
    assert not bool(result.printed.certifies.any())
    assert float(result.refined.right[0, 1]) < 1e-4
    assert bool(result.refined.certifies[0, 1])


def test_the_printed_form_passes_the_printed_threshold_only_in_few_dimensions():
    """The least that the printed form can be, against the most that (P) can allow, over all
    balanced encoders with the same ||mu||^2 = y d.

    Printed >= C sqrt(C) |y d / C - 1|. (P) allows d (1 - rho - sqrt(2 rho) - Delta / 2), Delta = 1
    - y, and rho >= rho2 / 2 >= (1 - sqrt y) / 2.
    """
    y = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    rho = (1 - y.sqrt()) / 2

    def possible(C, d):
        # the printed bound is also at least 0; strictly below the threshold is what a certificate
        # needs
        return bool(
            (
                C * math.sqrt(C) * (y * d / C - 1).abs()
                < d * (1 - rho - (2 * rho).sqrt() - (1 - y) / 2)
            ).any()
        )

    for C, low, high in ((2, 2, 6), (10, 8, 21), (100, 91, 217)):
        able = [d for d in range(1, 4 * C) if possible(C, d)]
        assert (able[0], able[-1]) == (low, high), (C, able)
    assert not possible(10, 128)


def test_decorrelation_and_collapse_exclude_each_other_when_dimensions_exceed_classes():
    with pytest.raises(ValueError, match="No encoder has"):
        theorem_4(
            p=torch.tensor([0.5, 0.5]),
            gram=torch.eye(2) * 2,
            L_2=0.0,
            tau=0.0,
            dim=8,
            r=math.sqrt(8),
        )


def test_deviations_from_the_normalisation_are_reported():
    f = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    deviation = normalisation(Population(f, torch.tensor([0, 1])))
    assert deviation == Normalisation(mean=1.0, square=1.0, length=1.0, excess=0.5)
    printed, corrected = lemma_4_1(L_1=0.0, dim=2, deviation=deviation)
    assert "E f_i^2 is not 1 but up to 1 off" in printed.reason
    assert corrected.certifies
    with pytest.raises(ValueError, match="L_1 is finite"):
        lemma_4_1(L_1=-1.0, dim=2, deviation=deviation)
