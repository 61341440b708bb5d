"""Stochastic rounding: what it keeps, that its mean is the number, how its draws depend on each
other, and that small steps survive in bfloat16.
"""

import functools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from marginlab.optim import LazyAdamW, LazySGD
from marginlab.optim.rounding import stochastic_round, tables
from marginlab.rng import Key


def rounded(x, seed=0, which=0):
    return stochastic_round(x, tables(Key(seed), torch.arange(len(x)), x.shape[1]).bits(which))


@given(st.floats(width=32, allow_nan=False), st.integers(0, 2**16 - 1))
def test_it_goes_to_a_neighbour_up_for_the_part_of_the_draws_that_the_number_lies_above(x, bits):
    number = torch.tensor([[x]])
    got = (
        stochastic_round(number, torch.tensor([[bits]], dtype=torch.int32)).view(torch.int16).item()
        & 0xFFFF
    )
    word = number.view(torch.int32).item() & 0xFFFFFFFF
    assert got == (word >> 16) + ((word & 0xFFFF) + bits >= 1 << 16)


def test_what_bfloat16_holds_is_kept_exactly_and_so_are_infinities_and_nan():
    every = (
        torch.arange(-(2**15), 2**15, dtype=torch.int32)
        .to(torch.int16)
        .view(torch.bfloat16)[:, None]
    )
    for which in (0, 1):
        got = rounded(every.float().expand(-1, 4), which=which)
        torch.testing.assert_close(got, every.expand(-1, 4), rtol=0, atol=0, equal_nan=True)
        assert bool((got.isnan() == every.isnan()).all())
    # NaN whose payload lies in the dropped half, or carries over
    words = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32)
    assert bool(rounded(words.view(torch.float32)[:, None].expand(-1, 64)).isnan().all())


@pytest.mark.parametrize("x", [1.001, -1.001, 3.14159e-5, 255.9, 1.0000001, 1e-40, -7e30])
@pytest.mark.parametrize("which", [0, 1])
def test_the_mean_of_many_roundings_is_the_number(x, which):
    number = torch.full((1000, 400), x)
    got = rounded(number, seed=3, which=which).double()
    exact = number[0, 0].double()
    error = got.std() / math.sqrt(got.numel())
    assert abs(got.mean() - exact) <= 5 * error
    assert 0 < error < abs(exact)


def test_it_is_unbiased_exactly_over_all_sixteen_bits():
    number = torch.tensor([1.0 + 12345 * 2.0**-23, -3.0e-7])
    bits = torch.arange(2**16, dtype=torch.int32)[:, None].expand(-1, 2)
    mean = stochastic_round(number.expand(2**16, 2), bits).double().mean(0)
    torch.testing.assert_close(mean, number.double(), rtol=1e-15, atol=0)


def test_draws_of_elements_rows_columns_and_matrices_are_uncorrelated():
    table = tables(Key(1), torch.arange(300), 200)
    u = torch.stack([table.bits(which) for which in (0, 1)]).double() / 2**16 - 0.5
    assert -0.5 <= float(u.min()) < -0.499
    assert 0.499 < float(u.max()) < 0.5
    # five standard errors of a mean product of independent draws
    limit = 5 / 12 / math.sqrt(300 * 200)
    for a, b in [
        (u[0], u[1]),
        (u[:, 1:], u[:, :-1]),
        (u[:, :, 1:], u[:, :, :-1]),
        (u[:, 7:, 5:], u[:, :-7, :-5]),
    ]:
        assert abs((a * b).mean()) < limit
    assert abs(u[0].mean()) < 5 / math.sqrt(12 * 300 * 200)
    for axis, n in ((0, 300), (1, 200)):  # sums along it vary as those of independent draws
        assert float(u[0].sum(axis).square().mean()) == pytest.approx(
            n / 12, rel=5 * math.sqrt(2 / (500 - n))
        )


@pytest.mark.parametrize("above", [0.5, 0.1])
def test_the_errors_of_a_matrix_have_no_direction_in_common(above):
    number = torch.full((400, 100), 1 + above * 2.0**-7)
    errors = (rounded(number, seed=2).float() - number) * 2**7
    independent = (
        torch.rand(400, 100, generator=torch.Generator().manual_seed(0)) < above
    ).float() - above
    norms = [float(torch.linalg.matrix_norm(e, 2)) for e in (errors, independent)]
    assert norms[0] < 1.2 * norms[1]


def test_a_row_draws_the_same_alone_and_others_differ():
    words = tables(Key(0).at(3), torch.arange(50), 8).bits(0)
    assert torch.equal(tables(Key(0).at(3), torch.tensor([7, 31]), 8).bits(0), words[[7, 31]])
    for other in (Key(1).at(3), Key(0).at(4), Key(0).named("b").at(3)):
        assert (tables(other, torch.arange(50), 8).bits(0) == words).float().mean() < 0.05


# Training in bfloat16


@functools.cache
def rounded_to_nearest():
    """The error where each step is rounded to the nearest bfloat16 number."""
    return fitted(lambda w: LazySGD([w], 0.004, momentum=0.0), torch.bfloat16, nearest=True)


def fitted(make, dtype, nearest=False):
    """Least squares of 12 rows with steps far below a bfloat16 spacing, from 1; the error of the
    rows at the end.
    """
    generator = torch.Generator().manual_seed(0)
    target = 1 + 0.2 * torch.rand(12, 64, generator=generator)
    w = torch.nn.Parameter(torch.ones(12, 64, dtype=dtype))
    optimizer = make(w)
    for step in range(1500):
        rows = (torch.arange(6) * 2 + step % 2)[None]
        slope = (w.detach().float() - target)[rows[0]]
        held = w.detach().float()
        w.grad = torch.sparse_coo_tensor(rows, slope.to(dtype), w.shape, check_invariants=True)
        if nearest:
            with torch.no_grad():
                held[rows[0]] -= 0.004 * w.grad.to_dense().float()[rows[0]]
                w.copy_(held)
        else:
            optimizer.step()
    return w.detach().float() - target


@pytest.mark.parametrize(
    "make",
    [
        lambda w: LazySGD([w], 0.004, momentum=0.0),
        lambda w: LazySGD([w], 0.0004, momentum=0.9, momentum_dtype=torch.bfloat16),
        lambda w: LazyAdamW([w], 0.0005, weight_decay=0.0),
    ],
)
def test_bfloat16_follows_float32_where_rounding_to_nearest_stalls(make):
    stalled = rounded_to_nearest().abs().mean()
    exact, got = fitted(make, torch.float32), fitted(make, torch.bfloat16)
    assert float(stalled) > 0.09  # nothing moved: the start is 0.1 away
    assert float((got - exact).mean().abs()) < 1e-3
    assert float(got.square().mean().sqrt()) < 0.012  # noise of a spacing, 2**-7, and no more


def test_two_parameters_draw_different_numbers_and_seeds_and_steps_do():
    def ends(seed, steps=1):
        both = [torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = LazySGD([{"params": both[:1]}, {"params": both[1:]}], 1e-3, seed=seed)
        seen = []
        for _ in range(steps):
            for w in both:
                w.data.fill_(1.0)
                w.grad = torch.ones_like(w)
            optimizer.step()
            seen += [w.detach().clone() for w in both]
        return seen

    a, b, later, _ = ends(0, steps=2)
    assert torch.equal(a, ends(0)[0])
    for other in (b, ends(1)[0], later):
        assert not torch.equal(a, other)


def test_weight_and_momentum_draw_different_numbers():
    w = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    w.grad = torch.full_like(w, 1.0)
    optimizer = LazySGD([w], lr=1.0, momentum=0.5)
    optimizer.state[w] = {"steps": torch.tensor(0), "momentum_buffer": torch.full_like(w, 2.0**-7)}
    optimizer.step()  # v = 1 + 2**-8 and w = -v: both half way between neighbours
    up = optimizer.state[w]["momentum_buffer"] > 1, w.detach() < -1
    assert all(0.45 < float(u.float().mean()) < 0.55 for u in up)
    assert 0.45 < float((up[0] == up[1]).float().mean()) < 0.55


@pytest.mark.parametrize("semantics", ["lazy", "dense", "decayed"])
def test_shards_that_know_their_first_row_round_as_the_whole(semantics):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(10, 8, generator=generator).bfloat16()
    whole, left, right = (
        torch.nn.Parameter(part.clone()) for part in (start, start[:4], start[4:])
    )
    runs = [
        LazySGD([whole], 0.01, semantics=semantics),
        *(
            LazySGD([{"params": [p], "first_row": n}], 0.01, semantics=semantics)
            for p, n in ((left, 0), (right, 4))
        ),
    ]
    for _ in range(4):
        mask = torch.rand(10, 1, generator=generator) < 0.6
        gradient = torch.randn(10, 8, generator=generator).bfloat16() * mask
        for p, part in ((whole, gradient), (left, gradient[:4]), (right, gradient[4:])):
            p.grad = part.to_sparse(1)
        for optimizer in runs:
            optimizer.step()
    assert torch.equal(whole, torch.cat([left, right]))
