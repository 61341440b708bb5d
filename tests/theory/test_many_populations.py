"""The statements on new images and on the population in 100,000 populations, drawn in arrays.

The suite takes 1,000 of each, the nightly tests all.
"""

import math

import pytest
import torch
from many import populations
from populations import ROUND

from marginlab.theory import image_wise, prototype_margin, theorem_2_discrete, theorem_2_worst_view
from marginlab.theory.bound import SLACK
from marginlab.theory.theorems.theorem_1_population import conditions
from marginlab.theory.theorems.theorem_3_population import product_limits, room_of

# a loop in place of vmap where torch has no batching rule is what is wanted
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
MANY = pytest.param(100_000, marks=pytest.mark.nightly)
CASES = pytest.mark.parametrize("cases", [1_000, MANY])


@CASES
def test_all_views_of_a_certified_image_are_read_rightly(cases):
    held = 0
    for many in populations(cases):
        labels, centers = many.labels, many.points()[:, :, 0]
        known = (many.f, labels, centers, many.diameters)
        slack = torch.vmap(image_wise, (0, None, 0, 0))(*known)
        certain = slack > SLACK
        between = many.gap(many.distances(centers)).amin(2)
        assert bool((between[certain] >= slack[certain] - ROUND).all())
        apart = (centers[:, :, None] - centers[:, None]).norm(dim=-1)
        apart = apart + torch.eye(many.classes).double() * 1e9
        half = apart.amin(2)[:, labels] / 2
        near = many.own(many.distances(centers)).amin(2)
        # whatever delta and epsilon: a fixed reach has no image that is not certified
        epsilon = half * many.choose([0.0, 0.1, 0.5, 0.9, 1.0])[:, None]
        good = (many.diameters <= epsilon) & (near <= half - epsilon - ROUND)
        assert bool(certain[good].all())
        held += int(certain.any(1).sum())
    assert held > cases / 4  # the condition holds often enough to say something


@CASES
@pytest.mark.parametrize("each", [1, 3])
def test_all_views_of_an_image_that_prototypes_have_are_read_rightly(cases, each):
    held = 0
    for many in populations(cases, seed=each):
        prototypes = many.points(each)
        lists = list(prototypes.movedim(1, 0))
        known = (many.f, many.labels, lists, many.diameters)
        margin = torch.vmap(prototype_margin, (0, None, 0, 0))(*known)
        nearest = torch.stack([many.distances(own).amin(3) for own in lists], 3)
        between = many.gap(nearest).amin(2)
        certain = margin > SLACK
        assert bool((between[certain] >= margin[certain] - ROUND).all())
        held += int(certain.any(1).sum())
    assert held > cases / 4


def reaches(many):
    """Reaches from the inner one (G, R, C), lower limits q of the true shares, and good images."""
    centers = many.points()[:, :, 0]
    far = many.own(many.distances(centers)).amax(2)
    size = many.choose([0.02, 0.1, 0.3, 1.0, 2.5])[:, None]
    outer = size * (0.5 + many.uniform(many.classes))
    inner = many.choose([0.1, 0.5, 1.0])[:, None] * outer
    reach = torch.stack((inner, outer), 1)
    inside = far[:, None] <= reach[:, :, many.labels]
    shares = torch.stack([many.of_class(each.double()) for each in inside.unbind(1)], 1)
    less = many.choose([1.0, 1.0, 0.95, 0.5])[:, None, None]
    return centers, reach, (shares.clamp(0, 1) * less), inside[:, 1]


@CASES
def test_theorem_1_of_the_population_holds(cases):
    held = 0
    for many in populations(cases, seed=4):
        centers, reach, q, good = reaches(many)
        found = conditions(centers, q, reach.clamp(max=2))
        moved = (many.centers - q[:, 1, :, None] * centers).norm(dim=-1)
        assert bool((moved <= found.spread + ROUND).all())
        true = many.distances(many.centers)
        radius = found.radius[:, many.labels, None].expand(*true.shape[:3])
        assert bool((many.own(true) <= radius + 1e-7)[good].all())
        assert bool((found.radius <= found.rho + ROUND).all())
        holds_T, holds = found.room_T > SLACK, (found.room > SLACK) | (found.room_T > SLACK)
        assert bool((found.room > SLACK)[found.room_T > 1e-9].all())  # (T) implies (G)
        apart = (many.centers[:, :, None] - many.centers[:, None]).norm(dim=-1)
        apart = (apart + torch.eye(many.classes).double() * 1e9).amin(2)
        assert bool((apart > 2 * found.rho)[holds_T].all())
        gap = many.gap(true)
        reads = good & holds[:, many.labels]
        assert bool((gap[reads] > 0).all())
        # the error of the nearest true center is at most what is said
        wrong = (gap[:, :, 0] <= 0).double()
        error, said = (many.w * wrong).sum(1), torch.where(holds, 1 - q[:, 1], 1.0)
        assert bool((error <= (many.p * said).sum(1) + ROUND).all())
        held += int(holds.any(1).sum())
    assert held > cases / 25


def losses(many):
    """L_kl by a sum over all images and views of both classes, (G, C, C)."""
    f, w = many.f, many.w
    V = f.shape[2]
    total = f.new_zeros(len(f), len(many.labels), len(many.labels))
    for one in range(V):
        for two in range(V):
            near = (f[:, :, one] * f[:, :, two]).sum(-1)
            for three in range(V):
                far = f[:, :, one] @ f[:, :, three].mT
                total += torch.logaddexp(near[..., None].expand_as(far), far) / V**3
    members = torch.nn.functional.one_hot(many.labels, many.classes).double()
    total = total * w[:, :, None] * w[:, None]
    sums = members.T @ total @ members / (many.p[:, :, None] * many.p[:, None])
    return (sums + sums.mT) / 2


@CASES
def test_theorem_3_of_the_population_holds(cases):
    held = close = 0
    for many in populations(cases, seed=5):
        _, reach, q, good = reaches(many)
        off = ~torch.eye(many.classes, dtype=torch.bool)
        worse = many.choose([0.0, 0.0, 0.01, 0.2])[:, None]  # limits, not what they limit
        aligned = (many.of_class(many.nu.square().sum(-1)) - worse).clamp(0, 1)
        lengths = (many.gram.diagonal(dim1=1, dim2=2) - worse).clamp(0, 1)
        loss = losses(many)
        assert bool((loss[:, off] >= math.log(2) - ROUND).all())
        assert bool((loss[:, off] <= math.log(2) + 1 + ROUND).all())
        products = product_limits(loss + worse[..., None], aligned)
        excess = many.gram - products
        assert bool((excess[:, off] <= 1e-7).all())
        exact = worse[:, 0] == 0
        close += int((excess[exact][:, off] >= -0.1).all(1).sum())
        found = room_of(products, lengths, q, reach.clamp(max=2))
        true = many.distances(many.centers)
        radius = found.radius[:, many.labels, None].expand(*true.shape[:3])
        assert bool((many.own(true) <= radius + 1e-7)[good].all())
        holds = found.room > SLACK
        apart = (many.centers[:, :, None] - many.centers[:, None]).norm(dim=-1)
        apart = (apart + torch.eye(many.classes).double() * 1e9).amin(2)
        assert bool((apart - 2 * found.radius >= found.room - 1e-7)[holds].all())
        gap = many.gap(true)
        assert bool((gap[good & holds[:, many.labels]] > 0).all())
        wrong = (gap[:, :, 0] <= 0).double()
        said = torch.where(holds, 1 - q[:, 1], 1.0)
        assert bool(((many.w * wrong).sum(1) <= (many.p * said).sum(1) + ROUND).all())
        held += int(holds.any(1).sum())
    assert held > cases / 10
    assert close > cases / 10  # of tight classes L_kl tells the product closely


@pytest.mark.parametrize("cases", [300, MANY])  # one at a time, as the library has it
def test_the_worst_view_lies_between_alignment_and_what_is_not_aligned(cases):
    for many in populations(cases, seed=6):
        epsilon = many.choose([0.01, 0.1, 0.5, 1.0])
        V = many.f.shape[2]
        worst = (many.w * many.diameters.square()).sum(1)
        R = (many.w * (many.diameters > epsilon[:, None])).sum(1).clamp(max=1)
        squares = 2 * (1 - many.nu.square().sum(-1)).clamp(min=0)
        L_align = (many.w * squares).sum(1)
        for row in zip(*(x.tolist() for x in (worst, epsilon, R, L_align)), strict=True):
            bound = theorem_2_worst_view(L_worst=row[0], epsilon=row[1], R_epsilon=row[2])
            assert bound.holds
            known = {"L_align": row[3], "epsilon": row[1], "V": V, "R_epsilon": row[2]}
            variance = theorem_2_discrete(**known).variance.right
            assert bound.right <= variance * (1 + 1e-9) + 1e-9 / row[1] ** 2
