import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from test_logsumexp import Largest
from torch.autograd import gradcheck

from marginlab.kernels import off_diagonal_squares


def naive(x, y, means, scales, rows):
    c = (x.T @ y / rows - torch.outer(*means)) * torch.outer(*scales)
    return (c - torch.diag(c.diagonal())).square().sum()


def drawn(rows, features, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in [(rows, features)] * 2 + [(features,)] * 4
    ]


@given(st.integers(0, 5), st.integers(1, 9), st.integers(0, 2**20), st.integers(1, 900))
def test_it_is_the_sum_in_value_and_gradient_at_any_budget(rows, features, seed, budget):
    ours, theirs = (
        [t.clone().requires_grad_() for t in drawn(rows, features, seed)] for _ in range(2)
    )
    out = off_diagonal_squares(
        ours[0], ours[1], tuple(ours[2:4]), tuple(ours[4:]), rows=7, budget=budget
    )
    expected = naive(theirs[0], theirs[1], theirs[2:4], theirs[4:], 7)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(1.7 * out, ours),
        torch.autograd.grad(1.7 * expected, theirs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@given(st.integers(0, 5), st.integers(1, 9), st.integers(0, 2**20), st.integers(1, 900))
def test_half_of_a_symmetric_one_is_the_whole(rows, features, seed, budget):
    x, _, mean, _, scale, _ = drawn(rows, features, seed)
    got = []
    for half in (True, False):
        inputs = [t.clone().requires_grad_() for t in (x, mean, scale)]
        out = off_diagonal_squares(
            inputs[0],
            inputs[0],
            (inputs[1],) * 2,
            (inputs[2], inputs[2]),
            rows=6,
            half=half,
            budget=budget,
        )
        got.append((out, *torch.autograd.grad(out, inputs)))
    for a, b in zip(*got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@settings(max_examples=5)
@given(st.integers(0, 2**20), st.integers(8, 300))
def test_gradcheck(seed, budget):
    inputs = [t.requires_grad_() for t in drawn(4, 5, seed)]
    assert gradcheck(
        lambda x, y, m, n, u, v: off_diagonal_squares(x, y, (m, n), (u, v), rows=4, budget=budget),
        inputs,
    )


def test_neither_pass_holds_more_than_the_budget():
    for half in (False, True):
        x = torch.randn(4, 600, requires_grad=True)
        zero, one = torch.zeros(600), torch.ones(600)
        with Largest() as meter:
            off_diagonal_squares(
                x, x, (zero, zero), (one, one), rows=4, half=half, budget=16_384
            ).backward()
        assert 0 < meter.bytes <= 16_384


@pytest.mark.usefixtures("unchecked")
def test_bad_inputs_are_refused():
    x, zero, one = torch.ones(3, 2, requires_grad=True), torch.zeros(2), torch.ones(2)
    with pytest.raises(
        ValueError, match=r"of one shape, with D means and scales each, not \(3, 2\) and \(3, 3\)"
    ):
        off_diagonal_squares(x, torch.ones(3, 3), (zero, zero), (one, one), rows=3)
    with pytest.raises(ValueError, match="with D means and scales each"):
        off_diagonal_squares(x, x, (zero, one[:1]), (one, one), rows=3)
    value = off_diagonal_squares(x, x, (zero, zero), (one, one), rows=3)
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        slope.sum().backward()
