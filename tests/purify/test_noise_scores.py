"""Other scores of wrong labels, conflicts between classes, thresholds: planted, against loops."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from planted import Pixels, classifier, planted

from marginlab.data import split_identities
from marginlab.purify import (
    by_confidence,
    by_loss,
    by_mean,
    by_subcenter,
    comparison,
    conflicts,
    embeddings_of,
    image_losses,
    merged,
    mixture_threshold,
    pairs_found,
    purify,
    unions,
)


def test_all_scores_find_planted_noise():
    noisy, centers = planted()
    head, labels = classifier(centers[:, :1], scale=16.0), noisy.images.labels
    embeddings = embeddings_of(Pixels(), noisy.images)
    losses = image_losses(head, embeddings, labels)
    alone = torch.stack(
        [classifier(centers[:, :1], scale=16.0)(embeddings[i : i + 1], labels[i : i + 1])
         for i in range(5)]
    )  # fmt: skip
    torch.testing.assert_close(losses[:5], alone.detach())
    found = {
        "subcenter": by_subcenter(purify(Pixels(), noisy.images, head=head)),
        "mean": by_mean(embeddings, labels),
        "loss": by_loss(losses),
        "share": by_loss(losses, share=0.3),
        "confidence": by_confidence(embeddings, labels),
    }
    for row in comparison(found, noisy.flipped):
        assert row["auc"] > 0.98, row
        assert row["precision"] > 0.95, row
        assert row["recall"] > (0.85 if row["score"] == "confidence" else 0.95), row


@given(data=st.data())
def test_the_mean_leaves_the_image_out(data):
    N = data.draw(st.integers(2, 10))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    x = torch.randn(N, 3, dtype=torch.float64, generator=generator)
    labels = torch.randint(3, (N,), generator=generator)
    found = by_mean(x, labels, max_angle=70.0)
    for i in range(N):
        others = [j for j in range(N) if j != i and labels[j] == labels[i]]
        if not others:
            assert found.score[i] == 0
            assert found.keep[i]
            continue
        mean = (x[others] / x[others].norm(dim=1, keepdim=True)).sum(0)
        cosine = float(x[i] @ mean / x[i].norm() / mean.norm())
        assert float(found.score[i]) == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-6)


def test_an_image_alone_in_its_class_stays_under_confidence():
    x = torch.eye(3)[torch.tensor([0, 0, 0, 1, 1, 1, 2])]
    found = by_confidence(x, torch.tensor([0, 0, 0, 1, 1, 1, 2]), folds=3)
    assert bool(found.keep.all())
    assert found.score[6] == 0


def test_a_mixture_separates_two_modes_and_falls_back_with_a_reason():
    normal = torch.special.ndtri(torch.linspace(0.001, 0.999, 500).double())
    two = mixture_threshold(torch.cat([45 + 8 * normal, 88 + 5 * normal]))
    assert two.separated
    assert two.value == pytest.approx(72, abs=2)
    assert two.means == pytest.approx((45, 88), abs=1)
    for values, said in (
        (60 + 8 * normal, "overlap"),
        (torch.full((50,), 3.0), "do not tell two"),
        (torch.arange(5.0), "5 values"),
    ):
        one = mixture_threshold(values)
        assert one.value == 75
        assert one.separated is False
        assert said in one.reason
    with pytest.raises(ValueError, match="finite"):
        mixture_threshold(torch.tensor([1.0, math.nan]))


def test_the_threshold_of_many_values_is_that_of_fewer():
    normal = torch.special.ndtri(torch.linspace(0.001, 0.999, 30_000).double())
    for shift, share in ((88, 1.0), (80, 0.3)):
        upper = shift + 5 * normal[:: round(1 / share)]
        values = torch.cat([45 + 8 * normal, upper])
        many, few = (
            mixture_threshold(values[torch.randperm(len(values))]),
            mixture_threshold(values[::7]),
        )
        assert many.separated
        assert few.separated
        assert many.value == pytest.approx(few.value, abs=0.1)


@settings(max_examples=15)
@given(data=st.data())
def test_conflicts_are_those_of_a_loop_in_any_blocks(data):
    C = data.draw(st.integers(2, 9))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    w = torch.randn(C, 3, dtype=torch.float64, generator=generator)
    angles = torch.rad2deg(
        torch.nn.functional.cosine_similarity(w[:, None], w[None], dim=2).clamp(-1, 1).acos()
    )
    near = {(a, b) for a in range(C) for b in range(a + 1, C) if angles[a, b] < 40}
    for budget in (1, 100, 10**6):
        found = conflicts(w, max_angle=40, budget=budget)
        assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == near
        assert torch.equal(found.angle, found.angle.sort().values)
    member = list(range(C))
    for a, b in sorted(near) * C:
        member[a] = member[b] = min(member[a], member[b])
    assert unions(found, C).tolist() == member


def test_planted_splits_are_found_and_merged():
    noisy, centers = planted(share=0.0)
    split = split_identities(noisy.images, 0.5)
    twins = centers[split.origin, 0] + 0.02 * torch.ones(12)
    found = conflicts(twins, max_angle=30)
    assert pairs_found(found, split.origin) == (1.0, 1.0)
    assert pairs_found(conflicts(twins, max_angle=100), split.origin).precision < 1
    joined = merged(split.images, found)
    assert torch.equal(joined.labels, noisy.images.labels)
    assert joined.classes == noisy.images.classes


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: by_loss(torch.ones(3), share=1.0), "share is"),
        (lambda: conflicts(torch.ones(3, 2), max_angle=0.0), "between 0 and 180"),
        (lambda: conflicts(torch.full((3, 2), math.nan), max_angle=5.0), "finite"),
        (lambda: by_confidence(torch.ones(3, 2), torch.zeros(3).long()), "2 classes"),
        (lambda: by_mean(torch.ones(3, 2), torch.zeros(3).long(), max_angle=200.0), "180"),
    ],
)
def test_wrong_wishes_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
