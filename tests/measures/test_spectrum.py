"""RankMe, alpha-ReQ and LiDAR: what is made of the spectra of second moments."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from laws import MeasureLaws
from scipy.stats import entropy, linregress
from sklearn.decomposition import PCA

from marginlab.measures import EffectiveRank, LiDAR, SpectrumDecay
from marginlab.measures.functional import effective_rank, lidar, power_law, rankme, spectrum_decay


def make_rank(**kwargs):
    return EffectiveRank(5, **kwargs)


def make_decay(**kwargs):
    return SpectrumDecay(5, **kwargs)


def make_lidar(**kwargs):
    return LiDAR(5, **kwargs)


class TestLawsOfEffectiveRank(MeasureLaws):
    make = staticmethod(make_rank)
    noise = ("standard_error", "error_alpha")

    def data(self, n, generator):
        return torch.randn(n, 2, 5, generator=generator), torch.randint(
            0, 3, (n,), generator=generator
        )


class TestLawsOfSpectrumDecay(TestLawsOfEffectiveRank):
    make = staticmethod(make_decay)


class TestLawsOfLiDAR(TestLawsOfEffectiveRank):
    make = staticmethod(make_lidar)


features = st.builds(
    lambda seed, n, V, D, offset: (
        torch.randn(n, V, D, generator=torch.Generator().manual_seed(seed)).double() + offset
    ),
    st.integers(0, 2**20),
    st.integers(1, 12),
    st.integers(2, 3),
    st.integers(1, 8),
    st.sampled_from([0.0, 3.0]),
)


def drawn(seed, n, V, scales, noise=0.3):
    generator = torch.Generator().manual_seed(seed)
    D = len(scales)
    return (
        torch.randn(n, 1, D, generator=generator).double()
        + noise * torch.randn(n, V, D, generator=generator).double()
    ) * scales


def jackknife(values, estimate, n, sizes):
    """Delete-a-group, by pseudo-values."""
    share = [n / m for m in sizes]
    G = len(sizes)
    mean = G * estimate - sum((1 - 1 / h) * x for h, x in zip(share, values, strict=True))
    return (
        sum(
            (h * estimate - (h - 1) * x - mean) ** 2 / (h - 1)
            for h, x in zip(share, values, strict=True)
        )
        / G
    ) ** 0.5


# RankMe


@given(features)
def test_rankme_is_that_of_an_svd(z):
    Z = z.flatten(0, 1).numpy()
    sigma = np.linalg.svd(Z, compute_uv=False)
    result = rankme(z)
    assert float(result.RankMe) == pytest.approx(math.exp(entropy(sigma)), rel=1e-6)
    found = result.singular_values.numpy()
    np.testing.assert_allclose(found[: len(sigma)] * len(Z) ** 0.5, sigma, atol=1e-6 * sigma[0])
    # fewer rows than dimensions: zeros, not the roots of rounding
    assert np.all(found[len(sigma) :] == 0)
    p = sigma / sigma.sum() + 1e-7
    # as the paper prints it
    assert float(rankme(z, epsilon=1e-7).RankMe) == pytest.approx(
        math.exp(-(p * np.log(p)).sum()), rel=1e-5
    )


@pytest.mark.parametrize(("n", "V", "D"), [(10, 1, 64), (5, 2, 64), (40, 1, 6), (3, 2, 6)])
@pytest.mark.parametrize("epsilon", [1e-7, 1e-5, 1e-2])
def test_epsilon_is_added_to_as_many_numbers_as_there_are_singular_values(n, V, D, epsilon):
    z = torch.randn(n, V, D, generator=torch.Generator().manual_seed(0)).double()
    s = np.linalg.svd(z.flatten(0, 1).numpy(), compute_uv=False)
    assert len(s) == min(n * V, D)
    p = s / s.sum() + epsilon
    value = rankme(z, epsilon=epsilon)
    assert float(value.RankMe) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert bool(value.standard_error.isfinite())


@given(features, st.integers(0, 2**20), st.sampled_from([1e-6, 1.0, 1e5]))
def test_rankme_keeps_its_bounds_and_rotations_scales_and_the_order_of_images_change_nothing(
    z, seed, scale
):
    generator = torch.Generator().manual_seed(seed)
    n, V, D = z.shape
    value = float(rankme(z).RankMe)
    assert 1 - 1e-12 <= value <= min(n * V, D) * (1 + 1e-12)
    rotation = torch.linalg.qr(torch.randn(D, D, generator=generator).double()).Q
    for other in (
        scale * z @ rotation,
        z[torch.randperm(n, generator=generator)],
        z.repeat(2, 1, 1),
    ):
        assert float(rankme(other).RankMe) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("decay", [0.0, 1e-3, 3e-7, 1e-12])
def test_small_singular_values_are_as_exact_as_is_said(decay):
    """Half of the spectrum is this much smaller: the entropy is off by no more than what the
    dropped half has.
    """
    D, n = 64, 200
    generator = torch.Generator().manual_seed(0)
    q = [torch.linalg.qr(torch.randn(m, D, generator=generator).double()).Q for m in (n, D)]
    sigma = torch.cat([torch.linspace(1, 2, D // 2), decay * torch.linspace(1, 2, D // 2)]).double()
    z = (q[0] * sigma) @ q[1].T
    exact = float(effective_rank(sigma))
    x = (max(D, 100) * 2.0**-52) ** 0.5
    assert float(rankme(z[:, None]).RankMe) == pytest.approx(exact, rel=D * x * math.log(1 / x))
    if decay in (0.0, 1e-3):
        assert float(rankme(z[:, None]).RankMe) == pytest.approx(exact, rel=1e-10)


def test_rankme_in_corner_cases():
    same = torch.full((4, 3, 6), 0.3)
    assert float(rankme(same).RankMe) == pytest.approx(1, abs=1e-9)
    assert float(rankme(torch.zeros(4, 3, 6)).RankMe) == 1
    one = rankme(torch.ones(1, 1, 1))
    assert float(one.RankMe) == 1
    assert one.standard_error.isnan()
    assert one.singular_values.shape == (1,)
    views = torch.randn(4, 1, 9, generator=torch.Generator().manual_seed(1))
    assert float(rankme(views.expand(4, 5, 9)).RankMe) == pytest.approx(
        float(rankme(views).RankMe), rel=1e-9
    )
    assert "at most 4" in rankme(views).meaning
    assert "these are few" in rankme(views).meaning
    assert "these are few" not in rankme(views.repeat(30, 1, 1)).meaning
    assert float(rankme(3 * views, normalize=True).RankMe) == pytest.approx(
        float(rankme(views / views.norm(dim=2, keepdim=True)).RankMe), rel=1e-6
    )


def test_with_few_rows_rankme_leans_downwards():
    scales = torch.arange(1, 21).double() ** -0.5
    low = [float(rankme(drawn(seed, 25, 1, scales)).RankMe) for seed in range(40)]
    assert np.mean(low) < float(effective_rank(scales)) - 1


# alpha-ReQ


@given(st.floats(0.2, 3.0), st.floats(1e-6, 1e6), st.integers(1, 10), st.integers(12, 60))
def test_a_power_law_is_recovered_and_a_linear_ramp_does_not(alpha, scale, first, last):
    values = scale * torch.arange(1, 101).double() ** -alpha
    found, error = power_law(values, first, last)
    assert float(found) == pytest.approx(alpha, abs=1e-9)
    assert float(error) < 1e-9
    # what is sometimes called alpha-ReQ; of some ranges, as 1 to 12, it happens to be near alpha
    ramp = -linregress(np.linspace(0, 1, 60), values[:60].log().numpy()).slope
    assert abs(ramp - alpha) > 0.05 * alpha
    exponential = torch.exp(-0.1 * torch.arange(1, 101).double())
    # a line it is not, and the error of the fit says so
    assert float(power_law(exponential, 1, 100)[1]) > 0.05


@given(st.integers(0, 2**20), st.integers(2, 30))
def test_the_fit_is_scipys(seed, n):
    values = torch.rand(40, generator=torch.Generator().manual_seed(seed)).double() + 0.01
    alpha, error = power_law(values, 3, 2 + n)
    fit = linregress(np.log(np.arange(3, 3 + n)), values[2 : 2 + n].log().numpy())
    assert float(alpha) == pytest.approx(-fit.slope, rel=1e-9)
    if n > 2:
        assert float(error) == pytest.approx(fit.stderr, rel=1e-7)
    else:
        assert error.isnan()


@given(st.integers(0, 2**20), st.floats(0.5, 2.0), st.sampled_from([0.0, 10.0]))
def test_alpha_of_an_exact_power_law_spectrum(seed, alpha, offset):
    """Features with a covariance of eigenvalues exactly j^-alpha, wherever their mean lies."""
    D, n = 32, 80
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(n, D, generator=generator).double()
    left = torch.linalg.qr(left - left.mean(0)).Q
    rotation = torch.linalg.qr(torch.randn(D, D, generator=generator).double()).Q
    z = left * torch.arange(1, D + 1).double() ** (-alpha / 2) @ rotation + offset
    result = spectrum_decay(z[:, None])
    assert (result.first, result.last) == (math.ceil(32**0.25), math.floor(32**0.75)) == (3, 13)
    assert float(result.alpha) == pytest.approx(alpha, abs=1e-6)
    assert float(result.error_fit) < 1e-6
    torch.testing.assert_close(
        result.eigenvalues * n, torch.arange(1, D + 1).double() ** -alpha, rtol=1e-6, atol=1e-9
    )


@given(features)
def test_the_spectrum_is_that_of_scikit_learn(z):
    Z = z.flatten(0, 1).numpy()
    found = spectrum_decay(z).eigenvalues.numpy()
    expected = PCA(svd_solver="full").fit(Z).explained_variance_ * (len(Z) - 1) / len(Z)
    np.testing.assert_allclose(found[: len(expected)], expected[: len(found)], atol=1e-11)
    assert np.all(np.abs(found[len(expected) :]) < 1e-11)


def test_alpha_in_corner_cases():
    for z in (torch.full((6, 2, 9), 0.3), torch.zeros(3, 1, 9), torch.ones(1, 1, 9)):
        result = spectrum_decay(z)
        assert result.alpha.isnan()
        assert result.error_alpha.isnan()
        assert float(result.eigenvalues.abs().max()) == 0
        assert "of 0 that are resolved" in result.meaning
    few = torch.randn(4, 1, 50, generator=torch.Generator().manual_seed(2))
    result = spectrum_decay(few, (1, 50))  # three eigenvalues of 50
    assert (result.first, result.last) == (1, 3)
    assert result.alpha.isfinite()
    assert result.error_fit.isfinite()
    assert result.error_alpha.isnan()  # without an image there are but two
    assert spectrum_decay(few, (10, 50)).alpha.isnan()
    one = spectrum_decay(torch.tensor([[[1.0]], [[2.0]]]))
    assert one.alpha.isnan()
    assert one.eigenvalues.shape == (1,)
    views = torch.randn(20, 1, 9, generator=torch.Generator().manual_seed(3))
    assert float(spectrum_decay(views.expand(20, 5, 9)).alpha) == pytest.approx(
        float(spectrum_decay(views).alpha), rel=1e-9
    )


# LiDAR


@given(features.filter(lambda z: len(z) > 1), st.sampled_from([1e-4, 0.5]))
def test_lidar_is_a_generalised_eigenproblem(z, delta):
    n, _, D = z.shape
    nu = z.mean(1)
    between = np.cov(nu.T.numpy(), bias=True).reshape(D, D)
    within = sum(np.cov(image.T.numpy()).reshape(D, D) for image in z) / n + delta * np.eye(D)
    expected = scipy.linalg.eigh(between, within, eigvals_only=True)[::-1].clip(min=0)
    result = lidar(z, delta=delta)
    np.testing.assert_allclose(result.eigenvalues.numpy(), expected, atol=1e-6 * expected[0])
    assert float(result.LiDAR) == pytest.approx(math.exp(entropy(expected)), rel=1e-4)
    assert 1 - 1e-12 <= float(result.LiDAR) <= min(n - 1, D) + 1e-9


@given(features.filter(lambda z: len(z) > 1), st.integers(0, 2**20), st.sampled_from([1e-2, 1e3]))
def test_lidar_does_not_change_with_rotations_order_shifts_or_scale_with_delta(z, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    n, V, D = z.shape
    value = float(lidar(z).LiDAR)
    rotation = torch.linalg.qr(torch.randn(D, D, generator=generator).double()).Q
    order = torch.randperm(n, generator=generator)
    for other in (z @ rotation, z[order], z[:, torch.randperm(V, generator=generator)], z + 2.0):
        assert float(lidar(other).LiDAR) == pytest.approx(value, rel=1e-5)
    assert float(lidar(scale * z, delta=scale**2 * 1e-4).LiDAR) == pytest.approx(value, rel=1e-5)


def test_lidar_does_not_change_with_linear_maps_when_delta_is_small():
    """Discriminant analysis does not depend on a linear map of the features; RankMe does."""
    z = drawn(0, 200, 4, torch.ones(6).double())
    stretched = z * torch.tensor([1.0, 3.0, 10.0, 0.1, 0.5, 30.0]).double()
    assert float(lidar(stretched, delta=1e-12).LiDAR) == pytest.approx(
        float(lidar(z, delta=1e-12).LiDAR), rel=1e-6
    )
    assert float(rankme(stretched).RankMe) < 0.5 * float(rankme(z).RankMe)


def test_means_over_few_views_add_one_over_v_to_the_eigenvalues():
    scales = torch.tensor([3.0, 1.0, 0.3, 0.0]).double()
    generator = torch.Generator().manual_seed(1)
    for V in (2, 8):
        z = (
            torch.randn(20_000, 1, 4, generator=generator).double() * scales
            + torch.randn(20_000, V, 4, generator=generator).double()
        )
        found = lidar(z, delta=1e-9).eigenvalues
        torch.testing.assert_close(found, scales.square() + 1 / V, rtol=0.05, atol=0)


def test_lidar_in_corner_cases():
    same = lidar(torch.full((4, 3, 6), 0.3))
    assert float(same.LiDAR) == 1  # nothing differs
    assert float(same.eigenvalues.abs().max()) == 0
    assert float(lidar(torch.zeros(4, 3, 6)).LiDAR) == 1
    # one image
    assert float(lidar(torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(2))).LiDAR) == 1
    views = torch.randn(5, 1, 9, generator=torch.Generator().manual_seed(3)).double()
    # S_w is delta I: the entropy of the covariance of images
    identical = lidar(views.expand(5, 4, 9))
    values = np.linalg.eigvalsh(np.cov(views[:, 0].T.numpy(), bias=True)).clip(min=0)
    assert float(identical.LiDAR) == pytest.approx(math.exp(entropy(values)), rel=1e-6)


# errors


@pytest.mark.parametrize(("measure", "name", "error"), [
    (lambda z: rankme(z, groups=6), "RankMe", "standard_error"),
    (lambda z: spectrum_decay(z, (1, 4), groups=6), "alpha", "error_alpha"),
    (lambda z: lidar(z, groups=6), "LiDAR", "standard_error"),
])  # fmt: skip
def test_errors_are_those_of_deleting_each_group(measure, name, error):
    z = drawn(4, 40, 3, torch.tensor([2.0, 1.0, 0.7, 0.5, 0.1]).double())
    result = measure(z)
    group = torch.arange(40) % 6
    left = [float(getattr(measure(z[group != g]), name)) for g in range(6)]
    expected = jackknife(
        left, float(getattr(result, name)), 40, [int((group == g).sum()) for g in range(6)]
    )
    assert float(getattr(result, error)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("measure", "name", "error"), [
    (rankme, "RankMe", "standard_error"),
    (lambda z: spectrum_decay(z, (1, 4)), "alpha", "error_alpha"),
    (lidar, "LiDAR", "standard_error"),
])  # fmt: skip
def test_errors_are_right_in_simulation(measure, name, error):
    scales = torch.tensor([2.0, 1.0, 0.7, 0.5, 0.3]).double()
    results = [
        measure(
            drawn(seed, 150, 2, scales)
            + 0.3
            * torch.randn(150, 2, 5, generator=torch.Generator().manual_seed(seed + 999)).double()
        )
        for seed in range(150)
    ]
    spread = float(torch.stack([getattr(r, name) for r in results]).std())
    said = float(torch.stack([getattr(r, error) for r in results]).square().mean().sqrt())
    assert said == pytest.approx(spread, rel=0.2)


def test_bad_input_is_refused(unchecked):
    z = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(5))
    for make in (make_rank, make_decay, make_lidar):
        measure = make()
        for wrong, sentence in (
            (z / 0, "not finite"),
            (z[:, 0], r"shape \(N, V, D\)"),
            (z[..., :4], "dimension 4, but dim=5"),
        ):
            with pytest.raises(ValueError, match=sentence):
                measure.update(wrong)
        measure.update(z)
        with pytest.raises(ValueError, match="have 3 views, those before had 2"):
            measure.update(torch.ones(1, 3, 5))
    for make, sentence in (
        (lambda: EffectiveRank(0), "EffectiveRank needs at least 1 dimension"),
        (lambda: LiDAR(3, groups=1), "2 groups of images, not 3 and 1"),
        (lambda: LiDAR(3, delta=0.0), "positive and finite"),
        (lambda: EffectiveRank(3, epsilon=-1e-7), "not -1e-07"),
        (lambda: SpectrumDecay(3, (0, 2)), r"1 <= first < last <= dim = 3, not \(0, 2\)"),
        (lambda: SpectrumDecay(3, (2, 4)), r"not \(2, 4\)"),
        (lambda: make_lidar().update(z[:, :1]), "at least 2 are needed"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()


@pytest.mark.parametrize("weights", ["equal", "published"])
def test_the_fit_is_that_of_numpys_weighted_polynomial(weights):
    values = torch.rand(40, generator=torch.Generator().manual_seed(0)).double() + 0.1
    j = np.arange(5, 31)
    w = np.sqrt(1 / j) if weights == "published" else np.ones(len(j))
    slope = np.polyfit(np.log(j), np.log(values[4:30].numpy()), 1, w=w)[0]
    assert float(power_law(values, 5, 30, weights)[0]) == pytest.approx(-slope, rel=1e-9)


def test_published_weights_are_asked_for_by_name(unchecked):
    scales = torch.arange(1, 121).double() ** -0.5
    scales[60:] *= 0.3  # a spectrum that breaks
    f = torch.cat([torch.diag(scales), -torch.diag(scales)])[:, None]
    published = spectrum_decay(f, weights="published")
    assert (published.first, published.last) == (11, 100)
    j = np.arange(11, 101)
    line = np.polyfit(np.log(j), 2 * np.log(scales[10:100].numpy()), 1, w=np.sqrt(1 / j))
    assert float(published.alpha) == pytest.approx(-line[0], rel=1e-6)
    equal = spectrum_decay(f, (11, 100))
    assert float(equal.alpha) - float(published.alpha) > 0.05
    with pytest.raises(ValueError, match="begins at j = 11, but there are 8 dimensions"):
        spectrum_decay(f[:, :, :8], weights="published")
    with pytest.raises(ValueError, match="'equal' or 'published', not 'linear'"):
        SpectrumDecay(20, weights="linear")
