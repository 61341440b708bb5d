"""Rows that take no part in the backward pass: the bound of what that changes, and who gets it."""

import math

import pytest
import torch
import torch.nn.functional as F

import marginlab.kernels.margin_softmax as kernel
from marginlab.kernels.margin_batch import MarginBatch, Over
from marginlab.kernels.margin_settings import MarginSettings
from marginlab.losses import MarginSoftmax, PartialFC
from marginlab.losses.functional import margin_softmax
from marginlab.margins import ArcFace, CosFace, CurricularFace, MagFace, NoMargin, SphereFace

MARGINS = (NoMargin(), ArcFace(0.5), CosFace(0.35), SphereFace(1.3), MagFace(l_a=0.5, u_a=5.0))


def drawn(generator):
    """A small problem of unit vectors, whose rows lie at any angle from their own center."""
    number = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    B, n, D, K = number(1, 7), number(1, 9), number(2, 6), number(1, 3)
    W = F.normalize(torch.randn(n, K, D, generator=generator, dtype=torch.float64), dim=2)
    target = torch.randint(n, (B,), generator=generator)
    away = torch.rand(B, 1, generator=generator, dtype=torch.float64) * number(0, 3)
    x = W[target, 0] + away * torch.randn(B, D, generator=generator, dtype=torch.float64)
    batch = MarginBatch(
        target,
        valid=torch.rand(B, generator=generator) < 0.8 if number(0, 2) else None,
        share=torch.rand(B, generator=generator, dtype=torch.float64),
    )
    settings = MarginSettings(
        MARGINS[number(0, len(MARGINS))],
        scale=2.0 ** number(0, 7),
        negligible=10.0 ** -number(0, 6) * 0.999,
        interclass_filter=0.4 if number(0, 4) == 0 else None,
        budget=1 if number(0, 2) else None,
    )
    return F.normalize(x, dim=1), W, batch, settings


def gradients(x, W, batch, settings):
    leaves = [x.detach().requires_grad_(), W.detach().requires_grad_()]
    loss, _, left = kernel.margin_cross_entropy(*leaves, batch, settings, Over())
    return loss.detach(), torch.autograd.grad(loss, leaves), left


def violations(cases, seed, dtype):
    """Compare changes with bounds; return the nearest, and the cases with rows left out."""
    generator = torch.Generator().manual_seed(seed)
    nearest, rows = 0.0, 0
    # sums are rounded, and an angular margin's slope divides rounding by a sine
    slack = 1e-9 if dtype == torch.float64 else 1e-4
    for _ in range(cases):
        x, W, batch, settings = drawn(generator)
        batch = MarginBatch(batch.target, valid=batch.valid, share=batch.share.to(dtype))
        x, W = x.to(dtype), W.to(dtype)
        loss, got, left = gradients(x, W, batch, settings)
        whole = MarginSettings(
            settings.margin,
            scale=settings.scale,
            interclass_filter=settings.interclass_filter,
            budget=settings.budget,
        )
        same, every, none = gradients(x, W, batch, whole)
        assert none is None
        assert torch.equal(loss, same)
        for a, b in zip(got, every, strict=True):
            change, bound = float((a - b).norm()), float(left.bound)
            assert change <= bound * (1 + slack) + slack * float(b.norm()), (
                change,
                bound,
                settings,
            )
            nearest = max(nearest, change / bound if bound > 1e-9 else 0.0)
        rows += int(left.rows) > 0
    return nearest, rows


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_change_is_within_its_bound(dtype):
    """250 cases of each dtype: in float32 those without a filter come by exponentials."""
    nearest, rows = violations(250, 0, dtype)
    assert rows > 100
    assert 0.3 < nearest <= 1 + 1e-4


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_change_is_within_its_bound_in_a_hundred_thousand_cases():
    nearest, rows = violations(100_000, 1, torch.float64)
    assert rows > 20_000
    assert 0.5 < nearest <= 1 + 1e-9


@pytest.mark.parametrize("kind", [MarginSoftmax, PartialFC])
@pytest.mark.parametrize("budget", [None, 1, 4 * 9 * 4])
def test_rows_below_the_tolerance_alone_lose_their_gradient(kind, budget, monkeypatch):
    """In one buffer, in class tiles, and in chunks of 4 rows."""
    monkeypatch.setattr(kernel, "ROWS_CPU", 1)
    options = {"sample_rate": 1.0} if kind is PartialFC else {}
    head = kind(9, 9, margin=CosFace(0.2), scale=32.0, negligible=1e-3, budget=budget, **options)
    head.load_centers(torch.eye(9))
    near, far = torch.eye(9)[:3], torch.eye(9)[3:6] + torch.eye(9)[6:9]
    x = torch.cat((near, far, near)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 7])  # the last row lies at another class
    head(x, labels).backward()
    assert (x.grad != 0).any(1).tolist() == [False] * 3 + [True] * 3 + [False, False, True]
    assert int(head.left_out.rows) == 5
    others = 8 * math.exp(-32 * 0.8)
    bound = 5 / 9 * 32 * 2 * others  # of the mean, and the slope of this margin is 1
    assert float(head.left_out.bound) == pytest.approx(bound, rel=1e-4)
    assert str(head.left_out).startswith("5 rows left out of the backward pass")
    whole = kind(9, 9, margin=CosFace(0.2), scale=32.0, **options)
    whole.load_centers(torch.eye(9))
    y = x.detach().requires_grad_()
    whole(y, labels).backward()
    assert whole.left_out is None
    for a, b in ((x.grad, y.grad), (head.centers.grad, whole.centers.grad)):
        difference = a.to_dense() - b.to_dense()
        assert float(difference.norm()) <= bound + 1e-6


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_a_tolerance_is_a_probability(value):
    with pytest.raises(ValueError, match="negligible is a probability"):
        MarginSoftmax(3, 2, negligible=value)


def test_where_the_bound_does_not_hold_the_tolerance_is_refused():
    with pytest.raises(ValueError, match="With label smoothing such rows have a gradient"):
        MarginSoftmax(3, 2, negligible=1e-3, label_smoothing=0.1)
    x = torch.randn(2, 2)
    with pytest.raises(ValueError, match="With CurricularFace such rows"):
        margin_softmax(x, torch.arange(2), x, margin=CurricularFace(0.5), negligible=1e-3)
