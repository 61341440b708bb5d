"""AdaFace, MagFace, CurricularFace and ElasticFace against their formulas, written once more by
hand.
"""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from marginlab import margins, settings
from marginlab.margins import (
    AdaFace,
    ArcFace,
    CombinedMargin,
    CosFace,
    CurricularFace,
    ElasticFace,
    MagFace,
)
from marginlab.rng import Key


def batches(n, rows=12, scale=80.0):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        cosine, norm = torch.rand(2, rows, dtype=torch.float64, generator=generator)
        yield cosine * 2 - 1, norm * scale


# AdaFace


def test_adaface_against_a_hand_written_loop():
    margin = AdaFace(0.4, h=0.333, momentum=0.1).double()
    mean, std = 20.0, 100.0
    for cosine, norm in batches(8, scale=130.0):
        n = np.clip(norm.numpy(), 1e-3, 100)
        mean, std = 0.9 * mean + 0.1 * n.mean(), 0.9 * std + 0.1 * n.std(ddof=1)
        z = np.clip(0.333 * (n - mean) / (std + 1e-3), -1, 1)
        theta = np.arccos(cosine.numpy())
        assert (theta - 0.4 * z < math.pi).all()
        expected = np.cos(np.maximum(theta - 0.4 * z, 0)) - (0.4 + 0.4 * z)
        np.testing.assert_allclose(margin.targets(cosine, norm).value.numpy(), expected, atol=1e-12)
        assert float(margin.mean) == pytest.approx(mean, rel=1e-12)
        assert float(margin.std) == pytest.approx(std, rel=1e-12)


def test_adaface_runs_from_arcface_over_cosface_to_a_negative_angle():
    margin = AdaFace(0.4, h=1000.0).double().eval()
    cosine = torch.tensor([0.5, 0.5, 0.5, 0.99], dtype=torch.float64)
    targets = margin.targets(cosine, torch.tensor([1e-3, 20.0, 100.0, 100.0], dtype=torch.float64))
    expected = (
        ArcFace(0.4).value(cosine)[0],
        CosFace(0.4).value(cosine)[1],
        math.cos(math.pi / 3 - 0.4) - 0.8,
        1 - 0.8,
    )
    torch.testing.assert_close(targets.value, torch.tensor(expected, dtype=torch.float64))
    assert float(targets.slope[3]) == 0  # within 0.4 of the center the angle is clipped


def test_adaface_beyond_pi_goes_on_falling():
    margin = AdaFace(0.4, h=1000.0).double().eval()
    cosine = torch.tensor([-0.999, -0.99, -0.97], dtype=torch.float64)
    targets = margin.targets(cosine, torch.full((3,), 1e-3, dtype=torch.float64))
    torch.testing.assert_close(targets.value, cosine + math.cos(0.4) - 1)
    assert targets.slope.tolist() == [1, 1, 1]


def test_one_row_moves_adafaces_mean_and_no_deviation():
    margin = AdaFace(momentum=0.5)
    margin.targets(torch.zeros(1), torch.tensor([40.0]))
    assert (float(margin.mean), float(margin.std)) == (30.0, 100.0)
    margin.targets(torch.zeros(2), torch.tensor([30.0, 30.0]))
    assert (float(margin.mean), float(margin.std)) == (30.0, 50.0)


def test_a_step_that_overflowed_does_not_end_an_average():
    ada, curricular = AdaFace(), CurricularFace()
    for margin in (ada, curricular):
        margin.targets(torch.tensor([0.5, math.nan]), torch.tensor([20.0, math.nan]))
    assert (float(ada.mean), float(ada.std), float(curricular.t)) == (20, 100, 0)


def test_the_average_of_a_half_precision_batch_is_taken_in_float32():
    norm = torch.full((4096,), 60.0, dtype=torch.float16)  # their sum is beyond float16
    margin = AdaFace(momentum=1.0)
    margin.targets(torch.zeros(4096, dtype=torch.float16), norm)
    assert (float(margin.mean), float(margin.std)) == (60, 0)


# MagFace


@given(st.integers(0, 2**16), st.floats(0.0, 1.0), st.floats(0.0, 1.5))
def test_magface_and_its_slopes_by_the_norm(seed, l_m, more):
    margin, h = MagFace(10.0, 110.0, l_m, l_m + more, 35.0), 1e-5
    generator = torch.Generator().manual_seed(seed)
    cosine, norm = torch.rand(2, 60, dtype=torch.float64, generator=generator)
    cosine, norm = cosine * 1.99 - 0.995, norm * 140
    targets = margin.targets(cosine, norm)
    m = l_m + more * (norm.clamp(10, 110) - 10) / 100
    theta = cosine.arccos()
    curve, line = (theta + m).cos(), cosine + m.cos() - 1
    torch.testing.assert_close(targets.value, torch.where(theta + m > math.pi, line, curve))
    a = norm.clamp(10, 110)
    torch.testing.assert_close(targets.penalty, 35 * (a / 110**2 + 1 / a))
    below, above = margin.targets(cosine, norm - h), margin.targets(cosine, norm + h)
    clear = (
        ((norm - 10).abs() > 2 * h)
        & ((norm - 110).abs() > 2 * h)
        & ((theta + m - math.pi).abs() > 1e-3)
    )
    torch.testing.assert_close(
        targets.norm_slope[clear],
        ((above.value - below.value) / (2 * h))[clear],
        rtol=1e-4,
        atol=1e-9,
    )
    torch.testing.assert_close(
        targets.penalty_slope[clear],
        ((above.penalty - below.penalty) / (2 * h))[clear],
        rtol=1e-4,
        atol=1e-8,
    )


def test_magface_draws_the_norm_up_on_the_curve_and_on_the_line_and_not_outside():
    cosine = torch.tensor([0.5, -0.99, 0.5, 0.5], dtype=torch.float64)
    norm = torch.tensor([60.0, 60.0, 5.0, 120.0], dtype=torch.float64)
    targets = MagFace(10, 110, 0.45, 0.8).targets(cosine, norm)
    expected = [-0.0035 * math.sin(math.pi / 3 + 0.625), -0.0035 * math.sin(0.625), 0, 0]
    torch.testing.assert_close(targets.norm_slope, torch.tensor(expected, dtype=torch.float64))
    assert bool((targets.penalty_slope[:2] < 0).all())
    assert targets.penalty_slope[2:].tolist() == [0, 0]


def test_magface_without_a_range_of_margins_is_arcface():
    for cosine, norm in batches(1):
        targets = MagFace(10, 110, 0.5, 0.5, weight=0).targets(cosine, norm)
        torch.testing.assert_close(targets.value, ArcFace(0.5).value(cosine))
        torch.testing.assert_close(targets.slope, ArcFace(0.5).derivative(cosine))
        assert not bool(
            targets.norm_slope.any() | targets.penalty.any() | targets.penalty_slope.any()
        )


# CurricularFace


def test_curricularface_against_a_hand_written_loop():
    margin, t, kept = CurricularFace(0.5, momentum=0.1).double(), 0.0, []
    for cosine, norm in batches(6):
        t = 0.9 * t + 0.1 * float(cosine.mean())
        targets = margin.targets(cosine, norm)
        kept.append((targets.hardness, t))
        assert torch.equal(targets.value, ArcFace(0.5).value(cosine))
        assert torch.equal(targets.slope, ArcFace(0.5).derivative(cosine))
    for hardness, expected in kept:  # an earlier answer does not move with the buffer
        assert float(hardness) == pytest.approx(expected, rel=1e-12)


# ElasticFace


@pytest.mark.parametrize("kind", ["arc", "cos"])
def test_elasticface_draws_by_step_and_row(kind):
    margin = ElasticFace(0.4, std=0.1, kind=kind, seed=5)
    for step, (cosine, norm) in enumerate(batches(3)):
        drawn = [
            0.4 + 0.1 * float(Key(5).named("elastic").at(step, row).normal()) for row in range(12)
        ]
        expected = [
            ArcFace(m).value(c) if kind == "arc" else CosFace(m).value(c)
            for m, c in zip(drawn, cosine[:, None], strict=True)
        ]
        torch.testing.assert_close(
            margin.targets(cosine, norm).value, torch.cat(expected), rtol=1e-6, atol=1e-6
        )
    assert (int(margin.step), margin.step.dtype) == (3, torch.int64)


def test_elastic_margins_are_normal_around_the_mean():
    rows = 20_000
    drawn = (
        -ElasticFace(0.35, std=0.05, kind="cos")
        .targets(torch.zeros(rows, dtype=torch.float64), torch.ones(rows, dtype=torch.float64))
        .value
    )
    assert float(drawn.mean()) == pytest.approx(0.35, abs=5 * 0.05 / rows**0.5)
    assert float(drawn.std()) == pytest.approx(0.05, rel=0.03)
    assert float(((drawn - 0.35).abs() < 0.05).double().mean()) == pytest.approx(0.6827, abs=0.02)


def test_without_deviation_elasticface_is_the_fixed_margin():
    for cosine, norm in batches(1):
        torch.testing.assert_close(
            ElasticFace(0.5, std=0).targets(cosine, norm).value, ArcFace(0.5).value(cosine)
        )
        torch.testing.assert_close(
            ElasticFace(0.5, std=0.1).eval().targets(cosine, norm).value, ArcFace(0.5).value(cosine)
        )


@given(st.integers(0, 2**16), st.integers(1, 30))
def test_plus_gives_the_nearest_row_the_smallest_margin(seed, rows):
    cosine = (
        torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    )
    norm = torch.ones_like(cosine)
    plain = cosine - ElasticFace(0.35, std=0.1, kind="cos", seed=seed).targets(cosine, norm).value
    paired = (
        cosine
        - ElasticFace(0.35, std=0.1, kind="cos", plus=True, seed=seed).targets(cosine, norm).value
    )
    torch.testing.assert_close(paired.sort().values, plain.sort().values)  # the same margins
    by_cosine = paired[cosine.argsort(descending=True)]
    torch.testing.assert_close(by_cosine, by_cosine.sort().values)


def test_plus_is_no_published_pairing_by_the_permutation_itself():
    cosine = torch.tensor([0.1, 0.9, 0.5, 0.3], dtype=torch.float64)
    paired = (
        cosine
        - ElasticFace(0.35, std=0.1, kind="cos", plus=True)
        .targets(cosine, torch.ones_like(cosine))
        .value
    )
    ascending = paired.sort().values
    assert paired.argsort(descending=True).tolist() == [0, 3, 2, 1]
    assert not torch.allclose(paired, ascending[cosine.argsort(descending=True)])


def test_elasticface_can_draw_a_negative_margin():
    targets = ElasticFace(0.0, std=0.3).targets(torch.full((50,), 0.99), torch.ones(50))
    assert bool((targets.value == 1).any())
    assert bool((targets.value < 0.99).any())


@pytest.mark.parametrize(
    "text",
    [
        "AdaFace(-0.1)",
        "AdaFace(0.4, h=-1)",
        "AdaFace(momentum=0)",
        "AdaFace(momentum=1.1)",
        "MagFace(110, 10)",
        "MagFace(0, 10)",
        "MagFace(l_m=0.8, u_m=0.4)",
        "MagFace(u_m=3.2)",
        "MagFace(weight=-1)",
        "CurricularFace(3.2)",
        "CurricularFace(momentum=-0.1)",
        "ElasticFace(0.5, std=-0.1)",
        "ElasticFace(0.5, std=0.5)",
        "ElasticFace(-0.1)",
        "ElasticFace(kind='cosine')",
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_cannot_be_are_refused(text):
    with pytest.raises(settings.SettingsError, match="cannot be made"):
        settings.make(text, margins, margins.Margin)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: AdaFace(h=x),
        lambda x: MagFace(10, x),
        lambda x: MagFace(weight=x),
        lambda x: ElasticFace(x, kind="cos"),
        lambda x: CosFace(x),
        lambda x: CombinedMargin(x),
    ],
)
@pytest.mark.parametrize("x", [math.inf, math.nan])
def test_numbers_that_are_not_finite_are_refused_by_the_margin_itself(make, x):
    with pytest.raises(ValueError, match=f"not .*{x}"):
        make(x)


@pytest.mark.parametrize("text", ["MagFace(10, 1e999)", "CosFace(1e999)", "CombinedMargin(1e999)"])
def test_and_in_a_text_by_the_settings(text):
    with pytest.raises(settings.SettingsError, match="holds inf, which is no finite number"):
        settings.make(text, margins, margins.Margin)
