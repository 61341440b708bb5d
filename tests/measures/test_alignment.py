import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from laws import MeasureLaws
from scipy.stats import binomtest

from marginlab.measures import Alignment
from marginlab.measures.functional import alignment, clopper_pearson

features = st.builds(
    lambda seed, n, V, D, scale, offset: (
        torch.randn(n, V, D, generator=torch.Generator().manual_seed(seed)).double() * scale
        + offset
    ),
    st.integers(0, 2**20),
    st.integers(1, 6),
    st.integers(2, 5),
    st.integers(1, 6),
    st.sampled_from([1.0, 1e-4]),
    st.sampled_from([0.0, 1e3]),
)


def make(**kwargs):
    return Alignment(**kwargs)


class TestLaws(MeasureLaws):
    make = staticmethod(make)
    ordered = ("diameters", "labels")

    def data(self, n, generator):
        return torch.randn(n, 4, 5, generator=generator), torch.randint(
            0, 3, (n,), generator=generator
        )


@given(features)
def test_values_are_those_of_all_pairs_of_views(z):
    squares, diameters = alignment(z, normalize=False, budget=500)
    for image, square, diameter in zip(z, squares, diameters, strict=True):
        apart = [
            float((image[u] - image[v]).square().sum())
            for u, v in itertools.permutations(range(z.shape[1]), 2)
        ]
        assert float(square) == pytest.approx(sum(apart) / len(apart), rel=1e-9)
        assert float(diameter) == pytest.approx(max(apart) ** 0.5, rel=1e-9)


@given(features)
def test_alignment_is_unbiased_for_views_drawn_without_replacement(z):
    """The mean over all subsets of views of a finite population of views is the mean over its pairs
    of different views.
    """
    V = z.shape[1]
    whole = alignment(z)[0]
    for size in range(2, V + 1):
        subsets = [
            alignment(z[:, list(chosen)])[0] for chosen in itertools.combinations(range(V), size)
        ]
        torch.testing.assert_close(torch.stack(subsets).mean(0), whole, rtol=1e-9, atol=1e-12)


@given(features)
def test_alignment_of_all_views_with_replacement_is_twice_r2_less_the_squared_means(z):
    """Theory.md section 1: L_align = 2 (r^2 - E ||nu||^2), for independent (or equal) views."""
    V = z.shape[1]
    z = torch.nn.functional.normalize(z, dim=-1)
    with_replacement = alignment(z)[0].mean() * (V - 1) / V
    torch.testing.assert_close(
        with_replacement, 2 * (1 - z.mean(1).square().sum(-1).mean()), rtol=0, atol=1e-10
    )


@given(features, st.floats(0, 2))
def test_exceeding_counts_images_and_grows_with_the_views(z, epsilon):
    few, many = (
        Alignment(epsilons=torch.tensor([epsilon])),
        Alignment(epsilons=torch.tensor([epsilon])),
    )
    few.update(z[:, :2])
    many.update(z)
    few, many = few.compute(), many.compute()
    unit = torch.nn.functional.normalize(z, dim=-1)
    widest = torch.stack([torch.pdist(image).amax() for image in unit])
    assert (
        float((widest > epsilon + 1e-9).double().mean())
        <= many.R(epsilon)
        <= float((widest > epsilon - 1e-9).double().mean())
    )
    assert few.R(epsilon) <= many.R(epsilon)
    assert "lower estimate" in many.meaning
    grid = torch.tensor(epsilon).float().double()  # the curve's own threshold, after float32
    assert float(many.exceeding[0]) == many.R(float(grid))
    assert float(many.lower[0]) <= float(many.exceeding[0]) <= float(many.upper[0])


def test_identical_views_exceed_nothing():
    z = torch.randn(3, 1, 7).expand(3, 4, 7)
    measure = Alignment()
    measure.update(z)
    result = measure.compute()
    assert result.R(0.0) == 0
    assert float(result.L_align) < 1e-30


def test_one_image_and_one_epsilon_keep_their_shapes():
    measure = Alignment(epsilons=torch.tensor([1.0]))
    measure.update(torch.randn(1, 3, 4), torch.tensor([5]))
    result = measure.compute()
    assert [
        x.shape
        for x in (
            result.epsilons,
            result.exceeding,
            result.lower,
            result.upper,
            result.diameters,
            result.labels,
        )
    ] == [(1,)] * 6
    assert result.L_align.shape == ()
    assert math.isnan(result.standard_error)
    assert measure.compute() is result


def test_exceeding_of_a_class():
    z = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    measure = Alignment()
    measure.update(z, torch.tensor([4, 6]))
    result = measure.compute()
    assert (result.R(1.0), result.R(1.0, label=4), result.R(1.0, label=6)) == (0.5, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"No image has the label 5: there are \[4, 6\]"):
        result.R(1.0, label=5)


@given(st.integers(1, 60), st.data())
def test_the_interval_is_scipys_exact_one(n, data):
    k = data.draw(st.integers(0, n))
    exact = binomtest(k, n).proportion_ci(0.9, method="exact")
    lower, upper = clopper_pearson(torch.tensor([k]), n, 0.9)
    assert (float(lower), float(upper)) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_hoeffding():
    measure = Alignment(interval="hoeffding", confidence=0.9, epsilons=torch.tensor([0.5]))
    measure.update(torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(0)))
    result = measure.compute()
    width = math.sqrt(math.log(2 / 0.1) / 400)
    assert float(result.lower[0]) == pytest.approx(float(result.exceeding[0]) - width, abs=1e-6)
    assert float(result.upper[0]) == pytest.approx(
        min(1.0, float(result.exceeding[0]) + width), abs=1e-6
    )


def test_the_standard_error_is_right():
    """Over many samples of images, the spread of L_align is what the measure says."""
    generator = torch.Generator().manual_seed(0)
    values, errors = [], []
    for _ in range(300):
        measure = Alignment()
        measure.update(
            torch.randn(40, 3, 4, generator=generator) + torch.randn(40, 1, 4, generator=generator)
        )
        values.append(measure.compute().L_align)
        errors.append(measure.compute().standard_error)
    assert float(torch.stack(values).std()) == pytest.approx(
        float(torch.stack(errors).mean()), rel=0.12
    )


@pytest.mark.parametrize(
    ("z", "sentence"),
    [
        (torch.randn(3, 1, 4), "at least 2 are needed"),
        (torch.full((3, 2, 4), torch.inf), "not finite"),
        (torch.randn(3, 4), r"shape \(N, V, D\)"),
    ],
)
def test_bad_features_are_refused(unchecked, z, sentence):
    with pytest.raises(ValueError, match=sentence):
        Alignment().update(z)


def test_mixed_numbers_of_views_and_bad_labels_are_refused(unchecked):
    measure = Alignment()
    measure.update(torch.randn(3, 2, 4))
    with pytest.raises(ValueError, match="have 3 views, those before had 2"):
        measure.update(torch.randn(3, 3, 4))
    other = Alignment()
    other.update(torch.randn(3, 3, 4))
    with pytest.raises(ValueError, match="cannot be joined"):
        measure.merge_state(other)
    with pytest.raises(ValueError, match="labels run from 0"):
        measure.update(torch.randn(1, 2, 4), torch.tensor([-1]))
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        measure.update(torch.randn(1, 2, 4), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="'clopper-pearson' or 'hoeffding'"):
        Alignment(interval="normal")
