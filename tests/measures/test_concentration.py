import itertools
import subprocess
import sys
import time

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from laws import MeasureLaws

from marginlab.measures import Concentration
from marginlab.measures.functional import augmented_distances


def make(**kwargs):
    return Concentration(levels=(1, 2, 4), deltas=(0.3, 0.6), **kwargs)


def pixels(n, V, generator, side=2):
    return (
        torch.rand(n, 1, 3, side, side, generator=generator)
        + 0.6 * torch.rand(n, V, 3, side, side, generator=generator)
    ) / 1.6


class TestLaws(MeasureLaws):
    make = staticmethod(make)
    ordered = ("d_A", "views", "images")

    def data(self, n, generator):
        # pairs: two images of a class in any pair of rows
        return pixels(n, 4, generator), torch.arange(n).div(2, rounding_mode="floor") % 3

    def test_the_order_of_images_permutes_the_matrices(self):
        views, labels = self.sample(0)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
        one, two = self.whole((views, labels)), self.whole((views[order], labels[order]))
        for a, b, i, j in zip(one.d_A, two.d_A, one.images, two.images, strict=True):
            place = torch.stack([(order[j] == image).nonzero()[0, 0] for image in i])
            torch.testing.assert_close(a, b[:, place][:, :, place], rtol=0, atol=1e-12)
        deltas = torch.linspace(0, 1.5, 40)
        for reduce in ("min", "mean"):
            assert torch.equal(
                one.curve(deltas, reduce=reduce).lower, two.curve(deltas, reduce=reduce).lower
            )
            assert torch.equal(
                one.curve(deltas, reduce=reduce).upper, two.curve(deltas, reduce=reduce).upper
            )


def subsampled(**kwargs):
    # 3 images of each of 3 classes
    return Concentration(budget=3 * (3 * 4 * 12 * 4 + 9 * 12), **kwargs)


class TestSubsampledLaws(MeasureLaws):
    """Beyond the budget, too, splits, ranks and pickles change nothing; the order does, and so its
    laws are left out.
    """

    make = staticmethod(subsampled)
    data = TestLaws.data
    test_the_order_of_images_changes_nothing = None
    test_merged_states_are_those_of_all_images = None


def controlled(**kwargs):
    return Concentration(levels=(1, 4), controls=True, **kwargs)


class TestControlledLaws(MeasureLaws):
    """Groups are drawn by the place of an image in its class: in another order they are others.

    Distances between classes are not.
    """

    make = staticmethod(controlled)
    ordered = ("d_A", "views", "images", "control")
    rows = 8

    def data(self, n, generator):
        return pixels(n, 4, generator), torch.arange(n).div(2, rounding_mode="floor") % 2


def measured(views, labels, **kwargs):
    measure = Concentration(**kwargs)
    measure.update(views, labels)
    return measure.compute()


seeds = st.integers(0, 2**20)


@given(seeds, st.integers(2, 5), st.integers(2, 5))
def test_matrices_are_brute_force_by_class_and_level(seed, n, V):
    generator = torch.Generator().manual_seed(seed)
    views, labels = pixels(2 * n, V, generator), torch.arange(2 * n) % 2 * 3  # classes 0 and 3
    views[0, 1] = views[2, 0]  # a view in common: distance 0
    result = measured(views, labels, levels=(1, V))
    assert result.classes.tolist() == [0, 3]
    assert result.n.tolist() == result.seen.tolist() == [n, n]
    flat = views.flatten(2).double()
    for label, d_A, at, images in zip(
        result.classes, result.d_A, result.views, result.images, strict=True
    ):
        assert images.tolist() == (labels == label).nonzero()[:, 0].tolist()
        for (a, i), (b, j) in itertools.combinations(enumerate(images.tolist()), 2):
            for place, level in enumerate(result.levels):
                every = (flat[i, :level, None] - flat[j, None, :level]).norm(dim=-1)
                assert float(d_A[place, a, b]) == pytest.approx(float(every.min()), abs=1e-12)
                u, v = at[place, a, b].tolist()
                assert float(every[u, v]) == float(every.min())
    assert result.distances()[0][0, 1] == 0
    nearest = result.closest(1)[0]
    assert (nearest.label, nearest.i, nearest.j, nearest.u, nearest.v, nearest.distance) == (
        0,
        0,
        2,
        1,
        0,
        0.0,
    )


@settings(max_examples=8)
@given(seeds)
def test_more_views_never_raise_d_A_nor_one_minus_sigma(seed):  # noqa: N802
    views, labels = pixels(16, 8, torch.Generator().manual_seed(seed)), torch.arange(16) % 2
    result = measured(views, labels, levels=(1, 2, 4, 8))
    for d_A in result.d_A:
        assert bool((d_A.diff(dim=0) <= 0).all())
    alone = [measured(views[:, :level], labels, levels=(level,)) for level in (2, 4, 8)]
    for at, other in enumerate(alone, 1):
        for one, two in zip(result.d_A, other.d_A, strict=True):
            torch.testing.assert_close(one[at], two[0], rtol=0, atol=1e-12)
    for reduce in ("min", "mean"):
        curves = result.curves(reduce=reduce)
        for curve, more in itertools.pairwise(curves):
            assert bool((more.lower <= curve.lower).all())
            assert bool((more.upper <= curve.upper).all())
        for curve in curves:
            assert bool((curve.lower <= curve.upper).all())
            assert bool((curve.upper.diff() <= 0).all())
            assert bool((curve.lower.diff() <= 0).all())
    delta = float(result.d_A[0][0].median())
    bands = [result.sigma(delta, level) for level in result.levels]
    assert sorted(bands) == bands


@given(seeds, st.floats(0, 1))
def test_sigma_is_the_least_over_classes_and_the_mean_is_weighted(seed, delta):
    views, labels = (
        pixels(11, 3, torch.Generator().manual_seed(seed)),
        torch.tensor([0] * 2 + [1] * 3 + [2] * 6),
    )
    result = measured(views, labels)
    lower, upper = result.sigma_per_class(delta)
    assert result.sigma(delta) == (float(lower.min()), float(upper.min()))
    assert bool((lower <= upper).all())
    worst, mean = result.curve([delta]), result.curve([delta], reduce="mean")
    assert (float(worst.lower), float(worst.upper)) == pytest.approx(
        (1 - float(upper.min()), 1 - float(lower.min()))
    )
    weight = torch.tensor([2, 3, 6]).double() / 11
    assert (float(mean.lower), float(mean.upper)) == pytest.approx(
        (float(1 - weight @ upper), float(1 - weight @ lower))
    )


def test_a_curve_keeps_the_order_of_its_deltas():
    result = measured(pixels(8, 3, torch.Generator().manual_seed(0)), torch.arange(8) % 2)
    deltas = torch.linspace(0, 1, 11).double()
    shuffled = deltas[torch.tensor([3, 0, 10, 5, 1, 2, 9, 4, 7, 8, 6])]
    one, two = result.curve(deltas), result.curve(shuffled.numpy())
    assert torch.equal(one.upper[(shuffled * 10).round().long()], two.upper)
    assert torch.equal(one.lower[(shuffled * 10).round().long()], two.lower)
    assert float(result.curve().upper[-1]) == 0  # the default reaches the largest distance


def test_one_class_and_one_delta_keep_their_shapes():
    result = measured(
        pixels(2, 2, torch.Generator().manual_seed(0)), torch.tensor([5, 5]), deltas=[0.5]
    )
    assert result.classes.shape == result.n.shape == (1,)
    assert result.curve().lower.shape == result.curve().deltas.shape == result.deltas.shape == (1,)
    assert [x.shape for x in result.sigma_per_class(0.1)] == [(1,), (1,)]
    assert result.d_A[0].shape == (1, 2, 2)
    assert len(result.closest(100)) == 1


def test_the_result_says_on_which_side_it_errs():
    meaning = measured(
        pixels(4, 2, torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1])
    ).meaning
    assert "UPPER estimate" in meaning
    assert "not for the sigma of the population" in meaning
    assert "(n, V) = (2, 2)" in meaning
    assert "Subsampled" not in meaning


def test_closest_pairs_are_sorted_and_of_the_class_asked_for():
    views, labels = pixels(10, 3, torch.Generator().manual_seed(3)), torch.arange(10) % 2
    result = measured(views, labels, levels=(1, 3))
    pairs = result.closest(50)
    assert len(pairs) == 20
    assert sorted(p.distance for p in pairs) == [p.distance for p in pairs]
    for p in pairs:
        assert labels[p.i] == labels[p.j] == p.label
        assert float((views[p.i, p.u].double() - views[p.j, p.v].double()).norm()) == pytest.approx(
            p.distance, abs=1e-12
        )
    assert {p.label for p in result.closest(5, label=1)} == {1}
    assert {(p.u, p.v) for p in result.closest(5, level=1)} == {(0, 0)}


def test_beyond_the_budget_classes_keep_their_first_images_equally_many():
    views, labels = pixels(30, 4, torch.Generator().manual_seed(0)), torch.arange(30) % 3
    whole, part = measured(views, labels), Concentration(budget=3 * (4 * 4 * 12 * 4 + 16 * 12))
    for rows in torch.arange(30).split(7):
        part.update(views[rows], labels[rows])
    held = sum(v.numel() * v.element_size() for v in part.views)
    part = part.compute()
    assert part.subsampled
    assert "12 of 30" in part.meaning
    assert part.n.tolist() == [4, 4, 4]
    assert part.seen.tolist() == [10, 10, 10]
    assert held <= 3 * 4 * 4 * 12 * 4
    for d_A, full, images in zip(part.d_A, whole.d_A, part.images, strict=True):
        assert torch.equal(d_A, full[:, :4, :4])
        assert images.tolist() == sorted(images.tolist())
    capped = measured(views, labels, max_images=4)
    assert capped.subsampled
    assert all(torch.equal(a, b) for a, b in zip(capped.d_A, part.d_A, strict=True))
    assert not whole.subsampled


def test_real_images_and_the_speed_of_curves(real_images):
    with np.load(real_images / "cifar10.npz") as file:
        order = np.argsort(file["train_labels"][:4000], kind="stable")
        labels = file["train_labels"][order]
        chosen = np.concatenate([np.flatnonzero(labels == k)[:100] for k in range(10)])
        images = (
            torch.from_numpy(file["train_images"][order[chosen]])
            .permute(0, 3, 1, 2)
            .float()[..., ::4, ::4]
            / 255
        )
    views = torch.stack([images, images.flip(-1), images.roll(1, -1), images.roll(-1, -1)], 1)
    result = measured(views, torch.from_numpy(labels[chosen]).long())
    start = time.perf_counter()
    curve = result.curve()
    # 60 deltas, 10 classes of 100 images; 0.3 s on one free core
    assert time.perf_counter() - start < 5
    assert float((curve.upper - curve.lower).max()) < 0.2
    assert float(curve.upper[0]) > 0.9 > 0.1 > float(curve.lower[-1])


@settings(max_examples=5)
@given(seeds)
def test_the_spread_is_that_of_all_views(seed):
    views = pixels(6, 3, torch.Generator().manual_seed(seed))
    flat = views.double().flatten(2).flatten(0, 1)
    spread = measured(views, torch.arange(6) % 2).spread
    assert spread == pytest.approx(
        float((flat - flat.mean(0)).norm(dim=1).square().mean().sqrt()), abs=1e-12
    )
    kept = flat.view(6, 3, -1)[:4].flatten(0, 1)
    assert measured(views, torch.arange(6) % 2, max_images=2).spread == pytest.approx(
        float((kept - kept.mean(0)).norm(dim=1).square().mean().sqrt())
    )


@settings(max_examples=5)
@given(seeds, st.booleans())
def test_features_are_measured_as_they_are_or_at_length_one(seed, normalize):
    z, labels = (
        5 * torch.randn(8, 3, 7, generator=torch.Generator().manual_seed(seed)),
        torch.arange(8) % 2,
    )
    result = measured(z, labels, normalize=normalize, controls=True)
    used = (torch.nn.functional.normalize(z, dim=2) if normalize else z).double()
    for label in (0, 1):
        own = used[labels == label]
        for i, j in itertools.combinations(range(4), 2):
            assert float(result.d_A[label][0, i, j]) == pytest.approx(
                float((own[i][:, None] - own[j]).norm(dim=2).min()), abs=1e-6
            )
    assert float(result.between.smallest) == float(result.between.by_class[0, 0, 1])


def test_feature_distances_are_measured_alike():
    z = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(0))
    found = augmented_distances(z)
    assert float(found.distance[0, 1, 4]) == pytest.approx(
        float(torch.cdist(z[1].double(), z[4].double()).min()), abs=1e-9
    )


def test_bad_input_is_refused(unchecked):
    good, labels = pixels(4, 2, torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1])
    nan = good.clone()
    nan[2, 0, 1, 0, 0] = torch.nan
    for views, names, sentence in (
        (nan, labels, r"lie in \[0, 1\].*nan"),
        (good * 255, labels, r"lie in \[0, 1\], but these range from"),
        (good - 0.5, labels, "Give pixels before mean and deviation"),
        (good[:, :1], labels, r"1 view of an image.*levels=\(1,\)"),
        (good[:, :, :2], labels, r"shape \(N, V, 3, H, W\)"),
        ((good * 255).byte(), labels, r"not torch\.uint8"),
        (good, labels[:3], r"shape \(4,\)"),
        (good, labels - 1, "labels run from 0 upwards, but these hold -1 to 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Concentration().update(views, names)
    measure = Concentration()
    with pytest.raises(ValueError, match="has seen no image"):
        measure.update(good[:0], labels[:0]) or measure.compute()
    measure.update(good, labels)
    with pytest.raises(ValueError, match=r"= \(3, 3, 2, 2\), those before of \(2, 3, 2, 2\)"):
        measure.update(pixels(1, 3, torch.Generator()), labels[:1])
    with pytest.raises(ValueError, match=r"\(V, D\) = \(2, 12\), those before of \(2, 3, 2, 2\)"):
        measure.update(good.flatten(2), labels)
    with pytest.raises(
        ValueError, match=r"features of shape \(4, 2, 12\) hold values that are not finite"
    ):
        Concentration().update(nan.flatten(2), labels)
    with pytest.raises(ValueError, match="normalize=True is for features"):
        Concentration(normalize=True).update(good, labels)
    alone = Concentration(controls=True)
    alone.update(good, labels * 0 + 5)
    with pytest.raises(ValueError, match="class 5 alone"):
        alone.compute()
    measure.update(good[:1], torch.tensor([7]))
    with pytest.raises(ValueError, match=r"Classes \[7\] have one image each"):
        measure.compute()
    with pytest.raises(ValueError, match="ask for 4 views of an image, but these have 2"):
        Concentration(levels=(2, 4)).update(good, labels)
    with pytest.raises(ValueError, match="increase from 1"):
        Concentration(levels=(4, 2))
    with pytest.raises(ValueError, match="at least 2 images a class"):
        Concentration(max_images=1)
    small = Concentration(budget=100)
    small.update(good, labels)
    with pytest.raises(
        ValueError, match=r"A budget of 100 bytes leaves 0 image\(s\) for each of 2 classes"
    ):
        small.compute()
    result = measured(good, labels)
    for call, sentence in (
        (lambda: result.sigma(-1.0), "at least 0"),
        (lambda: result.sigma(1.0, level=1), r"no level of 1 views: there are \(2,\)"),
        (lambda: result.curve(reduce="max"), "'min'"),
        (lambda: result.sigma(1.0, reduce="max"), "'min'"),
        (
            lambda: result.split(1),
            r"from 2 images of each class to the 2 of the smallest class, not n = 1",
        ),
        (lambda: result.split(3), "not n = 3"),
        (lambda: result.area(0.0), "delta_max above 0"),
        (lambda: result.area(1.0, points=1), "at least 2 points"),
        (lambda: result.area(1.0, reduce="max"), "'min'"),
        (lambda: result.delta_at(1.0), r"a fraction in \[0, 1\), not 1\.0"),
        (lambda: result.delta_at(reduce="max"), "'min'"),
        (lambda: measured(good * 0, labels).area(1.0, normalized=True), "their spread is 0"),
        (lambda: result.closest(1, label=9), r"No class has the label 9: there are \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_measures_and_evaluation_load_the_core_only():
    """Beside what the core's own packages load (torchmetrics takes torchvision in where it finds
    it).
    """
    core = (
        "import sys, torch, numpy, scipy.stats, torchmetrics, jaxtyping; before = "
        "set(sys.modules)\n"
    )
    code = (
        "import marginlab.measures, marginlab.evaluation, marginlab.kernels; "
        "print(*(set(sys.modules) - before))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", core + code],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "marginlab" in loaded
    assert not loaded & {
        "sklearn",
        "torchvision",
        "timm",
        "kornia",
        "plotly",
        "tyro",
        "rich",
        "tensorboard",
        "matplotlib",
        "pandas",
        "PIL",
    }
