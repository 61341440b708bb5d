import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings

from marginlab.evaluation import associate, associate_replicates
from marginlab.evaluation.association import Correlation

SCIPY = {
    "spearman": scipy.stats.spearmanr,
    "kendall": scipy.stats.kendalltau,
    "pearson": scipy.stats.pearsonr,
}


def pairs_of(letters):
    return ["".join(pair) for pair in itertools.combinations(letters, 2)]


@st.composite
def two_mappings(draw, letters=("abc", "abcd", "acxz", "abcde")):
    """Values with many ties, or with hardly any."""
    pairs = pairs_of(draw(st.sampled_from(letters)))
    values = st.lists(
        draw(st.sampled_from([st.integers(0, 3), st.integers(-1000, 1000)])),
        min_size=len(pairs),
        max_size=len(pairs),
    )
    return tuple(
        {pair: value / 8 for pair, value in zip(pairs, draw(values), strict=True)} for _ in "xy"
    )


def varied(x, y):
    return len(set(x.values())) > 1 and len(set(y.values())) > 1


def relabelled(values, renamed):
    return {renamed[a] + renamed[b]: value for (a, b), value in values.items()}


@settings(max_examples=12)
@given(two_mappings())
def test_values_and_p_values_are_those_of_scipy_over_all_relabellings(both):
    x, y = both
    assume(varied(x, y))
    letters = sorted(set("".join(x)))
    found = associate(x, y)
    assert (found.letters, found.relabellings) == ("".join(letters), math.factorial(len(letters)))
    under = {name: [] for name in SCIPY}
    for renamed in itertools.permutations(letters):
        moved = relabelled(x, dict(zip(letters, renamed, strict=True)))
        moved = [moved[pair] if pair in moved else moved[pair[::-1]] for pair in y]
        for name, statistic in SCIPY.items():
            under[name].append(float(statistic(moved, list(y.values())).statistic))
    for name, all_ in under.items():
        own = getattr(found, name)
        assert own.value == pytest.approx(all_[0], abs=1e-12)
        assert own.greater == sum(r >= all_[0] - 1e-10 for r in all_) / len(all_)
        assert own.two_sided == sum(abs(r) >= abs(all_[0]) - 1e-10 for r in all_) / len(all_)
        assert own.greater >= 1 / found.relabellings


@given(two_mappings(), st.randoms())
def test_names_and_order_of_letters_and_monotone_maps_change_nothing(both, random):
    x, y = both
    found = associate(x, y)
    letters = sorted(set("".join(x)))
    renamed = dict(zip(letters, random.sample("pqrstuvw", len(letters)), strict=True))
    moved = [relabelled(values, renamed) for values in both]
    moved[0] = {pair[::-1]: moved[0][pair] for pair in random.sample(list(moved[0]), len(moved[0]))}
    same = associate(*moved)
    bent = associate(
        {pair: math.exp(value / 50) for pair, value in x.items()},
        {pair: value**3 for pair, value in y.items()},
    )
    straight = associate(
        {pair: 3 * value - 1 for pair, value in x.items()},
        {pair: 2e150 * value for pair, value in y.items()},
    )
    swapped = associate(y, x)
    for name in SCIPY:
        for other in (same, straight, swapped, *([] if name == "pearson" else [bent])):
            assert tuple(getattr(other, name)) == pytest.approx(
                tuple(getattr(found, name)), abs=1e-12, nan_ok=True
            )


def test_a_constant_has_no_correlation():
    x = dict.fromkeys(pairs_of("abcde"), 0.1)
    y = {pair: float(at) for at, pair in enumerate(x)}
    for one, two in ((x, y), (y, x), (x, x)):
        for correlation in associate(one, two)[:3]:
            assert all(math.isnan(number) for number in correlation)
    assert all(
        math.isnan(number)
        for spread in associate_replicates([x, y], [y])[:3]
        for number in spread[1:]
    )


def test_the_worth_of_one_letter_is_seen_and_cannot_be_significant_with_four_others_alike():
    """x and y count the letter a.

    Of 120 relabellings 24 keep a where it is: the least p-value there can be is .2, though Spearman
    is 1.
    """
    x = {pair: float("a" in pair) for pair in pairs_of("abcde")}
    assert associate(x, x).spearman == Correlation(1.0, 0.2, 0.2)


def test_under_the_null_one_in_twenty_is_rejected_and_permuting_pairs_rejects_more():
    """Both quantities are sums over letters, drawn independently: the pairs that share a letter go
    together in each of them.
    """
    random = np.random.default_rng(0)
    pairs = pairs_of("abcde")
    holds = np.array([[letter in pair for letter in "abcde"] for pair in pairs], dtype=float)
    runs, ours, naive = 400, 0, 0
    for _ in range(runs):
        x, y = (holds @ random.normal(size=5) + 0.2 * random.normal(size=10) for _ in "xy")
        ours += (
            associate(
                dict(zip(pairs, x, strict=True)), dict(zip(pairs, y, strict=True))
            ).pearson.greater
            <= 0.05
        )
        one, two = x - x.mean(), y - y.mean()
        shuffled = random.permuted(np.tile(one, (199, 1)), axis=1) @ two
        naive += (1 + int((shuffled >= one @ two).sum())) / 200 <= 0.05
    error = (0.05 * 0.95 / runs) ** 0.5
    assert abs(ours / runs - 0.05) < 3 * error
    assert naive / runs > 0.05 + 5 * error


@given(st.lists(two_mappings(letters=("abcd",)), min_size=1, max_size=3), st.integers(1, 3))
def test_replicates_give_every_combination(drawn, count):
    xs, ys = [x for x, _ in drawn], [y for _, y in drawn][:count]
    assume(all(varied(x, y) for x in xs for y in ys))
    found = associate_replicates(xs, ys)
    each = [associate(x, y) for x in xs for y in ys]
    assert found.combinations == len(each)
    means = [
        {pair: float(np.mean([values[pair] for values in replicates])) for pair in pairs_of("abcd")}
        for replicates in (xs, ys)
    ]
    for name in SCIPY:
        values, spread = [getattr(one, name).value for one in each], getattr(found, name)
        assert (spread.least, spread.largest) == (min(values), max(values))
        assert spread.of_means == pytest.approx(
            getattr(associate(*means), name).value, abs=1e-12, nan_ok=True
        )
        assert spread.of_means == pytest.approx(
            getattr(found.of_means, name).value, abs=0, nan_ok=True
        )
        deviation = np.std(values, ddof=1) if len(values) > 1 else math.nan
        assert spread.deviation == pytest.approx(deviation, abs=1e-12, nan_ok=True)


def test_bad_input_is_refused():
    good = {pair: float(at) for at, pair in enumerate(pairs_of("abcd"))}
    without = {pair: value for pair, value in good.items() if pair != "bd"}
    for x, y, sentence in (
        (
            good,
            good | {"aa": 1.0},
            r"keys of y are pairs of two different letters, such as 'ad', not \['aa'\]",
        ),
        (good | {"abc": 1.0}, good, "such as 'ad'"),
        (good | {"da": 1.0}, good, r"x has the pairs \['ad'\] in both orders"),
        (
            without,
            good,
            r"x needs a value for each pair of 'abcd' and no other: \['bd'\] are missing",
        ),
        (good, without, r"y needs .*\['bd'\] are missing"),
        (good, good | {"ae": 1.0}, r"\['ae'\] do not belong"),
        ({"ab": 1.0}, {"ab": 1.0}, "not of 2 letters"),
        ({}, {}, "not of 0 letters"),
        (dict.fromkeys(pairs_of("abcdefghi"), 1.0), good, "3 to 8 letters, not of 9"),
        (good, good | {"ac": math.nan}, r"y holds values at \['ac'\] that are not finite"),
    ):
        with pytest.raises(ValueError, match=sentence):
            associate(x, y)
    with pytest.raises(ValueError, match="no replicate of y"):
        associate_replicates([good], [])
    with pytest.raises(ValueError, match=r"\['bd'\] are missing"):
        associate_replicates([good, without], [good])


def test_a_message_names_a_few_of_many_keys():
    with pytest.raises(ValueError, match=r"not \['key0', .* 'key4'\] and 995 more"):
        associate({f"key{n}": 1.0 for n in range(1000)}, {})
