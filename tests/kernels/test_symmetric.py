import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from test_logsumexp import Largest, naive, same_where_finite
from torch.autograd import gradcheck

from marginlab.kernels import symmetric_logsumexp


@st.composite
def problems(draw):
    """Rows, and columns left out in both directions: each row's own, and a drawn pairing's."""
    rows, features = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn(rows, features, dtype=torch.float64, generator=generator)
    order, own = torch.randperm(rows, generator=generator), torch.arange(rows)
    partner = own.clone()
    half = rows // 2
    partner[order[:half]], partner[order[half : 2 * half]] = order[half : 2 * half], order[:half]
    return x, draw(
        st.sampled_from(
            [
                None,
                own[:, None],
                torch.stack((own, partner), 1),
                torch.stack((partner, own - rows), 1),
            ]
        )
    )


@given(problems(), st.floats(0.01, 40), st.integers(1, 900))
def test_it_is_the_softmax_sum_in_value_and_gradient_at_any_budget(problem, scale, budget):
    x, exclude = problem
    ours, theirs = (
        [t.clone().requires_grad_() for t in (x, torch.tensor(scale, dtype=torch.float64))]
        for _ in range(2)
    )
    out = symmetric_logsumexp(ours[0], scale=ours[1], exclude=exclude, budget=budget)
    expected = naive(theirs[0], theirs[0], theirs[1], exclude)
    same_where_finite(out, expected, ours, theirs)


@settings(max_examples=5)
@given(st.integers(0, 2**20), st.integers(8, 200))
def test_gradcheck(seed, budget):
    x = torch.randn(
        5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), requires_grad=True
    )
    scale, own = (
        torch.tensor(-1.3, dtype=torch.float64, requires_grad=True),
        torch.arange(5)[:, None],
    )
    assert gradcheck(
        lambda a, s: symmetric_logsumexp(a, scale=s, exclude=own, budget=budget), (x, scale)
    )


@pytest.mark.parametrize("temperature", [0.5, 0.0251, 0.0249, 0.001])
def test_opposite_rows_in_float32_neither_underflow_nor_lose_their_gradient(temperature):
    """One product of 1, which is left out, and the others at -1: the far end of what one origin for
    all rows has to span.
    """
    x = torch.tensor([[1.0, 0.0], [-1.0, 1e-3], [-1.0, -1e-3]], requires_grad=True)
    own = torch.tensor([[0, 0], [1, 2], [2, 1]])
    out = symmetric_logsumexp(x, scale=1 / temperature, exclude=own)
    exact = x.detach().double().requires_grad_()
    expected = naive(exact, exact, 1 / temperature, own)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-4)
    (got,), (slope,) = torch.autograd.grad(out.sum(), x), torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(got.double(), slope, rtol=1e-4, atol=1e-4)


def test_a_row_that_excludes_everything_is_minus_infinity_without_gradient():
    x = torch.randn(2, 3, requires_grad=True)
    out = symmetric_logsumexp(x, exclude=torch.tensor([[0, 1], [1, 0]]))
    assert bool((out == -math.inf).all())
    assert bool((torch.autograd.grad(out, x, torch.tensor([math.inf, 1.0]))[0] == 0).all())
    assert symmetric_logsumexp(x[:0]).shape == (0,)


def test_what_is_not_a_number_shows():
    assert bool(symmetric_logsumexp(torch.tensor([[math.nan], [1.0]])).isnan().any())


def test_bf16_rows_are_summed_in_float32_and_their_gradient_is_bf16():
    x = torch.nn.functional.normalize(torch.randn(300, 16)).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = symmetric_logsumexp(x, scale=10.0)
        out.sum().backward()
    exact = x.detach().double().requires_grad_()
    expected = naive(exact, exact, 10.0)
    assert (out.dtype, x.grad.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(
        x.grad.double(), torch.autograd.grad(expected.sum(), exact)[0], rtol=2**-7, atol=1e-4
    )


def test_neither_pass_holds_more_than_the_budget():
    x = torch.randn(600, 4, requires_grad=True)
    with Largest() as meter:
        symmetric_logsumexp(
            x, exclude=torch.arange(600)[:, None], scale=0.1, budget=16_384
        ).sum().backward()
    assert 0 < meter.bytes <= 16_384


@pytest.mark.usefixtures("unchecked")
def test_bad_inputs_are_refused():
    x = torch.ones(3, 2, requires_grad=True)
    with pytest.raises(ValueError, match=r"for each of the 3 rows of x, not \(2, 1\)"):
        symmetric_logsumexp(x, exclude=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="positive byte budget, not 0"):
        symmetric_logsumexp(x, budget=0)
    (first,) = torch.autograd.grad(symmetric_logsumexp(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third"):
        second.sum().backward()
