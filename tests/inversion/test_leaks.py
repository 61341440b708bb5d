"""Distances against torchmetrics and scipy, the linear map against least squares, defences."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from marginlab.inversion import (
    FewerDimensions,
    Noise,
    Quantised,
    SecretRotation,
    frechet_distance,
    identity_ranks,
    kernel_distance,
    map_between,
    nearest_rows,
)


def features(seed, n=12, dim=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64)


@given(st.integers(0, 1000))
def test_frechet_distance_is_that_of_two_normal_distributions(seed):
    x, y = features(seed), 2 * features(seed + 1, 15) + 1
    a, b = np.cov(x.T.numpy()), np.cov(y.T.numpy())
    root = scipy.linalg.sqrtm(a @ b).real
    wanted = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(a + b - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


@given(st.integers(0, 1000))
def test_kernel_distance_is_the_unbiased_one_of_torchmetrics(seed):
    x, y = features(seed), features(seed + 1) + 0.5
    k = [(a @ b.T / 3 + 1) ** 3 for a, b in ((x, x), (x, y), (y, y))]
    from torchmetrics.image.kid import maximum_mean_discrepancy

    assert kernel_distance(x, y) == pytest.approx(float(maximum_mean_discrepancy(*k)), rel=1e-9)


def test_distances_want_two_rows():
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match="at least 2 rows"):
            distance(torch.zeros(1, 3), torch.zeros(4, 3))


@given(st.integers(0, 1000))
def test_ranks_count_identities_that_are_as_near(seed):
    x, gallery = features(seed, 6), features(seed + 1, 5)
    identity = torch.arange(6) % 5
    cosines = nn.functional.cosine_similarity(x[:, None], gallery[None], dim=2)
    wanted = [(cosines[i] >= cosines[i, identity[i]]).sum() for i in range(6)]
    assert identity_ranks(x, gallery, identity).tolist() == [int(rank) for rank in wanted]


def test_equal_embeddings_rank_last_not_first():
    same = torch.ones(4, 3)
    assert identity_ranks(same, same, torch.arange(4)).tolist() == [4] * 4


def test_the_nearest_row_is_the_one_of_the_largest_cosine():
    x, bank = features(1, 7), features(2, 20)
    cosines = nn.functional.cosine_similarity(x[:, None], bank[None], dim=2)
    index, value = nearest_rows(x, bank, budget=2000)
    assert torch.equal(index, cosines.argmax(1))
    assert torch.allclose(value, cosines.amax(1))


@given(st.integers(0, 1000), st.floats(1e-4, 1.0))
def test_the_map_is_the_ridge_regression(seed, ridge):
    x, y = features(seed, 9, 4), features(seed + 1, 9, 2)
    ux, uy = (nn.functional.normalize(each, dim=1) for each in (x, y))
    cx, cy = ux - ux.mean(0), uy - uy.mean(0)
    stacked = torch.cat([cx, (ridge * 9) ** 0.5 * torch.eye(4, dtype=torch.float64)])
    wanted = torch.linalg.lstsq(stacked, torch.cat([cy, torch.zeros(4, 2).double()])).solution
    found = map_between(x, y, ridge=ridge)
    assert torch.allclose(found.weight, wanted, atol=1e-9)
    assert torch.allclose(found(x).norm(dim=1), torch.ones(9).double())


def test_a_map_from_few_pairs_is_refused():
    with pytest.raises(ValueError, match="at least 2 pairs"):
        map_between(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="ridge is above 0"):
        map_between(torch.zeros(3, 2), torch.zeros(3, 2), ridge=0.0)


@given(st.integers(0, 1000))
def test_a_secret_rotation_keeps_cosines_and_pairs_find_it(seed):
    x = features(seed, 40, 5)
    turned = SecretRotation(seed)(x)
    u = nn.functional.normalize(x, dim=1)
    assert torch.allclose(turned @ turned.T, u @ u.T, atol=1e-9)
    assert not torch.allclose(turned, u, atol=0.1)
    found = map_between(turned, x, ridge=1e-12)(turned)
    assert float((found * u).sum(1).min()) > 0.9999


def test_noise_has_its_length_and_is_drawn_by_row():
    x = features(0, 400, 64)
    noise = Noise(0.5, seed=1)(x) - nn.functional.normalize(x, dim=1)
    assert float(noise.norm(dim=1).mean()) == pytest.approx(0.5, rel=0.02)
    assert torch.equal(Noise(0.5, seed=1)(x)[:3], Noise(0.5, seed=1)(x[:3]))


@given(st.integers(1, 8))
def test_quantised_embeddings_have_their_levels(bits):
    found = Quantised(bits)(features(bits, 50, 8))
    assert bool((found.abs() <= 2**bits - 1).all())
    assert bool((found % 2 == 1).all())


def test_fewer_dimensions_are_the_first():
    x = features(3, 4, 6)
    assert torch.allclose(FewerDimensions(2)(x), nn.functional.normalize(x, dim=1)[:, :2])


@pytest.mark.parametrize(
    "defence", [FewerDimensions(0), FewerDimensions(9), Quantised(0), Noise(-1.0)]
)
def test_a_defence_that_cannot_be(defence):
    with pytest.raises(ValueError, match=r"\d"):
        defence(features(0, 3, 4))
