"""Verification from labels alone: what perfect, blind and somewhat good features must give."""

import pytest
import torch

from marginlab.evaluation import pairs, tar_at_far, verification_accuracy, verify
from marginlab.testing.memory import peak_of

LABELS = torch.arange(400) // 10


def test_features_that_are_their_identity_are_told_apart_without_an_error():
    found = verify(
        torch.eye(40)[LABELS] * torch.arange(1, 401)[:, None],
        LABELS,
        n=400,
        folds=10,
        far_pairs=2000,
    )
    assert list(found.tar) == [0.01, 0.001]
    rates = [found.accuracy, *found.tar.values()]
    assert [rate.value for rate in rates] == [1.0] * 3
    assert [rate.n for rate in rates] == [400, 1000, 1000]


def test_features_that_know_nothing_are_accepted_as_often_as_impostors():
    z = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    found = verify(z, LABELS, n=400, folds=10, far_pairs=3600, fars=(0.1, 0.3))
    for rate, expected in ((found.accuracy, 0.5), (found.tar[0.1], 0.1), (found.tar[0.3], 0.3)):
        assert rate.low < expected < rate.high
        assert rate.value == pytest.approx(expected, abs=0.06)


def test_better_features_verify_better_and_the_seed_draws_other_pairs():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(400, 40, generator=generator)
    values = [
        verify(torch.eye(40)[LABELS] + noise * size, LABELS, n=400, far_pairs=2000, fars=(0.01,))
        for size in (0.1, 0.2, 0.4)
    ]
    accuracies = [found.accuracy.value for found in values]
    accepted = [found.tar[0.01].value for found in values]
    for rates in (accuracies, accepted):
        assert rates[0] > rates[1] > rates[2]
    one, other = (
        verify(
            torch.eye(40)[LABELS] + noise * 0.2,
            LABELS,
            n=400,
            far_pairs=2000,
            fars=(0.01,),
            seed=seed,
        )
        for seed in (0, 1)
    )
    assert one == values[1] != other


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match=r"Fold 0 holds 1800 genuine pairs, fewer than the 2000"):
        verify(torch.eye(40)[LABELS], LABELS, n=400, far_pairs=4000)


def test_it_is_the_two_numbers_of_the_pairs_that_it_draws():
    noise = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    z = noise + torch.eye(40)[LABELS][:, :8]
    found = verify(z.numpy(), LABELS.numpy(), n=400, far_pairs=3600, fars=(0.1,))
    drawn = pairs(LABELS, 400)
    whole = verification_accuracy(z[drawn.first], z[drawn.second], drawn.same)
    assert found.accuracy.value == whole.accuracy
    drawn = pairs(LABELS, 3600, folds=1)
    accepted = tar_at_far(z[drawn.first], z[drawn.second], drawn.same, 0.1)
    assert found.tar[0.1][:3] == (accepted.tar, accepted.low, accepted.high)


def test_features_of_all_pairs_are_not_gathered(monkeypatch):
    monkeypatch.setattr("marginlab.evaluation.verification._BLOCK", 2**15)
    z = torch.randn(400, 256, generator=torch.Generator().manual_seed(0))
    peak = peak_of(lambda: verify(z, LABELS, n=400, far_pairs=3600, fars=(0.1, 0.2)))
    assert peak < 2**22  # the pairs' features would be 7 MB in float32, and 15 in float64


@pytest.mark.usefixtures("unchecked")
def test_features_and_labels_that_do_not_fit_are_refused():
    z = torch.randn(400, 4)
    for features, labels, sentence in (
        (z, LABELS[:9], r"400 features have as many labels, .* not torch.int64 \(9,\)"),
        (z[:, 0], LABELS, "at least one row of floating-point features"),
        (z / 0, LABELS, "not finite"),
        (z, LABELS.double(), "Labels are .* integers, .* not torch.float64"),
    ):
        with pytest.raises(ValueError, match=sentence):
            verify(features, labels, n=400)
