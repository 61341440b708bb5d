"""Planted faults of labels: how many, of which kind, nested, the same again, the truth beside."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from marginlab.data import ImageSet
from marginlab.data.corruption import (
    flip_labels,
    long_tail,
    plant_outliers,
    split_identities,
)


@st.composite
def numbers(draw):
    """The labels of a set of 3 to 7 classes; the set is made outside of strategies."""
    C = draw(st.integers(3, 7))
    return [*range(C), *range(C), *draw(st.lists(st.integers(0, C - 1), min_size=10, max_size=60))]


def made(labels):
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    return ImageSet(images, torch.tensor(labels), tuple("abcdefg"[: max(labels) + 1]), "drawn")


@given(labels=numbers(), share=st.floats(0, 1), seed=st.integers(0, 99), data=st.data())
def test_flips(labels, share, seed, data):
    images = made(labels)
    before = images.labels.clone()
    noisy = flip_labels(images, share, seed=seed)
    assert torch.equal(images.labels, before)
    assert torch.equal(noisy.truth, before)
    assert torch.equal(noisy.flipped, noisy.images.labels != before)
    assert int(noisy.flipped.sum()) == round(share * len(images))
    assert torch.equal(noisy.images.images, images.images)
    less = flip_labels(images, share * data.draw(st.floats(0, 1)), seed=seed)
    assert bool((noisy.flipped | ~less.flipped).all())
    assert torch.equal(less.images.labels[less.flipped], noisy.images.labels[less.flipped])


@given(labels=numbers(), seed=st.integers(0, 99))
def test_flips_within_groups(labels, seed):
    images = made(labels)
    C = len(images.classes)
    groups = (torch.arange(C) // 2).clamp(max=C // 2 - 1)  # the last group may have three
    noisy = flip_labels(images, 1.0, seed=seed, groups=groups)
    assert bool(noisy.flipped.all())
    assert torch.equal(groups[noisy.images.labels], groups[noisy.truth])


@given(labels=numbers(), share=st.floats(0, 0.5), seed=st.integers(0, 99), data=st.data())
def test_outliers(labels, share, seed, data):
    images = made(labels)
    C = len(images.classes)
    outside = torch.zeros(C, dtype=torch.bool)
    outside[torch.randperm(C)[: data.draw(st.integers(0, C - 2))]] = True
    inside = ~outside[images.labels]
    if round(share * int(inside.sum())) > int((~inside).sum()):
        with pytest.raises(ValueError, match="Mark more classes"):
            plant_outliers(images, share, outside=outside, seed=seed)
        return
    noisy = plant_outliers(images, share, outside=outside, seed=seed)
    assert int(noisy.planted.sum()) == round(share * int(inside.sum()))
    assert noisy.images.classes == tuple(
        c for c, o in zip("abcdefg", outside, strict=False) if not o
    )
    # no image comes twice, outliers are from outside, and the others keep their place and class
    assert len(set(noisy.rows.tolist())) == len(noisy.rows) == int(inside.sum())
    assert torch.equal(images.images[noisy.rows], noisy.images.images)
    assert torch.equal(outside[images.labels[noisy.rows]], noisy.planted)
    number = (~outside).cumsum(0) - 1
    assert torch.equal(noisy.images.labels, number[images.labels[inside]])
    assert torch.equal(noisy.rows[~noisy.planted], inside.nonzero()[:, 0][~noisy.planted])
    less = plant_outliers(images, share / 2, outside=outside, seed=seed)
    assert torch.equal(less.rows[less.planted], noisy.rows[less.planted])


def test_flips_are_uniform():
    labels = torch.arange(4).repeat(5000)
    images = ImageSet(torch.zeros(20000, 3, 1, 1, dtype=torch.uint8), labels, tuple("abcd"), "many")
    noisy = flip_labels(images, 0.4)
    table = torch.zeros(4, 4).index_put_((noisy.truth, noisy.images.labels), torch.ones(()), True)
    shares = table / 5000
    torch.testing.assert_close(shares.diagonal(), torch.full((4,), 0.6), rtol=0, atol=0.03)
    off = shares[~torch.eye(4, dtype=torch.bool)]
    torch.testing.assert_close(off, torch.full((12,), 0.4 / 3), rtol=0, atol=0.02)


@given(
    labels=numbers(),
    share=st.floats(0, 1),
    parts=st.integers(2, 3),
    seed=st.integers(0, 99),
)
def test_splits(labels, share, parts, seed):
    images = made(labels)
    split = split_identities(images, share, parts=parts, seed=seed)
    C, counts = len(images.classes), torch.bincount(images.labels)
    assert torch.equal(split.origin[split.images.labels], images.labels)
    assert torch.equal(split.origin[:C], torch.arange(C))
    able = int((counts >= parts).sum())
    assert len(split.origin) == C + round(share * able) * (parts - 1)
    assert len(set(split.images.classes)) == len(split.images.classes)
    sizes = torch.bincount(split.images.labels, minlength=len(split.origin))
    for old in split.origin[C:].unique().tolist():
        own = sizes[split.origin == old]
        assert len(own) == parts
        assert int(own.max() - own.min()) <= 1
    again = split_identities(images, share, parts=parts, seed=seed)
    assert torch.equal(again.images.labels, split.images.labels)


@given(labels=numbers(), k=st.integers(1, 5), seed=st.integers(0, 99), data=st.data())
def test_long_tails(labels, k, seed, data):
    images = made(labels)
    C = len(images.classes)
    head = data.draw(st.integers(0, C))
    tail = long_tail(images, head, k, seed=seed)
    counts = torch.bincount(images.labels, minlength=C)
    left = torch.bincount(tail.images.labels, minlength=C)
    assert int(tail.head.sum()) == head
    assert torch.equal(left, torch.where(tail.head, counts, counts.clamp(max=k)))
    assert torch.equal(tail.images.labels, images.labels[tail.rows])
    assert torch.equal(tail.images.images, images.images[tail.rows])


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda images: flip_labels(images, 1.5), "in \\[0, 1\\]"),
        (lambda images: flip_labels(images, 0.5, groups=torch.tensor([0, 0, 1])), "alone"),
        (lambda images: flip_labels(images, 0.5, groups=torch.tensor([0, 0])), "one for each"),
        (
            lambda images: plant_outliers(images, 0.5, outside=torch.tensor([True, True, False])),
            "leaves two or more",
        ),
        (
            lambda images: plant_outliers(images, 1.0, outside=torch.tensor([True, False, False])),
            "Mark more",
        ),
        (lambda images: split_identities(images, 0.5, parts=1), "2 parts"),
        (lambda images: split_identities(images, -0.5), "in \\[0, 1\\]"),
        (lambda images: long_tail(images, 4, 1), "from 0 to 3"),
        (lambda images: long_tail(images, 1, 0), "at least 1"),
    ],
)
def test_wrong_wishes_are_refused(plant, said):
    images = ImageSet(
        torch.zeros(6, 3, 1, 1, dtype=torch.uint8), torch.arange(6) % 3, tuple("abc"), "six"
    )
    with pytest.raises(ValueError, match=said):
        plant(images)
