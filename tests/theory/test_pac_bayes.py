"""PAC-Bayes of a contrastive risk: ranges of losses, the divergence of coins, and coverage of laws
that were trained on the batches that bound them.
"""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import normal
from scipy import optimize, stats
from torch.nn.functional import normalize

from marginlab.losses.functional import (
    cross_correlation,
    info_nce,
    spectral_contrastive,
    vicreg,
)
from marginlab.theory import Range, drawn_losses, held_out, normal_divergence, pac_bayes
from marginlab.theory.theorems.pac_bayes import binary_kl, kl_limit, log_xi

UNIT = Range(0.0, 1.0)


def ends(name, batch, dim):
    return {
        "info_nce": Range.info_nce(temperature=0.5, negatives=2 * batch - 2),
        "spectral": Range.spectral(),
        "cross_correlation": Range.cross_correlation(dim=dim, off_diagonal_weight=0.3),
        "vicreg": Range.vicreg(dim=dim, batch=batch),
    }[name]


LOSSES = {
    "info_nce": lambda a, b: info_nce(a, b, temperature=0.5),
    "spectral": spectral_contrastive,
    "cross_correlation": lambda a, b: cross_correlation(a, b, off_diagonal_weight=0.3),
    "vicreg": vicreg,
}


@pytest.mark.parametrize("steps", [4, pytest.param(500, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", LOSSES)
def test_no_batch_of_unit_features_leaves_the_range(name, sign, steps):
    """Gradient steps go up and down from random, equal and opposite features."""
    low, high = ends(name, 4, 3)
    for start in ("random", "equal", "opposite"):
        generator = torch.Generator().manual_seed(0)
        z = normal(generator, 2, 4, 3)
        if start != "random":
            z[1] = z[0] if start == "equal" else -z[0]
        z = (z + 1e-3 * normal(generator, 2, 4, 3)).requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.05)
        for _ in range(steps):
            loss = LOSSES[name](*normalize(z, dim=-1).unbind())
            assert low - 1e-9 <= float(loss.detach()) <= high + 1e-9
            optimizer.zero_grad()
            (sign * loss).backward()
            optimizer.step()


def test_ends_of_losses_are_reached_where_they_can_be():
    same = torch.tensor([[1.0, 0.0]] * 2 + [[-1.0, 0.0]] * 2).double()
    # two views apart, all else beside the anchor: high; with one image, low is approached
    low, high = Range.info_nce(temperature=0.5, negatives=2)
    a, b = same[:2], same[2:]
    worst = float(info_nce(a, b, temperature=0.5))
    assert low < worst < high == pytest.approx(math.log1p(2 * math.exp(4)))
    assert high - low <= 4 / 0.5
    assert float(spectral_contrastive(same[:2], same[2:])) == pytest.approx(3.0)
    spread = torch.eye(2).double()
    assert float(spectral_contrastive(spread, spread)) == pytest.approx(-2.0)
    x = torch.tensor([[1.0], [-1.0]]).double()
    wide = Range.cross_correlation(dim=1, off_diagonal_weight=0.0)
    assert float(cross_correlation(x, -x)) == pytest.approx(wide.high)


@settings(max_examples=10)
@given(st.floats(0, 1), st.floats(1e-6, 3))
def test_the_limit_of_a_coin_is_the_root_of_its_divergence(mean, budget):
    limit = kl_limit(mean, budget)
    assert mean <= limit <= 1
    assert limit == 1.0 or binary_kl(mean, limit) >= budget - 1e-9
    assert limit - mean <= math.sqrt(budget / 2) + 1e-7  # Pinsker
    if mean < 0.999 and binary_kl(mean, 0.9999) > budget:
        root = optimize.brentq(lambda b: binary_kl(mean, b) - budget, mean, 0.9999)
        assert limit == pytest.approx(root, abs=1e-6)


def test_xi_is_the_moment_of_a_coin_and_at_most_two_roots():
    for n in (1, 2, 3, 7, 20, 100, 5_000):
        assert math.sqrt(n) <= math.exp(log_xi(n)) * (1 + 1e-9)
        assert math.exp(log_xi(n)) <= 2 * math.sqrt(n) * (1 + 1e-9)
    # E e^{n kl(k/n || p)} is the same for every coin
    for n, p in ((5, 0.3), (40, 0.07)):
        chances = stats.binom.pmf(range(n + 1), n, p)
        mean = sum(c * math.exp(n * binary_kl(k / n, p)) for k, c in enumerate(chances))
        assert mean == pytest.approx(math.exp(log_xi(n)))


def test_divergence_of_normal_laws_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    w, w0 = normal(generator, 2, 3, 4)
    laws = (torch.distributions.Normal(each, 0.3) for each in (w, w0))
    whole = float(torch.distributions.kl_divergence(*laws).sum())
    assert normal_divergence(w, w0, 0.3) == pytest.approx(whole)


def test_draws_are_normal_and_the_same_again():
    seen = []
    losses = drawn_losses(
        lambda w: seen.append(w) or w.sum(1), torch.zeros(50, 40), 0.5, 20, seed=3
    )
    assert losses.shape == (20, 50)
    drawn = torch.stack(seen)
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.02)
    assert abs(float(drawn.mean())) < 0.02
    again = drawn_losses(lambda w: w.sum(1), torch.zeros(50, 40), 0.5, 20, seed=3)
    assert torch.equal(losses, again)


def wrong_signs(x, labels, w):
    return ((x @ w).sign() != labels).double().mean(1)


@pytest.mark.parametrize("repeats", [15, pytest.param(1_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("n", [8, 60])
def test_a_law_that_was_trained_on_its_batches_is_bounded(n, repeats):
    """Batches are rows of 40 noisy labels; the loss of a map is the share of wrong signs.

    The posterior is moved towards the batches; its true risk is a normal probability.
    """
    dim, sigma, missed, paid = 12, 0.5, 0, 0
    generator = torch.Generator().manual_seed(n)
    truth = normalize(normal(generator, dim), dim=0)
    prior = 0.5 * truth  # from other images: it knows something
    fresh = normal(generator, 4_000, dim)
    y = (
        torch.where(torch.rand(4_000, generator=generator) < 0.2, -1.0, 1.0)
        * (fresh @ truth).sign()
    )
    length = fresh.norm(dim=1)
    for seed in range(repeats):
        x = normal(generator, n, 10, dim)
        flip = torch.where(torch.rand(n, 10, generator=generator) < 0.2, -1.0, 1.0)
        labels = flip * (x @ truth).sign()
        moved = prior + 1.5 * (x * labels[..., None]).mean((0, 1))  # trained on the batches
        losses = drawn_losses(functools.partial(wrong_signs, x, labels), moved, sigma, 12, seed)
        divergence = normal_divergence(moved, prior, sigma)
        result = pac_bayes(losses, UNIT, divergence=divergence, confidence=0.9)
        margin = y * (fresh @ moved) / (sigma * length)
        risk = float(torch.special.ndtr(-margin).mean())
        missed += result.bound.right < risk - 0.02  # the true risk is of 4,000 fresh points
        paid += result.bound.right > held_out(losses.mean(0), UNIT, 0.9).right
    assert missed <= int(stats.binom.ppf(0.9995, repeats, 0.1))
    assert paid == repeats  # what training on them costs


def test_the_bound_grows_with_the_divergence_and_falls_with_batches_and_draws():
    small, large = torch.full((50, 20), 0.2).double(), torch.full((50, 2_000), 0.2).double()

    def right(losses, divergence):
        return pac_bayes(losses, UNIT, divergence=divergence).bound.right

    assert right(small, 0.0) < right(small, 5.0) < right(small, 50.0) <= 1
    assert right(large, 5.0) < right(small, 5.0)
    assert right(large[:, :20].repeat(20, 1), 5.0) < right(small, 5.0)
    scaled = pac_bayes(2 + 3 * small, Range(2.0, 5.0), divergence=5.0)
    assert scaled.bound.right == pytest.approx(2 + 3 * right(small, 5.0))
    assert scaled.risk == pytest.approx(2.6)
    assert not pac_bayes(small, UNIT, divergence=1e5).bound.certifies


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"losses": torch.full((2, 3), 1.5)}, r"lie in \[0, 1\], not from 1.5"),
        ({"losses": torch.zeros(2, 0)}, "at least one batch"),
        ({"divergence": -1.0}, "divergence is finite and not negative"),
        ({"confidence": 1.0}, "confidence is between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused(changes, sentence):
    given = {"losses": torch.zeros(2, 3), "divergence": 0.0, "confidence": 0.9} | changes
    losses = given.pop("losses")
    with pytest.raises(ValueError, match=sentence):
        pac_bayes(losses, UNIT, **given)
