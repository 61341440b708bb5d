"""Sigma from d_A: by search, as single numbers, by blocks.

Where all views can be listed, it is compared with the truth.
"""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from test_cliques import omega
from test_concentration import measured, pixels

from marginlab.augment import Augmentation, ColorJitter
from marginlab.data.shapes import Shapes
from marginlab.measures.functional import bounds, colouring, matching

seeds = st.integers(0, 2**20)
LABELS = torch.tensor([0] * 3 + [1] * 7 + [2] * 10)


def result_of(seed, **kwargs):
    return measured(
        pixels(20, 3, torch.Generator().manual_seed(seed)), LABELS, levels=(1, 3), **kwargs
    )


def exact(result, delta, reduce, at=-1):
    """1 - sigma at delta with the largest cliques found by networkx."""
    sigmas = [omega(d_A[at] <= delta) / d_A.shape[-1] for d_A in result.d_A]
    return 1 - (min(sigmas) if reduce == "min" else float(np.average(sigmas, weights=result.seen)))


@settings(max_examples=10)
@given(seeds, st.floats(0, 1.2), st.sampled_from(["min", "mean"]))
def test_a_search_gives_sigma_and_a_stopped_one_encloses_it(seed, delta, reduce):
    result = result_of(seed)
    truth = 1 - exact(result, delta, reduce)
    assert result.sigma(delta, reduce=reduce, nodes=10_000) == pytest.approx((truth, truth))
    wide, narrow = result.sigma(delta, reduce=reduce), result.sigma(delta, reduce=reduce, nodes=2)
    assert wide[0] <= narrow[0] + 1e-12
    assert narrow[0] <= truth + 1e-12
    assert truth <= narrow[1] + 1e-12
    assert narrow[1] <= wide[1] + 1e-12
    per_class = result.sigma_per_class(delta, nodes=10_000)
    assert torch.equal(*per_class)
    curve = result.curve([delta], reduce=reduce)
    assert (1 - float(curve.upper), 1 - float(curve.lower)) == pytest.approx(wide)


def test_the_matching_tightens_where_the_colouring_wants_a_colour_too_many():
    weights = torch.rand(20, 20, generator=torch.Generator().manual_seed(46)).double()
    distance = (weights + weights.T).fill_diagonal_(0)
    delta = distance.flatten().quantile(0.9)
    order = distance.sort(1).values.sum(1).argsort(descending=True)
    graph = (distance <= delta)[order][:, order]
    assert 20 - int(matching(graph)) < int(colouring(graph).max()) + 1
    lower, upper = bounds(distance[None], delta[None])
    assert omega(graph) <= round(20 * float(upper)) == 20 - int(matching(graph))
    assert float(lower) <= float(upper)


@settings(max_examples=8)
@given(seeds, st.sampled_from(["min", "mean"]), st.booleans(), st.floats(0.1, 1.2))
def test_the_area_is_the_mean_of_the_steps(seed, reduce, normalized, delta_max):
    result = result_of(seed)
    top = delta_max * (result.spread if normalized else 1)
    steps = [
        *sorted({0.0, *(d for d_A in result.d_A for d in d_A[-1].flatten().tolist() if d < top)}),
        top,
    ]
    truth = sum(exact(result, a, reduce) * (b - a) for a, b in itertools.pairwise(steps)) / top
    low, high = result.area(delta_max, reduce=reduce, normalized=normalized)  # on every step
    assert low - 1e-9 <= truth <= high + 1e-9
    curve = result.curve(steps[:-1], reduce=reduce)
    width = torch.tensor(steps).double().diff() / top
    # which also knows the other level
    assert (low, high) == pytest.approx(
        (float(curve.lower @ width), float(curve.upper @ width)), abs=0.02
    )
    alone = result._replace(d_A=tuple(d_A[-1:] for d_A in result.d_A), levels=(3,)).curve(
        steps[:-1], reduce=reduce
    )
    assert (low, high) == pytest.approx((float(alone.lower @ width), float(alone.upper @ width)))
    few = result.area(delta_max, points=7, reduce=reduce, normalized=normalized)
    assert few[0] - 1e-9 <= truth <= few[1] + 1e-9
    assert few[1] - few[0] <= high - low + 1 / 6 + 0.05


@settings(max_examples=12)
@given(
    seeds,
    st.sampled_from(["min", "mean"]),
    st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.95]),
    st.sampled_from([1, 3]),
)
def test_delta_at_encloses_the_first_delta_that_is_enough(seed, reduce, value, level):
    result = result_of(seed)
    at = result.levels.index(level)
    deltas = sorted({d for d_A in result.d_A for d in d_A[at].flatten().tolist()})
    first = next(delta for delta in deltas if exact(result, delta, reduce, at) <= value + 1e-9)
    low, high = result.delta_at(value, level=level, reduce=reduce)
    assert low <= first <= high
    assert {low, high} <= set(deltas)
    curve = result.curve(deltas, level=level, reduce=reduce)
    if bool((curve.upper - curve.lower).max() < 1e-9):
        assert low == first == high
    if value == 0:
        assert (
            low
            == high
            == (deltas[-1] if reduce == "mean" else max(float(d_A[at].max()) for d_A in result.d_A))
        )
    scaled = result.delta_at(value, level=level, reduce=reduce, normalized=True)
    assert scaled == pytest.approx((low / result.spread, high / result.spread))


@settings(max_examples=3)
@given(seeds, st.integers(2, 5))
def test_blocks_are_what_their_images_alone_give(seed, n):
    views, labels = pixels(21, 3, torch.Generator().manual_seed(seed)), torch.arange(21) % 3
    whole = measured(views, labels, levels=(1, 3), controls=True)
    blocks = whole.split(n)
    assert len(blocks) == 7 // n
    for number, block in enumerate(blocks):
        rows = torch.cat(block.images).sort().values
        assert rows.tolist() == list(range(3 * n * number, 3 * n * (number + 1)))
        alone = measured(views[rows], labels[rows], levels=(1, 3))
        for one, two in zip(block.d_A, alone.d_A, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
        assert all(torch.equal(one, two) for one, two in zip(block.views, alone.views, strict=True))
        assert block.n.tolist() == [n] * 3
        for reduce in ("min", "mean"):
            assert block.sigma(0.4, reduce=reduce) == pytest.approx(alone.sigma(0.4, reduce=reduce))
        assert f"n = {n}" in block.meaning
        assert all(
            torch.equal(a[part], b)
            for a, b, part in zip(
                whole.control.images,
                block.control.images,
                [slice(n * number, n * (number + 1))] * 3,
                strict=True,
            )
        )
        assert block.between is None


def listed(images):
    """Every view of a small set of augmentations: 3 x 3 shifts, quarter turns, permutations of the
    channels.
    """
    shifts = [images.roll((down, right), (-2, -1)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    turns = [shifted.rot90(k, (-2, -1)) for shifted in shifts for k in range(4)]
    return torch.stack(
        [turned[:, list(order)] for turned in turns for order in itertools.permutations(range(3))],
        1,
    )


def test_where_all_views_can_be_listed_d_A_and_sigma_are_the_truth():  # noqa: N802
    shapes = Shapes(("disc", "triangle"), size=8, seed=3)
    labels = torch.arange(16) % 2
    views = listed(shapes.render(labels, shapes.draw("train", torch.arange(16))))
    assert views.shape[1] == 9 * 4 * 6
    result = measured(views, labels, levels=(1, 216))
    flat = views.flatten(2).double()
    for label, d_A in enumerate(result.d_A):
        own = flat[labels == label]
        truth = torch.zeros(8, 8, dtype=torch.float64)
        for i, j in itertools.combinations(range(8), 2):
            every = torch.cdist(own[i], own[j], compute_mode="donot_use_mm_for_euclid_dist")
            truth[i, j] = truth[j, i] = every.min()
        torch.testing.assert_close(d_A[1], truth, rtol=0, atol=1e-10)
        for delta in truth.flatten().quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist():
            sigma = omega(truth <= delta) / 8
            lower, upper = (float(bound[label]) for bound in result.sigma_per_class(delta))
            assert lower <= sigma + 1e-12
            assert sigma <= upper + 1e-12
            assert [
                float(bound[label]) for bound in result.sigma_per_class(delta, nodes=10_000)
            ] == pytest.approx([sigma, sigma])


def test_turning_the_hue_brings_a_class_together_but_not_the_classes():
    shapes = Shapes(
        ("disc", "triangle", "cross"),
        size=16,
        position=0.0,
        scale=(0.5, 0.5),
        rotation=0.0,
        background=0.0,
        noise=0.0,
        hue=1.0,
    )
    labels = torch.arange(36) % 3
    images = shapes.render(labels, shapes.draw("train", torch.arange(36)))
    views = Augmentation([ColorJitter(0.0, 0.0, 0.0, 0.5, 1.0)]).views(
        images, n_views=48, seed=0, identity=True
    )
    result = measured(views, labels, levels=(1, 48), controls=True)
    clean, turned = (
        torch.cat([d_A[at][~torch.eye(12).bool()] for d_A in result.d_A]).median() for at in (0, 1)
    )
    assert float(turned) < float(clean) / 10
    assert float(result.between.median[1]) > 5 * float(turned)
    assert float(result.between.smallest[1]) > 0.5 * float(result.between.smallest[0])
    inside = float(torch.cat([d_A[1].flatten() for d_A in result.d_A]).max())
    # a delta at which each class is its main part, and no two classes meet
    assert inside < float(result.between.smallest[1])
    assert result.sigma(inside) == (1.0, 1.0)
    assert result.control.sigma(inside)[1] < 0.6


def test_on_real_images_the_sides_are_close_to_the_largest_clique(real_images):
    with np.load(real_images / "cifar10.npz") as file:
        chosen = np.flatnonzero(file["train_labels"][:3000] == 0)[:200]
        images = torch.from_numpy(file["train_images"][chosen]).permute(0, 3, 1, 2)
    views = Augmentation("ad").views(images, n_views=8, seed=0, identity=True)[..., ::2, ::2]
    result = measured(views, torch.zeros(200, dtype=torch.int64))
    lower, upper = result.delta_at(0.5)
    assert upper < 1.05 * lower
    for delta in (0.8 * lower, lower, 1.2 * lower):
        wide, narrow = result.sigma(delta), result.sigma(delta, nodes=20_000)
        assert narrow[1] - narrow[0] <= wide[1] - wide[0] <= 0.05
        assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]
    low, high = result.area(2 * lower)
    assert 0 < low < high < low + 0.04
