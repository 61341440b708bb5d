import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import example, given

from marginlab import rng
from marginlab.rng import Key, philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers published with Random123
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
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
        Key(0),
        Key(1),
        Key(0).named("a"),
        Key(0).named("b"),
        Key(0).named("a", "b"),
        Key(0).named("ab"),
        Key(0).named(1),
        Key(0).named("1"),
        Key(0).at(1),
        Key(0).at(0, 1),
        Key(0).at(0, 0, 1),
        Key(0).at(0, 0, 0, 1),
    ]
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


@given(st.integers(0, 2**40), st.one_of(st.integers(1, 80), st.integers(81, 3_000)), st.randoms())
@example(0, 1, None)
@example(0, 2, None)
@example(5, 1_000_000, None)
def test_a_shuffle_is_a_permutation_and_a_part_of_it_is_the_same(seed, n, random):
    key = Key(seed).named("classes").at(3)
    whole = key.shuffle(torch.arange(n), n)
    assert torch.equal(whole.sort().values, torch.arange(n))
    part = torch.tensor(
        [random.randrange(n) for _ in range(9)] if random else [n - 1, 0, n // 2, 0]
    )
    assert torch.equal(key.shuffle(part, n), whole[part])
    assert torch.equal(key.shuffle(part.int(), n), whole[part])
    assert key.shuffle(part[:0], n).tolist() == []


def test_the_largest_shuffle_stays_in_range_and_repeats_nothing():
    index = torch.cat((torch.arange(2**32 - 5_000, 2**32), torch.arange(5_000)))
    places = Key(0).shuffle(index, 2**32)
    assert places.min() >= 0
    assert places.max() < 2**32
    assert len(places.unique()) == len(index)
    assert scipy.stats.kstest(places.numpy() / 2**32, "uniform").pvalue > 0.01


def test_shuffles_of_other_seeds_names_places_and_lengths_differ():
    keys = [Key(0), Key(1), Key(0).named("a"), Key(0).at(1), Key(0).at(2), Key(0).at(0, 0, 1)]
    assert len({tuple(key.shuffle(torch.arange(50), 50).tolist()) for key in keys}) == len(keys)
    assert (
        Key(0).shuffle(torch.arange(20), 99).tolist()
        != Key(0).shuffle(torch.arange(20), 100).tolist()
    )


def test_many_keys_shuffle_at_once_each_as_alone():
    index = torch.tensor([6, 0, 3, 3])
    for n in (7, 11, 100):  # at 7 and 11 some places walk
        together = Key(4).at(torch.arange(12).view(4, 3), 5).shuffle(index, n)
        assert together.shape == (4, 3, 4)
        alone = [Key(4).at(step, 5).shuffle(index, n) for step in range(12)]
        assert torch.equal(together.view(12, 4), torch.stack(alone))


def pair_uniformity(n):
    """The p values of chi-square over all ordered pairs of places: of two that begin in one half,
    in the other, and in none.
    """
    b = -(-n // (math.isqrt(n - 1) + 1))
    index = torch.tensor([0, 1, b, n - 1])
    cells = n * (n - 1)
    first, *others = (
        Key(1).named("pairs").at(torch.arange(max(4_000, 6 * cells))).shuffle(index, n).T
    )
    counts = (
        torch.bincount(first * (n - 1) + other - (other > first).long(), minlength=cells)
        for other in others
    )
    return [scipy.stats.chisquare(count.numpy()).pvalue for count in counts]


def test_two_places_of_a_shuffle_are_jointly_uniform():
    values = [value for n in (*range(5, 18), *range(18, 65, 5), 64) for value in pair_uniformity(n)]
    assert min(values) > 0.01 / len(values)  # Bonferroni
    assert scipy.stats.kstest(values, "uniform").pvalue > 0.01


def test_the_test_of_pairs_sees_rounds_that_are_too_few(monkeypatch):
    monkeypatch.setattr(rng, "_UNIFORM_BITS", 1)
    monkeypatch.setattr(rng, "_FEWEST_ROUNDS", 2)
    assert max(min(pair_uniformity(n)) for n in range(13, 26)) < 1e-6


def law_of_a_difference(a, b, rounds):
    """The exact chance that two places of Z_a x Z_b that differ by row i differ by column i after
    so many rounds.
    """
    left, right = np.eye(a * b), np.eye(a * b)
    for dl in range(a):
        for dr in range(b):
            if dr:  # other rows: other words are added to the left halves
                left[dl * b + dr] = np.tile(np.eye(b)[dr], a) / a
            if dl:
                right[dl * b + dr] = np.repeat(np.eye(a)[dl], b) / b
    return np.linalg.matrix_power(left @ right, rounds)[1:, 1:]


def test_a_pair_is_as_near_to_uniform_as_it_is_said():
    for a, b in [(2, 2), (3, 2), (3, 3), (4, 3), (5, 5), (8, 7), (13, 12)]:
        for rounds in range(1, 9):
            law = law_of_a_difference(a, b, rounds)
            np.testing.assert_allclose(law.sum(1), 1)
            assert 0.5 * np.abs(law - 1 / (a * b - 1)).sum(1).max() <= b ** (1 - rounds)


@pytest.mark.parametrize("rounds", [2, 3])
def test_a_pair_follows_its_exact_law(monkeypatch, rounds):
    a, b = 4, 3  # 12 places, none walks
    monkeypatch.setattr(rng, "_FEWEST_ROUNDS", rounds)
    monkeypatch.setattr(rng, "_UNIFORM_BITS", 1)
    origin, *others = Key(6).named("law").at(torch.arange(20_000)).shuffle(torch.arange(12), 12).T
    law = law_of_a_difference(a, b, rounds)
    for start, other in enumerate(others):
        difference = (other // b - origin // b) % a * b + (other % b - origin % b) % b
        counts = torch.bincount(difference, minlength=12)[1:]
        assert scipy.stats.chisquare(counts.numpy(), 20_000 * law[start]).pvalue > 1e-3


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_short_shuffles_are_uniform_over_all_orders(n):
    seen = Key(2).named("orders").at(torch.arange(6_000)).shuffle(torch.arange(n), n)
    counts = np.unique(seen.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == math.factorial(n)
    assert scipy.stats.chisquare(counts).pvalue > 0.01


# 9 = 3 x 3 reaches even permutations only, and triples do not see it
@pytest.mark.parametrize("n", [9, 12, 16])
def test_three_places_of_a_shuffle_are_jointly_uniform(n):
    for index in ([0, 1, 2], [0, 4, n - 1]):
        x, y, z = Key(3).named("triples").at(torch.arange(20_000)).shuffle(torch.tensor(index), n).T
        assert ((x != y) & (y != z) & (x != z)).all()
        counts = np.unique((x * n + y) * n + z, return_counts=True)[1]
        cells = n * (n - 1) * (n - 2)
        assert scipy.stats.chisquare(np.pad(counts, (0, cells - len(counts)))).pvalue > 0.001


def test_the_first_places_of_a_shuffle_are_a_simple_random_sample():
    taken = Key(5).named("sets").at(torch.arange(3_000)).shuffle(torch.arange(100), 1_000)
    law = scipy.stats.hypergeom(1_000, 250, 100)
    edges = law.ppf(np.linspace(0.1, 0.9, 9))
    expected = np.diff([0, *law.cdf(edges), 1])
    for name, inside in {"a block": taken < 250, "one residue": taken % 4 == 1}.items():
        counts = np.bincount(np.searchsorted(edges, inside.sum(1).numpy()), minlength=10)
        assert scipy.stats.chisquare(counts, 3_000 * expected).pvalue > 0.01, name


def test_bad_shuffles_are_refused():
    for n in (0, 2**32 + 1):
        with pytest.raises(ValueError, match=f"not n = {n}"):
            Key(0).shuffle(torch.arange(1), n)
    with pytest.raises(ValueError, match=r"takes places in \[0, 5\), not 5"):
        Key(0).shuffle(torch.arange(6), 5)
    with pytest.raises(ValueError, match="not -1"):
        Key(0).shuffle(torch.tensor([-1, 2]), 5)


def test_a_generator_is_seeded_by_its_key():
    one, same, other = (
        torch.rand(4, generator=key.generator())
        for key in (Key(0).named("w"), Key(0).named("w"), Key(0).named("v"))
    )
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
