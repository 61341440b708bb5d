"""Rows and centers of every length that their types hold: the classifiers' loss is that of float64.

Lengths drop out of a cosine, and a gradient is that of unit length divided by the length. So the
oracle is the loss of the same directions at length 1 in float64.
"""

import pytest
import torch
from margin_oracle import naive

from marginlab.losses import MarginSoftmax, PartialFC
from marginlab.losses.functional import margin_softmax
from marginlab.margins import AdaFace, ArcFace, MagFace

B, C, K, D = 7, 9, 2, 5
GENERATOR = torch.Generator().manual_seed(0)
X = torch.nn.functional.normalize(torch.randn(B, D, dtype=torch.float64, generator=GENERATOR))
W = torch.nn.functional.normalize(
    torch.randn(C, K, D, dtype=torch.float64, generator=GENERATOR), dim=2
)
Y = torch.randint(C, (B,), generator=GENERATOR)
FLOAT32 = [1e-34, 1e-25, 1.0, 1e19, 1e30, 1e38]
FLOAT64 = [1e-299, 1e-160, 1e-40, 1.0, 1e154, 1e200, 1e307]


def oracle():
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    loss = naive(x, w, Y, ArcFace(0.5), scale=8.0)
    return loss.detach(), *torch.autograd.grad(loss, (x, w))


def check(length_of_rows, length_of_centers, dtype, tolerance, operands=None, budget=None):
    x = (X * length_of_rows).to(dtype).requires_grad_()
    w = (W * length_of_centers).to(dtype).requires_grad_()
    call = {"margin": ArcFace(0.5), "scale": 8.0, "operands": operands, "budget": budget}
    loss = margin_softmax(x, Y, w, **call)
    # A small upstream factor keeps the gradient of short vectors inside the type, as the mean over
    # a large batch does
    small = min(length_of_rows, length_of_centers, 1.0)
    slopes = torch.autograd.grad(loss * small, (x, w))
    expected = oracle()
    torch.testing.assert_close(loss.double(), expected[0], rtol=tolerance, atol=tolerance)
    lengths = (length_of_rows, length_of_centers)
    for got, wanted, length in zip(slopes, expected[1:], lengths, strict=True):
        size = small / length
        if size < (1e-37 if dtype == torch.float32 else 1e-300):
            assert float(got.abs().max()) < 10 * max(size, 1e-37)  # below the type's digits
        else:
            torch.testing.assert_close(got.double() / size, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("length", FLOAT32)
def test_in_float32(length, budget):
    check(length, 1.0, torch.float32, 2e-5, budget=budget)
    check(1.0, length, torch.float32, 2e-5, budget=budget)


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("length", FLOAT64)
def test_in_float64(length, budget):
    check(length, 1.0, torch.float64, 1e-10, budget=budget)
    check(1.0, length, torch.float64, 1e-10, budget=budget)


@pytest.mark.parametrize("operands", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", FLOAT32)
def test_with_short_operands(length, operands):
    check(1.0, length, torch.float32, 0.03, operands=operands)


@pytest.mark.parametrize("length", [1e-4, 1.0, 3e4])
def test_centers_that_are_float16_themselves(length):
    x, w = X.float(), (W * length).half()
    expected = naive(X, w.double(), Y, ArcFace(0.5), scale=8.0)
    got = margin_softmax(x, Y, w, margin=ArcFace(0.5), scale=8.0)
    torch.testing.assert_close(got.double(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("factor", [2.0**-40, 1.0, 2.0**20])
def test_the_factor_of_a_loss_scaler_stays_out_of_float16(factor, budget):
    x, w = X.float().requires_grad_(), W.float().requires_grad_()
    call = {"margin": ArcFace(0.5), "scale": 8.0, "operands": torch.float16, "budget": budget}
    slopes = torch.autograd.grad(factor * margin_softmax(x, Y, w, **call), (x, w))
    for got, wanted in zip(slopes, oracle()[1:], strict=True):
        torch.testing.assert_close(got.double() / factor, wanted, rtol=0.02, atol=0.02)


def test_centers_of_mixed_lengths_in_a_sample_of_classes():
    powers = torch.logspace(-300, 300, C, dtype=torch.float64)[:, None, None]
    losses = []
    for w in (W, W * powers):
        head = PartialFC(C, D, ArcFace(0.5), 8.0, K, sample_rate=0.6, dtype=torch.float64)
        head.load_centers(w)
        losses.append(head(X, Y))
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "length"), [(torch.float32, 1e30), (torch.float64, 1e250)])
def test_second_derivatives_and_logits_see_no_length(dtype, length):
    x = X.to(dtype).requires_grad_()
    head = MarginSoftmax(C, D, ArcFace(0.5), 8.0, K, dtype=dtype)
    answers = []
    for factor in (1.0, length):
        head.load_centers((W * factor).to(dtype))
        (slope,) = torch.autograd.grad(head(x, Y), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), x)
        answers.append((slope.detach(), second, head.logits(x).detach()))
    for got, wanted in zip(*reversed(answers), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [AdaFace, MagFace])
@pytest.mark.parametrize("length", [1e-200, 1e200])
def test_margins_that_read_the_length_get_it(make, length):
    """Beyond their clips all lengths are alike."""
    near = 1e-4 if length < 1 else 1e4
    answers = []
    for factor in (near, length):
        x = (X * factor).requires_grad_()
        loss = margin_softmax(x, Y, W, margin=make().eval(), scale=8.0)
        answers.append((loss, torch.autograd.grad(loss, x)[0] * factor))
    torch.testing.assert_close(*answers, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("dtype", "length"), [(torch.float32, 9e-36), (torch.float64, 9e-301)])
def test_below_them_a_vector_has_no_direction_and_no_gradient(dtype, length):
    x = X.to(dtype) * torch.tensor([length, *[1.0] * (B - 1)], dtype=dtype)[:, None]
    w = W.to(dtype) * torch.tensor([*[1.0] * (C - 1), length], dtype=dtype)[:, None, None]
    x, w = x.requires_grad_(), w.requires_grad_()
    loss = margin_softmax(x, Y, w, margin=ArcFace(0.5), scale=8.0)
    slopes = torch.autograd.grad(loss, (x, w))
    assert not slopes[0][0].any()
    assert not slopes[1][-1].any()
    exact = [each.detach().double().clone() for each in (x, w)]
    exact[0][0] = exact[1][-1] = 0
    expected = naive(*exact, Y, ArcFace(0.5), scale=8.0)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=1e-5)
