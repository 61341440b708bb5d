import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from marginlab.data import ImageSet
from marginlab.data.labels import in_split


def image_set(labels, classes=3, name="made"):
    labels = torch.as_tensor(labels)
    # an image's value is its index
    images = torch.arange(len(labels))[:, None, None, None].expand(-1, 3, 2, 2).to(torch.uint8)
    return ImageSet(images, labels, tuple("abcdefgh"[:classes]), name)


labelled = st.lists(st.integers(0, 2), min_size=2, max_size=60).filter(
    lambda labels: len(set(labels)) > 1
)


@given(labelled, st.integers(0, 2**40), st.data())
def test_a_subset_is_balanced_sorted_and_nested(labels, seed, data):
    whole = image_set(labels)
    n = data.draw(st.integers(2, len(labels)))
    small = whole.subset(n, seed)
    index = small.images[:, 0, 0, 0].long()
    assert len(small) == n
    assert torch.equal(index, index.unique())
    assert torch.equal(small.labels, whole.labels[index])
    have, got = torch.bincount(whole.labels, minlength=3), torch.bincount(small.labels, minlength=3)
    short = got < have  # a class that could give more is at most one behind the largest
    assert not short.any() or int(got[short].min()) >= int(got.max()) - 1
    larger = whole.subset(data.draw(st.integers(n, len(labels))), seed)
    assert set(index.tolist()) <= set(larger.images[:, 0, 0, 0].tolist())


def test_a_subset_depends_on_its_seed_and_may_be_the_whole():
    whole = image_set([0, 1, 2] * 20)
    assert whole.subset(0) is whole
    assert whole.subset(60) is whole
    assert whole.subset(1000) is whole
    chosen = [whole.subset(9, seed).images[:, 0, 0, 0].tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]
    assert whole.subset(9).classes == whole.classes
    assert whole.subset(9).name == "made"


@pytest.mark.parametrize("n", [-1, 1])
def test_a_subset_without_two_classes_is_refused(n):
    with pytest.raises(ValueError, match=f"a subset of {n} images cannot hold two classes"):
        image_set([0, 1, 2]).subset(n)


@given(labelled)
def test_the_split_is_a_partition_with_a_fifth_of_each_class(labels):
    labels = torch.tensor(labels)
    test, train = in_split(labels, "test"), in_split(labels, "train")
    assert torch.equal(test, ~train)
    for n, taken in zip(
        torch.bincount(labels).tolist(),
        torch.bincount(labels[test], minlength=3).tolist(),
        strict=False,
    ):
        assert taken == (0 if n < 2 else max(1, round(n / 5)))


def test_to_moves_both_tensors():
    moved = image_set([0, 1]).to(torch.device("cpu"))
    assert moved.images.device == moved.labels.device == torch.device("cpu")
    assert len(moved) == 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"images": torch.rand(4, 3, 2, 2)},
            TypeError,
            r"images are uint8, not torch\.float32\. Turn values",
        ),
        (
            {"images": torch.zeros(4, 2, 2, 3, dtype=torch.uint8)},
            ValueError,
            r"\(N, 3, H, W\), not \(4, 2, 2, 3\)",
        ),
        (
            {"images": torch.zeros(4, 2, 2, dtype=torch.uint8)},
            ValueError,
            r"\(N, 3, H, W\), not \(4, 2, 2\)",
        ),
        (
            {
                "images": torch.zeros(0, 3, 2, 2, dtype=torch.uint8),
                "labels": torch.zeros(0, dtype=torch.int64),
            },
            ValueError,
            "there are no images",
        ),
        ({"images": torch.zeros(4, 3, 0, 2, dtype=torch.uint8)}, ValueError, "there are no images"),
        (
            {"labels": torch.tensor([0.0, 1.0, 0.0, 1.0])},
            TypeError,
            r"labels are int64, not torch\.float32",
        ),
        (
            {"labels": torch.tensor([0, 1, 0])},
            ValueError,
            r"4 images need labels of shape \(4,\), not \(3,\)",
        ),
        ({"labels": torch.tensor([[0, 1, 0, 1]])}, ValueError, r"not \(1, 4\)"),
        (
            {"labels": torch.tensor([0, 1, 2, 3])},
            ValueError,
            "label 3 is out of range: 3 classes are numbered from 0 to 2",
        ),
        ({"labels": torch.tensor([0, 1, -2, 1])}, ValueError, "label -2 is out of range"),
        (
            {"labels": torch.tensor([1, 1, 1, 1])},
            ValueError,
            "all 4 images are of class 1, and a set has at least two classes",
        ),
    ],
)
def test_an_image_set_that_cannot_be_used_is_refused(change, error, message):
    fields = {
        "images": torch.zeros(4, 3, 2, 2, dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 2, 1]),
        "classes": ("a", "b", "c"),
        "name": "made",
    }
    assert len(ImageSet(**fields)) == 4
    with pytest.raises(error, match=message):
        ImageSet(**(fields | change))


@given(labelled, st.integers(0, 2**40), st.integers(1, 3), st.integers(1, 3))
def test_blocks_are_disjoint_balanced_and_begin_with_the_subset(labels, seed, n, count):
    whole = image_set(labels)
    if n * count > int(torch.bincount(whole.labels, minlength=3).min()):
        with pytest.raises(ValueError, match="Ask for fewer"):
            whole.blocks(n, count, seed)
        return
    blocks = whole.blocks(n, count, seed)
    index = torch.cat([block.images[:, 0, 0, 0] for block in blocks])
    assert len(index.unique()) == len(index) == count * n * 3
    for block in blocks:
        assert torch.bincount(block.labels).tolist() == [n] * 3
    assert torch.equal(blocks[0].images, whole.subset(3 * n, seed).images)
    assert torch.equal(blocks[0].images, whole.blocks(n, 1, seed)[0].images)
