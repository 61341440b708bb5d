"""Protocols of face recognition against loops in float64, scikit-learn, chance and the oracle."""

import importlib
import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from marginlab.evaluation import protocols, tar_at_far, verification_accuracy
from marginlab.evaluation.protocols.blocks import by_rows

SEEDS = st.integers(0, 10**6)


def pairs_of(seed, n, levels=6):
    """Scores in steps of 2/levels, so that many tie, and their kinds."""
    draw = np.random.default_rng(seed)
    scores = draw.integers(-levels // 2, levels // 2 + 1, n) / (levels / 2)
    same = draw.random(n) < 0.5
    same[:2] = [True, False]
    return torch.from_numpy(scores), torch.from_numpy(same)


@given(SEEDS, st.integers(2, 60), st.booleans())
def test_the_curve_is_that_of_scikit_learn_with_ties_and_weights(seed, n, weighted):
    scores, same = pairs_of(seed, n)
    weights = torch.from_numpy(np.random.default_rng(seed).integers(1, 4, n).astype(float))
    given_weights = weights if weighted else None
    found = protocols.roc(scores, same, given_weights)
    far, tar, thresholds = roc_curve(
        same.numpy(), scores.numpy(), sample_weight=given_weights, drop_intermediate=False
    )
    np.testing.assert_allclose(found.far.numpy(), far, atol=1e-12)
    np.testing.assert_allclose(found.tar.numpy(), tar, atol=1e-12)
    np.testing.assert_array_equal(found.thresholds.numpy(), thresholds)
    area = roc_auc_score(same.numpy(), scores.numpy(), sample_weight=given_weights)
    assert found.auc == pytest.approx(area, abs=1e-12)
    eer = brentq(lambda x: 1 - x - interp1d(far, tar)(x), 0, 1) if len(set(far)) == len(far) else 0
    if eer:
        assert found.eer == pytest.approx(eer, abs=1e-9)
    assert bool((found.frr == 1 - found.tar).all())


@given(SEEDS, st.integers(4, 60), st.floats(0.01, 0.99))
def test_a_point_of_the_curve_is_that_of_every_threshold_tried(seed, n, far):
    scores, same = pairs_of(seed, n)
    s, kinds = scores.numpy(), same.numpy()
    rates = [(np.mean(s[~kinds] >= t), np.mean(s[kinds] >= t)) for t in [math.inf, *np.unique(s)]]
    below = max(tar for rate, tar in rates if rate <= far + 1e-12)
    curve = protocols.roc(scores, same)
    at = curve.at(far)
    assert (at.tar, at.far) == (
        np.mean(s[kinds] >= at.threshold),
        np.mean(s[~kinds] >= at.threshold),
    )
    assert at.tar == below
    nearest = curve.at(far, "nearest")
    assert abs(nearest.far - far) == pytest.approx(min(abs(rate - far) for rate, _ in rates))


def test_the_point_is_that_of_the_older_function_on_features():
    first, second = torch.randn(200, 4).double(), torch.randn(200, 4).double()
    same = torch.arange(200) % 2 == 0
    second[same] += first[same]
    cosine = torch.nn.functional.cosine_similarity(first, second)
    for point in ("below", "nearest"):
        old = tar_at_far(first, second, same, 0.05, point=point)
        assert protocols.roc(cosine, same).at(0.05, point)[:2] == pytest.approx((old.tar, old.far))


@given(SEEDS, st.integers(12, 60), st.integers(2, 10))
def test_folds_are_those_of_the_published_loop(seed, n, folds):
    scores, same = pairs_of(seed, n, levels=14)
    d, kinds = (2 - 2 * scores).numpy(), same.numpy()
    accuracies, values, rates = [], [], []
    for train, held in KFold(folds).split(d):
        tried = [np.mean((d[train] < t) == kinds[train]) for t in np.arange(400) * 0.01]
        t = (np.arange(400) * 0.01)[int(np.argmax(tried))]
        accuracies.append(np.mean((d[held] < t) == kinds[held]))
        fine, others = np.arange(4000) * 0.001, d[train][~kinds[train]]
        far = np.array([np.mean(others < t) if len(others) else 0 for t in fine])
        t = 0.0
        if far.max() >= 0.1:
            hi = np.searchsorted(far, 0.1)
            t = fine[hi - 1] + 0.001 * (0.1 - far[hi - 1]) / (far[hi] - far[hi - 1])
        if kinds[held].any():
            values.append(np.mean(d[held][kinds[held]] < t))
        if not kinds[held].all():
            rates.append(np.mean(d[held][~kinds[held]] < t))
    found = protocols.fold_verification(scores, same, folds)
    assert found.folds == pytest.approx(accuracies)
    assert (found.accuracy, found.deviation) == pytest.approx(
        (np.mean(accuracies), np.std(accuracies))
    )
    val = protocols.val_at_far(scores, same, 0.1, folds)
    assert tuple(val) == pytest.approx((np.mean(values), np.std(values), np.mean(rates)))
    a = torch.arange(n)
    value = protocols.fold_interval(
        scores, same, a, torch.where(same, a, a + n), folds, replicates=2
    ).value
    assert value == pytest.approx(found.accuracy)


def test_constant_scores_are_chance_and_those_of_the_oracle_are_right():
    same = torch.arange(200) % 2 == 0
    constant, oracle = torch.full((200,), 0.4), same.double()
    assert protocols.fold_verification(constant, same).accuracy == 0.5
    assert protocols.fold_verification(oracle, same).accuracy == 1
    flat, best = protocols.roc(constant, same), protocols.roc(oracle, same)
    assert (flat.eer, flat.auc, flat.at(0.1).tar) == (0.5, 0.5, 0)
    assert (best.eer, best.auc, best.at(0.1).tar) == (0, 1, 1)
    people, entries = torch.arange(10), torch.arange(-10, 10).clamp(min=-1)
    flat = protocols.search(torch.zeros(10, 20), people, entries)
    assert protocols.closed_set(flat, (1, 5, 20)) == pytest.approx((0.05, 0.25, 1))
    best = protocols.search((people[:, None] == entries).double(), people, entries)
    assert protocols.closed_set(best, (1, 5)) == (1, 1)
    asked = torch.cat([people, torch.full((10,), -1)])
    right = (asked[:, None] == entries) & (asked >= 0)[:, None]
    best = protocols.search(right.double(), asked, entries)
    assert protocols.open_set(best, 1).at(0.1).tar == 1


def gallery_of(seed, n=7, m=11, people=4):
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, 5, (n, m)) / 4
    asked, entries = draw.integers(-1, people, n), draw.integers(-1, people, m)
    asked[0] = entries[0] = 0
    asked[1] = people  # unmated
    return torch.from_numpy(scores), torch.from_numpy(asked), torch.from_numpy(entries)


@given(SEEDS)
def test_identification_is_that_of_random_orders_of_equals_and_blocks_equal_the_whole(seed):
    scores, asked, entries = gallery_of(seed)
    found = protocols.search(scores, asked, entries, budget=24 * 6)
    whole = protocols.search(scores, asked, entries)
    assert all(torch.equal(x, y) for x, y in zip(found[:5], whole[:5], strict=True))
    assert len(list(by_rows(7, 11, 24 * 6))) > 1
    s, mated = scores.numpy(), []
    for p in range(7):
        mates = ((entries == asked[p]) & (asked[p] >= 0)).numpy()
        mated.append(mates.any())
        assert found.highest[p] == s[p].max()
        if not mates.any():
            assert found.best[p] == -math.inf
            continue
        top = s[p][mates].max()
        above, equal = int((s[p] > top).sum()), mates[s[p] == top]
        for k in (1, 2, 3, 5, 11):
            orders = list(itertools.permutations(range(len(equal)))) if len(equal) < 6 else None
            if orders is None:
                continue
            first = [above + 1 + min(o.index(i) for i in np.flatnonzero(equal)) for o in orders]
            assert float(protocols.hits(found, k)[p]) == pytest.approx(
                np.mean([place <= k for place in first])
            )
    assert found.mated.tolist() == mated
    hit, best = protocols.hits(found, 2), found.best
    curve = protocols.open_set(found, 2)
    for t, far, tar in zip(*curve[:3], strict=True):
        m = found.mated
        assert float(far) == pytest.approx(float((found.highest[~m] >= t).double().mean()))
        assert float(tar) == pytest.approx(float((hit[m] * (best[m] >= t)).mean()))


@given(SEEDS, st.floats(0.03, 0.9))
def test_all_pairs_of_blocks_are_those_of_the_curve(seed, far):
    scores, asked, entries = gallery_of(seed)
    same = (asked[:, None] == entries) & (asked >= 0)[:, None]
    due = protocols.roc(scores.flatten(), same.flatten()).at(far)
    [found] = protocols.all_pairs_tar(scores, asked, entries, (far,), budget=24 * 6)
    assert found == pytest.approx(due)


def test_cosines_of_blocks_are_those_of_features_and_a_file_is_read_as_it_is_needed(tmp_path):
    probes, gallery = torch.randn(20, 8), torch.randn(50, 8)
    np.save(tmp_path / "gallery.npy", gallery.numpy())
    held = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    labels = torch.arange(20) % 5, torch.arange(50) % 10
    block = protocols.cosine_blocks(probes, held)
    found = protocols.search(block, *labels, budget=24 * 60)
    whole = torch.nn.functional.cosine_similarity(probes[:, None], gallery, dim=2)
    due = protocols.search(whole.double(), *labels)
    assert torch.equal(found.above, due.above)
    assert torch.allclose(found.best, due.best, atol=1e-6)


def test_templates_are_those_of_loops():
    draw = np.random.default_rng(0)
    f, q = torch.from_numpy(draw.normal(size=(40, 5))), torch.from_numpy(draw.random(40))
    t, m = torch.from_numpy(draw.integers(3, 8, 40)), torch.from_numpy(draw.integers(0, 4, 40))
    found = protocols.pool_templates(f, t, m, q)
    for row, number in zip(found.features, found.numbers, strict=True):
        total = torch.zeros(5).double()
        for medium in m[t == number].unique():
            some = (t == number) & (m == medium)
            total += (f[some] * q[some, None]).mean(0)
        assert torch.allclose(row, total / total.norm(), atol=1e-12)
    at = found.rows(torch.tensor([3, 7, 3]))
    score = protocols.pair_scores(found.features, at[:2], at[1:])
    assert torch.allclose(score, (found.features[at[:2]] * found.features[at[1:]]).sum(1))
    with pytest.raises(ValueError, match="Template 99 has no image"):
        found.rows(torch.tensor([99]))


def test_templates_that_come_in_batches_are_those_of_all_images(unchecked):
    draw = torch.Generator().manual_seed(0)
    f, q = torch.randn(23, 5, generator=draw), torch.rand(23, generator=draw)
    t, m = (torch.randint(4, (23,), generator=draw) for _ in range(2))
    whole = protocols.pool_templates(f, t, m, q)
    pool = protocols.TemplatePool(t, m, q)
    for part in f.split([10, 1, 12]):
        with pytest.raises(ValueError, match=r"have come\. Add the features of all"):
            pool.templates()
        pool.add(part)
    assert torch.equal(pool.templates().features, whole.features)
    assert torch.equal(pool.templates().numbers, whole.numbers)
    with pytest.raises(ValueError, match="Of 23 images 23 have come, and now 1 more"):
        pool.add(f[:1])
    with pytest.raises(ValueError, match=r"23 images have as many detector scores"):
        protocols.TemplatePool(t, m, -q)
    with pytest.raises(ValueError, match="5 images have as many numbers of templates, not 23"):
        protocols.pool_templates(f[:5], t, m)


def test_weights_of_pairs_are_made_in_blocks_of_any_size(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randint(6, (40,), generator=draw) for _ in range(2))
    w = torch.randint(4, (6,), generator=draw).double()
    expected = torch.where(a == b, w[a], w[a] * w[b])
    assert torch.equal(protocols.pair_weights(w, a, b), expected)
    module = importlib.import_module("marginlab.evaluation.protocols.bootstrap")
    monkeypatch.setattr(module, "_PAIRS", 7)
    assert torch.equal(protocols.pair_weights(w, a.int(), b.int()), expected)


def test_the_sum_with_mirror_images_gives_the_older_accuracy():
    f, g = torch.randn(40, 6), torch.randn(40, 6)
    same = torch.arange(20) % 2 == 0
    z = protocols.flip_sum(f, g)
    assert z.norm == pytest.approx(float(torch.cat([f, g]).norm(dim=1).mean()), rel=1e-6)
    old = verification_accuracy((f + g)[::2], (f + g)[1::2], same, thresholds="grid")
    at = torch.arange(40)
    score = protocols.pair_scores(z.directions, at[::2], at[1::2])
    assert protocols.fold_verification(score, same).folds == old.folds


def test_intervals_draw_people_and_are_wider_than_those_of_pairs():
    draw = np.random.default_rng(1)
    person = torch.arange(30).repeat_interleave(20)
    easy = torch.from_numpy(draw.normal(size=30))[person]  # a person's pairs are alike
    scores = torch.cat([easy + 1, torch.from_numpy(draw.normal(size=600)) - 1])
    same = torch.arange(1200) < 600
    a = torch.cat([person, person])
    b = torch.cat([person, (person + 1 + torch.arange(600) % 29) % 30])
    people = protocols.roc_intervals(scores, same, (a, b), (0.1,), replicates=200)
    single = torch.arange(1200)
    alone = single, torch.where(same, single, single + 1200)
    pairs = protocols.roc_intervals(scores, same, alone, (0.1,), replicates=200)
    again = protocols.roc_intervals(scores, same, (a, b), (0.1,), replicates=200)
    assert again == people
    for wide, narrow in zip(people, pairs, strict=True):
        assert wide.value == narrow.value
        assert wide.low < wide.value < wide.high
        assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)
    other = protocols.roc_intervals(scores, same, (a, b), (0.1,), replicates=200, seed=1)
    assert other[0].low != people[0].low


def test_intervals_of_identification_are_around_its_rates():
    scores, asked, entries = gallery_of(3, n=60, m=30, people=20)
    found = protocols.search(scores, asked, entries)
    ids = torch.where(asked < 0, 100 + torch.arange(60), asked)
    rank1, tpir = protocols.identification_intervals(
        found, ids, ranks=(1,), fpirs=(0.5,), rank=5, replicates=100
    )
    assert rank1.value == pytest.approx(float(protocols.hits(found, 1)[found.mated].mean()))
    assert tpir.value == protocols.open_set(found, 5).at(0.5).tar
    assert rank1.low < rank1.value < rank1.high
    assert rank1.n == len(ids.unique())


def test_genuine_pairs_tell_who_is_who():
    a, b = torch.tensor([0, 2, 4, 1]), torch.tensor([1, 3, 5, 4])
    first, second = protocols.people_of_pairs(a, b, torch.tensor([True, True, False, True]))
    assert bool(((first == second) == torch.tensor([True, True, False, True])).all())
    assert first[0] == first[3] == first[2]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s, k: protocols.roc(s, k[:3]), "need as many bools"),
        (lambda s, k: protocols.roc(s.masked_fill(k, math.nan), k), "not finite"),
        (lambda s, k: protocols.roc(s, k | True), "at least one of each kind"),
        (lambda s, k: protocols.roc(s, k).at(1.0), r"lies in \(0, 1\)"),
        (lambda s, k: protocols.fold_verification(9 * s, k), "are cosines"),
        (lambda s, k: protocols.fold_verification(s, k, 99), "fall into 2 to 20"),
        (lambda s, k: protocols.search(s[:, None], k, torch.zeros(1).long()), "one integer each"),
        (lambda s, k: protocols.cosine_blocks(s, s), "Features of the probes"),
        (
            lambda s, k: protocols.roc_intervals(s, k, (torch.arange(20), torch.arange(20))),
            "marked as an impostor",
        ),
        (
            lambda s, k: protocols.all_pairs_tar(
                torch.ones(2, 2), torch.arange(2), torch.arange(2), (0.1,)
            ),
            "accepts 0.2 of them",
        ),
    ],
)
def test_bad_input_is_refused_with_a_remedy(call, said):
    with pytest.raises(ValueError, match=said):
        call(torch.linspace(0.1, 0.9, 20), torch.arange(20) % 2 == 0)


def test_a_large_gallery_is_searched_within_the_budget():
    """The scores of 300 probes with a million entries are 1.2 GB; memory held is measured."""
    import resource

    G, N = 1_000_000, 300
    wave = torch.arange(G, dtype=torch.float32).mul_(0.37).sin_()

    def block(rows, columns):
        shift = torch.arange(rows.start, rows.stop, dtype=torch.float32)[:, None]
        return wave[columns] * 0.5 + 0.001 * shift

    entries = torch.full((G,), -1)
    entries[:N] = torch.arange(N)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = protocols.search(block, torch.arange(N), entries)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 300e6
    assert found.gallery == G
    own = float(wave[7]) * 0.5 + 0.007
    assert int(found.above[7]) == int((wave * 0.5 + torch.tensor(0.001 * 7) > own + 1e-7).sum())
