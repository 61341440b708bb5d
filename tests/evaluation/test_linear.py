import logging
import time
import tracemalloc

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from marginlab.evaluation import linear_probe, linear_probe_accuracy


def clusters(n, D, classes, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centers = torch.randn(classes, D, generator=torch.Generator().manual_seed(0))
    return centers[labels] + spread * torch.randn(n, D, generator=generator), labels


def test_it_is_scikit_learns_regression_on_standardised_features():
    (x, y), (z, w) = clusters(300, 8, 4, 1.5, 1), clusters(200, 8, 4, 1.5, 2)
    x, z = x * torch.logspace(-4, 4, 8), z * torch.logspace(-4, 4, 8)
    peer = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-8)).fit(
        x.double().numpy(), y.numpy()
    )
    found = linear_probe(x, y, z, w, tolerance=1e-8)
    assert found.accuracy == peer.score(z.double().numpy(), w.numpy())
    assert found.converged
    assert 0.5 < found.accuracy < 1
    assert found.standard_error == pytest.approx(
        (found.accuracy * (1 - found.accuracy) / 200) ** 0.5
    )
    assert linear_probe_accuracy(x, y, z, w) == pytest.approx(found.accuracy, abs=0.015)


def test_constant_features_and_labels_with_gaps_are_taken():
    x = torch.tensor([[0.0, 3.0], [1.0, 3.0], [4.0, 3.0], [5.0, 3.0]])
    assert (
        linear_probe_accuracy(
            x,
            torch.tensor([2, 2, 7, 7]),
            x + torch.tensor([0.0, 100.0]),
            torch.tensor([2, 2, 7, 7]),
        )
        == 1
    )


def test_a_probe_that_does_not_converge_says_so(caplog):
    x, y = clusters(200, 8, 4, 1.5, 1)
    with caplog.at_level(logging.WARNING):
        found = linear_probe(x, y, x, y, max_iterations=2)
    assert not found.converged
    assert found.iterations == 2
    assert "did not converge within 2 iterations" in caplog.text


def test_five_thousand_features_take_seconds():
    (x, y), (z, w) = clusters(5000, 512, 10, 12.0, 1), clusters(1000, 512, 10, 12.0, 2)
    start = time.perf_counter()
    found = linear_probe(x, y, z, w)
    assert time.perf_counter() - start < 30  # 2 s on one free core
    assert found.converged
    assert 0.3 < found.accuracy < 1


def test_bad_input_is_refused(unchecked):
    x, y = clusters(6, 3, 2, 1.0, 0)
    for arguments, sentence in (
        ((x, y * 0, x, y), "at least 2 classes, not only of class 0"),
        ((x, y, x[:, :2], y), r"test features are of shape \(N, 3\), .* not .* \(6, 2\)"),
        ((x[0], y, x, y), r"at least one row .* not torch.float32 \(3,\)"),
        ((x / 0, y, x, y), "training features .* not finite"),
        ((x, y, x, y[:2]), "test features have 6 rows"),
    ):
        with pytest.raises(ValueError, match=sentence):
            linear_probe(*arguments)
    for more, sentence in (
        ({"C": 0.0}, "positive, not C=0.0"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
    ):
        with pytest.raises(ValueError, match=sentence):
            linear_probe(x, y, x, y, **more)


def test_arrays_are_read_as_tensors():
    (x, y), (z, w) = clusters(80, 8, 4, 1.5, 1), clusters(60, 8, 4, 1.5, 2)
    assert linear_probe(x.numpy(), y.numpy(), z.numpy(), w.numpy()) == linear_probe(x, y, z, w)


@pytest.mark.parametrize(("M", "K", "D"), [(2000, 400, 16), (400, 100, 200)])
def test_what_a_probe_holds_is_what_its_budget_counts(M, K, D):
    x, y = clusters(M, D, K, 1.0, 0)
    held = 8 * (2 * M * K + 26 * K * (D + 1))
    with pytest.raises(ValueError, match=f"{K} classes holds {held:,} bytes, above the budget"):
        linear_probe_accuracy(x, y, x, y, budget=held - 1)
    linear_probe(x[:40], y[:40] % 2, x[:2], y[:2])  # imports are not the probe's
    tracemalloc.start()  # numpy's arrays
    try:
        linear_probe(x, y, x[:10], y[:10], max_iterations=12, budget=held)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.6 * held < peak < 1.1 * held + 4 * 8 * x.numel()
