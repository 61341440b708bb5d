import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from test_concentration import measured, pixels

from marginlab.measures import Concentration
from marginlab.measures.concentration.controls import between_classes, null_groups

seeds = st.integers(0, 2**20)


def counts(groups, own, C):
    return torch.stack([torch.bincount(own[group], minlength=C) for group in groups])


@given(st.integers(2, 25), st.integers(2, 9))
def test_groups_of_classes_of_one_size_hold_all_classes_equally_in_every_part_too(n, C):
    own = torch.arange(C).repeat_interleave(n)
    groups = null_groups(torch.arange(n * C).split(n), range(C))
    assert sorted(torch.cat(groups).tolist()) == list(range(n * C))
    assert [len(group) for group in groups] == [n] * C
    found = counts(groups, own, C)
    assert int(found.max() - found.min()) <= 1
    for group in groups:
        for part in (group[: n // 2], group[n // 2 :]):
            found = torch.bincount(own[part], minlength=C)
            assert int(found.max() - found.min()) <= 2


@given(st.lists(st.one_of(st.integers(2, 4), st.integers(2, 60)), min_size=2, max_size=9))
def test_groups_of_classes_of_many_sizes_have_these_sizes_and_hold_classes_in_proportion(sizes):
    own = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    groups = null_groups(torch.arange(sum(sizes)).split(sizes), range(len(sizes)))
    assert sorted(torch.cat(groups).tolist()) == list(range(sum(sizes)))
    assert [len(group) for group in groups] == sizes
    share = torch.tensor(sizes).double()[:, None] * torch.tensor(sizes) / sum(sizes)
    assert float((counts(groups, own, len(sizes)) - share).abs().max()) < 2


def test_the_draw_depends_on_the_label_and_the_place_and_is_no_sorting():
    one, two = (
        null_groups(torch.arange(60).split(20), labels) for labels in ((0, 1, 2), (0, 1, 5))
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(one, null_groups(torch.arange(60).split(20), (0, 1, 2)), strict=True)
    )
    own = [
        set(group[group < 40].tolist()) == set(other[other < 40].tolist())
        for group, other in zip(one, two, strict=True)
    ]
    assert all(own)  # classes 0 and 1 are dealt as before
    assert any(
        not torch.equal(a.sort().values, b.sort().values) for a, b in zip(one, two, strict=True)
    )
    assert one[0][one[0] < 20].diff().abs().max() > 1


@settings(max_examples=4)
@given(seeds)
def test_a_control_is_what_its_groups_as_labels_give(seed):
    views = pixels(17, 3, torch.Generator().manual_seed(seed))
    labels = torch.tensor([4] * 3 + [1] * 8 + [7] * 6)[
        torch.randperm(17, generator=torch.Generator().manual_seed(seed))
    ]
    result = measured(views, labels, levels=(1, 3), controls=True)
    control, plain = result.control, measured(views, labels, levels=(1, 3))
    assert control.classes.tolist() == [0, 1, 2]
    assert control.n.tolist() == result.n.tolist() == [8, 3, 6]  # by ascending label
    assert sorted(torch.cat(control.images).tolist()) == list(range(17))
    group = torch.empty(17, dtype=torch.int64)
    for number, images in enumerate(control.images):
        group[images] = number
    alone = measured(views, group, levels=(1, 3))
    for reduce in ("min", "mean"):
        again = alone.curve([0.2, 0.4, 0.6], reduce=reduce)
        found = control.curve([0.2, 0.4, 0.6], reduce=reduce)
        torch.testing.assert_close(
            torch.stack(again[1:3]), torch.stack(found[1:3]), rtol=0, atol=1e-12
        )
    pair = control.closest(1)[0]
    assert float(
        (views[pair.i, pair.u].double() - views[pair.j, pair.v].double()).norm()
    ) == pytest.approx(pair.distance, abs=1e-12)
    assert "Null control" in control.meaning
    assert all(torch.equal(a, b) for a, b in zip(result.d_A, plain.d_A, strict=True))
    assert plain.control is plain.between is None


@settings(max_examples=4)
@given(seeds)
def test_distances_between_classes_are_brute_force(seed):
    views, labels = pixels(11, 3, torch.Generator().manual_seed(seed)), torch.arange(11) % 3 * 2
    between = measured(views, labels, levels=(1, 3), controls=True).between
    flat = views.flatten(2).double()
    for at, level in enumerate((1, 3)):
        found = {
            (i, j): float((flat[i, :level, None] - flat[j, None, :level]).norm(dim=2).min())
            for i, j in itertools.combinations(range(11), 2)
            if labels[i] != labels[j]
        }
        assert float(between.smallest[at]) == pytest.approx(min(found.values()), abs=1e-12)
        assert float(between.median[at]) == pytest.approx(
            np.median(list(found.values())), abs=1e-12
        )
        for a, b in itertools.permutations(range(3), 2):
            own = [
                d
                for (i, j), d in found.items()
                if {int(labels[i]), int(labels[j])} == {2 * a, 2 * b}
            ]
            assert float(between.by_class[at, a, b]) == pytest.approx(min(own), abs=1e-12)
        assert bool(between.by_class[at].diagonal().isinf().all())
        assert between.pairs == between.sampled == len(found)


def test_beyond_the_budget_the_median_is_over_a_part_and_the_result_says_so(monkeypatch):
    x = torch.rand(60, 1, 4, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(60).split(20)
    whole, part = (between_classes(x, classes, (0, 1, 2), (1,), most=most) for most in (10**6, 300))
    assert torch.equal(whole.by_class, part.by_class)
    assert torch.equal(whole.smallest, part.smallest)
    assert (whole.pairs, whole.sampled, part.pairs, part.sampled) == (1200, 1200, 1200, 300)
    assert 0 < abs(float(whole.median - part.median)) < 0.1
    monkeypatch.setattr("marginlab.measures.concentration.concentration._FEWEST", 30)
    views, labels = pixels(30, 2, torch.Generator().manual_seed(0)), torch.arange(30) % 3
    needed = 30 * 2 * 12 * 4 + 3 * 100 * 12 * 2
    for budget, sampled in ((needed + 300 * 8, 300), (needed + 150 * 8, 150), (needed, 30)):
        result = measured(views, labels, controls=True, budget=budget)
        assert not result.subsampled
        assert result.between.sampled == sampled
        assert ("The median between classes is over" in result.meaning) == (sampled < 300)
    assert measured(views, labels, controls=True, budget=needed - 1).subsampled


def test_merging_in_order_gives_the_groups_of_the_whole():
    views, labels = pixels(24, 2, torch.Generator().manual_seed(5)), torch.arange(24) % 3
    one, two = Concentration(controls=True), Concentration(controls=True)
    one.update(views[:10], labels[:10])
    two.update(views[10:], labels[10:])
    two.merge_state(one)  # the given one comes first
    whole, merged = measured(views, labels, controls=True).control, two.compute().control
    assert all(torch.equal(a, b) for a, b in zip(whole.images, merged.images, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.d_A, merged.d_A, strict=True))
