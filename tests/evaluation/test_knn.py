import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from sklearn.neighbors import KNeighborsClassifier

from marginlab.evaluation import knn_accuracy, knn_predict


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
        votes = [sum(float(torch.exp((row[m] - 1) / temperature)) for m in near if labels[m] == c) for c in range(4)]
        expected.append(max(range(4), key=votes.__getitem__))
    assert knn_predict(bank, labels, queries, k=k, temperature=temperature, budget=3000).tolist() == expected


def test_the_vote_is_scikit_learns_with_these_weights():
    bank, labels = clusters(1, 400)
    queries, asked = clusters(2, 100)
    peer = KNeighborsClassifier(n_neighbors=50, metric="cosine", weights=lambda d: torch.from_numpy((1 - d) / 0.1).exp().numpy())
    peer.fit(bank.numpy(), labels.numpy())
    assert knn_predict(bank, labels, queries, k=50).tolist() == peer.predict(queries.numpy()).tolist()
    assert knn_accuracy(bank, labels, queries, asked, k=50) == peer.score(queries.numpy(), asked.numpy())


def test_equal_votes_go_to_the_smallest_class_and_small_temperatures_do_not_overflow():
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    assert knn_predict(bank, torch.tensor([2, 0, 1]), torch.tensor([[0.0, 7.0]]), k=3, temperature=1e-4).tolist() == [2]
    assert knn_predict(torch.eye(2), torch.tensor([1, 0]), torch.tensor([[1.0, 1.0]]), k=2).tolist() == [0]


def test_half_precision_and_zero_features_are_taken():
    bank, labels = clusters(1, 30)
    assert knn_predict(bank.bfloat16(), labels, torch.zeros(2, 6).bfloat16(), k=5, num_classes=9).shape == (2,)


def test_bad_input_is_refused(unchecked):
    bank, labels = clusters(0, 10)
    for arguments, more, sentence in (
        ((bank[:0], labels[:0], bank), {}, "bank are at least one row"),
        ((bank, labels[:3], bank), {}, "labels are 10 integers"),
        ((bank, labels, bank[:, :2]), {}, r"shape \(N, 6\)"),
        ((bank / 0, labels, bank), {}, "not finite"),
        ((bank, labels, bank / 0), {}, "finite features"),
        ((bank, labels, bank), {"num_classes": 2}, "outside 0 to 1"),
        ((bank, labels, bank), {"k": 0}, "at least 1 neighbour"),
        ((bank, labels, bank), {"temperature": 0.0}, "positive temperature"),
    ):
        with pytest.raises(ValueError, match=sentence):
            knn_predict(*arguments, **more)
    with pytest.raises(ValueError, match="labels of the queries run from -1"):
        knn_accuracy(bank, labels, bank, labels * 0 - 1)
