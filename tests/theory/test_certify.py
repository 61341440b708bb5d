"""`certify`: no form is below the true error of a population where it certifies, each is what the
theorems say, and new images are counted.
"""

import dataclasses
import math
from fractions import Fraction

import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from populations import ROUND, samples
from scipy import stats

from marginlab.augment import Augmentation
from marginlab.data import load
from marginlab.statistics import unit_vectors
from marginlab.theory import Population, certify, clique_part, rounded_up, theorem_1
from marginlab.theory.certificates import new_images
from marginlab.theory.certificates.new_images import by_class, fix_centers, of_new
from marginlab.theory.certificates.unseen import checked, put_aside


def counted(reach, new, names, unknown=False):
    """Verdicts on new images, by features and labels."""
    return new_images.counted(reach, checked(new, names, reach.centers.shape[1], unknown=unknown))


def clusters(seed=0, classes=4, each=15, views=4, dim=6, spread=0.05, jitter=0.02, strays=0):
    g = torch.Generator().manual_seed(seed)
    centers = torch.eye(dim)[:classes].repeat_interleave(each, 0)[:, None]
    features = (
        centers
        + spread * torch.randn(classes * each, 1, dim, generator=g)
        + jitter * torch.randn(classes * each, views, dim, generator=g)
    )
    labels = torch.arange(classes).repeat_interleave(each)
    features[:strays] = features[:strays].roll(1, dims=-1)
    return features, labels


@given(samples(r=1.0))
def test_what_is_certified_is_true_of_the_population(sample):
    drawn = sample.population
    if drawn.f.shape[1] < 2:
        return
    # the classes have their own probabilities; within a class, images are alike
    weights = (drawn.p / torch.bincount(drawn.labels))[drawn.labels]
    population = Population(drawn.features, drawn.labels, weights)
    certificate = certify(population.features, population.labels, priors=drawn.p, v_curve=False)
    assert certificate.error == pytest.approx(population.error)
    for form in certificate.forms:
        assert not form.union > form.bound.right + ROUND
        if form.bound.certifies and not math.isnan(form.union):
            assert form.union >= population.error - ROUND, form  # Lemma 3.1's sharpest form
        if form.key in ("P", "T", "T_lengths") and abs(form.margin) > 1e-9:
            assert (form.margin > 0) == (not form.bound.premise), form
        left = population.view_error if form.key == "companion" else population.error
        assert form.value >= left - ROUND, form
        assert form.bound.left == pytest.approx(left)
    # the sharper forms never certify less
    printed, distance, lengths = (certificate[key].value for key in ("P", "T", "T_lengths"))
    assert lengths <= min(printed, distance) + 1e-6
    assert certificate["per_class"].value <= lengths + 1e-6


def test_the_best_point_of_the_grid_is_that_of_a_search_by_hand():
    features, labels = clusters(classes=3, each=30, spread=0.02, jitter=0.01, strays=1)
    deltas, epsilons = [0.03, 0.06, 0.3], [0.03, 0.05, 0.2]
    certificate = certify(features, labels, deltas=deltas, epsilons=epsilons, v_curve=False)
    population = Population(torch.nn.functional.normalize(features.double(), dim=-1), labels)
    found = {}
    for i, delta in enumerate(deltas):
        part = clique_part(population.f, labels, delta)
        sigma = float(population.share(part.members).min())
        for j, epsilon in enumerate(epsilons):
            R = population.R(epsilon)
            theorem = theorem_1(
                p=population.p,
                gram=population.gram,
                sigma=sigma,
                R_epsilon=R,
                epsilon=epsilon,
                stretch=part.delta,
            )
            assert float(certificate.bounds[i, j]) == pytest.approx(1 - sigma + R)
            assert int(certificate.holds[i, j]) == (
                3
                if theorem.printed.certifies
                else 2
                if theorem.distance.certifies
                else int(theorem.with_lengths.certifies)
            )
            found[i, j] = theorem
    for key, which in (("P", "printed"), ("T", "distance"), ("T_lengths", "with_lengths")):
        bounds = [
            getattr(theorem, which).right
            for theorem in found.values()
            if getattr(theorem, which).certifies
        ]
        assert certificate[key].value == pytest.approx(min(bounds, default=1.0))
    assert certificate["T_lengths"].value < 0.2


def test_far_clusters_are_certified_and_mixed_ones_are_not_with_a_reason():
    certificate = certify(*clusters(spread=0.02, jitter=0.01), v_curve=False)
    assert [form.value for form in certificate.forms[:5]] == [0.0] * 5
    assert certificate.best().value == certificate.error == 0.0
    features, labels = clusters()
    mixed = certify(
        features,
        labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))],
        v_curve=False,
    )
    assert all(
        form.value == 1.0 and form.bound.reason
        for form in mixed.forms
        if form.key not in ("per_class", "fixed_centers")
    )
    assert mixed.best().value >= mixed.error > 0.3


def test_more_views_never_certify_more_by_the_same_centers():
    features, labels = clusters(each=8, views=8, jitter=0.05)
    certificate = certify(features, labels)
    assert list(certificate.v_curve) == [2, 4, 8]
    assert certificate.v_curve[8] == {form.key: form.value for form in certificate.forms}
    R = [
        certify(features[:, :V], labels, epsilons=[0.3], deltas=[0.2], v_curve=False)["P"].R_epsilon
        for V in (2, 4, 8)
    ]
    assert R[0] <= R[1] <= R[2]
    assert R[0] < R[2]


@given(st.integers(0, 2**20), st.sampled_from([0.05, 0.15, 0.3]), st.integers(0, 8))
def test_fixed_centers_hold_the_most_images_that_any_choice_holds(seed, jitter, strays):
    features, labels = clusters(seed, each=8, views=3, jitter=jitter, strays=strays)
    population = Population(torch.nn.functional.normalize(features.double(), dim=-1), labels)
    reach = fix_centers(population)
    apart = torch.cdist(reach.centers, reach.centers).fill_diagonal_(math.inf).amin(1)
    assert bool((reach.delta + 2 * reach.epsilon < apart).all())
    near = (population.f - reach.centers[labels, None]).norm(dim=-1).amin(1)
    for k in range(4):
        own = labels == k
        held = (
            (near[own] <= reach.delta[k] / 2) & (population.diameters[own] <= reach.epsilon[k])
        ).sum()
        for epsilon in torch.linspace(0, float(apart[k]) / 2, 101, dtype=torch.float64):
            other = (
                (near[own] <= (apart[k] - 2e-7) / 2 - epsilon)
                & (population.diameters[own] <= epsilon)
            ).sum()
            assert held >= other


def test_of_new_images_as_many_as_are_not_good_are_counted_and_the_direct_limit_is_below():
    fitted, new = clusters(0), clusters(1, spread=0.12, jitter=0.05)
    certificate = certify(*fitted, new=new, v_curve=False)
    form = certificate["new_images"]
    assert form.title == "Fixed centers, new images, confidence 0.95"
    # Two epsilons can be equally near the middle: directions are those of the certificate, to the
    # bit
    population = Population(unit_vectors(fitted[0].double()), fitted[1])
    reach, f = fix_centers(population), unit_vectors(new[0].double())
    bad = wrong = uncertified = 0
    half = torch.cdist(reach.centers, reach.centers).fill_diagonal_(math.inf).amin(1) / 2
    for x, k in zip(f, new[1].tolist(), strict=True):
        near = min(float((view - reach.centers[k]).norm()) for view in x)
        wide = max(float((a - b).norm()) for a in x for b in x)
        bad += near > reach.delta[k] / 2 or wide > reach.epsilon[k]
        uncertified += near + wide >= half[k]
        wrong += int((x[0] - reach.centers).norm(dim=1).argmin()) != k
    assert 0 <= wrong < uncertified < bad < len(f)
    for which, count in ((form, bad), (certificate["image_wise"], uncertified)):
        assert which.bound.right == pytest.approx(
            stats.binomtest(count, len(f), alternative="less").proportion_ci(0.95).high
        )
    assert certificate.best("new images") is certificate["image_wise"]
    assert certificate.new_error[0] == form.bound.left == wrong / len(f)
    assert certificate.new_error[1] <= form.bound.right


def test_the_limit_covers_the_error_of_new_images_as_often_as_it_says():
    features, labels = clusters(each=10, spread=0.12, jitter=0.05)
    many, classes = clusters(9, each=1000, spread=0.14, jitter=0.06)
    population = Population(torch.nn.functional.normalize(features.double(), dim=-1), labels)
    reach = fix_centers(population)
    f = torch.nn.functional.normalize(many.double(), dim=-1)
    bad = ~(
        ((f - reach.centers[classes, None]).norm(dim=-1).amin(1) <= reach.delta[classes] / 2)
        & ((f[:, :, None] - f[:, None]).norm(dim=-1).flatten(1).amax(1) <= reach.epsilon[classes])
    )
    true, missed = float(bad.double().mean()), 0
    assert 0.05 < true < 0.95
    for seed in range(200):
        drawn = torch.randint(len(f), (50,), generator=torch.Generator().manual_seed(seed))
        form, _, (_, direct) = of_new(
            reach, counted(reach, (many[drawn], classes[drawn]), torch.arange(4)), confidence=0.95
        )
        assert direct <= form.bound.right
        missed += form.bound.right < true
    assert missed <= 20  # of 200 with 5 % each: more has a probability of 0.1 %


def test_limits_of_classes_hold_for_all_classes_at_once_as_often_as_they_say():
    features, labels = clusters(each=10, spread=0.12, jitter=0.05)
    many, classes = clusters(9, each=1000, spread=0.14, jitter=0.06)
    fitted = Population(torch.nn.functional.normalize(features.double(), dim=-1), labels)
    reach = fix_centers(fitted)
    found = counted(reach, (many, classes), torch.arange(4))
    true = found.of_class(found.uncertified, 4) / 1000
    missed = 0
    for seed in range(200):
        drawn = torch.randint(len(many), (60,), generator=torch.Generator().manual_seed(seed))
        count = counted(reach, (many[drawn], classes[drawn]), torch.arange(4))
        limits = by_class(
            fitted,
            reach,
            counted(reach, (features, labels), torch.arange(4)),
            count,
            torch.arange(4),
            0.9,
        )
        assert bool((limits.direct <= limits.upper).all())
        p = torch.rand(4, generator=torch.Generator().manual_seed(seed)) + 0.1
        certified, direct = limits.limit(p / p.sum())
        assert direct <= certified <= limits.limit()[0] + ROUND
        missed += bool((limits.upper < true).any())
        if bool((limits.upper >= true).all()):
            assert certified >= float(p @ true / p.sum()) - 1e-6  # whatever the class shares
    assert missed <= 33  # of 200 with at most 10 % each: more has a probability of 0.2 %


def test_limits_of_classes_are_those_of_scipy_and_a_class_without_new_images_is_not_known():
    fitted, (f, y) = clusters(0), clusters(1, spread=0.12, jitter=0.05)
    kept = y != 2
    certificate = certify(*fitted, new=(f[kept], y[kept]), v_curve=False, confidence=0.9)
    rows = certificate.by_class.table()
    assert [row["labels"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        if row["labels"] == 2:
            assert (row["n"], row["upper"], row["direct"]) == (0, 1.0, 1.0)
            continue
        high = (
            stats.binomtest(row["new_uncertified"], row["n"], alternative="less")
            .proportion_ci(1 - 0.1 / 4)
            .high
        )
        assert row["upper"] == pytest.approx(high)
        assert row["new_wrong"] <= row["new_uncertified"] <= row["new_bad"]
    assert sum(row["new_bad"] for row in rows) / 45 == pytest.approx(
        1 - _good_share(certificate, f[kept], y[kept])
    )
    assert float(certificate.by_class.p @ certificate.by_class.bad) == pytest.approx(
        certificate["fixed_centers"].bound.right
    )
    with pytest.raises(ValueError, match="one for each of the classes"):
        certificate.by_class.limit(torch.tensor([0.5, 0.5]))


def _good_share(certificate, f, y):
    f, k = torch.nn.functional.normalize(f.double(), dim=-1), certificate.by_class
    fitted = clusters(0)
    centers = Population(
        torch.nn.functional.normalize(fitted[0].double(), dim=-1), fitted[1]
    ).centers
    good = 0
    for x, label in zip(f, y.tolist(), strict=True):
        near, wide = (x - centers[label]).norm(dim=1).min(), torch.pdist(x).max()
        good += (
            bool(k.holds[label])
            and float(near) <= float(k.delta[label]) / 2
            and float(wide) <= float(k.epsilon[label])
        )
    return good / len(f)


def test_a_share_put_aside_is_counted_and_nothing_else_is_computed_of_it():
    features, labels = clusters(each=9, spread=0.1, jitter=0.05)
    certificate = certify(features, labels, new=1 / 3, v_curve=False, seed=3)
    assert (certificate.images, certificate.new_images) == (24, 12)
    aside = put_aside(labels, 1 / 3, seed=3)
    assert int(aside.sum()) == 12
    by_hand = certify(
        features[~aside], labels[~aside], new=(features[aside], labels[aside]), v_curve=False
    )
    assert [form.value for form in by_hand.forms] == [form.value for form in certificate.forms]
    assert not torch.equal(aside, put_aside(labels, 1 / 3, seed=4))


def rare_classes(n, generator):
    """Images of 5 classes, one common and four rare, whose rare ones lie among the common."""
    p = torch.tensor([0.92, 0.02, 0.02, 0.02, 0.02])
    labels = p.multinomial(n, replacement=True, generator=generator)
    spread = torch.where(labels == 0, 0.6, 0.3)[:, None, None]
    image = torch.eye(6)[labels][:, None] + spread * torch.randn(n, 1, 6, generator=generator)
    views = image + 0.02 * torch.randn(n, 3, 6, generator=generator)
    return views, labels


def test_a_share_put_aside_covers_the_error_as_often_as_it_says_with_rare_classes():
    """Also the limit by the images' own count; with one image of each class both covered less."""
    population, classes = rare_classes(4000, torch.Generator().manual_seed(0))
    missed, seen = torch.zeros(2), 150
    for seed in range(seen):
        features, labels = rare_classes(300, torch.Generator().manual_seed(1000 + seed))
        aside = put_aside(labels, 0.04, seed)
        names, y = labels[~aside].unique(return_inverse=True)
        fitted = torch.nn.functional.normalize(features[~aside].double(), dim=-1)
        reach = fix_centers(Population(fitted, y))
        true = counted(reach, (population, classes), names, unknown=True)
        found = counted(reach, (features[aside], labels[aside]), names, unknown=True)
        form, _, (_, direct) = of_new(reach, found, confidence=0.9)
        bad, wrong = (float(part.double().mean()) for part in (true.bad, true.wrong))
        missed += torch.tensor([form.bound.right < bad, direct < wrong])
    assert int(missed.max()) <= 26  # of 150 with 10 % each: more has a probability of 0.1 %


def test_images_put_aside_that_have_no_other_of_their_class_count_as_wrong():
    features, labels = clusters(each=9)
    labels[0] = 7
    seed = next(seed for seed in range(99) if put_aside(labels, 0.3, seed)[0])
    certificate = certify(features, labels, new=0.3, v_curve=False, seed=seed)
    assert certificate.by_class.unknown == 1
    assert certificate.by_class.labels.tolist() == [0, 1, 2, 3]
    assert certificate.new_error[0] >= 1 / certificate.new_images
    assert certificate.by_class.limit() == (1.0, 1.0)
    assert "1 of the new images are of classes without another" in str(certificate)


def test_it_says_whom_the_new_images_may_be_and_prints_no_bound_below_itself():
    certificate = certify(*clusters(spread=0.1), new=clusters(1, spread=0.12), v_curve=False)
    text = str(certificate)
    assert "neither trained on them nor chosen by them" in text
    printed = [float(line.split("<=")[1].split()[0]) for line in text.splitlines() if "<=" in line]
    bounds = [form.bound.right for form in certificate.forms if form.bound.certifies]
    assert printed
    for shown, bound in zip(printed, bounds, strict=True):
        assert bound <= shown < bound + 1e-4


@given(st.floats(0, 2), st.integers(1, 6))
def test_a_bound_is_rounded_up(value, digits):
    shown = rounded_up(value, digits)
    assert len(shown.partition(".")[2]) == digits
    exact = Fraction(repr(value))
    assert exact <= Fraction(shown) < exact + Fraction(1, 10**digits)


def test_priors_weigh_the_classes():
    features, labels = clusters(strays=6)
    p = torch.tensor([0.7, 0.1, 0.1, 0.1])
    even, uneven = (
        certify(features, labels, v_curve=False),
        certify(features, labels, priors=p, v_curve=False),
    )
    assert even.error == pytest.approx(6 / 60)
    assert uneven.error == pytest.approx(0.7 * 6 / 15)
    assert uneven["fixed_centers"].bound.right == pytest.approx(
        float(p.double() @ uneven.by_class.bad)
    )


def test_pixels_give_a_form_of_their_own_and_the_first_view_must_be_the_image():
    images = load("shapes-5", "train", size=16).subset(30)
    views = Augmentation("e").views(images.images, n_views=4, seed=0, identity=True)
    features = torch.eye(5)[images.labels][:, None] + 0.02 * views.flatten(2)[..., :5]
    certificate = certify(features, images.labels, views, images.images, v_curve=False)
    assert {form.key for form in certificate.forms if form.title.endswith("pixels")} == {
        "P_pixels",
        "T_pixels",
        "T_lengths_pixels",
    }
    pixel = certificate["T_pixels"]
    assert pixel.bound.certifies
    assert pixel.delta != certificate.deltas[0]
    without = Augmentation("ae").views(images.images, n_views=4, seed=0)
    with pytest.raises(
        ValueError, match=r"first view of \d+ of 30 images is not the image itself.*identity=True"
    ):
        certify(features, images.labels, without, images.images)
    assert certificate.compared
    assert "is the image." in str(certificate)
    word = certify(features, images.labels, views, v_curve=False)
    assert not word.compared
    assert "is taken to be the image" in str(word)
    assert [form.value for form in word.forms] == [form.value for form in certificate.forms]
    with pytest.raises(ValueError, match="give views as well"):
        certify(features, images.labels, images=images.images)


def test_it_prints_tabulates_and_draws_itself():
    certificate = certify(*clusters(spread=0.02, jitter=0.01, strays=1), new=clusters(1))
    assert {form.bound.certifies for form in certificate.forms} == {True, False}
    text = str(certificate)
    for form in certificate.forms:
        assert form.title in text
    assert "does not beat a test set" in text
    table = certificate.table()
    assert [row["form"] for row in table] == [form.title for form in certificate.forms]
    assert all(row["certifies"] == (not row["reason"]) for row in table)
    figure = certificate.figure()
    assert isinstance(figure, go.Figure)
    assert list(figure.data[0].x) == [form.value for form in certificate.forms]
    drawn = {trace.type: trace for trace in figure.data}
    assert [list(row) for row in drawn["heatmap"].z] == certificate.bounds.tolist()
    marked = {
        (d, e)
        for trace in figure.data
        if trace.name.endswith("holds")
        for d, e in zip(trace.y, trace.x, strict=True)
    }
    assert marked == {tuple(at) for at in certificate.holds.nonzero().tolist()} != set()
    curves = {
        trace.name: list(trace.y)
        for trace in figure.data
        if trace.type == "scatter" and trace.mode == "lines+markers"
    }
    assert curves["fixed centers"] == [at["fixed_centers"] for at in certificate.v_curve.values()]
    vacuous = certify(
        torch.randn(60, 4, 6, generator=torch.Generator().manual_seed(0)),
        clusters()[1],
        v_curve=False,
    ).figure()
    assert {"no condition holds anywhere", "not computed (v_curve=False)"} <= {
        note.text for note in vacuous.layout.annotations
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        certificate.error = 0.0
    with pytest.raises(
        KeyError,
        match="There is no form 'Theorem 1' in this certificate; its forms are P, T, T_lengths",
    ):
        certificate["Theorem 1"]
    with pytest.raises(ValueError, match="There is no form of 'old images' here"):
        certificate.best("old images")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"features": torch.rand(60, 1, 6)}, "at least two views"),
        ({"features": torch.zeros(60, 4, 6)}, "not zero"),
        ({"labels": torch.zeros(60, dtype=torch.long)}, "at least two classes"),
        ({"labels": torch.arange(59)}, "one for each of 60"),
        ({"deltas": []}, "deltas are distances, at least one"),
        ({"epsilons": [-0.5]}, "epsilons are distances"),
        ({"labels": torch.arange(60) % 2 == 0}, "Labels are integers, not torch.bool"),
        ({"confidence": 1.0}, "confidence is between 0 and 1"),
        ({"new": (torch.rand(3, 4, 6), torch.tensor([0, 1, 9]))}, r"not also of \[9\]"),
        ({"new": 1.0}, "between 0 and 1, not at 1.0"),
        ({"prototypes": (1, 0)}, r"whole and at least 1, not \(1, 0\)"),
        ({"priors": torch.tensor([0.5, 0.5])}, "one for each of 4 classes, not 2"),
        ({"priors": torch.tensor([0.5, 0.5, 0.5, 0.5])}, "sum to 1"),
        ({"labels": torch.arange(60).clamp(max=1), "new": 0.99}, "put aside a smaller share"),
        ({"new": (torch.rand(3, 4, 5), torch.tensor([0, 1, 1]))}, r"New features are \(M, V, 6\)"),
    ],
)
def test_what_cannot_be_is_refused(changes, sentence, unchecked):
    features, labels = clusters()
    given_ = {"features": features, "labels": labels, **changes}
    with pytest.raises(ValueError, match=sentence):
        certify(given_.pop("features"), given_.pop("labels"), v_curve=False, **given_)


def test_priors_are_of_all_classes_also_where_a_share_put_aside_takes_one():
    features, labels = clusters(each=9)
    labels[0] = 7
    p = torch.tensor([0.4, 0.3, 0.2, 0.1])
    p = torch.cat((p[:-1], p[-1:] / 2, p[-1:] / 2))
    inside, outside = (
        next(seed for seed in range(99) if bool(put_aside(labels, 0.3, seed)[0]) is held)
        for held in (True, False)
    )
    settings = {"new": 0.3, "v_curve": False}
    kept = certify(features, labels, priors=p, seed=outside, **settings)
    assert kept.left_out == ()
    torch.testing.assert_close(kept.by_class.p, p.double())
    taken = certify(features, labels, priors=p, seed=inside, **settings)
    assert taken.left_out == (7,)
    assert taken.by_class.labels.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(taken.by_class.p, p[:4].double() / p[:4].double().sum())
    assert "All images of class 7 are among those put aside" in str(taken)
    for seed in (inside, outside):
        with pytest.raises(ValueError, match="one for each of 5 classes, not 4"):
            certify(features, labels, priors=torch.full((4,), 0.25), seed=seed, **settings)
