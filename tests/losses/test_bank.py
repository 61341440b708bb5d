"""The bank of embeddings, and InfoNCE and SupCon against it."""

import functools

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from loss_laws import NUMBERS_OF_RANKS, draw_views, few, on_a_rank, several, value_and_gradients
from torch.utils.checkpoint import checkpoint

import marginlab.losses
from marginlab.losses import EmbeddingBank, InfoNCE, SupCon
from marginlab.losses.functional import info_nce, sup_con
from marginlab.settings import make


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def against_extra(z1, z2, extra, **arguments):
    return info_nce(z1, z2, extra_negatives=extra, negatives="extra_only", **arguments)


def naive(z1, z2, extra, temperature, symmetric, decoupled, tau_plus, reduction):
    x1, x2, y = (F.normalize(z) for z in (z1, z2, extra))
    x, other = (torch.cat((x1, x2)), torch.cat((x2, x1))) if symmetric else (x1, x2)
    positive = ((x * other).sum(1) / temperature).exp()
    negative = (x @ y.T / temperature).exp().sum(1)
    if tau_plus:
        floor = len(y) * (-torch.ones_like(negative) / temperature).exp()
        corrected = (negative - len(y) * tau_plus * positive) / (1 - tau_plus)
        negative = torch.maximum(corrected, floor)
    losses = -(positive / (negative + (0 if decoupled else positive))).log()
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.05, 3),
        "symmetric": st.booleans(),
        "decoupled": st.booleans(),
        "tau_plus": st.sampled_from([0.0, 0.0, 0.1, 0.7]),
        "reduction": st.sampled_from(["mean", "sum", "none"]),
    }
)


@several
@given(data=st.data())
def test_extra_only_is_its_formula_in_value_and_gradient(data):
    arguments = data.draw(SETTINGS)
    z1, z2, generator = draw_views(data, data.draw(st.integers(1, 6)), features=3)
    rows = data.draw(st.integers(1, 5))
    extra = torch.randn(rows, 3, dtype=torch.float64, generator=generator)
    budget = data.draw(st.sampled_from([64, 2**20]))
    got = value_and_gradients(
        functools.partial(against_extra, budget=budget, **arguments), z1, z2, extra
    )
    expected = value_and_gradients(functools.partial(naive, **arguments), z1, z2, extra)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    module = InfoNCE(negatives="extra_only", budget=budget, **arguments)
    assert torch.equal(module(z1, z2, extra), got[0])
    again = make(repr(module), marginlab.losses, torch.nn.Module)
    assert torch.equal(again(z1, z2, extra), got[0])


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("n", NUMBERS_OF_RANKS)
@few
@given(data=st.data())
def test_extra_only_on_n_ranks_is_that_on_one(pool, n, data):
    arguments = data.draw(SETTINGS.filter(lambda a: a["reduction"] != "none"))
    rows, more = ([data.draw(st.integers(0, 3)) for _ in range(n)] for _ in range(2))
    rows[0] += 1
    more[-1] += 1
    z1, z2, generator = draw_views(data, sum(rows), features=3)
    extra = torch.randn(sum(more), 3, dtype=torch.float64, generator=generator)
    function = functools.partial(against_extra, **arguments)
    value, slopes = value_and_gradients(function, z1, z2, extra)
    parts = list(zip(z1.split(rows), z2.split(rows), extra.split(more), strict=True))
    for grads, factor in (("sum", 1), ("mean", n)):
        answers = pool.run(n, on_a_rank, function, parts, grads)
        for i, slope in enumerate(slopes):
            joined = torch.cat([a[1][i] for a in answers])
            torch.testing.assert_close(joined, factor * slope, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(answers[-1][0], value, rtol=1e-10, atol=1e-10)


def test_extra_only_without_extra_negatives_is_refused_and_with_none_yet_is_zero():
    z = torch.randn(3, 2, requires_grad=True)
    with pytest.raises(ValueError, match=r"extra negatives are the only ones.*bank.rows\(\)"):
        info_nce(z, z, negatives="extra_only")
    loss = InfoNCE(negatives="extra_only")
    value = loss(z, z, EmbeddingBank(4, 2).rows())
    value.backward()
    assert float(value.detach()) == 0.0
    assert bool((z.grad == 0).all())
    with pytest.raises(ValueError, match="has no negatives"):
        InfoNCE(negatives="extra_only", empty="raise")(z, z, z[:0])


def refused_on_a_rank(group, rank, z, extra):
    try:
        against_extra(z, z, extra[rank], group=group)
    except ValueError as error:
        return str(error)


@pytest.mark.xdist_group("ranks")
def test_extra_only_that_one_rank_gives_none_for_all_refuse(pool):
    z = torch.ones(2, 3)
    first, second = pool.run(2, refused_on_a_rank, z, [z, None])
    assert "are the only ones" in second
    assert first == f"Rank 1 of 2 refused its batch: {second}"


def test_the_bank_keeps_the_newest_rows_in_a_ring():
    bank, z = EmbeddingBank(5, 2, labels=True), drawn(11, 2).float()
    labels = torch.arange(11)
    assert len(bank.rows()) == 0
    start = 0
    for count, kept in (
        (2, [0, 1]),
        (0, [0, 1]),
        (2, range(4)),
        (3, range(2, 7)),
        (4, range(6, 11)),
    ):
        bank.push(z[start : start + count].requires_grad_(), labels[start : start + count])
        start += count
        rows, of = bank.references()
        assert of.sort().values.tolist() == list(kept)
        assert torch.equal(rows, z[of].detach())
        assert not rows.requires_grad
    bank.push(z, labels)  # more than it holds
    assert bank.references().labels.sort().values.tolist() == [6, 7, 8, 9, 10]


def test_the_bank_goes_on_from_its_state():
    bank, again = (EmbeddingBank(5, 2, labels=True) for _ in range(2))
    bank.push(drawn(3, 2), torch.arange(3))
    again.load_state_dict(bank.state_dict())
    assert set(bank.state_dict()) == {"embeddings", "labels", "place", "_extra_state"}
    for one in (bank, again):
        one.push(drawn(4, 2, seed=1), torch.arange(3, 7))
    for a, b in zip(bank.references(), again.references(), strict=True):
        assert torch.equal(a, b)
    assert repr(make(repr(bank), marginlab.losses, torch.nn.Module)) == repr(bank)


def test_half_precision_is_not_followed_and_nothing_infinite_is_kept():
    bank, z = EmbeddingBank(4, 2), drawn(2, 2).float()
    bank.push(z)
    assert torch.equal(bank.bfloat16().rows(), z)
    assert torch.equal(bank.half().rows(), z)
    assert bank.double().rows().dtype == torch.float64
    bank.push(torch.tensor([[torch.nan, 1.0], [1.0, 2.0]]).bfloat16())
    assert torch.equal(bank.rows()[2:], torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64))


def step_on_a_rank(group, rank, rounds, labels):
    """Some steps of a loss against the bank, which each ends by pushing."""
    bank = EmbeddingBank(7, 3, labels=True, group=group).double()
    answers = []
    for parts, of in zip(rounds, labels, strict=True):
        z, named = parts[rank], of[rank]
        answers.append(
            value_and_gradients(
                lambda x, named=named: sup_con(
                    x, named, references=bank.references(), group=group, grads="sum"
                ),
                z,
            )
            + value_and_gradients(
                lambda x: info_nce(
                    x, x * 2 + 1, extra_negatives=bank.rows(), group=group, grads="sum"
                ),
                z,
            )
        )
        bank.push(z, named)
    return answers, bank.embeddings, bank.labels, bank.filled


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_bank_on_n_ranks_is_that_on_one(pool, n):
    counts = [[2, 1, 0, 3], [1, 0, 4, 1], [3, 3, 2, 2]]
    z = [drawn(sum(c[:n]), 3, seed=i) for i, c in enumerate(counts)]
    of = [torch.arange(len(x)) % 3 for x in z]
    one = step_on_a_rank(None, 0, [[x] for x in z], [[x] for x in of])
    split = [[x.split(c[:n]) for x, c in zip(xs, counts, strict=True)] for xs in (z, of)]
    ranks = pool.run(n, step_on_a_rank, *split)
    for answers, embeddings, labels, filled in ranks:
        assert filled == one[3] == 7
        torch.testing.assert_close(embeddings, one[1])
        assert torch.equal(labels, one[2])
        for got, expected in zip(answers, one[0], strict=True):
            torch.testing.assert_close(got[::2], expected[::2], rtol=1e-10, atol=1e-10)
    for i, expected in enumerate(one[0]):
        for slot in (1, 3):
            joined = torch.cat([r[0][i][slot][0] for r in ranks])
            torch.testing.assert_close(joined, expected[slot][0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_forward_pass_that_is_run_again_pushes_once_and_sees_the_rows_of_the_first(reentrant):
    bank, loss = EmbeddingBank(4, 3), InfoNCE(negatives="extra_only")
    bank.push(drawn(4, 3))
    z = drawn(3, 3, seed=1)

    def pushing(x, y, rows):
        value = loss(x, y, rows)
        bank.push(y)
        return value

    rows = bank.rows()
    expected = value_and_gradients(lambda x: loss(x, 2 * x + 1, rows.clone()), z)
    got = value_and_gradients(
        lambda x: checkpoint(pushing, x, 2 * x + 1, rows, use_reentrant=reentrant), z
    )
    torch.testing.assert_close(got, expected)
    assert int(bank.place) == 3  # and not 6 % 4

    def reading(x):
        return loss(x, 2 * x + 1, bank.rows())

    x = z.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="give the rows to the function as an argument"):
        checkpoint(reading, x, use_reentrant=reentrant).backward()


@pytest.mark.usefixtures("unchecked")
def test_what_the_bank_cannot_take_is_refused():
    z, labels = torch.ones(2, 3), torch.arange(2)
    for size, dim in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match=f"at least 1 feature, not {size} of {dim}"):
            EmbeddingBank(size, dim)
    bank, named = EmbeddingBank(4, 3), EmbeddingBank(4, 3, labels=True)
    for bad in (z[:, :2], z[0]):
        with pytest.raises(ValueError, match=r"Embeddings are a matrix \(B, 3\)"):
            bank.push(bad)
    with pytest.raises(TypeError, match="floating point"):
        bank.push(z.long())
    with pytest.raises(TypeError, match="Embeddings are a tensor"):
        bank.push(z.numpy())
    with pytest.raises(ValueError, match="Make it with labels=True, or push embeddings alone"):
        bank.push(z, labels)
    with pytest.raises(ValueError, match="Make it with labels=False, or push"):
        named.push(z)
    with pytest.raises(TypeError, match="Labels are integers"):
        named.push(z, labels.float())
    with pytest.raises(ValueError, match=r"Labels are \(2,\)"):
        named.push(z, labels[:1])
    with pytest.raises(ValueError, match="keeps no labels"):
        bank.references()
    with pytest.raises(RuntimeError, match="give the rows to the function"):
        torch.func.grad(lambda x: info_nce(x, x, extra_negatives=bank.rows()))(z)


def test_sup_con_takes_the_bank_for_its_other_side():
    bank, z = EmbeddingBank(6, 3, labels=True), drawn(4, 3)
    labels = torch.tensor([0, 1, 0, 2])
    assert float(SupCon()(z, labels, bank.references())) == 0.0
    bank.double().push(drawn(5, 3, seed=1), torch.tensor([1, 0, 0, 2, 5]))
    s = F.normalize(z) @ F.normalize(drawn(5, 3, seed=1)).T / 0.1
    positive = labels[:, None] == torch.tensor([1, 0, 0, 2, 5])
    expected = -(s.log_softmax(1) * positive).sum(1) / positive.sum(1)
    torch.testing.assert_close(SupCon()(z, labels, bank.references()), expected.mean())
