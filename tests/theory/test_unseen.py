"""Certificates of new images and of the population: the statements hold on every finite population,
no climb up a hill breaks them, and limits cover as often as they say.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from populations import MANY, ROUND, normal, samples
from scipy import stats
from torch.nn.functional import normalize
from unseen import WORLDS, world

from marginlab.theory import (
    Population,
    find_prototypes,
    image_wise,
    prototype_margin,
    surrogate,
    theorem_1_population,
    theorem_2_discrete,
    theorem_2_worst_view,
)
from marginlab.theory.bound import SLACK
from marginlab.theory.certificates.by_class import lower_limit, upper_limit
from marginlab.theory.certificates.new_images import counted, fix_centers, of_new
from marginlab.theory.certificates.population_form import (
    farthest,
    limits,
    plan,
    population_forms,
    split,
)
from marginlab.theory.certificates.prototypes import choose_number, prototype_form
from marginlab.theory.certificates.unseen import NewImages
from marginlab.theory.theorems.image_wise import class_distances

KINDS = ("own", "moved", "anywhere")


def points(population, kind, seed, each=1):
    """Centers in the unit ball: those of the population, others near them, or any."""
    generator = torch.Generator().manual_seed(seed)
    C, D = population.centers.shape
    shift = {"own": 0.0, "moved": 0.1, "anywhere": 3.0}[kind]
    found = population.centers[:, None] + shift * normal(generator, C, each, D)
    return found / found.norm(dim=-1, keepdim=True).clamp(min=1)


def distances(population, centers):
    """Of each view from each center, (N, V, C)."""
    return (population.f[:, :, None] - centers).norm(dim=-1)


def gap(nearest, labels):
    """Distance to the nearest of another class less that to the own class, of each view."""
    own = nearest.gather(2, labels[:, None, None].expand(-1, nearest.shape[1], 1))[..., 0]
    mask = torch.arange(nearest.shape[2]) == labels[:, None, None]
    return nearest.masked_fill(mask, math.inf).amin(2) - own


@MANY
@given(samples(r=1.0), st.sampled_from(KINDS), st.integers(0, 2**20), st.data())
def test_all_views_of_an_image_that_the_image_wise_condition_has_are_read_rightly(
    sample, kind, seed, data
):
    population = sample.population
    centers = points(population, kind, seed)[:, 0]
    slack = image_wise(population.f, population.labels, centers)
    certain = slack > SLACK
    between = gap(distances(population, centers), population.labels)
    # by at least the slack: || f - c_l || - || f - c_k || >= 2 h_k - 2 (near + diam)
    assert bool((between[certain] >= slack[certain, None] - ROUND).all())
    # whatever delta and epsilon: an image that fixed reaches have, the image-wise condition has
    apart = (centers[:, None] - centers).norm(dim=-1).fill_diagonal_(math.inf).amin(1)
    half = apart[population.labels] / 2
    epsilon = half * data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    near = (population.f - centers[population.labels, None]).norm(dim=-1).amin(1)
    good = (population.diameters <= epsilon) & (near <= half - epsilon - ROUND)
    assert bool(certain[good].all())
    # and an image that it has, one prototype of each class has
    margin = prototype_margin(population.f, population.labels, list(centers[:, None]))
    assert bool((margin[certain] >= slack[certain] - ROUND).all())


@MANY
@given(samples(r=1.0), st.sampled_from(KINDS), st.integers(0, 2**20), st.integers(1, 3))
def test_all_views_of_an_image_that_prototypes_have_are_read_rightly(sample, kind, seed, each):
    population = sample.population
    prototypes = points(population, kind, seed, each)
    margin = prototype_margin(population.f, population.labels, list(prototypes))
    nearest = torch.stack([distances(population, own).amin(2) for own in prototypes], 2)
    between = gap(nearest, population.labels)
    assert bool((between[margin > SLACK] >= margin[margin > SLACK, None] - ROUND).all())
    direct = class_distances(population.f.flatten(0, 1), list(prototypes)).view_as(nearest)
    torch.testing.assert_close(direct, nearest)
    expected = between.amax(1) - 2 * population.diameters
    torch.testing.assert_close(margin, expected, atol=1e-9, rtol=1e-9)


def exact(population, centers, reach, share=1.0):
    """The theorem of the population with the true shares within reaches, or less of them."""
    far = farthest(population.f, population.labels, centers)
    inside = far <= reach.view(-1, len(centers))[:, population.labels]
    q = torch.stack([(population.share(within) * share).clamp(0, 1) for within in inside])
    known = {"p": population.p, "centers": centers, "error": population.error}
    return inside[-1], q[-1], theorem_1_population(q=q, reach=reach.view_as(q), **known)


@MANY
@given(
    samples(r=1.0),
    st.sampled_from(KINDS),
    st.integers(0, 2**20),
    st.sampled_from([0.0, 0.02, 0.1, 0.3, 1.0, 2.5]),
    st.sampled_from([(), (0.5,), (0.1, 0.6)]),
    st.sampled_from([1.0, 1.0, 0.95, 0.5]),
)
def test_theorem_1_of_the_population_holds_with_any_points_and_reaches(
    sample, kind, seed, size, inner, share
):
    population = sample.population
    centers = points(population, kind, seed)[:, 0]
    generator = torch.Generator().manual_seed(seed)
    outer = size * (0.5 + torch.rand(len(centers), generator=generator, dtype=torch.float64))
    reach = torch.stack([part * outer for part in (*inner, 1.0)])
    good, q, theorem = exact(population, centers, reach, share)
    moved = (population.centers - q[:, None] * centers).norm(dim=1)
    assert bool((moved <= theorem.spread + ROUND).all())
    # every view of a good point, from the true center
    true = distances(population, population.centers)
    own = true.gather(2, population.labels[:, None, None].expand(-1, true.shape[1], 1))[..., 0]
    assert bool((own[good] <= theorem.radius[population.labels[good], None] + 1e-7).all())
    assert bool((theorem.radius <= theorem.rho).all())
    assert bool((theorem.holds | ~theorem.holds_T).all())  # (T) implies (G)
    between = gap(true, population.labels)
    held = good & theorem.holds[population.labels]
    assert bool((between[held] > 0).all())
    apart = (population.centers[:, None] - population.centers).norm(dim=-1)
    least = apart.fill_diagonal_(math.inf).amin(1)
    assert bool((least > 2 * theorem.rho)[theorem.holds_T].all())
    assert theorem.bound.holds
    assert theorem.distance.holds
    assert theorem.bound.right <= theorem.distance.right
    # more reaches never say less
    single = exact(population, centers, outer, share)[2]
    assert bool((theorem.room >= single.room - ROUND).all())


@MANY
@given(samples(), st.sampled_from([0.01, 0.1, 0.5, 1.0]))
def test_the_worst_view_lies_between_alignment_and_what_is_not_aligned(sample, size):
    population, epsilon = sample.population, size * sample.r
    worst = float(population.w @ population.diameters.square())
    R, V = min(population.R(epsilon), 1.0), population.f.shape[1]
    bound = theorem_2_worst_view(L_worst=worst, epsilon=epsilon, R_epsilon=R)
    assert bound.holds
    known = {"L_align": population.L_align, "epsilon": epsilon, "V": V, "R_epsilon": R}
    assert bound.right <= theorem_2_discrete(**known).variance.right * (1 + 1e-9) + ROUND


def test_conditions_of_the_population_hold_and_one_asks_for_less_than_the_other():
    """Three tight classes; in every other population a quarter of class 0 is a stray."""
    held, corners = [], torch.eye(3, dtype=torch.float64)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(12) % 3
        f = normalize(corners[labels][:, None] + 0.02 * normal(generator, 12, 2, 3), dim=-1)
        if seed % 2:
            f[0] = -corners[0]
        theorem = exact(Population(f, labels), corners, torch.full((3,), 0.12).double())[2]
        held.append((bool(theorem.holds.all()), bool(theorem.holds_T.all())))
    assert set(held[::2]) == {(True, True)}
    assert set(held[1::2]) == {(True, False)}


def climb(start, height, steps, generator, size=0.3):
    """Go up by random steps on the unit sphere; a step that is not higher is not taken."""
    here, best = start, height(start)
    for step in range(steps):
        scale = size * 10 ** (-3 * step / steps)
        there = normalize(here + scale * normal(generator, *here.shape), dim=-1)
        value = height(there)
        if value > best:
            here, best = there, value
    return best


LABELS = torch.tensor([0, 0, 0, 1, 1])
STEPS = [40, pytest.param(4000, marks=pytest.mark.nightly)]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("seed", range(4))
def test_no_climb_breaks_a_condition(steps, seed):
    """The height is by how much an image, or a center, is on the wrong side of what is proved."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(5, generator=generator, dtype=torch.float64) + 0.05
    weights /= weights.sum()

    def split(z):
        """Views of images, and three points of each class."""
        return Population(z[:10].view(5, 2, -1), LABELS, weights), z[10:].view(2, 3, -1)

    def read(z):
        population, prototypes = split(z)
        single = prototypes[:, 0]
        one = gap(distances(population, single), LABELS).amin(1)
        slack = image_wise(population.f, LABELS, single, population.diameters)
        nearest = torch.stack([distances(population, own).amin(2) for own in prototypes], 2)
        margin = prototype_margin(population.f, LABELS, list(prototypes), population.diameters)
        return float(torch.cat((slack - one, margin - gap(nearest, LABELS).amin(1))).max())

    def center(z):
        population, prototypes = split(z)
        reach = torch.tensor([[0.2, 0.1], [0.4, 0.2]], dtype=torch.float64)
        good, q, theorem = exact(population, prototypes[:, 0], reach)
        true = distances(population, population.centers)
        own = true.gather(2, LABELS[:, None, None].expand(-1, 2, 1))[..., 0]
        over = [(population.centers - q[:, None] * prototypes[:, 0]).norm(dim=1) - theorem.spread]
        over.append((own - theorem.radius[LABELS, None])[good].flatten())
        over.append((theorem.room[LABELS, None] - gap(true, LABELS))[good].flatten())
        return float(torch.cat(over).max())

    start = normalize(
        torch.eye(2, dtype=torch.float64)[torch.tensor([0] * 6 + [1] * 4 + [0] * 3 + [1] * 3)]
        + 0.2 * normal(generator, 16, 2),
        dim=-1,
    )
    for height in (read, center):
        assert climb(start, height, steps, generator) <= 1e-7


def test_terms_of_the_population_form_are_needed():
    """With strays opposite to the center, each radius without one of its terms would be broken."""
    angle = torch.tensor([0.1, -0.1, math.pi + 0.1], dtype=torch.float64)
    f = torch.stack((angle.cos(), angle.sin()), 1)[:, None]
    other = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    weights = torch.tensor([1e-9, 0.4, 0.1 - 1e-9, 0.5], dtype=torch.float64)
    population = Population(torch.cat((f, other)), torch.tensor([0, 0, 0, 1]), weights)
    centers = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    good, q, theorem = exact(population, centers, torch.full((2,), 0.1, dtype=torch.float64))
    assert good.tolist() == [True, True, False, True]
    assert float(q[0]) == pytest.approx(0.8)
    off = float((population.f[0, 0] - population.centers[0]).norm())
    assert max(2 * 0.2, 2 * 0.8 * 0.1 + 0.2) < off <= float(theorem.radius[0])
    moved = float((population.centers[0] - q[0] * centers[0]).norm())
    assert max(0.8 * 0.1, 0.2) < moved <= float(theorem.spread[0])


def test_image_wise_needs_all_of_the_diameter():
    """Views on a line at 0.9 and 1.9, centers at 0 and 4: near + diam = 1.9 < 2, and not at 2.1."""
    centers = torch.tensor([[0.0], [4.0]], dtype=torch.float64)
    views = torch.tensor([[[0.9], [1.9]], [[0.9], [2.1]]], dtype=torch.float64)
    slack = image_wise(views, torch.tensor([0, 0]), centers)
    assert slack.tolist() == pytest.approx([0.2, -0.2])
    assert bool((views[1] - centers[0]).norm() > (views[1, 1] - centers[1]).norm())
    margin = prototype_margin(views, torch.tensor([0, 0]), list(centers[:, None]))
    assert margin.tolist() == pytest.approx([0.2, -0.2])


REPEATS = [12, pytest.param(1000, marks=pytest.mark.nightly)]


@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize("name", WORLDS)
def test_limits_cover_at_least_as_often_as_they_say(name, repeats):
    """Each against the very share that it bounds, not against the error, which is less."""
    here, whole = world(name), world(name).images()
    labels = here.population.labels
    missed = dict.fromkeys(("image_wise", "new_images", "prototypes", "population"), 0)
    for seed in range(repeats):
        generator = torch.Generator().manual_seed(seed)
        seen, new = here.draw(generator)
        reach = fix_centers(seen)
        fixed, each, _ = of_new(reach, counted(reach, new), confidence=0.9)
        true = counted(reach, whole)
        missed["new_images"] += fixed.bound.right < float(true.bad.double().mean())
        missed["image_wise"] += each.bound.right < float(true.uncertified.double().mean())
        wrong = float(true.wrong.double().mean())
        assert float(true.bad.double().mean()) >= float(true.uncertified.double().mean()) >= wrong
        form = prototype_form(seen, new, (1, 3), 0.9)
        found = find_prototypes(seen.f, seen.labels, form.prototypes)
        margin = prototype_margin(whole.features, labels, found, whole.diameters)
        missed["prototypes"] += form.bound.right < float((margin <= SLACK).double().mean())
        by_T, of_all = population_forms(seen, new, 0.9)
        assert of_all.bound.right <= by_T.bound.right
        pilot, rest = split(new, 0)
        plans = plan(seen, pilot, len(rest.labels), 0.9)
        told = limits(plans, rest, seen.p, 0.9)
        far = farthest(whole.features, labels, plans.centers)
        inside = far <= plans.reach[:, labels]
        good, share = inside[1], torch.stack([here.population.share(each) for each in inside])
        failing = (~told.theorem.holds[plans.order]).nonzero()
        first = plans.order[: int(failing.max()) + 1] if len(failing) else plans.order[:0]
        event = float((~good | torch.isin(labels, first)).double().mean())
        if bool((told.q > share + 1e-12).any()) or of_all.bound.right < event - 1e-12:
            missed["population"] += 1
        elif of_all.bound.certifies:  # then the theorem says so of the true centers
            assert of_all.bound.right >= here.population.error
    most = int(stats.binom.ppf(0.9995, repeats, 0.1))
    assert max(missed.values()) <= most, missed


def test_the_population_is_certified_where_classes_are_tight_and_not_where_one_is_rare():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1200) % 4
    center = torch.eye(4, dtype=torch.float64)[labels][:, None]
    f = normalize(center + 0.02 * normal(generator, 1200, 3, 4), dim=-1)
    seen = Population(f[:200], labels[:200])
    known = torch.ones(1000, dtype=torch.bool)
    new = NewImages(f[200:], labels[200:], known, torch.zeros(1000))
    by_T, form = population_forms(seen, new, 0.95)
    assert (by_T.key, form.key, form.of) == ("population_T", "population", "the population")
    # no image is out of reach, and all classes hold: a quarter of the risk on one count
    assert form.bound.right == by_T.bound.right == pytest.approx(1 - 0.0125 ** (1 / 800))
    pilot, rest = split(new, 0)
    assert (len(pilot.labels), len(rest.labels)) == (200, 800)
    both = torch.cat((pilot.features, rest.features)).flatten(1)
    assert len(both.unique(dim=0)) == 1000  # no image is in both
    few = torch.cat((torch.arange(3, 1000, 4)[:2], (labels[200:] != 3).nonzero()[:, 0]))
    rare = NewImages(new.features[few], new.labels[few], known[few], new.diameters[few])
    _, form = population_forms(seen, rare, 0.95)
    assert form.value == 1.0
    assert form.bound.reason.startswith("No class holds")


def test_prototypes_read_clusters_that_one_center_cannot():
    generator = torch.Generator().manual_seed(0)
    cluster = torch.arange(160) % 4
    labels = cluster % 2  # two opposite clusters form a class: both centers are the origin
    corner = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
    f = normalize(corner[cluster][:, None] + 0.05 * normal(generator, 160, 2, 2), dim=-1)
    population = Population(f[:80], labels[:80])
    new = NewImages(
        f[80:], labels[80:], torch.ones(80, dtype=torch.bool), Population(f, labels).diameters[80:]
    )
    assert choose_number(population, (1, 2, 4)) == 2
    form = prototype_form(population, new, (1, 2, 4), 0.95)
    assert (form.key, form.prototypes, form.of) == ("prototypes", 2, "new images, by prototypes")
    assert form.bound.right == pytest.approx(1 - 0.05 ** (1 / 80))
    assert prototype_form(population, new, (1,), 0.95).bound.right > 0.5
    again = find_prototypes(population.f, population.labels, 2, seed=0)
    for one, two in zip(find_prototypes(population.f, population.labels, 2), again, strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match="at least one prototype, not 0"):
        find_prototypes(population.f, population.labels, 0)


@given(st.integers(0, 2**20), st.floats(0, 1), st.floats(0, 1))
def test_an_error_is_at_most_another_and_what_differs(seed, first, second):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (50,), generator=generator)
    s = torch.where(torch.rand(50, generator=generator) < first, y + 1, y)
    h = torch.where(torch.rand(50, generator=generator) < second, s + 1, s)
    error, limit = (float((z != y).double().mean()) for z in (h, s))
    different = int((h != s).sum())
    bound = surrogate(limit, different=different, n=50, confidence=0.9, error=error)
    assert bound.holds  # the binomial limit is above the share that was counted
    assert bound.right >= limit + different / 50
    with pytest.raises(ValueError, match="not on 51 of 50"):
        surrogate(limit, different=51, n=50)


@given(st.integers(1, 200), st.integers(0, 200), st.sampled_from([0.9, 0.95, 0.999]))
def test_lower_limits_are_those_of_scipy(n, count, confidence):
    count = min(count, n)
    low = float(lower_limit(torch.tensor([count]), torch.tensor([n]), confidence))
    exact_low = stats.binomtest(count, n, alternative="greater").proportion_ci(confidence).low
    assert low == pytest.approx(exact_low, abs=1e-12)
    assert low <= count / n <= float(upper_limit(torch.tensor([count]), torch.tensor([n]), 0.9))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"centers": 2 * torch.eye(2)}, "points of the unit ball"),
        ({"centers": torch.eye(3)}, "Centers of 2 classes"),
        ({"q": torch.tensor([0.5, 1.5])}, "q is a probability"),
        ({"reach": torch.tensor([0.5, -0.1])}, "reach is finite and not negative"),
        ({"reach": torch.full((2, 2), 0.5)}, "There is a q for each reach"),
        (
            {"q": torch.full((2, 2), 0.5), "reach": torch.tensor([[0.5, 0.5], [0.4, 0.6]])},
            "reaches begin with the smallest",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes, sentence, unchecked):
    half = torch.full((2,), 0.5)
    with pytest.raises(ValueError, match=sentence):
        theorem_1_population(
            **({"p": half, "centers": torch.eye(2), "q": half, "reach": half} | changes)
        )
