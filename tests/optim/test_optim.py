import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from marginlab import optim, settings
from marginlab.optim import SGD, AdamW, Constant, Schedule, WarmupCosine, WarmupPolynomial


@given(st.floats(0, 0.9), st.integers(1, 500), st.sampled_from([WarmupCosine, WarmupPolynomial]))
def test_a_schedule_rises_then_falls_to_zero(warmup, steps, kind):
    schedule = kind(warmup)
    assert isinstance(schedule, Schedule)
    factors = [schedule(step, steps) for step in range(steps + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[-1] == pytest.approx(0, abs=1e-9)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert abs(top + 1 - warmup * steps) <= 1.0 + 1e-9


def test_a_schedule_agrees_with_torch_where_both_are_defined():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    torch_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    for step in range(40):
        assert WarmupCosine(0.0)(step, 40) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torch_schedule.step()


@given(st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.integers(1, 60))
def test_the_polynomial_agrees_with_torchs(power, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    torch_schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power)
    for step in range(steps + 1):
        assert WarmupPolynomial(0.0, power)(step, steps) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-12
        )
        optimizer.step()
        torch_schedule.step()


def test_the_polynomial_falls_over_what_the_warm_up_leaves_and_ends_there():
    schedule = WarmupPolynomial(warmup=0.2, power=2.0)
    assert [schedule(step, 10) for step in range(11)] == pytest.approx(
        [0.5, 1, *(((10 - t) / 8) ** 2 for t in range(2, 11))]
    )
    for step in (-1, 11):
        with pytest.raises(ValueError, match=f"Step {step} lies outside the 10 steps"):
            schedule(step, 10)


def test_constant_is_constant():
    assert {Constant()(step, 7) for step in range(7)} == {1.0}


def test_sgd_makes_torchs_with_its_values():
    made = SGD(lr=0.2, momentum=0.5, weight_decay=0.1, nesterov=True)(
        [torch.nn.Parameter(torch.zeros(1))]
    )
    group = made.param_groups[0]
    assert isinstance(made, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (
        0.2,
        0.5,
        0.1,
        True,
    )


REFUSED = (
    "AdamW(lr=0); AdamW(betas=(0.9, 1.0)); AdamW(betas=(0.9,)); AdamW(betas=0.9); AdamW(lr=1e999); "
    "AdamW(eps=0.0); SGD(lr=0); SGD(lr=1e999); SGD(momentum=1.0); SGD(weight_decay=-1); "
    "WarmupCosine(1.0); WarmupCosine(-0.1); WarmupPolynomial(1.0); WarmupPolynomial(0, 0)"
)


@pytest.mark.parametrize("text", REFUSED.split("; "))
def test_values_that_cannot_be_are_refused(text, unchecked):
    with pytest.raises(settings.SettingsError, match=r"cannot be made: .* wants | is "):
        settings.make(text, optim, object)


@given(st.floats(1e-6, 10), st.floats(0, 0.99), st.floats(0, 1), st.booleans())
def test_reprs_read_back(lr, momentum, weight_decay, nesterov):
    for made in (
        SGD(lr, momentum, weight_decay, nesterov),
        AdamW(lr, (momentum, 0.99), weight_decay=weight_decay),
        WarmupPolynomial(momentum, lr),
    ):
        assert settings.make(repr(made), optim, object) == made
