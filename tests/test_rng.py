import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given

from marginlab.rng import Key, philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers published with Random123
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, words):
    a, b, c, d = (torch.tensor(word) for word in counter)
    assert tuple(int(word) for word in philox((a, b, c, d), key)) == words


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 4), st.integers(0, 2**63))
def test_a_draw_alone_equals_the_draw_in_a_batch(image, view, seed):
    key = Key(seed).named("crop")
    batch = key.at(torch.tensor([3, image, 5])[:, None], torch.arange(view, view + 4))
    alone = key.at(image, view + 2)
    assert batch.uniform()[1, 2] == alone.uniform()
    assert batch.bits()[1, 2] == alone.bits()
    assert batch.normal()[1, 2] == alone.normal()
    assert batch.integers(10)[1, 2] == alone.integers(10)


@given(st.integers(0, 2**63), st.integers(1, 2**31))
def test_integers_are_in_range_and_equal_exact_arithmetic(seed, high):
    key = Key(seed).at(torch.arange(50))
    a, b, _, _ = key.words()
    exact = [(int(x) * high + (int(y) * high >> 32)) >> 32 for x, y in zip(a, b, strict=True)]
    assert key.integers(high).tolist() == exact
    assert all(0 <= value < high for value in exact)


def test_names_seeds_and_indices_are_all_told_apart():
    keys = [
        Key(0), Key(1), Key(0).named("a"), Key(0).named("b"), Key(0).named("a", "b"), Key(0).named("ab"), Key(0).named(1), Key(0).named("1"),
        Key(0).at(1), Key(0).at(0, 1), Key(0).at(0, 0, 1), Key(0).at(0, 0, 0, 1),
    ]  # fmt: skip
    assert len({int(key.bits()) for key in keys}) == len(keys)


def test_distributions():
    key = Key(3).at(torch.arange(20_000))
    assert scipy.stats.kstest(key.named("u").uniform().numpy(), "uniform").pvalue > 0.01
    assert scipy.stats.kstest(key.named("n").normal().numpy(), "norm").pvalue > 0.01
    assert scipy.stats.chisquare(torch.bincount(key.named("i").integers(7)).numpy()).pvalue > 0.01
    assert abs(key.named("b").bernoulli(0.3).float().mean() - 0.3) < 0.015
    uniform = np.stack([key.named(name).uniform().numpy() for name in "xyz"])
    assert np.abs(np.corrcoef(uniform) - np.eye(3)).max() < 0.03
    low, high = key.uniform(2.0, 5.0).aminmax()
    assert 2.0 <= low < 2.01
    assert 4.99 < high <= 5.0


@given(st.integers(0, 2**40), st.integers(1, 60))
def test_a_permutation_is_one(seed, n):
    assert sorted(Key(seed).at(2).permutation(n).tolist()) == list(range(n))


def test_permutations_are_uniform():
    seen = torch.stack([Key(0).at(epoch).permutation(3) for epoch in range(3_000)])
    counts = np.unique(seen.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_a_generator_is_seeded_by_its_key():
    one, same, other = (torch.rand(4, generator=key.generator()) for key in (Key(0).named("w"), Key(0).named("w"), Key(0).named("v")))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_bad_indices_are_refused():
    with pytest.raises(ValueError, match=r"lies in \[0, 2\*\*32\), not at -1"):
        Key(0).at(torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="not at 4294967296"):
        Key(0).at(2**32)
    with pytest.raises(ValueError, match="at most 4 indices, not 5"):
        Key(0).at(1, 2, 3, 4, 5)
    with pytest.raises(TypeError, match=r"integer tensor, not torch\.float32"):
        Key(0).at(torch.rand(3))
    with pytest.raises(ValueError, match="not 0"):
        Key(0).integers(0)
