import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from sklearn.neighbors import KNeighborsClassifier

from marginlab.evaluation import knn_accuracy, knn_predict, knn_rank
from marginlab.testing.memory import peak_of


def clusters(seed, n, classes=4, D=6, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    centers = torch.randn(classes, D, generator=torch.Generator().manual_seed(0))
    return (centers[labels] + spread * torch.randn(n, D, generator=generator)).double(), labels


@given(st.integers(0, 2**20), st.integers(1, 300), st.sampled_from([0.01, 0.1, 1.0]))
def test_votes_are_those_of_the_formula(seed, k, temperature):
    bank, labels = clusters(seed, 80)
    queries, _ = clusters(seed + 1, 15)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=-1)
    expected = []
    for row in cosine:
        near = row.argsort(descending=True)[:k]
        votes = [
            sum(float(torch.exp((row[m] - 1) / temperature)) for m in near if labels[m] == c)
            for c in range(4)
        ]
        expected.append(max(range(4), key=votes.__getitem__))
    assert (
        knn_predict(bank, labels, queries, k=k, temperature=temperature, budget=3000).tolist()
        == expected
    )


def test_the_vote_is_scikit_learns_with_these_weights():
    bank, labels = clusters(1, 400)
    queries, asked = clusters(2, 100)
    peer = KNeighborsClassifier(
        n_neighbors=50,
        metric="cosine",
        weights=lambda d: torch.from_numpy((1 - d) / 0.1).exp().numpy(),
    )
    peer.fit(bank.numpy(), labels.numpy())
    assert (
        knn_predict(bank, labels, queries, k=50).tolist() == peer.predict(queries.numpy()).tolist()
    )
    assert knn_accuracy(bank, labels, queries, asked, k=50) == peer.score(
        queries.numpy(), asked.numpy()
    )


def test_equal_votes_go_to_the_smallest_class_and_small_temperatures_do_not_overflow():
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    assert knn_predict(
        bank, torch.tensor([2, 0, 1]), torch.tensor([[0.0, 7.0]]), k=3, temperature=1e-4
    ).tolist() == [2]
    assert knn_predict(
        torch.eye(2), torch.tensor([1, 0]), torch.tensor([[1.0, 1.0]]), k=2
    ).tolist() == [0]


def test_half_precision_and_zero_features_are_taken():
    bank, labels = clusters(1, 30)
    assert knn_predict(
        bank.bfloat16(), labels, torch.zeros(2, 6).bfloat16(), k=5, num_classes=9
    ).shape == (2,)


def test_bad_input_is_refused(unchecked):
    bank, labels = clusters(0, 10)
    for arguments, more, sentence in (
        ((bank[:0], labels[:0], bank), {}, "bank are at least one row"),
        ((bank, labels[:3], bank), {}, "labels are 10 integers"),
        ((bank, labels, bank[:, :2]), {}, r"queries are of shape \(N, 6\), .* not .* \(10, 2\)"),
        ((bank, labels, bank[0]), {}, r"queries are at least one row .* not torch.float64 \(6,\)"),
        ((bank, labels, bank[:, None]), {}, r"of shape \(N, D\), not .* \(10, 1, 6\). Pool"),
        ((bank, labels, bank[:0]), {}, r"at least one row .* \(0, 6\)"),
        ((bank, labels.double(), bank), {}, r"10 integers, not torch.float64 \(10,\)"),
        ((bank, labels.tolist(), bank), {}, "labels of the bank are a tensor .* not a list"),
        ((bank, np.array(list("abcdefghij")), bank), {}, r"<U1 \(10,\).*return_inverse"),
        ((bank[:1], labels[:1]), {}, "The bank has 1 row, and nothing to classify it by"),
        ((bank, labels, bank), {"budget": 0}, "positive byte budget, not 0"),
        ((bank / 0, labels, bank), {}, "not finite"),
        ((bank, labels, bank / 0), {}, r"queries \(10, 6\) hold .* not finite .* first in row 0"),
        ((bank, labels, bank), {"num_classes": 2}, "outside 0 to 1"),
        ((bank, labels, bank), {"k": 0}, "at least 1 neighbour"),
        ((bank, labels, bank), {"temperature": 0.0}, "positive temperature"),
    ):
        with pytest.raises(ValueError, match=sentence):
            knn_predict(*arguments, **more)
    with pytest.raises(ValueError, match="labels of the queries run from -1"):
        knn_accuracy(bank, labels, bank, labels * 0 - 1)
    for top in (0, 6):
        with pytest.raises(ValueError, match=f"k = 5 neighbours .* so top is not {top}"):
            knn_rank(bank, labels, bank, top=top, k=5)
    for queries, asked, sentence in (
        (bank, None, "Queries have features, but no labels"),
        (None, labels, "Queries have labels, but no features"),
    ):
        with pytest.raises(ValueError, match=sentence):
            knn_accuracy(bank, labels, queries, asked)


# ranked classes, and each row by the others


@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(1, 8))
def test_ranked_classes_are_the_votes_in_order(seed, k, top):
    bank, labels = clusters(seed, 40, classes=6)
    queries, _ = clusters(seed + 1, 9, classes=6)
    top = min(top, k)
    found = knn_rank(bank, labels * 7, queries, top=top, k=k, budget=4000)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=-1)
    for row, classes, shares in zip(cosine, found.classes, found.shares, strict=True):
        near = row.argsort(descending=True)[:k]
        votes = torch.zeros(6, dtype=torch.float64)
        votes.index_add_(0, labels[near], ((row[near] - 1) / 0.1).exp())
        voted = len(labels[near].unique())
        order = votes.argsort(descending=True)[: min(top, voted)]
        assert classes.tolist() == [*(order * 7).tolist(), *[-1] * (top - len(order))]
        torch.testing.assert_close(shares[: len(order)], votes[order] / votes.sum())
        assert (shares[len(order) :] == 0).all()
    assert torch.equal(found.classes[:, 0], knn_predict(bank, labels * 7, queries, k=k))


@given(st.integers(0, 2**20), st.integers(1, 30), st.sampled_from([700, 5000, 2**25]))
def test_leave_one_out_is_each_row_asked_of_the_others(seed, k, budget):
    bank, labels = clusters(seed, 24)
    others = [torch.arange(24) != row for row in range(24)]
    expected = torch.cat([knn_predict(bank[o], labels[o], bank[~o], k=k) for o in others])
    assert torch.equal(knn_predict(bank, labels, k=k, budget=budget), expected)
    share = float((expected == labels).double().mean())
    assert knn_accuracy(bank, labels, k=k, budget=budget) == share


@given(st.integers(1, 6), st.integers(2, 9))
def test_leave_one_out_leaves_out_the_row_and_not_its_twin(k, copies):
    """Of equal rows the first are nearest, and a row need not be among its own k + 1 nearest."""
    bank = torch.ones(copies, 3)
    labels = torch.arange(copies) + 5
    found = knn_predict(bank, labels, k=k)
    assert found[0] == 6
    assert found[1:].tolist() == [5] * (copies - 1)


@given(st.integers(0, 2**20))
def test_votes_do_not_depend_on_order_rotation_length_or_names(seed):
    bank, labels = clusters(seed, 40)
    queries, _ = clusters(seed + 1, 10)
    whole = knn_rank(bank, labels, queries, top=3, k=7)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(40, generator=generator)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    length = torch.rand(40, 1, generator=generator, dtype=torch.float64) + 0.1
    for again, names in (
        (knn_rank(bank[order], labels[order], queries, top=3, k=7), 0),
        (knn_rank(bank @ turn, labels, queries @ turn, top=3, k=7), 0),
        (knn_rank(bank * length, labels, queries / 3, top=3, k=7), 0),
        (knn_rank(bank, labels + 10**12, queries, top=3, k=7), 10**12),
    ):
        there = whole.classes >= 0
        assert torch.equal(again.classes[there], whole.classes[there] + names)
        torch.testing.assert_close(again.shares, whole.shares)


def test_rows_of_any_finite_length_have_a_direction():
    bank, labels = clusters(3, 60)
    queries, _ = clusters(4, 20)
    whole = knn_predict(bank.float(), labels, queries.float(), k=9)
    for large in (1e-30, 1e19, 1e37):
        again = knn_predict(bank.float() * large, labels, queries.float() * large, k=9)
        assert torch.equal(again, whole)


@pytest.mark.parametrize("kind", ["plain", "read-only", "strided", "big-endian"])
def test_arrays_are_read_as_tensors(kind):
    bank, labels = clusters(5, 30)
    arrays = [bank.numpy(), labels.to(torch.int32).numpy()]
    if kind == "read-only":
        for array in arrays:
            array.flags.writeable = False
    if kind == "strided":
        arrays = [np.repeat(array, 2, axis=0)[::-2][::-1] for array in arrays]
    if kind == "big-endian":
        arrays = [array.astype(array.dtype.newbyteorder(">")) for array in arrays]
    assert torch.equal(knn_predict(*arrays, arrays[0], k=4), knn_predict(bank, labels, bank, k=4))
    assert knn_accuracy(*arrays, k=4) == knn_accuracy(bank, labels, k=4)
    few = arrays[1].astype(np.uint8)
    assert knn_accuracy(arrays[0], few, k=4) == knn_accuracy(bank, labels, k=4)


# memory


@pytest.mark.parametrize("size", [1, 9_995, 10**15])
def test_neither_a_labels_size_nor_the_number_of_rows_is_held_more_than_once(size):
    bank, labels = clusters(6, 2000, classes=20, D=16)
    budget = 2**20
    for queries in (bank[:1500], None):
        peak = peak_of(lambda q=queries: knn_predict(bank, labels * size, q, k=50, budget=budget))
        # the directions of both in float64, twice while they are made, and a few blocks
        assert peak < 3 * 2 * bank.numel() * 8 + 6 * budget
