import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from test_logsumexp import Largest, same_where_finite
from torch.autograd import gradcheck

from marginlab.kernels import split_logsumexp


def naive(x, y, first, stop, own, scale):
    index, products = torch.arange(len(y)), scale * x @ y.T
    products = products.masked_fill(index == own[:, None], -math.inf)
    inside = (index >= first[:, None]) & (index < stop[:, None])
    return torch.stack(
        (
            products.masked_fill(~inside, -math.inf).logsumexp(1),
            products.masked_fill(inside, -math.inf).logsumexp(1),
        ),
        1,
    )


@st.composite
def problems(draw):
    rows, columns, features = (
        draw(st.integers(0, 7)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 4)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x, y = (
        torch.randn(n, features, dtype=torch.float64, generator=generator) for n in (rows, columns)
    )
    bounds = torch.randint(0, columns + 1, (rows, 2), generator=generator).sort(1).values
    own = torch.randint(-2, columns + 2, (rows,), generator=generator)
    return x, y, bounds[:, 0], bounds[:, 1], own


@given(problems(), st.floats(0.01, 200), st.integers(1, 900))
def test_it_is_the_two_softmax_sums_in_value_and_gradient_at_any_budget(problem, scale, budget):
    x, y, first, stop, own = problem
    ours, theirs = (
        [t.clone().requires_grad_() for t in (x, y, torch.tensor(scale, dtype=torch.float64))]
        for _ in range(2)
    )
    out = split_logsumexp(*ours[:2], first, stop, own, scale=ours[2], budget=budget)
    expected = naive(*theirs[:2], first, stop, own, theirs[2])
    same_where_finite(out, expected, ours, theirs)


@settings(max_examples=max(2, settings().max_examples // 1000))
@given(st.integers(0, 2**20), st.integers(8, 400))
def test_gradcheck(seed, budget):
    generator = torch.Generator().manual_seed(seed)
    x, y = (
        torch.randn(n, 3, dtype=torch.float64, generator=generator, requires_grad=True)
        for n in (4, 6)
    )
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([[0, 3, 1], [0, 3, -1], [2, 5, 4], [5, 6, 0]]).unbind(1)
    assert gradcheck(
        lambda a, b, s: split_logsumexp(a, b, *places, scale=s, budget=budget), (x, y, scale)
    )


def test_a_part_without_columns_is_minus_infinity_without_gradient():
    x = torch.randn(2, 3, requires_grad=True)
    everything = torch.zeros(2, dtype=torch.int64), torch.full((2,), 2), torch.full((2,), -1)
    out = split_logsumexp(x, x, *everything)
    assert bool((out[:, 1] == -math.inf).all())
    assert bool((torch.autograd.grad(out[:, 1], x, torch.tensor([math.inf, 1.0]))[0] == 0).all())


def test_neither_pass_holds_more_than_the_budget():
    x = torch.randn(600, 4, requires_grad=True)
    own = torch.arange(600)
    with Largest() as meter:
        split_logsumexp(
            x, x, own // 60 * 60, own // 60 * 60 + 60, own, budget=24_000
        ).sum().backward()
    assert 0 < meter.bytes <= 24_000


@pytest.mark.usefixtures("unchecked")
def test_bad_inputs_are_refused():
    x, own = torch.ones(3, 2, requires_grad=True), torch.arange(3)
    with pytest.raises(
        ValueError, match=r"of one width and dtype, not \(3, 2\) torch.float32 and \(3, 3\)"
    ):
        split_logsumexp(x, torch.ones(3, 3), own, own, own)
    with pytest.raises(ValueError, match="of one width and dtype"):
        split_logsumexp(x, x.double(), own, own, own)
    with pytest.raises(
        ValueError,
        match="one interval and one column that it leaves out, not 3, 2 and 3",
    ):
        split_logsumexp(x, x, own, own[:2], own)
    value = split_logsumexp(x, x, own, own + 1, own - 5).sum()
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third"):
        second.sum().backward()
