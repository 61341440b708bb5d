"""Error versus discard: constant, perfect and random scores, ties, both conventions."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from marginlab.evaluation import (
    best_curve,
    error_versus_discard,
    line_area,
    pair_quality,
    reliability,
    worst_curve,
)


def problem(seed, genuine=400, impostors=600):
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(genuine + impostors, generator=generator, dtype=torch.float64)
    same = torch.arange(genuine + impostors) < genuine
    return s + 2.0 * same, same, torch.rand(len(s), generator=generator, dtype=torch.float64)


@given(st.integers(0, 10**6), st.sampled_from(["fixed", "renewed"]), st.floats(-5, 5))
def test_a_constant_score_is_worth_exactly_nothing(seed, convention, level):
    s, same, _ = problem(seed)
    curve = error_versus_discard(
        s, same, torch.full_like(s, level), fmr=0.05, convention=convention
    )
    assert curve.area(0.3) == curve.area(0.95) == 1.0
    assert len(curve.error.unique()) == 1


@given(st.integers(0, 10**6))
def test_a_perfect_score_is_the_best_curve_and_its_opposite_the_worst(seed):
    s, same, _ = problem(seed)
    best = error_versus_discard(s, same, s, fmr=0.05)
    worst = error_versus_discard(s, same, -s, fmr=0.05)
    bound, other = (make(best.errors, best.pairs) for make in (best_curve, worst_curve))
    for limit in (0.1, 0.3, 0.95):
        assert best.area(limit) == pytest.approx(bound.area(limit), abs=1e-12)
        assert worst.area(limit) == pytest.approx(other.area(limit), abs=1e-12)
        assert line_area(best.errors, best.pairs, limit) < bound.area(limit)
    torch.testing.assert_close(best.error[: len(bound.error)], bound.error)
    torch.testing.assert_close(worst.error[: len(other.error)], other.error)


@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from(["fixed", "renewed"]))
def test_every_curve_lies_between_the_bounds_whatever_the_order(seed, levels, convention):
    s, same, q = problem(seed)
    q = (q * levels).floor()
    curve = error_versus_discard(s, same, q, fmr=0.05, convention=convention)
    order = torch.randperm(len(s), generator=torch.Generator().manual_seed(seed))
    again = error_versus_discard(
        s[order], same[order], q[order].exp(), fmr=0.05, convention=convention
    )
    for one, other in zip(curve[:3], again[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    if convention == "fixed":
        low, high = (make(curve.errors, curve.pairs) for make in (best_curve, worst_curve))
        for share in (0.0, 0.05, 0.2, 0.7):
            assert low.at(share) - 1e-12 <= curve.at(share) <= high.at(share) + 1e-12


def test_a_random_score_is_worth_nothing_on_average():
    for convention in ("fixed", "renewed"):
        areas = []
        for seed in range(40):
            s, same, q = problem(seed)
            areas.append(
                error_versus_discard(s, same, q, fmr=0.05, convention=convention).area(0.3)
            )
        found = torch.tensor(areas, dtype=torch.float64)
        assert abs(float(found.mean()) - 1) < 3 * float(found.std()) / len(areas) ** 0.5 + 0.005


def test_the_fixed_convention_by_hand():
    s = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.7, 0.6, 0.3, 0.05])
    same = torch.tensor([True] * 6 + [False] * 2)
    q = torch.tensor([5.0, 1.0, 1.0, 3.0, 4.0, 4.0, 0.0, 9.0])
    curve = error_versus_discard(s, same, q, fnmr=0.34)
    assert curve.threshold[0] == pytest.approx(0.2)
    assert curve.discard.tolist() == pytest.approx([0, 2 / 6, 3 / 6, 5 / 6])
    assert curve.error.tolist() == pytest.approx([2 / 6, 1 / 4, 0, 0])
    assert curve.area(0.4, relative=False) == pytest.approx(2 / 6 * 2 / 6 + (0.4 - 2 / 6) / 4)
    assert curve.at(0.4) == pytest.approx(0.25)


def test_the_renewed_convention_by_hand():
    # of 20 pairs the two of lowest quality are a rejected genuine one and the hardest impostor
    s = torch.linspace(0.5, 0.95, 10).tolist() + torch.linspace(0.0, 0.45, 10).tolist()
    s[0], s[19] = 0.1, 0.6
    q = torch.arange(20.0) + 5
    q[0], q[19] = 0.0, 1.0
    same = torch.arange(20) < 10
    curve = error_versus_discard(torch.tensor(s), same, q, fmr=0.1, convention="renewed")
    assert curve.error[0] == pytest.approx(0.1)
    assert curve.error[1] == pytest.approx(0.0)  # the genuine pair is gone, t = 0.4 as before
    assert len(curve.discard) < 20  # beyond, only impostors are left
    with pytest.raises(ValueError, match=r"The curve has no point at 0\.95"):
        curve.area(0.95)


def test_pairs_have_the_lower_score_of_their_images():
    q = pair_quality(torch.tensor([0.5, 0.1, 0.7]), torch.tensor([0, 2]), torch.tensor([2, 1]))
    assert q.tolist() == pytest.approx([0.5, 0.1])


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 30))
def test_a_reliability_curve_keeps_counts_and_equal_scores_together(seed, bins, levels):
    generator = torch.Generator().manual_seed(seed)
    q = (torch.rand(200, generator=generator) * levels).floor()
    right = torch.rand(200, generator=generator) < 0.6
    found = reliability(q, right, bins=bins)
    assert int(found.decisions.sum()) == 200
    assert len(found.decisions) <= min(bins, levels)
    assert bool((found.quality.diff() > 0).all())
    assert float((found.correct * found.decisions).sum()) == pytest.approx(int(right.sum()))
    assert bool(((found.low <= found.correct) & (found.correct <= found.high)).all())


def test_what_cannot_be_judged_is_refused():
    s, same, q = problem(0)
    for wrong, words in (
        ({"fmr": 0.1, "fnmr": 0.1}, "either fmr or fnmr"),
        ({"fnmr": 0.1, "convention": "renewed"}, "with convention='renewed' fmr"),
        ({"fmr": 1e-4}, "at least 10,000 impostor"),
        ({"fnmr": 1e-4}, "None of 400 genuine pairs is rejected"),
        ({"fmr": 1.0}, r"in \(0, 1\)"),
    ):
        with pytest.raises(ValueError, match=words):
            error_versus_discard(s, same, q, **wrong)
    with pytest.raises(ValueError, match="finite"):
        error_versus_discard(s, same, q * torch.nan, fmr=0.1)
    with pytest.raises(ValueError, match="None of 1000 pairs is genuine"):
        error_versus_discard(s, torch.zeros_like(same), q, fmr=0.1)
    curve = error_versus_discard(s, same, q, fmr=0.1)
    for limit in (0.0, 1.0):
        with pytest.raises(ValueError, match="largest share"):
            curve.area(limit)
    with pytest.raises(ValueError, match="at least one is rejected"):
        best_curve(0, 3)
    with pytest.raises(ValueError, match="bins"):
        reliability(q, same, bins=0)
