import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from laws import MeasureLaws
from scipy.stats import binomtest

from marginlab.measures import AnchorConcentration, Anchors, choose_anchors
from marginlab.measures.functional import anchor_distances, augmented_distances


def drawn(seed, n, V, D, offset=0.0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes * 2  # classes 0, 2, 4
    return torch.randn(n, 1, D, generator=generator) + 0.5 * torch.randn(
        n, V, D, generator=generator
    ) + offset, labels


populations = st.builds(
    drawn,
    st.integers(0, 2**20),
    st.integers(6, 20),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([0.0, 300.0]),
)
KNOWN = Anchors(torch.tensor([0, 2, 4]), torch.tensor([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]]), 2.0)


def make(**kwargs):
    return AnchorConcentration(KNOWN, **kwargs)


class TestLaws(MeasureLaws):
    make = staticmethod(make)
    ordered = ("distances", "labels")

    def data(self, n, generator):
        return torch.randn(n, 3, 2, generator=generator), torch.arange(n) % 3 * 2


def plainly(views, label_points):
    """Distances to points, by loops in float64."""
    pairs = zip(views.double(), label_points.double(), strict=True)
    return torch.tensor(
        [
            min(float((view - point).square().sum()) ** 0.5 for view in image)
            for image, point in pairs
        ],
        dtype=torch.float64,
    )


def measured(anchors, views, labels, **kwargs):
    measure = AnchorConcentration(anchors, **kwargs)
    measure.update(views, labels)
    return measure.compute()


@given(populations, st.floats(0.5, 4), st.sampled_from([1, 500, 2**25]))
def test_members_and_intervals_are_those_of_plain_counting(population, delta, budget):
    views, labels = population
    anchors = choose_anchors(views, labels, delta)
    distances = plainly(views, anchors.points[labels // 2])
    torch.testing.assert_close(
        anchor_distances(views, labels, anchors, budget=budget), distances, rtol=1e-12, atol=1e-12
    )
    found = measured(anchors, views, labels, confidence=0.9)
    torch.testing.assert_close(found.distances, distances, rtol=1e-12, atol=1e-12)
    inside = found.distances <= delta / 2
    assert found.members.tolist() == [int(inside[labels == label].sum()) for label in (0, 2, 4)]
    ends, risks = [], []
    for at, (k, n) in enumerate(zip(found.members.tolist(), found.n.tolist(), strict=True)):
        exact = binomtest(k, n).proportion_ci(0.9, method="exact")
        assert (float(found.lower[at]), float(found.upper[at])) == pytest.approx(
            (exact.low, exact.high), abs=1e-12
        )
        alone = (
            binomtest(k, n, alternative="greater").proportion_ci(1 - 0.1 / 3, method="exact").low
        )
        assert float(found.together[at]) == pytest.approx(alone, abs=1e-12)
        ends.append(exact.low)
        risks.append(binomtest(k, n).proportion_ci(1 - 0.1 / 3, method="exact").high)
    assert float(found.sigma) == min(
        k / n for k, n in zip(found.members.tolist(), found.n.tolist(), strict=True)
    )
    assert (float(found.sigma_lower), float(found.sigma_upper)) == pytest.approx(
        (min(ends), min(risks)), abs=1e-12
    )
    pooled = binomtest(int(inside.sum()), len(inside)).proportion_ci(0.9, method="exact")
    assert (float(found.mean), float(found.mean_lower), float(found.mean_upper)) == pytest.approx(
        (float(inside.double().mean()), pooled.low, pooled.high), abs=1e-12
    )


@given(populations, st.floats(0, 4))
def test_members_are_pairwise_within_delta(population, delta):
    """The triangle inequality: the members are a main part."""
    views, labels = population
    anchors = choose_anchors(views, labels, delta, candidates=5)
    distances = anchor_distances(views, labels, anchors)
    for label in (0, 2, 4):
        members = views[labels == label][distances[labels == label] <= delta / 2].double()
        assert len(members)  # an image is within any delta of its own view
        assert float(augmented_distances(members).distance.max()) <= delta * (1 + 1e-12)


@given(populations, st.floats(0.2, 4), st.sampled_from([1, 2000, 2**25]))
def test_the_chosen_points_have_as_many_members_as_any_candidate(population, delta, budget):
    views, labels = population
    anchors = choose_anchors(views, labels, delta, budget=budget)
    assert (anchors.classes.tolist(), anchors.points.shape, anchors.points.dtype) == (
        [0, 2, 4],
        (3, views.shape[2]),
        torch.float64,
    )
    for label, point in zip((0, 2, 4), anchors.points, strict=True):
        own = views[labels == label].double()

        def members(b, own=own):
            return int(((own - b).norm(dim=2).amin(1) <= delta / 2).sum())

        best = max(members(b) for b in (*own.flatten(0, 1), own.mean((0, 1))))
        assert members(point) >= best
        plain = choose_anchors(
            views[labels == label], labels[labels == label], delta, refinements=0, budget=budget
        ).points[0]
        assert members(plain) == best  # all views are candidates, and nothing else is


def test_a_view_at_exactly_half_of_delta_is_a_member():
    """Far from zero, a product of float32 or float64 numbers could not tell: 1e6^2 swallows what
    decides.
    """
    for offset in (0.0, 1e6):
        # (4, 1, 3)
        views = (
            (torch.tensor([0.0, 0.5, 1.0, 1.0 + 2**-20]).double() + offset).repeat(3, 1).T[:, None]
        )
        labels = torch.zeros(4, dtype=torch.int64)
        delta = 2 * float(torch.tensor([0.5, 0.5, 0.5]).double().norm())
        anchors = choose_anchors(views, labels, delta, refinements=0)
        assert torch.equal(anchors.points[0], views[1, 0])
        assert measured(anchors, views, labels).members.tolist() == [3]


def test_equal_numbers_of_members_are_told_apart_by_the_mean_distance():
    # six of them hold three; 10 is the median
    views = torch.tensor([0.0, 0.25, 0.5, 10.0, 10.25, 10.5, 20.0])[:, None, None]
    anchors = choose_anchors(views, torch.zeros(7, dtype=torch.int64), 1.0, refinements=0)
    assert float(anchors.points[0, 0]) == 10.0


def test_refinement_finds_what_no_candidate_has():
    """Four corners of a square, each with a clump: no view reaches more than its own clump, the
    mean of the class reaches all.
    """
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    labels = torch.zeros(4, dtype=torch.int64)
    mean = choose_anchors(corners[:, None], labels, 2 * 1.5)
    assert torch.equal(mean.points, torch.zeros(1, 2).double())
    # now the mean is moved by an outlier
    far = torch.cat([corners[:, None].expand(4, 2, 2), torch.tensor([[[9.0, 9.0], [9.0, 9.5]]])])
    labels = torch.zeros(5, dtype=torch.int64)
    assert measured(
        choose_anchors(far, labels, 2 * 1.5, refinements=0), far, labels
    ).members.tolist() == [1]
    assert measured(
        choose_anchors(far, labels, 2 * 2.2, refinements=3), far, labels
    ).members.tolist() == [4]


def test_few_candidates_are_drawn_by_the_seed():
    views, labels = drawn(3, 60, 2, 4, classes=1)
    one, again, other = (
        choose_anchors(views, labels, 1.0, candidates=2, refinements=0, seed=seed).points
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_pixels_and_half_precision_and_gradients_are_taken():
    views = (
        torch.rand(6, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        .half()
        .requires_grad_()
    )
    labels = torch.tensor([1, 1, 1, 5, 5, 5])
    anchors = choose_anchors(views, labels, 3.0)
    assert anchors.points.shape == (2, 3, 4, 4)
    found = measured(anchors, views, labels)
    assert not found.distances.requires_grad
    expected = plainly(views.detach().flatten(2), anchors.points.flatten(1)[[0, 0, 0, 1, 1, 1]])
    torch.testing.assert_close(found.distances, expected, rtol=1e-12, atol=0)


@given(st.integers(0, 2**20), st.lists(st.floats(0, 6), min_size=1, max_size=5))
def test_a_curve_is_the_measure_at_each_delta(seed, deltas):
    views, labels = drawn(seed, 15, 2, 2)
    result = measured(KNOWN, views, labels)
    least, mean, one = (
        result.curve(deltas),
        result.curve(deltas, reduce="mean"),
        result.curve(deltas, label=2),
    )
    for at, delta in enumerate(deltas):
        found = measured(KNOWN._replace(delta=delta), views, labels)
        assert [float(part[at]) for part in least[1:]] == [
            float(part) for part in (found.sigma, found.sigma_lower, found.sigma_upper)
        ]
        assert [float(part[at]) for part in mean[1:]] == [
            float(part) for part in (found.mean, found.mean_lower, found.mean_upper)
        ]
        assert [float(part[at]) for part in one[1:]] == [
            float(part[1]) for part in (found.sigma_k, found.lower, found.upper)
        ]
        assert result.sigma_at(delta) == (
            float(found.sigma),
            float(found.sigma_lower),
            float(found.sigma_upper),
        )


def test_one_image_of_one_class_keeps_its_shapes():
    found = measured(
        Anchors(torch.tensor([7]), torch.zeros(1, 2), 1.0), torch.zeros(1, 1, 2), torch.tensor([7])
    )
    assert [
        getattr(found, name).shape
        for name in ("n", "members", "sigma_k", "lower", "upper", "together", "distances", "labels")
    ] == [(1,)] * 8
    assert float(found.sigma_lower) == pytest.approx(0.025)
    assert float(found.together[0]) == pytest.approx(0.05)
    assert "LOWER estimate" in found.meaning


def test_intervals_cover_the_truth():
    """Views at a uniform radius around the point: P[least of V radii <= r] = 1 - (1 - r / R_k)^V.
    An interval of half the width does not cover.
    """
    V, n, runs, reach = 3, 40, 300, torch.tensor([1.0, 1.3, 2.0]).double()
    generator = torch.Generator().manual_seed(0)
    anchors = Anchors(torch.arange(3), torch.randn(3, 4, generator=generator).double(), 0.8)
    truth = 1 - (1 - 0.4 / reach) ** V
    held = dict.fromkeys(
        ("class", "half", "together", "together half", "least", "mean", "curve"), 0
    )
    for _ in range(runs):
        # the classes' shares vary as in a sample
        labels = torch.randint(0, 3, (3 * n,), generator=generator)
        way = torch.nn.functional.normalize(
            torch.randn(3 * n, V, 4, generator=generator).double(), dim=2
        )
        radius = (
            torch.rand(3 * n, V, 1, generator=generator).double() * reach[labels][:, None, None]
        )
        found = measured(anchors, anchors.points[labels][:, None] + way * radius, labels)
        held["class"] += int((found.lower <= truth)[1] & (truth <= found.upper)[1])
        middle, width = (found.lower + found.upper)[1] / 2, (found.upper - found.lower)[1] / 2
        held["half"] += int((middle - truth[1]).abs() <= width / 2)
        held["together"] += int((found.together <= truth).all())
        held["together half"] += int(((found.together + found.sigma_k) / 2 <= truth).all())
        held["least"] += int(found.sigma_lower <= truth.min() <= found.sigma_upper)
        held["mean"] += int(found.mean_lower <= truth.mean() <= found.mean_upper)
        _, low, high = found.sigma_at(1.6)
        held["curve"] += int(low <= float(1 - (1 - 0.8 / 2.0) ** V) <= high)
    enough = runs * (0.95 - 3 * (0.95 * 0.05 / runs) ** 0.5)
    assert {name for name, count in held.items() if count < enough} == {"half", "together half"}, (
        held
    )


def test_bad_input_is_refused(unchecked):
    views, labels = drawn(0, 6, 2, 2)
    pixels = torch.rand(2, 1, 3, 2, 2)
    for arguments, sentence in (
        ((views[:, 0], labels, 1.0), r"shape \(N, V, ...\)"),
        ((views.long(), labels, 1.0), "floating-point"),
        ((views / 0, labels, 1.0), "are finite"),
        ((pixels * 2, labels[:2], 1.0), r"lie in \[0, 1\]"),
        ((views, labels[:2], 1.0), r"shape \(6,\)"),
        ((views, labels - 1, 1.0), "from 0"),
        ((views[:0], labels[:0], 1.0), "hold none"),
        ((views, labels, -1.0), "delta >= 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            choose_anchors(*arguments)
    with pytest.raises(ValueError, match="a candidate"):
        choose_anchors(views, labels, 1.0, candidates=0)
    for anchors, sentence in (
        (KNOWN._replace(classes=torch.tensor([2, 0, 4])), "that increase"),
        (KNOWN._replace(points=KNOWN.points[:2]), "Anchors of 3 classes"),
        (KNOWN._replace(points=KNOWN.points / 0), "Anchors of 3 classes"),
        (KNOWN._replace(delta=float("nan")), "delta is a distance"),
    ):
        with pytest.raises(ValueError, match=sentence):
            AnchorConcentration(anchors)
    with pytest.raises(ValueError, match="between 0 and 1"):
        make(confidence=1.0)


def test_what_does_not_fit_the_anchors_is_refused(unchecked):
    views, labels = drawn(0, 6, 2, 2)
    measure = make()
    with pytest.raises(ValueError, match=r"\[1, 9\] have no anchor"):
        measure.update(views[:3], torch.tensor([1, 9, 2]))
    with pytest.raises(
        ValueError, match=r"shape \(3,\) have no distance to points of shape \(2,\)"
    ):
        measure.update(torch.randn(1, 2, 3), labels[:1])
    measure.update(views[:2], labels[:2])
    with pytest.raises(ValueError, match=r"Classes \[4\] have an anchor and no held-out image"):
        measure.compute()
    with pytest.raises(ValueError, match="Images have 1 views, those before had 2"):
        measure.update(views[:, :1], labels)
    for other in (
        AnchorConcentration(KNOWN._replace(delta=2.5)),
        AnchorConcentration(KNOWN._replace(points=KNOWN.points + 1)),
    ):
        other.update(views, labels)
        with pytest.raises(ValueError, match="cannot be joined"):
            measure.merge_state(other)
    result = measured(KNOWN, views, labels)
    for arguments, sentence in (
        (([1.0], "max"), "not 'max'"),
        (([-1.0],), "at least 0"),
        (([1.0], "min", 3), "No class has the label 3"),
    ):
        with pytest.raises(ValueError, match=sentence):
            result.curve(*arguments)
