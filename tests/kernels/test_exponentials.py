"""The margin softmax by stored exponentials is that of the running maximum, in float32 on a CPU."""

import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

import marginlab.kernels.margin_softmax as kernel
from marginlab.kernels import exponentials
from marginlab.kernels.margin_batch import MarginBatch, Over
from marginlab.kernels.margin_settings import MarginSettings
from marginlab.losses import PartialFC
from marginlab.margins import ArcFace, CosFace, NoMargin

MARGINS = [NoMargin(), ArcFace(0.5), CosFace(0.35)]


@st.composite
def problems(draw):
    """Embeddings, centers and a batch; some rows are of classes that are elsewhere or ignored."""
    B, n, D = draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lengths = 10.0 ** draw(st.sampled_from([-3.9, -2.0, 0.0, 3.9]))
    W = F.normalize(torch.randn(n, 1, D, generator=generator), dim=-1) * lengths
    W = W * (1 + torch.rand(n, 1, 1, generator=generator)) / 2 if lengths > 1 else W * 1.1
    x = torch.randn(B, D, generator=generator)
    target = torch.randint(n, (B,), generator=generator)
    if draw(st.booleans()):  # as a trained network's
        x = 0.2 * F.normalize(x, dim=1) + F.normalize(W[target, 0], dim=1)
    batch = MarginBatch(
        target,
        valid=torch.rand(B, generator=generator) < 0.8 if draw(st.booleans()) else None,
        lift=torch.randn(n, generator=generator).clamp(-2, 2) if draw(st.booleans()) else None,
        share=torch.rand(B, generator=generator),
    )
    if draw(st.booleans()):
        drawn = torch.randperm(n, generator=generator)[: max(1, n // 2)].sort().values
        place = torch.searchsorted(drawn, target).clamp(max=len(drawn) - 1)
        lift = None if batch.lift is None else batch.lift[: len(drawn)]
        batch = replace(batch, target=place, classes=drawn, lift=lift)
    return x, W, batch


def gradients(x, W, batch, chosen, upstream=1.0, calls=1):
    x, W = x.detach().requires_grad_(), W.detach().requires_grad_()
    loss = kernel.margin_cross_entropy(x, W, batch, chosen, Over())[0]
    for _ in range(calls):
        dx, dw = torch.autograd.grad(loss * upstream, (x, W), retain_graph=True)
    return loss.detach(), dx, dw.to_dense()


def taken(patch):
    """Count the calls that end by exponentials."""
    calls = []
    forward = exponentials.Exponentials.forward

    def counted(*args, **named):
        made = forward(*args, **named)
        calls.append(made is not None)
        return made

    patch.setattr(exponentials.Exponentials, "forward", counted)
    return calls


def close(got, expected, tolerance=3e-5, sizes=(0.0, 0.0, 0.0)):
    """Sizes are those of a gradient before its part along the center or the row is removed."""
    for a, b, size in zip(got, expected, sizes, strict=True):
        largest = max(float(b.abs().max()), size)
        assert float((a.double() - b).abs().max()) <= tolerance * largest


@pytest.mark.parametrize("margin", MARGINS, ids=str)
@settings(max_examples=40)
@given(problem=problems(), scale=st.sampled_from([0.5, 16.0, 64.0, 70.0]), rows=st.booleans())
def test_it_is_the_formula_in_float64(margin, problem, scale, rows):
    """In one buffer, or in chunks of rows; lengths are those that the kind allows."""
    x, W, batch = problem
    chosen = MarginSettings(margin, scale=scale)
    exact = gradients(
        x.double(),
        W.double(),
        replace(batch, lift=None if batch.lift is None else batch.lift.double()),
        chosen,
    )
    n = len(W) if batch.classes is None else len(batch.classes)
    with pytest.MonkeyPatch.context() as patch:
        calls = taken(patch)
        patch.setattr(kernel, "ROWS_CPU", 1)
        budget = max(len(x) // 2, 1) * n * 4 if rows else None
        got = gradients(x, W, batch, replace(chosen, budget=budget))
    assert calls
    assert all(calls)
    # a cosine near 1 is rounded by 6e-8, and an angular margin's slope divides by its sine
    cosine = (F.normalize(x.double(), dim=1)[:, None] * F.normalize(W.double(), dim=2)[:, 0]).sum(2)
    sine = float((1 - cosine.square()).clamp_min(1e-14).min().sqrt())
    share = scale * float(batch.share.sum())
    sizes = (0.0, share / float(x.norm(dim=1).min()), share / float(W.norm(dim=2).min()))
    close(got, exact, 3e-6 * max(scale, 1) / min(sine, 0.3) ** 2, sizes)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-5, 1e5, 1e30, math.inf, math.nan])
def test_a_center_out_of_range_leads_the_general_way(length):
    torch.manual_seed(1)
    x, W = torch.randn(4, 5), torch.randn(7, 1, 5)
    W[6] = F.normalize(W[6], dim=-1) * length
    batch = MarginBatch(torch.tensor([0, 3, 3, 5]), share=torch.full((4,), 0.25))
    chosen = MarginSettings(ArcFace(0.5))
    with pytest.MonkeyPatch.context() as patch:
        calls = taken(patch)
        got = gradients(x, W, batch, chosen)
    assert calls == [False]
    if math.isfinite(length):
        close(got, gradients(x.double(), W.double(), batch, chosen))


@pytest.mark.parametrize(
    "change",
    [{"scale": 80.0}, {"label_smoothing": 0.1}, {"interclass_filter": 0.4}, {"compiled": True}],
    ids=str,
)
def test_other_settings_lead_the_general_way(change):
    W = torch.randn(7, 1, 5)
    columns = kernel.Problem(
        torch.randn(4, 5),
        W,
        MarginBatch(torch.arange(4)),
        MarginSettings(ArcFace(0.5)),
        Over(),
    )
    assert columns.exponentials is not None
    other = replace(MarginSettings(ArcFace(0.5)), **change)
    made = kernel.Problem(torch.randn(4, 5), W, MarginBatch(torch.arange(4)), other, Over())
    assert made.exponentials is None


@pytest.mark.parametrize("upstream", [1e-30, 1e-12, 1e12, 1e30])
def test_an_upstream_factor_of_any_size_is_a_factor_of_the_gradients(upstream):
    torch.manual_seed(2)
    x, W = torch.randn(5, 6), torch.randn(9, 1, 6)
    batch = MarginBatch(torch.tensor([0, 1, 1, 8, 4]), share=torch.full((5,), 0.2))
    chosen = MarginSettings(ArcFace(0.5))
    _, *usual = gradients(x, W, batch, chosen)
    _, *scaled = gradients(x, W, batch, chosen, upstream)
    for a, b in zip(scaled, usual, strict=True):
        torch.testing.assert_close(a.double() / upstream, b.double(), rtol=1e-5, atol=1e-6)
    _, *zero = gradients(x, W, batch, chosen, 0.0)
    assert not any(bool(each.any()) for each in zero)


def test_a_second_backward_pass_gives_the_same_bits():
    torch.manual_seed(3)
    x, W = torch.randn(5, 6), torch.randn(9, 1, 6)
    batch = MarginBatch(torch.tensor([0, 1, 1, 8, 4]), share=torch.full((5,), 0.2))
    chosen = MarginSettings(ArcFace(0.5))
    for a, b in zip(
        gradients(x, W, batch, chosen), gradients(x, W, batch, chosen, calls=2), strict=True
    ):
        assert torch.equal(a, b)


def on_a_rank(group, rank, parts, labels, centers):
    """The loss, and the gradients of this rank's rows and of its classes' centers."""
    head = PartialFC(7, 5, scale=16.0, sample_rate=1.0, group=group, grads="sum")
    head.load_centers(centers)
    x = parts[rank].clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        calls = taken(patch)
        loss = head(x, labels[rank])
    loss.backward()
    return calls, loss.detach(), x.grad, head.centers.grad.to_dense()


@pytest.mark.xdist_group("ranks")
def test_classes_spread_over_ranks_are_those_of_one(pool):
    torch.manual_seed(4)
    x, labels, centers = torch.randn(5, 5), torch.tensor([0, 6, 3, 3, 1]), torch.randn(7, 5)
    rows = (2, 0, 3)
    found = pool.run(3, on_a_rank, x.split(rows), labels.split(rows), centers)
    one = PartialFC(7, 5, scale=16.0, sample_rate=1.0, dtype=torch.float64)
    one.load_centers(centers.double())
    exact = x.double().requires_grad_()
    loss = one(exact, labels)
    loss.backward()
    assert all(calls == [True] for calls, *_ in found)
    for _, value, *_ in found:
        torch.testing.assert_close(value.double(), loss.detach(), rtol=1e-5, atol=1e-6)
    for k, expected in ((2, exact.grad), (3, one.centers.grad.to_dense())):
        got = torch.cat([each[k] for each in found]).double()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
