import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from test_logsumexp import Largest, same_where_finite
from torch.autograd import gradcheck

from marginlab.kernels import log_cauchy_sum


def naive(x, y, exclude=None):
    shares = 1 / (1 + (x[:, None] - y).square().sum(2))
    if exclude is not None:
        columns = torch.arange(len(y))
        shares = torch.where((exclude[:, :, None] == columns).any(1), 0.0, shares)
    return shares.sum(1).log()


@st.composite
def problems(draw):
    rows, columns, features, left_out = (
        draw(st.integers(0, 7)),
        draw(st.integers(1, 9)),
        draw(st.sampled_from([1, 2, 8, 9, 12])),
        draw(st.integers(0, 3)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x, y = (
        torch.randn(n, features, dtype=torch.float64, generator=generator) for n in (rows, columns)
    )
    return x, y, torch.randint(-2, columns + 2, (rows, left_out), generator=generator)


@given(problems(), st.floats(0.01, 30), st.integers(1, 900))
def test_it_is_the_sum_in_value_and_gradient_at_any_budget(problem, length, budget):
    x, y, exclude = problem
    ours, theirs = ([(length * t).requires_grad_() for t in (x, y)] for _ in range(2))
    out = log_cauchy_sum(*ours, exclude=exclude, budget=budget)
    expected = naive(*theirs, exclude)
    same_where_finite(out, expected, ours, theirs, value=1e-11, slope=1e-9)


@settings(max_examples=5)
@given(st.integers(0, 2**20), st.integers(8, 200), st.sampled_from([3, 10]))
def test_gradcheck(seed, budget, features):
    generator = torch.Generator().manual_seed(seed)
    x, y = (
        torch.randn(n, features, dtype=torch.float64, generator=generator, requires_grad=True)
        for n in (4, 5)
    )
    exclude = torch.tensor([[0, 1], [1, 3], [4, -1], [2, 2]])
    assert gradcheck(lambda a, b: log_cauchy_sum(a, b, exclude=exclude, budget=budget), (x, y))


@pytest.mark.parametrize("features", [2, 64])
def test_far_from_the_origin_float32_keeps_its_digits(features):
    x = torch.randn(50, features, generator=torch.Generator().manual_seed(0)) + 1000
    own = torch.arange(50)[:, None]
    got, exact = (t.requires_grad_() for t in (x.clone(), x.double()))
    out, expected = log_cauchy_sum(got, got, exclude=own), naive(exact, exact, own)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), got)[0].double(),
        torch.autograd.grad(expected.sum(), exact)[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_row_that_excludes_everything_is_minus_infinity_without_gradient():
    x = torch.randn(2, 3, requires_grad=True)
    out = log_cauchy_sum(x, x, exclude=torch.tensor([[0, 1], [1, 0]]))
    assert bool((out == -math.inf).all())
    assert bool((torch.autograd.grad(out, x, torch.tensor([math.inf, 1.0]))[0] == 0).all())
    assert bool((log_cauchy_sum(x, x[:0]) == -math.inf).all())


def test_neither_pass_holds_more_than_the_budget():
    for features in (2, 10):
        x = torch.randn(500, features, requires_grad=True)
        with Largest() as meter:
            log_cauchy_sum(x, x, exclude=torch.arange(500)[:, None], budget=40_000).sum().backward()
        assert 0 < meter.bytes <= 40_000  # a column of sorted rows takes as much


@pytest.mark.usefixtures("unchecked")
def test_bad_inputs_are_refused():
    x = torch.ones(3, 2, requires_grad=True)
    with pytest.raises(
        ValueError, match=r"of one width and dtype, not \(3, 2\) torch.float32 and \(3, 3\)"
    ):
        log_cauchy_sum(x, torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"for each of the 3 rows of x, not \(2, 1\)"):
        log_cauchy_sum(x, x, exclude=torch.zeros(2, 1, dtype=torch.int64))
    (first,) = torch.autograd.grad(log_cauchy_sum(x, x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third"):
        second.sum().backward()
