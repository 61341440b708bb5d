"""LARS against a loop over parameters in NumPy, lightly's where it is installed, and what it leaves
to plain SGD.
"""

import copy

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from marginlab import optim, settings
from marginlab.optim import LARS, SGD

SHAPES = ((3, 4), (2, 3, 2, 2), (5,), ())
VALUES = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01, "trust": 0.02}


def drawn(seed, shapes=SHAPES, scale=1.0):
    generator = np.random.default_rng(seed)
    return [scale * generator.standard_normal(shape) for shape in shapes]


def parameters(arrays):
    return [torch.nn.Parameter(torch.tensor(a, dtype=torch.float64)) for a in arrays]


def step(optimizer, weights, gradients):
    for w, g in zip(weights, gradients, strict=True):
        w.grad = torch.tensor(g, dtype=torch.float64)
    optimizer.step()


def by_hand(weights, all_gradients, rates, momentum, weight_decay, trust, ratio="you"):
    """You et al. 2017, algorithm 1, with the rate outside of the momentum."""
    weights, buffers = [w.copy() for w in weights], [np.zeros_like(w) for w in weights]
    for gradients, lr in zip(all_gradients, rates, strict=True):
        for i, g in enumerate(gradients):
            if weights[i].ndim > 1:
                w_norm, g_norm = np.sqrt((weights[i] ** 2).sum()), np.sqrt((g**2).sum())
                g = g + weight_decay * weights[i]
                below = g_norm + weight_decay * w_norm
                if ratio == "published":
                    below = g_norm = np.sqrt((g**2).sum())
                g = (trust * w_norm / below if w_norm > 0 and g_norm > 0 else 1.0) * g
            buffers[i] = momentum * buffers[i] + g
            weights[i] = weights[i] - lr * buffers[i]
    return weights


@given(
    st.integers(0, 2**20),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.01, 1.0]),
    st.sampled_from([1e-3, 0.1]),
    st.sampled_from(["you", "published"]),
)
def test_it_is_its_formula_step_by_step_at_any_rates(seed, momentum, weight_decay, trust, ratio):
    start, gradients, rates = (
        drawn(seed),
        [drawn(seed + 1 + t, scale=10.0**t) for t in range(4)],
        [0.1, 0.5, 0.2, 0.01],
    )
    weights = parameters(start)
    optimizer = LARS(1.0, momentum, weight_decay, trust, ratio)(weights)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        step(optimizer, weights, gradient)
    for got, expected in zip(
        weights, by_hand(start, gradients, rates, momentum, weight_decay, trust, ratio), strict=True
    ):
        np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_it_is_lightlys():
    lightly = pytest.importorskip(
        "lightly.utils.lars", reason="lightly, of the extra `bench`, is not installed"
    )
    ours, theirs = parameters(drawn(0)), parameters(drawn(0))
    one = LARS(**VALUES)(ours)
    # lightly adapts what has decay
    groups = [
        {"params": theirs[:2], "weight_decay": 0.01},
        {"params": theirs[2:], "weight_decay": 0.0},
    ]
    other = lightly.LARS(groups, lr=0.3, momentum=0.9, trust_coefficient=0.02)
    for t in range(4):
        for optimizer, weights in ((one, ours), (other, theirs)):
            step(optimizer, weights, drawn(t + 1))
    for a, b in zip(ours, theirs, strict=True):
        # lightly adds 1e-8 to the denominator
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_biases_norms_and_temperatures_take_steps_of_sgd_without_decay():
    shapes = ((5,), ())
    ours, plain = parameters(drawn(0, shapes)), parameters(drawn(0, shapes))
    one, other = LARS(**VALUES)(ours), SGD(0.3, 0.9, 0.0)(plain)
    for t in range(3):
        for optimizer, weights in ((one, ours), (other, plain)):
            step(optimizer, weights, drawn(t + 1, shapes))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


@given(st.floats(1e-4, 1e4))
def test_a_step_does_not_depend_on_the_scale_of_the_gradient(factor):
    moved = []
    for scale in (1.0, factor):
        weights = parameters(drawn(0, ((4, 3),)))
        before = weights[0].detach().clone()
        step(
            LARS(lr=0.5, momentum=0.0, weight_decay=0.0, trust=0.1)(weights),
            weights,
            drawn(1, ((4, 3),), scale),
        )
        moved.append(weights[0].detach() - before)
    torch.testing.assert_close(moved[0], moved[1])
    assert float(moved[0].norm() / before.norm()) == pytest.approx(0.05)


def test_zero_weights_learn_zero_gradients_decay_and_none_does_nothing():
    zero, still, alone = parameters([np.zeros((2, 2)), np.ones((2, 2)), np.ones((2, 2))])
    optimizer = LARS(lr=0.1, momentum=0.0, weight_decay=0.5)([zero, still, alone])
    zero.grad, still.grad = torch.ones_like(zero), torch.zeros_like(still)
    optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.full_like(zero, -0.1))  # by the gradient itself
    torch.testing.assert_close(still.detach(), torch.full_like(still, 0.95))
    assert torch.equal(alone, torch.ones_like(alone))
    assert not optimizer.state


def test_a_saved_state_goes_on_and_a_closure_is_called():
    weights, again = parameters(drawn(0)), parameters(drawn(0))
    one, other = LARS(**VALUES)(weights), LARS(**VALUES)(again)
    step(one, weights, drawn(1))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for a, b in zip(again, weights, strict=True):
        a.data.copy_(b.data)
    for optimizer, own in ((one, weights), (other, again)):
        step(optimizer, own, drawn(2))
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert one.step(lambda: 3.0) == 3.0


@pytest.mark.parametrize(
    "text", ["LARS(lr=0)", "LARS(momentum=1.0)", "LARS(weight_decay=-1)", "LARS(trust=0)"]
)
def test_values_of_lars_that_cannot_be_are_refused(text):
    with pytest.raises(
        settings.SettingsError, match=r"wants a finite lr > 0, momentum in \[0, 1\)"
    ):
        settings.make(text, optim, object)


def test_the_published_ratio_steps_further_by_the_share_of_lengths_that_cancel():
    w, g = torch.tensor([[3.0, 4.0]]), torch.tensor([[-4.0, 3.0]])  # orthogonal, and wd |w| = |g|
    steps = []
    for ratio in ("you", "published"):
        weight = torch.nn.Parameter(w.clone())
        weight.grad = g.clone()
        LARS(1.0, 0.0, 1.0, 0.1, ratio)([weight]).step()
        steps.append(float((weight.detach() - w).norm()))
    assert steps[1] / steps[0] == pytest.approx(2**0.5)
    with pytest.raises(settings.SettingsError, match="ratio"):
        settings.make("LARS(ratio='publish')", optim, object)


def test_the_published_ratio_at_the_usual_decay_steps_further_by_0_0021_at_most():
    w, steps = torch.tensor([[3.0, 4.0]], dtype=torch.float64), []
    for ratio in ("you", "published"):
        weight = torch.nn.Parameter(w.clone())
        weight.grad = -1e-3 * w  # decay and gradient cancel
        LARS(1.0, 0.0, 1e-6, 0.1, ratio)([weight]).step()
        steps.append(float((weight.detach() - w).norm()))
    assert 1.002 < steps[1] / steps[0] < 1.0021


@given(st.floats(1e-6, 10), st.floats(0, 0.99), st.floats(0, 1), st.floats(1e-6, 1))
def test_its_repr_reads_back(lr, momentum, weight_decay, trust):
    made = LARS(lr, momentum, weight_decay, trust)
    assert settings.make(repr(made), optim, object) == made
