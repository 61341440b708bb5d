"""Retrieval against pytorch-metric-learning's calculator, and brute force."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from marginlab.evaluation import retrieval
from marginlab.testing.memory import peak_of

NAMES = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
SEEDS = st.integers(0, 2**20)


def drawn(seed, n, classes=5, D=4, spread=1.0):
    """Features around class centers, and labels of which some may be alone in their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator) ** 2
    centers = torch.randn(classes**2, D, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(n, D, generator=generator)
    return (centers[labels] + spread * noise).double(), labels


def brute(references, labels, queries, truth, alone):
    """The three numbers of each query, by loops over all references in order of their cosines."""
    found = []
    for q, (query, label) in enumerate(zip(queries, truth, strict=True)):
        cosine = torch.nn.functional.cosine_similarity(query[None], references, dim=1).round(
            decimals=12
        )
        order = [
            m
            for m in cosine.argsort(descending=True, stable=True).tolist()
            if not (alone and m == q)
        ]
        hits = [bool(labels[m] == label) for m in order]
        R = sum(hits)
        if R:
            at = [sum(hits[: i + 1]) / (i + 1) for i in range(R) if hits[i]]
            found.append((float(hits[0]), sum(hits[:R]) / R, sum(at) / R))
    return torch.tensor(found, dtype=torch.float64).view(-1, 3)


def check(found, expected, alone, N):
    assert (found.n, found.lone) == (len(expected), N - len(expected))
    assert found[:3] == pytest.approx(tuple(expected.mean(0).tolist()))
    if alone or len(expected) < 2:
        assert all(math.isnan(error) for error in found[3:6])
    else:
        errors = expected.std(0) / len(expected) ** 0.5
        assert found[3:6] == pytest.approx(tuple(errors.tolist()))


@given(
    SEEDS,
    st.integers(2, 40),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([300, 3000, 2**25]),
)
def test_it_is_brute_force(seed, M, N, alone, budget):
    references, labels = drawn(seed, M)
    queries, truth = (references, labels) if alone else drawn(seed + 1, N, classes=6)
    expected = brute(references, labels, queries, truth, alone)
    arguments = (references, labels) if alone else (references, labels, queries, truth)
    if not len(expected):
        with pytest.raises(ValueError, match=f"None of the {len(truth)} queries has another image"):
            retrieval(*arguments, budget=budget)
        return
    check(retrieval(*arguments, budget=budget), expected, alone, len(truth))


@given(SEEDS, st.integers(2, 12), st.booleans())
def test_of_equal_cosines_the_first_reference_stands_first(seed, M, alone):
    generator = torch.Generator().manual_seed(seed)
    references = torch.eye(2, dtype=torch.float64)[torch.randint(0, 2, (M,), generator=generator)]
    labels = torch.randint(0, 2, (M,), generator=generator)
    labels[:2] = labels[0]
    arguments = (references, labels) if alone else (references, labels, references, labels)
    expected = brute(references, labels, references, labels, alone)
    check(retrieval(*arguments), expected, alone, M)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("spread", [0.5, 1.5])
def test_it_is_pytorch_metric_learnings(alone, spread):
    references, labels = drawn(1, 300, classes=8, spread=spread)
    queries, truth = (references, labels) if alone else drawn(2, 120, classes=9, spread=spread)
    peer = AccuracyCalculator(
        include=NAMES,
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    theirs = peer.get_accuracy(queries, truth, *(() if alone else (references, labels, False)))
    ours = retrieval(references, labels, *(() if alone else (queries, truth)))
    assert ours[:3] == pytest.approx(tuple(theirs[name] for name in NAMES), abs=1e-12)
    assert 0.2 < ours.r_precision < 1


@given(SEEDS)
def test_it_does_not_depend_on_order_rotation_length_or_names(seed):
    (x, labels), (q, truth) = drawn(seed, 40), drawn(seed + 1, 15)
    whole, alone = retrieval(x, labels, q, truth), retrieval(x, labels)
    generator = torch.Generator().manual_seed(seed)
    order, asked = torch.randperm(40, generator=generator), torch.randperm(15, generator=generator)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    length = torch.rand(40, 1, generator=generator, dtype=torch.float64) + 0.1
    for again in (
        retrieval(x[order], labels[order], q[asked], truth[asked]),
        retrieval(x @ turn, labels, q @ turn, truth),
        retrieval(x * length, labels + 10**15, q * 1e200, truth + 10**15),
        retrieval(x.numpy(), labels.numpy(), q.numpy(), truth.numpy()),
    ):
        assert tuple(again) == pytest.approx(tuple(whole))
    assert retrieval(x[order] @ turn, labels[order])[:3] == pytest.approx(alone[:3])
    assert whole.map_at_r <= whole.r_precision


def test_features_that_are_their_class_are_all_found_and_blind_ones_by_chance():
    labels = torch.arange(60) // 6
    assert retrieval(torch.eye(10)[labels], labels)[:3] == (1, 1, 1)
    blind = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    some = torch.arange(2000) % 4
    assert retrieval(blind, some)[:2] == pytest.approx((0.25, 0.25), abs=0.03)


def test_neither_all_cosines_nor_all_neighbours_are_held():
    """Two classes of 750: each query has 749 others, so all neighbours of all queries are 13 MB."""
    x, _ = drawn(0, 1500, D=8)
    labels = (torch.arange(1500) % 2) * 10**12
    budget = 2**20
    peak = peak_of(lambda: retrieval(x, labels, budget=budget))
    assert peak < 6 * x.numel() * 8 + 6 * budget


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_searched_is_refused():
    x, labels = drawn(0, 10)
    for arguments, sentence in (
        ((x[:0], labels[:0]), "references are at least one row"),
        ((x, labels[:3]), "10 rows, so their labels are 10 integers"),
        ((x, labels - 1), "run from -1"),
        ((x * torch.nan, labels), "references .* not finite"),
        ((x, labels, x), "Queries have features, but no labels"),
        ((x, labels, None, labels), "Queries have labels, but no features"),
        ((x, labels, x[:, :2], labels), r"queries are of shape \(N, 4\)"),
        ((x, labels, x, labels.double()), "queries have 10 rows, so their labels are 10 integers"),
        (
            (x, torch.arange(10)),
            "None of the 10 queries has another image of its class among the 10",
        ),
        ((x[:1], labels[:1]), "None of the 1 queries"),
    ):
        with pytest.raises(ValueError, match=sentence):
            retrieval(*arguments)
    with pytest.raises(ValueError, match="positive byte budget"):
        retrieval(x, labels, budget=-1)
