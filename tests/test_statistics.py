"""Unit vectors against float64 and exact scaling; groups by brute force; intervals by scipy."""

import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from marginlab.statistics import index_within_group, to_nearest_other, unit_vectors
from marginlab.statistics.intervals import clopper_pearson, normal_interval, wilson, within

ROWS = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "length", [1e-44, 1e-38, 1e-30, 1e-19, 1e-12, 1.0, 1e12, 1.8e19, 1e25, 1e38]
)
def test_in_float32_rows_of_every_length_have_the_direction_of_float64(length):
    x = (ROWS * length).clamp(-3.4e38, 3.4e38).float()
    torch.testing.assert_close(
        unit_vectors(x).double(), F.normalize(x.double(), eps=0.0), rtol=3e-7, atol=3e-7
    )
    if length > 1e-35:  # below, the derivative itself is beyond float32
        weight = ROWS.flip(0)
        wide = x.double().requires_grad_()
        (expected,) = torch.autograd.grad((F.normalize(wide, eps=0.0) * weight).sum(), wide)
        narrow = x.clone().requires_grad_()
        (got,) = torch.autograd.grad((unit_vectors(narrow) * weight.float()).sum(), narrow)
        torch.testing.assert_close(got.double() * length, expected * length, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("power", [-1060, -600, 0, 600, 1020])
def test_in_float64_lengths_whose_squares_leave_the_range_change_nothing(power):
    x = (ROWS * 2**30).round()  # whole numbers: a power of two keeps every digit of them
    scaled = x * 2.0 ** (power // 2) * 2.0 ** (power - power // 2 - 30)
    expected = F.normalize(scaled * 2.0 ** (-power // 2) * 2.0 ** (-power // 2))
    torch.testing.assert_close(unit_vectors(scaled), expected, rtol=1e-13, atol=1e-13)


def test_rows_without_direction_become_zero_without_gradient_of_any_order():
    x = torch.tensor([[0.0, 0.0], [3e-13, 4e-13], [3.0, 4.0]], requires_grad=True)
    out = unit_vectors(x, shortest=1e-12)
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.6, 0.8]]))
    (first,) = torch.autograd.grad(out[:, 0].sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert bool((first[:2] == 0).all())
    assert bool((second[:2] == 0).all())
    assert bool(second.isfinite().all())


def test_half_precision_comes_back_in_float32_and_no_number_stays_none():
    x = torch.tensor([[3e4, 4e4]], dtype=torch.float16)
    torch.testing.assert_close(unit_vectors(x), F.normalize(x.float()))
    assert unit_vectors(torch.ones(2, 0)).shape == (2, 0)
    for bad in (torch.inf, torch.nan):
        assert bool(unit_vectors(torch.tensor([[1.0, bad]])).isnan().any())


def test_it_is_differentiable_twice_and_vmapped():
    assert torch.autograd.gradgradcheck(unit_vectors, ROWS.clone().requires_grad_())
    torch.testing.assert_close(
        torch.func.vmap(unit_vectors)(ROWS[:, None]), unit_vectors(ROWS)[:, None]
    )


def test_rows_are_numbered_within_their_groups():
    groups = torch.randint(-3, 3, (50,), generator=torch.Generator().manual_seed(0))
    expected = [int((groups[:i] == group).sum()) for i, group in enumerate(groups)]
    assert index_within_group(groups).tolist() == expected
    assert index_within_group(groups[:0]).dtype == torch.int64


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 7), (7, 7), (40, 1000)])
def test_intervals_of_rates_are_those_of_scipy(hits, n):
    test = scipy.stats.binomtest(hits, n)
    # scipy's quantile of the normal distribution has more digits than 1.96
    assert wilson(hits / n, n) == pytest.approx(test.proportion_ci(method="wilson"), abs=1e-5)
    exact = test.proportion_ci(method="exact")
    for trials in (n, torch.tensor([n])):
        ends = clopper_pearson(torch.tensor([hits]), trials)
        assert [float(end) for end in ends] == pytest.approx(list(exact), abs=1e-12)


def test_an_estimate_without_an_error_has_no_interval():
    assert normal_interval(0.5, 0.0) == (0.5, 0.5)
    assert all(math.isnan(end) for end in normal_interval(0.5, math.nan))
    assert math.isnan(within(math.nan, 0.0, 1.0))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_nearest_other_point_by_brute_force(offset):
    points = ROWS + offset
    expected = [
        min(float((a - b).norm()) for j, b in enumerate(points) if j != i)
        for i, a in enumerate(points)
    ]
    torch.testing.assert_close(
        to_nearest_other(points), torch.tensor(expected, dtype=torch.float64)
    )
    assert to_nearest_other(points[:1]).tolist() == [math.inf]
    twins = torch.cat([points[:2], points[:1]]).float()
    assert to_nearest_other(twins)[[0, 2]].tolist() == [0.0, 0.0]
