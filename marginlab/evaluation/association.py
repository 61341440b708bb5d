"""Association of two quantities over all pairs of letters, tested by relabelling the letters.

    p = #{ relabellings s : r(x o s, y) >= r(x, y) } / L!
    (x o s)({a, b}) = x({s(a), s(b)}),  s a permutation of L letters

r is a rank correlation or Pearson's. Ten pairs of five operations share letters. A letter that is
bad in one pair tends to be bad in the four that hold it. So ten values are not ten independent
ones, and permuting them one by one finds associations too often. If x has nothing to do with y, the
names of the letters are exchangeable. This is the permutation test of two distance matrices
(Mantel, Cancer Research 27, 1967), here over all L! relabellings and exact.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from marginlab.evaluation.check import named

_MOST_LETTERS = 8  # 8! = 40320 relabellings of 28 pairs


class Correlation(NamedTuple):
    """A correlation and its permutation p-values.

    `greater` is for a correlation as large or larger, `two_sided` for one as far or farther from
    zero. All are NaN where x or y is constant, so that there is no correlation.
    """

    value: float
    greater: float
    two_sided: float


class Association(NamedTuple):
    """Spearman's and Pearson's correlation and Kendall's tau-b of x and y, with tests.

    They are over all pairs of letters. Each is tested over all `relabellings` of `letters`. Each
    test is exact by itself; nothing is corrected for there being three. No p-value is below
    1 / relabellings, because the identity counts.
    """

    spearman: Correlation
    kendall: Correlation
    pearson: Correlation
    letters: str
    relabellings: int


class Spread(NamedTuple):
    """A correlation over replicates, of the mean x with the mean y, and its spread.

    `least`, `largest` and the standard deviation `deviation` are over combinations. `deviation` is
    NaN for a single combination. All but `of_means` are NaN where one of the combinations has no
    correlation.
    """

    of_means: float
    least: float
    largest: float
    deviation: float


class ReplicatedAssociation(NamedTuple):
    """Spread of the correlations over combinations, and the association of the means.

    The `combinations` are all pairs of a replicate of x and one of y. The spread is conditional on
    the pairs of letters. It says how far seeds and images move a correlation, and is no confidence
    interval over pairs or letters.
    """

    spearman: Spread
    kendall: Spread
    pearson: Spread
    of_means: Association
    combinations: int


def associate(x: Mapping[str, float], y: Mapping[str, float]) -> Association:
    """Return correlations of x and y over all pairs of letters, with exact p-values.

    The p-values are over all relabellings of the letters. `greater` is for the claim that y grows
    with x. With 3 letters or more, different relabellings permute the pairs differently. There are
    L! of them (120 for 5 letters), and the least p-value is 1 / L!. Pairs are permuted together, by
    the letters' names. So a p-value for 5 letters can be large where the correlation over 10 pairs
    looks good. Ties count as "as large". Ties of Spearman's and Kendall's correlations are found in
    integers, those of Pearson's to 1e-12.

    Args:
        x: A finite number for each pair of letters, such as {"ab": ..., "ac": ..., "bc": ...}. The
            order within a pair does not matter. All pairs of the letters that occur must be there,
            of at least 3 and at most 8 letters.
        y: The same for the other quantity.

    Raises:
        ValueError: A key is no pair of two letters, a pair is given twice or missing, y has other
            pairs than x, there are too few or too many letters, or a value is not finite.

    Example:
        Only 1 relabelling of 24 keeps the order.

        >>> error = {"ab": 0.5, "ac": 0.3, "ad": 0.1, "bc": 0.6, "bd": 0.4, "cd": 0.2}
        >>> found = associate({pair: value**2 for pair, value in error.items()}, error)
        >>> found.kendall, found.relabellings
        (Correlation(value=1.0, greater=0.041666666666666664, two_sided=0.041666666666666664), 24)
    """
    letters, (one,) = _values([x], "x")
    _, (two,) = _values([y], "y", letters)
    return _associated(one, two, letters)


def associate_replicates(
    xs: Sequence[Mapping[str, float]], ys: Sequence[Mapping[str, float]]
) -> ReplicatedAssociation:
    """Return correlations over every combination of a replicate of x with a replicate of y.

    Args:
        xs: Replicates of x (such as blocks of images), each a mapping as in `associate`. All
            replicates are over the same letters.
        ys: Replicates of y (such as seeds of training). Their number may differ from that of x.

    Raises:
        ValueError: As for `associate`, or there is no replicate.

    Example:
        >>> x, y = {"ab": 1.0, "ac": 2.0, "bc": 3.0}, {"ab": 1.0, "ac": 3.0, "bc": 2.0}
        >>> associate_replicates([x], [x, y]).spearman
        Spread(of_means=0.8660254037844387, least=0.5, largest=1.0, deviation=0.3535533905932738)
    """
    letters, one = _values(xs, "x")
    _, two = _values(ys, "y", letters)
    of_means = _associated(one.mean(0), two.mean(0), letters)
    each = np.array(
        [[statistic.value for statistic in _statistics(a, b)] for a in one for b in two]
    )
    deviations = each.std(0, ddof=1) if len(each) > 1 else np.full(3, np.nan)
    rows = zip(
        (of_means.spearman, of_means.kendall, of_means.pearson),
        each.min(0),
        each.max(0),
        deviations,
        strict=True,
    )
    spearman, kendall, pearson = (
        Spread(mean.value, float(least), float(most), float(apart))
        for mean, least, most, apart in rows
    )
    return ReplicatedAssociation(spearman, kendall, pearson, of_means, len(each))


class _Statistic(NamedTuple):
    """A correlation as <a, b> / norm with norm = |a| |b|, of arrays whose axes are pairs.

    A relabelling permutes the axes of a.
    """

    a: np.ndarray
    b: np.ndarray
    norm: float
    tolerance: float  # inner products this close count as equal

    @property
    def value(self) -> float:
        return float(np.clip((self.a * self.b).sum() / self.norm, -1, 1)) if self.norm else math.nan

    def tested(self, permuted: np.ndarray) -> Correlation:
        """Return the correlation with its p-values over permutations of the pairs (R, n).

        The permutations include the identity.
        """
        if not self.norm:
            return Correlation(math.nan, math.nan, math.nan)
        observed = (self.a * self.b).sum()
        greater = far = 0
        for s in permuted:
            other = (self.a[np.ix_(*[s] * self.a.ndim)] * self.b).sum()
            greater += other >= observed - self.tolerance
            far += abs(other) >= abs(observed) - self.tolerance
        return Correlation(self.value, int(greater) / len(permuted), int(far) / len(permuted))


def _statistics(x: np.ndarray, y: np.ndarray) -> tuple[_Statistic, _Statistic, _Statistic]:
    """Return Spearman's correlation, Kendall's tau-b and Pearson's correlation.

    Ranks and signs are whole numbers, so that equal correlations compare equal.
    """
    import scipy.stats  # takes a while to import

    n = len(x)
    # centered, and whole numbers for ties too
    ranks = [2 * scipy.stats.rankdata(v).astype(float) - (n + 1) for v in (x, y)]
    signs = [np.sign(np.subtract.outer(v, v)) for v in (x, y)]
    centred = [v / (np.abs(v).max() or 1.0) for v in (x, y)]  # no overflow in squares
    centred = [v - v.mean() if np.ptp(v) else np.zeros_like(v) for v in centred]
    found = []
    for (a, b), tolerance in ((ranks, 0.5), (signs, 0.5), (centred, 0.0)):
        norm = math.sqrt((a * a).sum() * (b * b).sum())
        found.append(_Statistic(a, b, norm, tolerance or 1e-12 * norm))
    spearman, kendall, pearson = found
    return spearman, kendall, pearson


def _associated(x: np.ndarray, y: np.ndarray, letters: str) -> Association:
    pairs = list(itertools.combinations(range(len(letters)), 2))
    place = np.zeros((len(letters), len(letters)), dtype=np.int64)
    for at, (i, j) in enumerate(pairs):
        place[i, j] = place[j, i] = at
    renamed = np.array(list(itertools.permutations(range(len(letters)))))
    first, second = np.array(pairs).T
    permuted = place[renamed[:, first], renamed[:, second]]  # (L!, pairs)
    spearman, kendall, pearson = (statistic.tested(permuted) for statistic in _statistics(x, y))
    return Association(spearman, kendall, pearson, letters, len(permuted))


def _values(
    replicates: Sequence[Mapping[str, float]], name: str, letters: str | None = None
) -> tuple[str, np.ndarray]:
    """Return the letters, and the values of each replicate, (replicates, pairs).

    The values are in the order of itertools.combinations.
    """
    if not replicates:
        raise ValueError(
            f"There is no replicate of {name}: give at least one mapping from pairs of letters to "
            "numbers."
        )
    found = []
    for given in replicates:
        wrong = [
            pair
            for pair in given
            if not isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]
        ]
        if wrong:
            raise ValueError(
                f"The keys of {name} are pairs of two different letters, such as 'ad', not "
                f"{named(wrong)}."
            )
        values = {"".join(sorted(pair)): float(value) for pair, value in given.items()}
        if len(values) < len(given):
            twice = sorted(pair for pair in given if pair[::-1] in given and pair[0] < pair[1])
            raise ValueError(
                f"{name} has the pairs {twice} in both orders, which are one pair: leave one out."
            )
        letters = letters if letters is not None else "".join(sorted(set("".join(values))))
        if not 3 <= len(letters) <= _MOST_LETTERS:
            count = f"{len(letters)} letters ({letters!r})"
            raise ValueError(
                f"All relabellings are tried of 3 to {_MOST_LETTERS} letters, not of {count}: with "
                "fewer there is nothing to permute."
            )
        pairs = ["".join(pair) for pair in itertools.combinations(letters, 2)]
        if set(pairs) != set(values):
            missing, foreign = sorted(set(pairs) - set(values)), sorted(set(values) - set(pairs))
            raise ValueError(
                f"{name} needs a value for each pair of {letters!r} and no other: {missing} are "
                f"missing, {foreign} do not belong."
            )
        infinite = [pair for pair in pairs if not math.isfinite(values[pair])]
        if infinite:
            raise ValueError(
                f"{name} holds values at {infinite} that are not finite: a pair that was not "
                "measured is left out with its letter."
            )
        found.append([values[pair] for pair in pairs])
    return letters or "", np.array(found)
