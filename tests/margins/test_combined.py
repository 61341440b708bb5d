"""The closed form and its five margins, against float64 formulas with numpy."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from marginlab import margins, settings
from marginlab.margins import ArcFace, CombinedMargin, CosFace, NoMargin, SphereFace, combined

triples = st.tuples(st.floats(0.3, 4.0), st.floats(0.0, 3.0), st.floats(-0.5, 1.0))
FIXED = [
    ArcFace(0.5),
    CosFace(0.35),
    SphereFace(1.35),
    NoMargin(),
    CombinedMargin(1.0, 0.3, 0.2),
    CombinedMargin(0.9, 0.4, 0.15),
]
named = pytest.mark.parametrize("margin", FIXED, ids=repr)


def brute(c, m1, m2, m3):
    """Value and slope by their definitions, row for row."""
    values, slopes = [], []
    for one in np.asarray(c, dtype=np.float64):
        theta = math.acos(one)
        angle = m1 * theta + m2
        if angle > math.pi:
            values.append(one - math.cos((math.pi - m2) / m1) - 1 - m3)
            slopes.append(1.0)
        elif angle < 0:
            values.append(1 - m3)
            slopes.append(0.0)
        else:
            values.append(math.cos(angle) - m3)
            slopes.append(m1 * math.sin(angle) / math.sin(theta))
    return torch.tensor(values, dtype=torch.float64), torch.tensor(slopes, dtype=torch.float64)


def grid(n=2001, near=1e-4):
    return torch.cos(torch.linspace(near, math.pi - near, n, dtype=torch.float64)).flip(0)


@given(triples)
def test_value_and_slope_are_the_definition(triple):
    value, slope = combined(grid(501), *triple)
    expected, expected_slope = brute(grid(501), *triple)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-9, atol=1e-9)


# the joint of a smaller one lies in the rounding of -1
@given(st.floats(-3.0, 3.0).filter(lambda m2: m2 == 0 or abs(m2) > 1e-3))
def test_a_negative_angle_is_clipped_at_zero(m2):
    value, slope = combined(grid(501), m2=m2)
    expected, expected_slope = brute(grid(501), 1.0, m2, 0.0)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-9, atol=1e-9)
    if m2 < 0:
        assert bool((value[grid(501) > math.cos(m2)] == 1).all())


@given(st.integers(0, 2**16))
def test_margins_of_each_row_are_those_of_one_row_alone(seed):
    generator = torch.Generator().manual_seed(seed)
    c, m2, m3 = torch.rand(3, 9, dtype=torch.float64, generator=generator) * 2 - 1
    together = combined(c, 1.2, m2, m3)
    for row in range(9):
        for whole, alone in zip(
            together, combined(c[row : row + 1], 1.2, float(m2[row]), float(m3[row])), strict=True
        ):
            torch.testing.assert_close(whole[row : row + 1], alone, rtol=1e-13, atol=1e-13)


def test_a_margin_for_each_row_goes_over_a_whole_matrix_too():
    c, m2 = grid(6).reshape(2, 3), torch.tensor([[0.1], [0.5]], dtype=torch.float64)
    value, slope = combined(c, m2=m2)
    assert value.shape == slope.shape == (2, 3)
    torch.testing.assert_close(value[1], ArcFace(0.5).value(c[1]))


def test_the_slope_of_arcface_at_the_angles_of_the_table():
    angles = torch.tensor([5.0, 10.0, 30.0, 60.0, 90.0, 120.0, 150.0], dtype=torch.float64)
    slopes = ArcFace(0.5).derivative(torch.cos(torch.deg2rad(angles)))
    torch.testing.assert_close(
        slopes,
        torch.tensor([6.36, 3.60, 1.71, 1.15, 0.878, 0.60, 0.047], dtype=torch.float64),
        rtol=0,
        atol=5.1e-3,
    )
    # the curve's own slope is -1.84 there
    assert float(ArcFace(0.5).derivative(torch.tensor([math.cos(math.radians(170))]))) == 1


def test_the_turning_point_is_where_the_angle_reaches_pi():
    assert math.degrees(math.acos(ArcFace(0.5).turning_point)) == pytest.approx(151.35, abs=0.01)
    assert SphereFace(1.35).turning_point == pytest.approx(math.cos(math.pi / 1.35))
    assert (
        NoMargin().turning_point
        == CosFace(0.4).turning_point
        == CombinedMargin(0.5, 0.2, 0.1).turning_point
        == -1
    )


@given(triples)
def test_the_slope_is_the_derivative_of_the_value_on_both_sides_of_the_joint(triple):
    margin, h = CombinedMargin(*triple), 1e-6
    c = grid(801, near=0.02)
    c = c[(c - margin.turning_point).abs() > 2 * h]
    numeric = (margin.value(c + h) - margin.value(c - h)) / (2 * h)
    torch.testing.assert_close(margin.derivative(c), numeric, rtol=2e-5, atol=2e-5)
    assert bool((c < margin.turning_point).any()) == (margin.turning_point > c.min())


@given(triples)
def test_the_value_rises_with_the_cosine_and_has_no_jump(triple):
    margin = CombinedMargin(*triple)
    value = margin.value(grid())
    assert bool((value.diff() > 0).all())
    assert bool((margin.derivative(grid()) >= 0).all())
    joint = torch.tensor([-1e-9, 0.0, 1e-9], dtype=torch.float64) + margin.turning_point
    at, value_there = -1 - triple[2], margin.value(joint)
    if margin.turning_point > -1:
        torch.testing.assert_close(value_there, torch.full_like(joint, at), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_joints_the_slope_does_not_round_below_zero(dtype):
    m2 = torch.linspace(-3, 3, 4001, dtype=dtype)
    joint = torch.where(m2 > 0, -m2.cos(), m2.cos())
    for towards in (-2.0, 2.0):
        value, slope = combined(torch.nextafter(joint, torch.full_like(joint, towards)), m2=m2)
        assert bool((slope >= 0).all())
        torch.testing.assert_close(
            value, torch.where(m2 > 0, -torch.ones_like(m2), torch.ones_like(m2)), rtol=0, atol=4e-7
        )


def test_a_small_clipped_angle_is_flat_at_the_center_though_its_sine_is_clamped():
    for dtype, m2 in ((torch.float32, -1e-4), (torch.float64, -1e-7)):
        value, slope = combined(torch.ones(1, dtype=dtype), m2=m2)
        assert (float(value), float(slope)) == (1, 0)


@given(triples, st.floats(0.01, 0.1))
def test_the_value_falls_with_each_margin(triple, more):
    value = CombinedMargin(*triple).value(grid(301))
    for place in range(3):
        larger = list(triple)
        larger[place] += more
        assert bool((CombinedMargin(*larger).value(grid(301)) < value).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margins_without_a_margin_are_the_cosine_to_the_last_bit(dtype):
    c = grid().to(dtype)
    for margin in (NoMargin(), CombinedMargin(1, 0, 0), ArcFace(0), CosFace(0), SphereFace(1)):
        assert torch.equal(margin.value(c), c)
        assert torch.equal(margin.derivative(c), torch.ones_like(c))
    assert torch.equal(CosFace(0.35).value(c), c - 0.35)
    assert torch.equal(CosFace(0.35).derivative(c), torch.ones_like(c))


@given(triples)
def test_the_five_are_corners_of_the_combined_margin(triple):
    m1, m2, m3 = triple
    for one, other in (
        (ArcFace(m2), CombinedMargin(1, m2, 0)),
        (CosFace(m3), CombinedMargin(1, 0, m3)),
        (SphereFace(m1), CombinedMargin(m1, 0, 0)),
    ):
        assert torch.equal(one.value(grid(101)), other.value(grid(101)))
        assert torch.equal(one.derivative(grid(101)), other.derivative(grid(101)))


@named
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_everything_is_finite_at_the_ends_and_beyond(margin, dtype):
    c = torch.tensor([-1 - 1e-6, -1.0, -0.9999, 0.9999, 1.0, 1 + 1e-6], dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value, slope = margin.value(c), margin.derivative(c)
    assert (value.dtype, slope.dtype) == (wide, wide)
    assert bool((value.isfinite() & slope.isfinite() & (slope >= 0)).all())
    assert torch.equal(value[[0, -1]], value[[1, -2]])  # beyond 1 it is as at 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(triples)
def test_the_ends_of_any_combined_margin_are_finite(dtype, triple):
    ends = torch.tensor([-1.0, 1.0], dtype=dtype)
    largest = 2 * triple[0] / {torch.float32: 1e-3, torch.float64: 1e-6}[dtype]
    slope = CombinedMargin(*triple).derivative(ends)
    assert bool(((slope >= 0) & (slope < largest + triple[0] ** 2)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.floats(0.3, 4.0))
def test_the_limit_at_one_is_kept_where_it_exists(dtype, m1):
    near = 1 - torch.tensor([0.0, 2.0**-23, 1e-6, 1e-5], dtype=dtype)
    torch.testing.assert_close(
        SphereFace(m1).derivative(near), torch.full_like(near, m1**2), rtol=2e-4, atol=0
    )


def test_half_precisions_are_computed_in_float32():
    c = grid(101).to(torch.bfloat16)
    assert torch.equal(ArcFace(0.5).value(c), ArcFace(0.5).value(c.float()))


@given(triples)
def test_float32_agrees_with_float64(triple):
    c = grid(401, near=2e-3).float()
    value, slope = combined(c, *triple)
    exact, exact_slope = combined(c.double(), *triple)
    torch.testing.assert_close(value.double(), exact, rtol=0, atol=2e-6)
    # at the joint the slope has a step
    away = (c - CombinedMargin(*triple).turning_point).abs() > 1e-6
    torch.testing.assert_close(slope.double()[away], exact_slope[away], rtol=2e-4, atol=2e-4)


@named
def test_straight_through_has_the_same_value_and_the_slope_one(margin):
    same = settings.make(
        repr(margin).replace("'exact'", "'straight_through'"), margins, margins.Margin
    )
    assert torch.equal(same.value(grid(51)), margin.value(grid(51)))
    assert torch.equal(same.derivative(grid(51)), torch.ones(51, dtype=torch.float64))


@named
def test_targets_are_value_and_slope(margin):
    targets = margin.targets(grid(51).float(), torch.ones(51))
    assert torch.equal(targets.value, margin.value(grid(51).float()))
    assert torch.equal(targets.slope, margin.derivative(grid(51).float()))
    assert targets[2:] == (None, None, None, None)


def test_no_number_stays_none():
    assert bool(ArcFace(0.5).value(torch.tensor([math.nan])).isnan())


@pytest.mark.parametrize(
    "text",
    [
        "ArcFace(28.6)",
        "ArcFace(-0.1)",
        "SphereFace(0)",
        "CombinedMargin(-1)",
        "CombinedMargin(1, 3.1416)",
    ],
)
def test_margins_that_cannot_be_are_refused(text):
    with pytest.raises(settings.SettingsError, match="cannot be made"):
        settings.make(text, margins, margins.Margin)


def test_degrees_are_told_apart():
    with pytest.raises(
        ValueError,
        match=r"The angular margin m is in radians, in \[0, pi\), not 28.6. Degrees are turned "
        r"by math.radians.",
    ):
        ArcFace(28.6)
    with pytest.raises(ValueError, match="m2 is in radians"):
        CombinedMargin(1.0, math.nan, 0.0)
