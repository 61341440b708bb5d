"""Margins against the values of the formulas and of the code that others published."""

import math

import pytest
import torch
import torch.nn.functional as F

from marginlab.losses import MarginSoftmax, PartialFC
from marginlab.margins import (
    AdaFace,
    ArcFace,
    CombinedMargin,
    CosFace,
    CurricularFace,
    ElasticFace,
    MagFace,
    NoMargin,
    SphereFace,
)


def published_magface(cosine, norm, easy):
    """The target of the official heads, in their own steps, float64."""
    margin = 0.45 + (0.8 - 0.45) / (110 - 10) * (norm.clamp(10, 110) - 10)
    moved = torch.cos(torch.acos(cosine) + margin)
    if easy:
        return torch.where(cosine > 0, moved, cosine)
    return torch.where(
        cosine > torch.cos(math.pi - margin), moved, cosine - torch.sin(margin) * margin
    )


def test_easy_magface_is_that_of_the_published_training():
    cosine = torch.linspace(-0.999, 0.999, 400, dtype=torch.float64)
    norm = torch.linspace(5, 120, 400, dtype=torch.float64).flip(0)
    easy = MagFace(easy_margin=True).targets(cosine, norm)
    torch.testing.assert_close(
        easy.value, published_magface(cosine, norm, True), rtol=1e-9, atol=1e-12
    )
    assert bool((easy.slope[cosine <= 0] == 1).all())
    assert bool((easy.norm_slope[cosine <= 0] == 0).all())
    ours = MagFace().targets(cosine, norm)
    near = cosine > 0
    assert torch.equal(easy.value[near], ours.value[near])
    torch.testing.assert_close(easy.penalty, ours.penalty)


def angles(*degrees):
    return torch.tensor(degrees, dtype=torch.float64).deg2rad()


def value(margin, cosine, norm=20.0):
    cosine = torch.as_tensor(cosine, dtype=torch.float64).view(-1)
    return margin.targets(cosine, torch.full_like(cosine, norm)).value


def near(got, expected, digits=4):
    expected = torch.as_tensor(expected, dtype=torch.float64).expand(got.shape)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=0.6 * 10.0**-digits)


@pytest.mark.parametrize("margin", [ArcFace(0.5), CurricularFace(0.5)])
def test_arcface_and_curricularface_step_down_in_published_code(margin):
    """By one number for all angles beyond theta + m = pi; before it they are the formula."""
    beyond, before = angles(152, 165, 180).cos(), angles(5, 90, 151).cos()
    near(value(margin, beyond) - (beyond - 0.5 * math.sin(0.5)), 0.1173)
    torch.testing.assert_close(value(margin, before), (angles(5, 90, 151) + 0.5).cos())


def test_arcfaces_slope_where_published_code_has_one():
    margin, straight = ArcFace(0.5), ArcFace(0.5, gradient="straight_through")
    cosine = angles(5, 30, 90).cos()
    near(margin.derivative(cosine), [6.36, 1.71, 0.878], digits=2)
    assert straight.derivative(cosine).tolist() == [1, 1, 1]


def test_cosface_is_the_published_one():
    cosine = torch.linspace(-1, 1, 21, dtype=torch.float64)
    torch.testing.assert_close(value(CosFace(0.35), cosine), cosine - 0.35, rtol=0, atol=1e-15)


def test_combined_margins_keep_the_angle_that_published_code_drops():
    cosine = angles(30, 90).cos()
    near(cosine - 0.2 - value(CombinedMargin(1.0, 0.3, 0.2), cosine), [0.1864, 0.2955])


def test_sphereface_at_the_opposite_of_its_center():
    """The published curve has a piece for every multiple of pi that m theta passes."""
    for m, theirs, ours in ((1.35, -1.5460, -1.3138), (4.0, -7.0, -2.7071)):
        k = math.floor(m - 1e-9)
        assert (-1) ** k * math.cos(m * math.pi) - 2 * k == pytest.approx(theirs, abs=6e-5)
        near(value(SphereFace(m), -1.0), ours)


def test_adaface_where_published_code_clips():
    """A short feature, whose angular margin is m, opposite to its center; the clip is 1e-3."""
    margin = AdaFace(0.4, h=1000.0).double().eval()
    made = margin.targets(torch.tensor([-1.0], dtype=torch.float64), torch.ones(1).double())
    theirs = math.cos(min(math.pi + 0.4, math.pi - 1e-3))
    near(theirs - made.value, 0.0789)
    assert made.slope.tolist() == [1]


def test_elasticface_plus_pairs_by_rank_where_published_code_does_not():
    generator = torch.Generator().manual_seed(0)
    cosine = torch.rand(4096, dtype=torch.float64, generator=generator) - 0.5
    margin = ElasticFace(0.35, std=0.05, kind="cos", plus=True)
    ours = cosine - margin.targets(cosine, torch.ones_like(cosine)).value
    order = cosine.argsort(descending=True)
    theirs = ours.sort().values[order]
    assert torch.equal(ours[order], ours.sort().values)
    assert abs(float(torch.corrcoef(torch.stack((theirs, cosine)))[0, 1])) < 0.05
    # of two independent normal numbers the distance is 2 / sqrt(pi) standard deviations
    assert float((ours - theirs).abs().mean()) / 0.05 == pytest.approx(1.13, abs=0.03)


def test_magfaces_jump_of_the_easy_margin():
    margin = MagFace(easy_margin=True)
    for norm, jump in ((10.0, 0.4350), (110.0, 0.7174)):
        near(value(margin, 0.0, norm) - value(margin, 1e-12, norm), jump)
        near(value(MagFace(), 0.0, norm) - value(MagFace(), 1e-12, norm), 0.0)


def test_what_sampling_takes_from_the_sum():
    losses = []
    for log_q in (False, True):
        head = PartialFC(1_000, 2, NoMargin(), 64.0, sample_rate=0.1, log_q=log_q)
        head.load_centers(torch.tensor([0.0, 1.0]).expand(1_000, 2))
        losses.append(head(torch.tensor([[1.0, 0.0]]), torch.tensor([3])).detach())
    near((losses[1] - losses[0]) / 64, 0.0360)


def test_the_nearest_of_a_classs_centers_counts_alone():
    x = torch.randn(5, 3, dtype=torch.float64)
    head = MarginSoftmax(4, 3, NoMargin(), 8.0, subcenters=3, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 0])
    every = F.normalize(x) @ F.normalize(head.centers.detach().flatten(0, 1)).T
    nearest = every.unflatten(1, (4, 3)).amax(2)
    torch.testing.assert_close(head(x, y).detach(), F.cross_entropy(8 * nearest, y))
