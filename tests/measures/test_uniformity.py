import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from laws import MeasureLaws
from scipy.spatial.distance import pdist
from scipy.special import ive

from marginlab.measures import Uniformity
from marginlab.measures.functional import uniformity


def make(**kwargs):
    return Uniformity(**kwargs)


def make_small(**kwargs):
    return Uniformity(0.5, False, max_images=5, seed=1, **kwargs)


class TestLaws(MeasureLaws):
    make = staticmethod(make)

    def data(self, n, generator):
        return torch.randn(n, 3, 4, generator=generator), torch.randint(
            0, 3, (n,), generator=generator
        )


class TestLawsOfASample(MeasureLaws):
    make = staticmethod(make_small)

    def data(self, n, generator):
        return (torch.randn(n, 2, 4, generator=generator),)


features = st.builds(
    lambda seed, n, V, D, scale: (
        torch.randn(n, V, D, generator=torch.Generator().manual_seed(seed)).double() * scale
    ),
    st.integers(0, 2**20),
    st.integers(2, 7),
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from([1.0, 1e-3, 20.0]),
)


def potentials(z, t, normalize):
    """k_ij by its definition, one pair of images after the other."""
    z = torch.nn.functional.normalize(z, dim=-1) if normalize else z
    n = len(z)
    k = torch.full((n, n), torch.nan, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            k[i, j] = torch.stack(
                [(-t * (a - b).square().sum()).exp() for a in z[i] for b in z[j]]
            ).mean()
    return k


def log_mean(k, kept):
    """log of the mean over different images among `kept`."""
    return math.log(
        sum(float(k[i, j]) for i in kept for j in kept if i != j) / (len(kept) * (len(kept) - 1))
    )


@given(features, st.floats(0.1, 3.0))
def test_it_is_the_definition_and_its_error_the_jackknife_at_any_budget(z, t):
    k, n = potentials(z, t, True), len(z)
    value, error = uniformity(z, t)
    assert float(value) == pytest.approx(log_mean(k, range(n)), abs=1e-12)
    if n == 2:
        assert error.isnan()
    else:
        without = [log_mean(k, [j for j in range(n) if j != i]) for i in range(n)]
        left = torch.tensor(without, dtype=torch.float64)
        assert float(error) == pytest.approx(
            float(((left - left.mean()).square().sum() * (n - 1) / n).sqrt()), abs=1e-7
        )
    again = uniformity(z, t, budget=100)
    torch.testing.assert_close(again, (value, error), rtol=0, atol=1e-12, equal_nan=True)


@given(st.integers(0, 2**20), st.integers(3, 30))
def test_of_one_view_it_is_the_log_mean_of_scipys_distances(seed, n):
    z = torch.randn(n, 1, 6, generator=torch.Generator().manual_seed(seed)).double()
    d = torch.from_numpy(pdist(z[:, 0].numpy(), "sqeuclidean"))
    assert float(uniformity(z, 0.7, normalize=False)[0]) == pytest.approx(
        float((-0.7 * d).exp().mean().log()), abs=1e-12
    )


@given(features, st.integers(0, 2**20), st.floats(0.1, 5.0))
def test_rotations_lengths_and_order_change_nothing_and_it_keeps_its_bounds(z, seed, t):
    generator = torch.Generator().manual_seed(seed)
    n, V, D = z.shape
    rotation = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    lengths = torch.rand(n, V, 1, generator=generator, dtype=torch.float64) + 0.1
    value = uniformity(z, t)
    assert -4 * t - 1e-12 <= float(value[0]) <= 0
    for other in (
        z @ rotation,
        z * lengths,
        z[torch.randperm(n, generator=generator)],
        z[:, torch.randperm(V, generator=generator)],
    ):
        torch.testing.assert_close(uniformity(other, t), value, rtol=0, atol=1e-7, equal_nan=True)
    shift = 100 * torch.randn(D, generator=generator).double()
    torch.testing.assert_close(
        uniformity(z + shift, t, normalize=False)[0],
        uniformity(z, t, normalize=False)[0],
        rtol=1e-9,
        atol=1e-9,
    )


def test_the_mean_inside_the_logarithm_is_unbiased():
    """Over all samples of 3 of 6 images, the mean of U is the U of all six."""
    z = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    parts = [
        uniformity(z[[i, j, k]])[0].exp() for i in range(6) for j in range(i) for k in range(j)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), uniformity(z)[0].exp())


def test_the_standard_error_is_right():
    """In clusters it is the spread of many samples; at the uniform law, where the first-order part
    of U vanishes, up to sqrt 2 of it.
    """
    generator = torch.Generator().manual_seed(0)

    def ratio(offset):
        draws = [
            torch.randn(40, 1, 3, generator=generator)
            + 0.5 * torch.randn(40, 3, 3, generator=generator)
            + offset
            for _ in range(300)
        ]
        values, errors = map(torch.stack, zip(*map(uniformity, draws), strict=True))
        return float(errors.square().mean().sqrt() / values.std())

    assert ratio(torch.tensor([1.5, 0.0, 0.0])) == pytest.approx(1, rel=0.12)
    assert ratio(torch.zeros(3)) == pytest.approx(2**0.5, rel=0.12)


def test_the_uniform_law_on_the_circle_has_its_closed_form():
    n, t = 401, 2.0
    angles = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    z = torch.stack([angles.cos(), angles.sin()], 1)[:, None]
    # over all pairs, that of an image with itself included
    mean = (math.exp(float(uniformity(z, t)[0])) * (n - 1) + 1) / n
    # e^{-2t} I_0(2t) = 0.2070
    assert math.log(mean) == pytest.approx(math.log(ive(0, 2 * t)), abs=1e-9)


def test_corner_cases():
    same = torch.ones(5, 3, 4)
    assert [float(v) for v in uniformity(same)] == [0.0, 0.0]
    assert float(uniformity(torch.zeros(3, 1, 2))[0]) == 0
    far = torch.tensor([[[0.0]], [[1e3]], [[3e3]]])  # exp(-2e6) is no float64
    assert float(uniformity(far, normalize=False)[0]) == pytest.approx(
        -2e6 - math.log(3), rel=1e-12
    )
    assert uniformity(far, normalize=False)[1].isfinite()
    identical = torch.randn(6, 1, 4, generator=torch.Generator().manual_seed(2)).double()
    torch.testing.assert_close(uniformity(identical.expand(6, 5, 4)), uniformity(identical))


def test_beyond_its_bank_it_is_of_a_random_sample():
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(400, 1, 3, generator=generator)
    whole = uniformity(z)[0]
    values = []
    for seed in range(60):
        measure = Uniformity(max_images=40, seed=seed)
        for part in z.split(33):
            measure.update(part)
        result = measure.compute()
        assert (result.n, result.seen) == (40, 400)
        assert sum(map(len, measure.features)) <= 80
        values.append(result.L_unif.exp())
    spread = torch.stack(values).std() / 60**0.5
    assert abs(float(torch.stack(values).mean() - whole.exp())) < 3 * float(spread)


def test_of_many_equal_features_a_sample_takes_its_share():
    """Half of the images have collapsed to one point: the sample neither takes all of them nor
    none.
    """
    z = torch.randn(600, 1, 8, generator=torch.Generator().manual_seed(4))
    z[::2] = 1.0
    for seed in range(5):
        measure = Uniformity(max_images=100, seed=seed)
        for part in z.split(150):
            measure.update(part)
        taken = measure.sample()[0]
        assert 30 <= int((taken == 1).all(-1).sum()) <= 70


def test_bad_input_is_refused(unchecked):
    z = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(5))
    for features, sentence in (
        (z / 0, "not finite"),
        (z[:, 0], r"shape \(N, V, D\)"),
        (z[:, :0], "at least 1 are needed"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make().update(features)
    measure = make()
    measure.update(z[:1])
    with pytest.raises(ValueError, match=r"there are 1 image\(s\)"):
        measure.compute()
    with pytest.raises(ValueError, match="have 1 views, those before had 2"):
        measure.update(z[:, :1])
    with pytest.raises(ValueError, match=r"have \d+ dimensions, those before had"):
        measure.update(z[..., :-1])
    with pytest.raises(ValueError, match="positive and finite, not t = 0"):
        Uniformity(0)
    with pytest.raises(ValueError, match="at least 2 are kept"):
        Uniformity(max_images=1)
