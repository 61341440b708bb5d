"""Verification against scikit-learn's KFold and roc_curve by brute force, the exact interval by
simulation, and pairs by enumeration.
"""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, reject, settings
from sklearn.metrics import roc_curve
from sklearn.model_selection import KFold

from marginlab.evaluation import pairs, tar_at_far, verification_accuracy
from marginlab.evaluation.verification import _candidates


def drawn(seed, n, D=4, tied=False, mixed=0.8):
    """Features of n pairs whose genuine ones are nearer; with `tied` they are signs, so that
    distances are 0, 1, 2, 3 and 4, and tie exactly.
    """
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, D, generator=generator, dtype=torch.float64)
    same = torch.rand(n, generator=generator) < 0.5
    same[:2] = torch.tensor([True, False])
    second = torch.where(same[:, None], first, 0) + mixed * torch.randn(
        n, D, generator=generator, dtype=torch.float64
    )
    return (first.sign(), second.sign(), same) if tied else (first, second, same)


def distance(first, second):
    cosine = torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=1)
    return (2 - 2 * cosine).numpy().round(12)  # equal distances are equal in another arithmetic too


def brute(d, same, folds, grid):
    """Every threshold of a list on every fold, by loops: accuracies of the held-out folds."""
    found = []
    for train, held in KFold(folds).split(d):
        tried = grid if grid is not None else [0.0, *(t + 1e-9 for t in sorted(d[train]))]
        # the first of equals
        best = max(tried, key=lambda t: (np.sum((d[train] < t) == same[train]), -t))
        nearest = (
            d[train][d[train] < best].max(initial=-1.0),
            d[train][d[train] >= best].min(initial=math.inf),
        )
        found.append((best, nearest, held))
    return found


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(4, 60), st.integers(2, 11), st.booleans())
def test_exact_thresholds_are_those_of_brute_force_on_scikit_learns_folds(seed, n, folds, tied):
    folds = min(folds, n)
    first, second, same = drawn(seed, n, tied=tied)
    found = verification_accuracy(first, second, same, folds)
    d, kinds = distance(first, second), same.numpy()
    assert len(found.folds) == len(found.thresholds) == folds
    for accuracy, t, (_, (below, above), held) in zip(
        found.folds, found.thresholds, brute(d, kinds, folds, None), strict=True
    ):
        assert below - 1e-9 <= t <= above + 1e-9  # it cuts the training pairs as the best one does
        assert accuracy == np.mean((d[held] < t) == kinds[held])
    assert found.accuracy == pytest.approx(np.mean(found.folds))
    assert found.deviation == pytest.approx(np.std(found.folds))
    assert found.standard_error == pytest.approx(np.std(found.folds, ddof=1) / math.sqrt(folds))


@given(st.integers(0, 10**6), st.integers(10, 60))
def test_the_published_grid_is_that_of_brute_force(seed, n):
    first, second, same = drawn(seed, n)
    found = verification_accuracy(first, second, same, 5, thresholds="grid")
    d, kinds = distance(first, second), same.numpy()
    for accuracy, t, (best, _, held) in zip(
        found.folds, found.thresholds, brute(d, kinds, 5, np.arange(0, 4, 0.01)), strict=True
    ):
        assert t == best
        assert accuracy == np.mean((d[held] < best) == kinds[held])


def test_features_are_judged_by_direction_alone_and_exact_is_no_worse_where_it_is_chosen():
    first, second, same = drawn(0, 400)
    found = verification_accuracy(first, second, same)
    assert 0.6 < found.accuracy < 0.95
    scales = torch.rand(400, 1, dtype=torch.float64) + 0.1
    again = verification_accuracy(first * scales, second / scales, same)
    assert again.folds == found.folds
    assert again.thresholds == pytest.approx(found.thresholds, abs=1e-12)
    float32 = verification_accuracy(first.float(), second.float(), same)
    assert float32.accuracy == pytest.approx(found.accuracy, abs=0.01)


def test_a_collapsed_network_has_the_accuracy_of_the_larger_kind():
    same = torch.arange(20) % 5 != 0
    found = verification_accuracy(torch.ones(20, 4), torch.ones(20, 4), same, folds=4)
    assert found.folds == (0.8, 0.8, 0.8, 0.8)
    assert set(found.thresholds) == {math.inf}  # everything is accepted
    assert (
        verification_accuracy(torch.ones(20, 4), torch.ones(20, 4), ~same, folds=4).thresholds
        == (0.0,) * 4
    )


def test_between_neighbouring_floats_there_is_a_threshold():
    d = torch.tensor([0.5, np.nextafter(0.5, 1)], dtype=torch.float64)
    assert [int((d < t).sum()) for t in _candidates(d)] == [0, 1, 2]


def test_arrays_are_read_as_tensors_and_no_length_hides_a_direction():
    first, second, same = drawn(4, 60)
    whole = verification_accuracy(first, second, same)
    arrays = first.numpy(), second.numpy(), same.numpy()
    assert verification_accuracy(*arrays) == whole
    assert tar_at_far(*arrays, 0.1) == tar_at_far(first, second, same, 0.1)
    for large in (1e-200, 1e200):
        again = verification_accuracy(first * large, second / large, same)
        assert again.folds == whole.folds
    labels = torch.arange(40) // 4
    assert torch.equal(pairs(labels.numpy(), 20, folds=5).first, pairs(labels, 20, folds=5).first)


def test_pairs_are_compared_in_blocks(monkeypatch):
    first, second, same = drawn(3, 50)
    whole = verification_accuracy(first, second, same)
    monkeypatch.setattr("marginlab.evaluation.verification._BLOCK", 28)  # 7 rows
    assert verification_accuracy(first, second, same) == whole


# TAR at FAR


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(20, 200),
    st.sampled_from([0.05, 0.1, 0.2, 1 / 3, 0.5]),
    st.booleans(),
)
def test_tar_at_far_are_points_of_scikit_learns_roc(seed, n, far, tied):
    first, second, same = drawn(seed, n, tied=tied)
    impostors = int((~same).sum())
    if far * impostors < 1:
        with pytest.raises(ValueError, match="needs at least"):
            tar_at_far(first, second, same, far)
        return
    d = distance(first, second)
    rates, tars, _ = roc_curve(same.numpy(), -d, drop_intermediate=False)
    below, nearest = (
        tar_at_far(first, second, same, far),
        tar_at_far(first, second, same, far, point="nearest"),
    )
    assert below.far <= far + 1e-12
    at = np.flatnonzero(rates <= far + 1e-12).max()
    assert (below.far, below.tar) == pytest.approx((rates[at], tars[at]))
    away = np.abs(rates - far)
    assert abs(nearest.far - far) == pytest.approx(away.min())
    assert nearest.tar == pytest.approx(tars[rates <= nearest.far + 1e-12].max())
    for found in (below, nearest):
        assert (found.genuine, found.impostors) == (int(same.sum()), impostors)
        assert np.mean(d[same.numpy()] < found.threshold) == pytest.approx(found.tar)
        assert np.mean(d[~same.numpy()] < found.threshold) == pytest.approx(found.far)
    assert 0 <= below.low <= below.tar <= below.high <= 1


def published_nearest(d, same, far, *, drop):
    """The point of the published evaluation of IJB-B and IJB-C: rate and TAR."""
    rates, tars, _ = roc_curve(same, -d, drop_intermediate=drop)
    rates, tars = np.flipud(rates), np.flipud(tars)
    _, at = min(zip(abs(rates - far), range(len(rates)), strict=True))
    return rates[at], tars[at]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(40, 200), st.sampled_from([0.07, 0.13, 0.31]))
def test_dropped_points_of_the_published_curve_are_farther_and_their_tar_no_smaller(seed, n, far):
    first, second, same = drawn(seed, n)
    d, kinds = distance(first, second), same.numpy()
    if far * int((~same).sum()) < 1:
        reject()
    ours = tar_at_far(first, second, same, far, point="nearest")
    rate, tar = published_nearest(d, kinds, far, drop=True)
    assert abs(rate - far) >= abs(ours.far - far) - 1e-12
    assert tar >= ours.tar - 1e-12
    rate, tar = published_nearest(d, kinds, far, drop=False)
    if abs(abs(rate - far) - abs(ours.far - far)) < 1e-9 and rate > ours.far + 1e-9:
        assert rate - far == pytest.approx(far - ours.far)  # two as near: theirs is the larger
    else:
        assert (rate, tar) == pytest.approx((ours.far, ours.tar))


def test_the_published_curve_can_drop_the_nearest_point():
    """Ten impostors without a genuine pair between the second and the ninth: 0.5 was dropped."""
    angle = torch.tensor([0.1, *torch.linspace(0.2, 1.2, 9), 1.15, 1.3, 1.4], dtype=torch.float64)
    same = torch.tensor([True, *[False] * 9, True, True, False])
    first = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(13, 2)
    second = torch.stack([angle.cos(), angle.sin()], 1)
    ours = tar_at_far(first, second, same, 0.5, point="nearest")
    assert (ours.far, ours.tar) == pytest.approx((0.5, 1 / 3))
    d = distance(first, second)
    assert published_nearest(d, same.numpy(), 0.5, drop=False) == pytest.approx((0.5, 1 / 3))
    assert published_nearest(d, same.numpy(), 0.5, drop=True) == pytest.approx((0.8, 2 / 3))


def test_the_interval_covers_the_tar_at_the_true_far():
    """Distances of two known distributions: the TAR at the true FAR is known, and the interval
    misses it in less than 5 % of 400 trials.
    """
    generator = torch.Generator().manual_seed(0)
    far, missed, widths = 0.1, 0, []
    impostor, genuine = scipy.stats.norm(1.2, 0.3), scipy.stats.norm(0.7, 0.25)  # of the angle
    truth = genuine.cdf(impostor.ppf(far))
    for _ in range(400):
        same = torch.arange(1000) % 2 == 0
        noise = torch.randn(1000, generator=generator, dtype=torch.float64)
        # below 0 in 0.3 % of genuine pairs, accepted all the same
        angle = torch.where(same, 0.7 + 0.25 * noise, 1.2 + 0.3 * noise).abs()
        first = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(1000, 2)
        found = tar_at_far(first, torch.stack([angle.cos(), angle.sin()], 1), same, far)
        missed += not found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert missed / 400 < 0.05
    assert np.mean(widths) < 0.25  # and it says something


def test_without_a_threshold_below_the_interval_reaches_zero():
    first, second, same = drawn(1, 60, mixed=0.3)
    found = tar_at_far(first, second, same, 1.5 / int((~same).sum()))
    # with 1.5 impostors expected, the nearest may well lie beyond the threshold of that rate
    assert found.low == 0.0
    assert found.high > found.tar


# what is refused


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_judged_is_refused():
    x, same = torch.eye(4), torch.tensor([True, False, True, False])
    for arguments, more, sentence in (
        (
            (x, x[:3], same),
            {},
            r"two \(n, D\) tensors of floating-point features, not torch.float32 \(4, 4\) "
            r"and torch.float32 \(3, 4\)",
        ),
        ((x.long(), x.long(), same), {}, "floating-point features"),
        ((x, x, same.long()), {}, "4 pairs need as many bools .* not torch.int64 .* Compare"),
        ((x, x, same.tolist()), {}, "kinds of pairs are a tensor or a numpy array, not a list"),
        ((x, x * torch.inf, same), {}, r"second features \(4, 4\) hold .* first in row 0"),
        ((x, x, same[:3]), {}, r"not torch.bool \(3,\)"),
        ((x * torch.nan, x, same), {}, "not finite"),
        ((x, x, same | True), {}, "Of 4 pairs 4 are genuine"),
        ((x, x, same & False), {}, "Of 4 pairs 0 are genuine"),
        ((x[:0], x[:0], same[:0]), {}, "Of 0 pairs 0 are genuine"),
        ((x, x, same), {}, "4 pairs fall into 2 to 4 folds, not into 10"),
        ((x, x, same), {"folds": 1}, "not into 1"),
        ((x, x, same), {"folds": 2, "thresholds": "exactly"}, "'exact' or 'grid', not 'exactly'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            verification_accuracy(*arguments, **more)
    for far, more, sentence in (
        (0.0, {}, r"far and confidence lie in \(0, 1\)"),
        (0.5, {"confidence": 1.0}, r"not at 0.5 and 1.0"),
        (0.5, {"point": "above"}, "'below' or 'nearest', not 'above'"),
        (0.001, {}, "0.001 needs at least 1,000 impostor pairs; there are 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tar_at_far(x, x, same, far, **more)


# pairs


@settings(max_examples=40)
@given(st.lists(st.integers(0, 7), min_size=8, max_size=60), st.integers(1, 3), st.integers(0, 100))
def test_pairs_are_distinct_balanced_and_of_the_kind_they_say(labels, folds, seed):
    labels = torch.tensor(labels)
    n = 4 * folds
    try:
        drawn = pairs(labels, n, seed=seed, folds=folds)
    except ValueError:  # a fold with too few pairs: what is refused, and how, is tested below
        reject()
    assert ((labels[drawn.first] == labels[drawn.second]) == drawn.same).all()
    assert (drawn.first != drawn.second).all()
    assert (
        len(
            {
                frozenset(pair)
                for pair in zip(drawn.first.tolist(), drawn.second.tolist(), strict=True)
            }
        )
        == n
    )
    assert drawn.same.tolist() == [True, False] * (n // 2)
    blocks = [
        set(labels[torch.cat([drawn.first[part], drawn.second[part]])].tolist())
        for part in torch.arange(n).split(4)
    ]
    assert all(not a & b for a, b in itertools.combinations(blocks, 2))
    again = pairs(labels, n, seed=seed, folds=folds)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_all_pairs_there_are_can_be_drawn_and_each_is_drawn_equally_often():
    labels = torch.tensor([4, 9, 4, 9, 9, 4])  # 6 genuine pairs, 9 impostor pairs
    every = {True: set(), False: set()}
    for i, j in itertools.combinations(range(6), 2):
        every[bool(labels[i] == labels[j])].add(frozenset((i, j)))
    whole = pairs(labels, 12, folds=1)
    assert {
        frozenset(p)
        for p in zip(
            whole.first[whole.same].tolist(), whole.second[whole.same].tolist(), strict=True
        )
    } == every[True]
    with pytest.raises(
        ValueError, match="Fold 0 holds 6 genuine pairs, fewer than the 7 asked for"
    ):
        pairs(labels, 14, folds=1)
    counts = {True: dict.fromkeys(every[True], 0), False: dict.fromkeys(every[False], 0)}
    for seed in range(300):
        one = pairs(labels, 4, seed=seed, folds=1)
        for i, j, same in zip(*(part.tolist() for part in one), strict=True):
            counts[same][frozenset((i, j))] += 1
    for kind in (True, False):
        assert scipy.stats.chisquare(list(counts[kind].values())).pvalue > 1e-3


def test_pairs_of_many_images_are_drawn_in_no_time_and_memory():
    labels = torch.arange(200_000) // 20  # two billion pairs in each fold
    drawn = pairs(labels, 20_000)
    assert ((labels[drawn.first] == labels[drawn.second]) == drawn.same).all()


def test_pairs_that_cannot_be_drawn_are_refused():
    labels = torch.arange(20) // 2
    for n, folds in ((0, 1), (10, 10), (30, 10), (4, 0)):
        with pytest.raises(ValueError, match="n is a positive multiple of"):
            pairs(labels, n, folds=folds)
    with pytest.raises(ValueError, match="Fold 0 holds 0 impostor pairs"):
        pairs(labels, 20)  # one identity a fold
    with pytest.raises(ValueError, match="genuine pairs, fewer than"):
        pairs(torch.arange(20), 4, folds=2)
