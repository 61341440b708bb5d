"""Margins against the values of the formulas and of the code that others published."""

import math

import pytest
import torch

from marginlab.margins import ArcFace, MagFace


def published_magface(cosine, norm, easy):
    """The target of the official heads, in their own steps, float64."""
    margin = 0.45 + (0.8 - 0.45) / (110 - 10) * (norm.clamp(10, 110) - 10)
    moved = torch.cos(torch.acos(cosine) + margin)
    if easy:
        return torch.where(cosine > 0, moved, cosine)
    return torch.where(cosine > torch.cos(math.pi - margin), moved, cosine - torch.sin(margin) * margin)


def test_easy_magface_is_that_of_the_published_training():
    cosine = torch.linspace(-0.999, 0.999, 400, dtype=torch.float64)
    norm = torch.linspace(5, 120, 400, dtype=torch.float64).flip(0)
    easy = MagFace(easy_margin=True).targets(cosine, norm)
    torch.testing.assert_close(easy.value, published_magface(cosine, norm, True), rtol=1e-9, atol=1e-12)
    assert bool((easy.slope[cosine <= 0] == 1).all())
    assert bool((easy.norm_slope[cosine <= 0] == 0).all())
    ours = MagFace().targets(cosine, norm)
    near = cosine > 0
    assert torch.equal(easy.value[near], ours.value[near])
    torch.testing.assert_close(easy.penalty, ours.penalty)


def test_the_numbers_of_the_page_on_margins():
    # below theta + m = pi: the published step at the joint, and what easy margins lose at 90 degrees
    assert math.cos(0.5) + 0.5 * math.sin(0.5) - 1 == pytest.approx(0.1173, abs=5e-5)
    assert math.sin(0.45) == pytest.approx(0.4350, abs=5e-5)
    assert math.sin(0.8) == pytest.approx(0.7174, abs=5e-5)
    cosine = torch.tensor([math.cos(math.radians(a)) for a in (5, 30, 90)], dtype=torch.float64)
    slopes = ArcFace(0.5).derivative(cosine)
    torch.testing.assert_close(slopes, torch.tensor([6.36, 1.71, 0.878], dtype=torch.float64), rtol=0, atol=6e-3)
    assert math.log(10) / 64 == pytest.approx(0.0360, abs=5e-5)
