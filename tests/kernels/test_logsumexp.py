import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from marginlab.kernels import logsumexp


def naive(x, y, scale, exclude=None):
    products = scale * x @ y.T
    if exclude is not None:
        columns = torch.arange(len(y))
        products = products.masked_fill((exclude[:, :, None] == columns).any(1), -math.inf)
    return products.logsumexp(1)


def same_where_finite(out, expected, ours, theirs, value=1e-12, slope=1e-10):
    """Compare values and slopes with those of brute force, and find no NaN.

    A row without columns is -inf. Brute force has NaN as its slope, and as all slopes with it.
    """
    torch.testing.assert_close(out, expected, rtol=value, atol=value)
    alive = expected > -math.inf
    weights = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view_as(expected)
    got = torch.autograd.grad((out * weights)[alive].sum(), ours)
    assert all(bool(g.isfinite().all()) for g in got)
    if bool(alive.all()):
        for a, b in zip(got, torch.autograd.grad((expected * weights).sum(), theirs), strict=True):
            torch.testing.assert_close(a, b, rtol=slope, atol=1e-10)


@st.composite
def problems(draw):
    rows, columns, features, left_out = (
        draw(st.integers(0, 7)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 4)),
        draw(st.integers(0, 3)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x, y = (
        torch.randn(n, features, dtype=torch.float64, generator=generator) for n in (rows, columns)
    )
    exclude = torch.randint(-2, columns + 2, (rows, left_out), generator=generator)
    return x, y, exclude


@given(problems(), st.floats(0.01, 200), st.integers(1, 600))
def test_it_is_the_softmax_sum_in_value_and_gradient_at_any_budget(problem, scale, budget):
    x, y, exclude = problem
    ours = [t.clone().requires_grad_() for t in (x, y, torch.tensor(scale, dtype=torch.float64))]
    theirs = [t.clone().requires_grad_() for t in (x, y, torch.tensor(scale, dtype=torch.float64))]
    out = logsumexp(ours[0], ours[1], scale=ours[2], exclude=exclude, budget=budget)
    expected = naive(*theirs, exclude)
    same_where_finite(out, expected, ours, theirs)


@settings(max_examples=5)
@given(st.integers(0, 2**20), st.integers(8, 200))
def test_gradcheck(seed, budget):
    generator = torch.Generator().manual_seed(seed)
    x, y = (
        torch.randn(n, 3, dtype=torch.float64, generator=generator, requires_grad=True)
        for n in (4, 5)
    )
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    exclude = torch.tensor([[0, 1], [1, 3], [4, -1], [2, 2]])
    assert gradcheck(
        lambda a, b, s: logsumexp(a, b, scale=s, exclude=exclude, budget=budget), (x, y, scale)
    )


def test_only_the_gradients_that_are_asked_for_are_made():
    x, y = torch.randn(3, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    whole = [t.clone().requires_grad_() for t in (x, y)]
    expected = torch.autograd.grad(logsumexp(*whole, scale=2.0).sum(), whole)
    for which in (0, 1):
        inputs = [x, y]
        inputs[which] = inputs[which].clone().requires_grad_()
        torch.testing.assert_close(
            torch.autograd.grad(logsumexp(*inputs, scale=2.0).sum(), inputs[which])[0],
            expected[which],
            rtol=0,
            atol=0,
        )


def test_a_row_that_excludes_everything_is_minus_infinity_without_gradient():
    x, y = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    out = logsumexp(x, y, exclude=torch.tensor([[0, 1], [1, -1]]), budget=4)
    assert out[0] == -math.inf
    assert bool(out[1].isfinite())
    for g in torch.autograd.grad(out, [x, y], torch.tensor([math.inf, 1.0])):
        assert bool(g.isfinite().all())
    assert bool(
        (
            torch.autograd.grad(logsumexp(x, y, exclude=torch.tensor([[0, 1], [1, 0]])).sum(), x)[0]
            == 0
        ).all()
    )
    assert bool((logsumexp(x, y[:0]) == -math.inf).all())


def test_large_products_neither_overflow_nor_vanish():
    x, y = torch.tensor([[1000.0], [-1000.0]]), torch.tensor([[1.0], [0.9]])
    torch.testing.assert_close(logsumexp(x, y, budget=4), torch.tensor([1000.0, -900.0]))


def test_bf16_operands_are_summed_in_float32_and_their_gradients_are_bf16():
    x, y = (torch.randn(n, 16).bfloat16().requires_grad_() for n in (6, 300))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = logsumexp(x, y, scale=10.0)
        out.sum().backward()
    exact = [t.detach().double().requires_grad_() for t in (x, y)]
    expected = naive(*exact, 10.0)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-5)
    for t, g in zip((x, y), torch.autograd.grad(expected.sum(), exact), strict=True):
        assert t.grad.dtype == torch.bfloat16
        torch.testing.assert_close(t.grad.double(), g, rtol=2**-8, atol=1e-6)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


def test_neither_pass_holds_more_than_the_budget():
    x, y = torch.randn(512, 4, requires_grad=True), torch.randn(700, 4, requires_grad=True)
    exclude = torch.arange(1024).view(512, 2)
    with Largest() as naively:
        naive(x, y, 1.0).sum().backward()
    with Largest() as blockwise:
        logsumexp(x, y, exclude=exclude, budget=16_384).sum().backward()
    assert naively.bytes >= 512 * 700 * 4  # the meter sees what is held
    assert blockwise.bytes <= 16_384


def test_a_third_derivative_is_refused():
    x = torch.randn(3, 2, requires_grad=True)
    (first,) = torch.autograd.grad(logsumexp(x, x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third"):
        second.sum().backward()


@pytest.mark.usefixtures("unchecked")
def test_bad_inputs_are_refused():
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"not \(3, 2\) and \(3, 3\)"):
        logsumexp(x, torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"for each of the 3 rows of x, not \(2, 1\)"):
        logsumexp(x, x, exclude=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="positive byte budget, not 0"):
        logsumexp(x, x, budget=0)
