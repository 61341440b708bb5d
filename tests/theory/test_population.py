"""The exact quantities of a finite population: by enumeration, and the identities between them."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from populations import samples

from marginlab.theory import Population
from marginlab.theory.logsum import expected_log_sum

close = torch.testing.assert_close


def enumerated(population):
    """(probability, feature, image, label) of every view."""
    N, V, _ = population.features.shape
    return [
        (float(population.w[i]) / V, population.f[i, v], i, int(population.labels[i]))
        for i in range(N)
        for v in range(V)
    ]


@given(samples(most_views=3))
def test_quantities_are_their_enumeration(sample):
    population = sample.population
    views, C = enumerated(population), len(population.p)
    p = [sum(w for w, _, _, label in views if label == k) for k in range(C)]
    mu = [sum(w * f for w, f, _, label in views if label == k) / p[k] for k in range(C)]
    close(population.p, torch.tensor(p, dtype=torch.float64))
    close(
        population.gram,
        torch.stack([torch.stack([a @ b for b in mu]) for a in mu]),
        atol=1e-12,
        rtol=1e-9,
    )
    within = [
        sum(w * float((f - mu[k]).square().sum()) for w, f, _, label in views if label == k) / p[k]
        for k in range(C)
    ]
    close(population.within, torch.tensor(within, dtype=torch.float64), atol=1e-12, rtol=1e-9)
    V = population.features.shape[1]
    pairs = [(w / V, f, g, i, label) for w, f, i, label in views for g in population.f[i]]
    close(
        population.L_align,
        sum(w * float((f - g).square().sum()) for w, f, g, _, _ in pairs),
        atol=1e-12,
        rtol=1e-9,
    )
    A = [
        sum(w * float((f - g).square().sum()) for w, f, g, _, label in pairs if label == k) / p[k]
        for k in range(C)
    ]
    close(population.A, torch.tensor(A, dtype=torch.float64), atol=1e-12, rtol=1e-9)
    close(
        population.M, sum(w * torch.outer(f, g) for w, f, g, _, _ in pairs), atol=1e-12, rtol=1e-9
    )
    widest = {
        i: max(float((f - g).norm()) for f, g in itertools.product(population.f[i], repeat=2))
        for i in range(len(population.f))
    }
    for epsilon in (0.0, 0.1, 1.0):
        close(
            population.R(epsilon),
            sum((float(population.w[i]) for i, d in widest.items() if d > epsilon), 0.0),
        )
    clean = population.f[:, 0]
    nearest = [
        min(range(C), key=lambda k: (float((f - population.centers[k]).norm()), k)) for f in clean
    ]
    wrong = [
        float(w)
        for w, n, y in zip(population.w, nearest, population.labels.tolist(), strict=True)
        if n != y
    ]
    close(population.error, sum(wrong, 0.0))


@given(samples(r=1.0, most_classes=3, most_views=2))
def test_infonce_is_its_enumeration(sample):
    population = sample.population
    views, V = enumerated(population), sample.pixels.shape[1]
    positives = [(w / V, f, g) for w, f, i, _ in views for g in population.f[i]]
    L_1 = -sum(w * float(f @ g) for w, f, g in positives)
    L_2 = sum(
        w * v * math.log(math.exp(f @ g) + math.exp(f @ h))
        for w, f, g in positives
        for v, h, _, _ in views
    )
    close(torch.tensor(population.infonce()), torch.tensor((L_1, L_2)), atol=1e-12, rtol=1e-9)
    close(L_1, population.L_align / 2 - 1, atol=1e-12, rtol=1e-9)
    assert math.log(2) - 1e-12 <= L_2


@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02])
def test_the_expected_log_of_a_sum_is_its_enumeration(terms, temperature):
    generator = torch.Generator().manual_seed(terms)
    log_a, log_x = (
        torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1
        for shape in ((3,), (3, 4))
    )
    log_a, log_x = log_a / temperature, log_x / temperature
    weights = torch.tensor([0.1, 0.2, 0.0, 0.7], dtype=torch.float64)
    exact = torch.zeros(3).double()
    for chosen in itertools.product(range(4), repeat=terms):
        each = torch.logsumexp(torch.cat([log_a[:, None], log_x[:, list(chosen)]], 1), 1)
        exact += math.prod(float(weights[j]) for j in chosen) * each
    close(expected_log_sum(log_a, log_x, weights, terms), exact, atol=1e-11, rtol=1e-12)
    many = expected_log_sum(log_a, log_x, weights, 10**7)  # a law of large numbers
    close(many, torch.log(log_x.exp() @ weights) + math.log(10**7), atol=1e-2, rtol=1e-3)
    with pytest.raises(ValueError, match="at least one term"):
        expected_log_sum(log_a, log_x, weights, 0)


@given(samples())
def test_identities_between_the_quantities(sample):
    population, r2 = sample.population, sample.r**2
    tight = {"atol": 1e-10, "rtol": 1e-9}
    close(population.radius, sample.r, **tight)
    close(population.within, r2 - population.gram.diagonal(), **tight)  # V_k = r^2 - ||mu_k||^2
    close(
        population.L_align, 2 * (r2 - float(population.w @ population.nu.square().sum(1))), **tight
    )
    trace = float(population.sigma_within.trace())
    # total variance
    close(float(population.p @ population.within), population.L_align / 2 + trace, **tight)
    B = (population.centers.T * population.p) @ population.centers
    close(population.M - B, population.sigma_within, **tight)
    assert float(torch.linalg.eigvalsh(population.sigma_within).min()) > -1e-10
    mean = population.w @ population.nu
    close(float(mean.square().sum()), float(population.p @ population.gram @ population.p), **tight)
    L_1, L_2 = population.correlation
    weight, F = 0.3, population.M
    direct = (1 - F.diagonal()).square().sum() + weight * (
        F.square().sum() - F.diagonal().square().sum()
    )
    # L_CC = (1 - lambda) L_1 + lambda L_2
    close(float(direct), (1 - weight) * L_1 + weight * L_2, **tight)


def test_what_is_no_population_is_refused():
    f, labels = torch.eye(3)[:, None], torch.tensor([0, 1, 1])
    with pytest.raises(ValueError, match="without a gap"):
        Population(f, torch.tensor([0, 2, 2]))
    with pytest.raises(ValueError, match="sum to 1"):
        Population(f, labels, torch.tensor([0.5, 0.5, 0.5]))
    with pytest.raises(ValueError, match="sum to 1"):
        Population(f, labels, torch.tensor([0.5, 0.5, torch.nan]))
    with pytest.raises(ValueError, match="temperature is positive"):
        Population(f, labels).infonce(temperature=-1.0)
    with pytest.raises(ValueError, match="take a higher temperature"):
        Population(torch.cat([f, -f], 1), labels).infonce(temperature=0.001, negatives=2)
    with pytest.raises(ValueError, match="no class empty"):
        Population(f, labels, torch.tensor([0.0, 0.5, 0.5]))
    with pytest.raises(ValueError, match="finite features"):
        Population(f / 0, labels)
    with pytest.raises(ValueError, match="normalize them"):
        _ = Population(f * torch.tensor([1.0, 2.0, 2.0])[:, None, None], labels).radius
