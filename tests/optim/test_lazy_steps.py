"""LazySGD and LazyAdamW against torch's optimizers and loops over single rows, in float64."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from marginlab.optim import LazyAdamW, LazySGD

ROWS = 6
KINDS = ("sgd", "adamw")


def pair(kind, options):
    """Return the makers of our optimizer with these options, and of torch's."""
    if kind == "sgd":
        return (lambda p, lr, **more: LazySGD(p, lr, **options, **more)), (
            lambda p, lr: torch.optim.SGD(p, lr, **options)
        )
    return (lambda p, lr, **more: LazyAdamW(p, lr, **options, **more)), (
        lambda p, lr: torch.optim.AdamW(p, lr, **options)
    )


@st.composite
def optimizers(draw, kind, semantics="lazy"):
    decay = st.sampled_from([0.0, 0.01, 0.3])
    if kind == "adamw":
        betas = draw(
            st.sampled_from(
                [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99), *[(0.8, 0.6)] * (semantics != "decayed")]
            )
        )
        return {
            "betas": betas,
            "eps": draw(st.sampled_from([1e-8, 1e-2])),
            "weight_decay": draw(decay),
        }
    momentum = draw(st.sampled_from([0.0, 0.5, 0.9]))
    return {
        "momentum": momentum,
        "weight_decay": draw(decay),
        "nesterov": momentum > 0 and draw(st.booleans()),
    }


def run(make, start, gradients, lrs):
    """Train a parameter by these gradients, dense or sparse, at these rates."""
    w = torch.nn.Parameter(start.clone())
    optimizer = make([w], lrs[0])
    for gradient, lr in zip(gradients, lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        w.grad = gradient.clone()
        optimizer.step()
    return w.detach(), optimizer


def sparse(dense, rows, generator):
    """The gradient (uncoalesced: every row comes in two parts, in any order) and its dense form."""
    rows = torch.tensor(sorted(rows), dtype=torch.long)
    part = torch.rand(len(rows), generator=generator, dtype=torch.float64).reshape(
        -1, *[1] * (dense.ndim - 1)
    )
    index, values = (
        torch.cat([rows, rows]),
        torch.cat([part * dense[rows], (1 - part) * dense[rows]]),
    )
    order = torch.randperm(len(index), generator=generator)
    made = torch.sparse_coo_tensor(
        index[order][None], values[order], dense.shape, check_invariants=True
    )
    whole = torch.zeros_like(dense)
    whole[rows] = dense[rows]
    return made, whole


def problem(data, steps, everywhere=False, shape=(3,)):
    """A start, and for each step a learning rate, the touched rows, and the gradient as sparse and
    as dense.
    """
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    start = torch.randn(ROWS, *shape, dtype=torch.float64, generator=generator)
    lrs = [data.draw(st.sampled_from([0.0, 0.01, 0.1, 0.2])) for _ in range(steps)]
    touched = [
        set(range(ROWS)) if everywhere else data.draw(st.sets(st.integers(0, ROWS - 1)))
        for _ in range(steps)
    ]
    both = [
        sparse(torch.randn(start.shape, dtype=torch.float64, generator=generator), rows, generator)
        for rows in touched
    ]
    return start, lrs, touched, [s for s, _ in both], [d for _, d in both]


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("semantics", ["lazy", "dense", "decayed"])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_with_every_row_touched_all_three_are_torchs(kind, semantics, data):
    options = data.draw(optimizers(kind, semantics))
    ours, torchs = pair(kind, options)
    start, lrs, _, rows, whole = problem(
        data, 5, everywhere=True, shape=data.draw(st.sampled_from([(), (3,), (2, 2)]))
    )
    expected, reference = run(torchs, start, whole, lrs)
    for gradients in (rows, whole):
        got, optimizer = run(lambda p, lr: ours(p, lr, semantics=semantics), start, gradients, lrs)
        close(got, expected)
        own, torchs_own = (next(iter(o.state.values()), {}) for o in (optimizer, reference))
        for name in {"momentum_buffer", "exp_avg", "exp_avg_sq"} & torchs_own.keys():
            close(own[name], torchs_own[name])


@pytest.mark.parametrize("block", [1 << 18, 1, 7])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_dense_is_torchs_with_the_dense_gradient(kind, block, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("marginlab.optim.rows.BLOCK", block)
        ours, torchs = pair(kind, data.draw(optimizers(kind)))
        start, lrs, _, rows, whole = problem(data, 6)
        close(
            run(lambda p, lr: ours(p, lr, semantics="dense"), start, rows, lrs)[0],
            run(torchs, start, whole, lrs)[0],
        )


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_lazy_is_torchs_on_each_row_alone_in_the_steps_that_touch_it(kind, data):
    ours, torchs = pair(kind, data.draw(optimizers(kind)))
    start, lrs, touched, rows, whole = problem(data, 6)
    got, _ = run(lambda p, lr: ours(p, lr, semantics="lazy"), start, rows, lrs)
    for row in range(ROWS):
        own = [step for step in range(6) if row in touched[step]]
        if own:
            close(
                got[row],
                run(
                    torchs,
                    start[row],
                    [whole[step][row] for step in own],
                    [lrs[step] for step in own],
                )[0],
            )
        else:
            assert torch.equal(got[row], start[row])


@pytest.mark.parametrize("semantics", ["lazy", "decayed"])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_step_leaves_untouched_rows_bitwise_as_they_were(kind, semantics, data):
    ours, _ = pair(kind, data.draw(optimizers(kind, "decayed")))
    start, lrs, touched, rows, _ = problem(data, 4)
    dtype = data.draw(st.sampled_from([torch.float64, torch.bfloat16]))
    w = torch.nn.Parameter(start.to(dtype))
    optimizer = ours([w], lrs[0], semantics=semantics)
    before = None
    for gradient, seen in zip(rows, touched, strict=True):
        w.grad = gradient.to(dtype)
        optimizer.step()
        held = [
            w.detach(),
            *(value for name, value in optimizer.state[w].items() if name != "steps"),
        ]
        others = [row for row in range(ROWS) if row not in seen]
        if before is not None:
            assert all(torch.equal(a[others], b[others]) for a, b in zip(held, before, strict=True))
        before = [value.clone() for value in held]


# "decayed": the skipped steps as a loop


def sgd_loop(options, w, v, gradient, lr):
    mu, ahead = options["momentum"], options["nesterov"]
    full = gradient + options["weight_decay"] * w
    v = mu * v + full
    return w - lr * (full + mu * v if ahead else v), v


@given(data=st.data())
def test_decayed_sgd_takes_the_skipped_steps_at_the_rate_of_the_return(data):
    options = data.draw(optimizers("sgd"))
    start, lrs, touched, rows, whole = problem(data, 9)
    got, optimizer = run(
        lambda p, lr: LazySGD(p, lr, semantics="decayed", **options), start, rows, lrs
    )
    for row in range(ROWS):
        w, v, last = start[row], torch.zeros(3, dtype=torch.float64), 0
        for step in (s for s in range(9) if row in touched[s]):
            for _ in range(step - last):
                w, v = sgd_loop(options, w, v, torch.zeros(3, dtype=torch.float64), lrs[step])
            w, v = sgd_loop(options, w, v, whole[step][row], lrs[step])
            last = step + 1
        close(got[row], w)
        if options["momentum"]:
            close(
                optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum_buffer"][row], v
            )


@given(data=st.data())
def test_decayed_adamw_takes_the_skipped_steps_with_eps_in_proportion(data):
    options = data.draw(optimizers("adamw", "decayed"))
    (b1, b2), eps, decay = options["betas"], options["eps"], options["weight_decay"]
    start, lrs, touched, rows, whole = problem(data, 9)
    got, optimizer = run(
        lambda p, lr: LazyAdamW(p, lr, semantics="decayed", **options), start, rows, lrs
    )
    for row in range(ROWS):
        w, m, v = start[row], *torch.zeros(2, 3, dtype=torch.float64)
        last = 0
        for step in (s for s in range(9) if row in touched[s]):
            lr = lrs[step]
            for t in range(last + 1, step + 1):
                m, v = b1 * m, b2 * v
                proportion = (b2 ** (t - last) / (1 - b2**t)) ** 0.5
                w = (1 - lr * decay) * w - lr * (m / (1 - b1**t)) / (
                    (v / (1 - b2**t)) ** 0.5 + eps * proportion
                )
            t, gradient = step + 1, whole[step][row]
            m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
            w = (1 - lr * decay) * w - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)) ** 0.5 + eps)
            last = t
        close(got[row], w)
        close(optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg_sq"][row], v)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_at_a_constant_rate_decayed_and_caught_up_is_dense(kind, data):
    options = data.draw(optimizers(kind, "decayed"))
    if kind == "adamw":
        # where the closed form is exact; every row starts with a gradient, for 0 / 0 is no number
        # in torch's either
        options["eps"] = 0.0
    ours, torchs = pair(kind, options)
    start, _, _, rows, whole = problem(data, 12)
    first = torch.randn(
        start.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    lrs = [data.draw(st.sampled_from([0.01, 0.2]))] * 13
    expected, _ = run(torchs, start, [first, *whole], lrs)
    got, optimizer = run(lambda p, lr: ours(p, lr, semantics="decayed"), start, [first, *rows], lrs)
    w = optimizer.param_groups[0]["params"][0]
    some = torch.tensor([4, 1])
    optimizer.catch_up(w, some)
    close(got[some], expected[some], 1e-11)
    optimizer.catch_up(w)
    close(got, expected, 1e-11)
    again = got.clone()
    optimizer.catch_up(w)
    assert torch.equal(got, again)  # nothing is left to make up for


def test_catching_up_before_each_forward_pass_trains_as_dense_does():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    ends = []
    for semantics in ("dense", "decayed"):
        w = torch.nn.Parameter(torch.zeros(8, 3, dtype=torch.float64))
        optimizer = LazySGD([w], 0.05, weight_decay=0.01, semantics=semantics)
        draws = torch.Generator().manual_seed(1)
        for _ in range(60):
            rows = torch.randperm(8, generator=draws)[:3]
            optimizer.catch_up(w, rows)
            slope = w.detach()[rows] - target[rows]
            w.grad = torch.sparse_coo_tensor(rows[None], slope, w.shape, check_invariants=True)
            optimizer.step()
        optimizer.catch_up(w)
        ends.append(w.detach())
    close(*ends, 1e-10)


def test_a_long_absence_is_no_loop_and_loses_no_digits():
    w = torch.nn.Parameter(torch.ones(2, 1, dtype=torch.float64))
    optimizer = LazySGD([w], 0.1, momentum=0.9, weight_decay=1e-4, semantics="decayed")
    reference = torch.nn.Parameter(w.detach().clone())
    plain = torch.optim.SGD([reference], 0.1, momentum=0.9, weight_decay=1e-4)
    for step in range(3001):
        index = torch.tensor([[1]]) if step in (0, 3000) else torch.tensor([[0]])
        w.grad = torch.sparse_coo_tensor(
            index, torch.ones(1, 1, dtype=torch.float64), (2, 1), check_invariants=True
        )
        reference.grad = w.grad.to_dense()
        optimizer.step()
        plain.step()
    close(w.detach()[1], reference.detach()[1], 1e-11)


def test_the_first_update_of_a_row_met_late_is_one_learning_rate_when_lazy():
    moved = {}
    for semantics in ("lazy", "dense", "decayed"):
        w = torch.nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
        optimizer = LazyAdamW([w], 0.01, weight_decay=0.0, semantics=semantics)
        for step in range(301):
            row = torch.tensor([[1 if step == 300 else 0]])
            w.grad = torch.sparse_coo_tensor(
                row, torch.full((1, 1), 5.0, dtype=torch.float64), (2, 1), check_invariants=True
            )
            optimizer.step()
        moved[semantics] = -float(w.detach()[1]) / 0.01
    assert moved["lazy"] == pytest.approx(1.0, abs=1e-6)
    mean, square = 0.1 / (1 - 0.9**301), 0.001 / (1 - 0.999**301)
    assert moved["dense"] == pytest.approx(mean / square**0.5, rel=1e-6)  # in the end 3.16
    assert moved["decayed"] == pytest.approx(moved["dense"], rel=1e-9)


def test_a_row_that_was_never_met_decays_alone_when_eps_is_zero():
    w = torch.nn.Parameter(torch.ones(2, 1, dtype=torch.float64))
    optimizer = LazyAdamW([w], 0.1, eps=0.0, weight_decay=0.5, semantics="decayed")
    for _ in range(3):
        w.grad = torch.sparse_coo_tensor(
            torch.tensor([[0]]),
            torch.ones(1, 1, dtype=torch.float64),
            (2, 1),
            check_invariants=True,
        )
        optimizer.step()
    optimizer.catch_up(w)
    assert float(w.detach()[1]) == pytest.approx(0.95**3, rel=1e-12)
