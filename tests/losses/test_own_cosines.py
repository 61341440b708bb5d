"""Cosines with a row's own sub-centers: the formula, blocks, ignored rows, ranks, wrong input."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from margin_oracle import problems

from marginlab.losses import MarginSoftmax, PartialFC


def made(kind, w, **arguments):
    C, K, D = w.shape
    head = kind(C, D, subcenters=K, dtype=w.dtype, **arguments)
    head.load_centers(w)
    return head


def oracle(x, w, labels):
    rows = [
        torch.nn.functional.cosine_similarity(row[None], w[label], dim=1, eps=0)
        if label >= 0
        else torch.zeros(w.shape[1], dtype=w.dtype)
        for row, label in zip(x, labels.tolist(), strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("kind", [MarginSoftmax, PartialFC])
@given(data=st.data())
def test_they_are_the_formula_in_any_blocks(kind, data):
    x, w, labels, generator = data.draw(problems())
    labels = labels.masked_fill(torch.rand(len(labels), generator=generator) < 0.2, -100)
    expected = oracle(x, w, labels)
    for budget in (1, 200, None):
        found = made(kind, w, budget=budget).cosines(x, labels)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_lengths_do_not_matter_and_nothing_has_a_gradient():
    w, x = torch.randn(3, 2, 4), torch.randn(5, 4, requires_grad=True)
    labels = torch.arange(5) % 3
    plain = made(MarginSoftmax, w).cosines(x, labels)
    assert not plain.requires_grad
    torch.testing.assert_close(made(MarginSoftmax, w * 1e-3).cosines(x * 1e20, labels), plain)
    near = made(MarginSoftmax, w).logits(x)[torch.arange(5), labels] / 64
    torch.testing.assert_close(plain.amax(1), near)


def on_a_rank(group, rank, w, x, labels, rows, rate):
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
    head = made(PartialFC, w, group=group, sample_rate=rate)
    return head.cosines(x[own], labels[own])


@pytest.mark.xdist_group("ranks")
@settings(max_examples=15)
@given(data=st.data())
def test_n_ranks_are_one_rank(pool, data):
    n = data.draw(st.integers(1, 4))
    rows = data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n).filter(any))
    x, w, labels, generator = data.draw(problems(rows=(sum(rows), sum(rows)), classes=(1, 9)))
    labels = labels.masked_fill(torch.rand(len(labels), generator=generator) < 0.2, -100)
    rate = data.draw(st.sampled_from([1.0, 0.1]))
    expected = made(MarginSoftmax, w).cosines(x, labels)
    found = torch.cat(pool.run(n, on_a_rank, w, x, labels, rows, rate))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def a_wrong_label(group, rank):
    head = made(PartialFC, torch.randn(4, 1, 3), group=group, validate="never")
    try:
        head.cosines(torch.ones(1, 3), torch.tensor([4 if rank else 0]))
    except ValueError as error:
        return str(error)
    return "nothing"


@pytest.mark.xdist_group("ranks")
def test_one_wrong_rank_stops_all(pool):
    first, second = pool.run(2, a_wrong_label)
    assert "Rank 1 of 2 refused" in first
    assert "labels outside 0..3" in second


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x", "labels", "said"),
    [
        (torch.ones(2, 3), torch.tensor([0, 5]), "labels outside 0..3"),
        (torch.ones(2, 3), torch.tensor([0, -1]), "labels outside 0..3"),
        (torch.full((1, 3), torch.nan), torch.tensor([0]), "NaN"),
        (torch.ones(2, 4), torch.tensor([0, 1]), "as wide as"),
        (torch.ones(2, 3), torch.tensor([0.0, 1.0]), "Labels are integers"),
    ],
)
def test_wrong_input_is_refused_also_where_training_reads_nothing(x, labels, said):
    head = made(MarginSoftmax, torch.randn(4, 1, 3), validate="never")
    with pytest.raises((ValueError, TypeError), match=said):
        head.cosines(x, labels)
