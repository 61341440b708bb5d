"""No climb up a hill breaks a bound: random steps that raise the left side less the right one.

Populations of five images in two or three views, which are moved on the sphere; a step that is not
higher is not taken. A bound that were wrong by little, somewhere, would be found there rather than
by drawing. The conditions of new images are climbed in test_unseen.py.
"""

import math

import pytest
import torch
from populations import augmented, normal
from torch.nn.functional import normalize

from marginlab.theory import (
    Population,
    center_radius,
    companion,
    lemma_4_1,
    normalisation,
    rho_2,
    theorem_1,
    theorem_2_discrete,
    theorem_2_worst_view,
    theorem_3,
    theorem_3_population,
    theorem_3_printed,
    theorem_4,
)

LABELS = torch.tensor([0, 0, 0, 1, 1])
WEIGHTS = torch.tensor([0.3, 0.25, 0.05, 0.3, 0.1], dtype=torch.float64)
EPSILON = 0.3


def largest(pairs):
    return float((pairs.left - pairs.right).nan_to_num(nan=-math.inf).max())


def by_companion(population):
    known = {"p": population.p, "gram": population.gram, "within": population.within}
    bound = companion(**known, view_error=population.view_error)
    return bound.left - bound.right


def by_theorem_2(population):
    R, V = population.R(EPSILON), population.f.shape[1]
    known = {"epsilon": EPSILON, "R_epsilon": min(R, 1.0)}
    worst = float(population.w @ population.diameters.square())
    one = theorem_2_discrete(L_align=population.L_align, V=V, **known)
    bounds = (*(one.printed, one.variance), theorem_2_worst_view(L_worst=worst, **known))
    return max(bound.left - bound.right for bound in bounds)


def by_theorem_3(population):
    known = {"p": population.p, "gram": population.gram, "L_2": population.infonce()[1]}
    found = theorem_3(**known, A=population.A)
    R = min(population.R(EPSILON), 1.0)
    printed = theorem_3_printed(**known, R_epsilon=R, epsilon=EPSILON)
    single = [bound.left - bound.right for bound in (found.jensen, found.average)]
    return max(largest(found.pairs), largest(printed), *single)


def by_theorem_4(population):
    L_1, L_2 = population.correlation
    dim = population.f.shape[2]
    deviation = normalisation(population)
    tau = float(population.sigma_within.square().sum())
    known = {"p": population.p, "gram": population.gram, "L_2": L_2, "dim": dim}
    found = theorem_4(**known, tau=tau, r=1.0)
    lemma = lemma_4_1(L_1=L_1, dim=dim, deviation=deviation, L_align=population.L_align)[1]
    more = [bound.left - bound.right for bound in (lemma, found.tension)]
    return max(largest(found.printed), largest(found.refined), *more)


def parts(population):
    """A main part around the first image of each class, by features, and its size."""
    distance = augmented(population.f)[0]
    first = distance[torch.tensor([0, 3])[LABELS], torch.arange(5)]
    members = first <= 0.4
    pair = members[:, None] & members & (LABELS[:, None] == LABELS)
    return members, float(distance[pair].max()) + 1e-9


def by_theorem_1(population):
    """By how much a good point is farther from its center than the radii say, or is misread by more
    than the room of a condition that holds.
    """
    members, delta = parts(population)
    good = members & population.aligned(EPSILON)
    q = population.share(good).clamp(0, 1)
    t = torch.full_like(q, delta + 2 * EPSILON)
    true = (population.f[:, :, None] - population.centers).norm(dim=-1)
    own = true.gather(2, LABELS[:, None, None].expand(-1, true.shape[1], 1))[..., 0]
    other = true.gather(2, 1 - LABELS[:, None, None].expand(-1, true.shape[1], 1))[..., 0]
    radius = center_radius(q, t, population.gram.diagonal())
    over = [-1.0]
    for limit in (rho_2(q, t), radius):
        over += (own - limit[LABELS, None])[good].flatten().tolist()
    apart = float((population.centers[0] - population.centers[1]).norm())
    room = (apart - 2 * radius)[LABELS, None]
    over += torch.minimum(room, own - other)[good].flatten().tolist()
    sigma = float(population.share(members).clamp(0, 1).min())
    R = min(population.R(EPSILON), 1.0)
    known = {"sigma": sigma, "R_epsilon": R, "epsilon": EPSILON, "stretch": delta}
    found = theorem_1(p=population.p, gram=population.gram, **known, error=population.error)
    bounds = (found.printed, found.distance, found.with_lengths)
    over += [bound.left - bound.right for bound in bounds if not bound.premise]
    return max(over)


def by_theorem_3_of_the_population(population):
    f, V = population.f, population.f.shape[1]
    near = torch.einsum("nud,nvd->nuv", f, f)
    far = torch.einsum("nud,mwd->nmuw", f, f)
    pairs = torch.logaddexp(near[:, None, :, :, None], far[:, :, :, None]).flatten(2).mean(2)
    own = torch.nn.functional.one_hot(LABELS, 2).double() * WEIGHTS[:, None] / population.p
    loss = own.T @ pairs @ own
    reach = torch.tensor([[0.2, 0.1], [0.5, 0.3]], dtype=torch.float64)
    first = f[torch.tensor([0, 3]), 0]
    spread = (f - first[LABELS, None]).norm(dim=-1).amax(1)
    inside = spread <= reach[:, LABELS]
    q = torch.stack([population.share(each).clamp(0, 1) for each in inside])
    aligned = population.of_class(population.nu.square().sum(-1)).clamp(0, 1)
    lengths = population.gram.diagonal().clamp(0, 1)
    known = {"p": population.p, "loss": (loss + loss.T) / 2, "aligned": aligned}
    found = theorem_3_population(**known, lengths=lengths, q=q, reach=reach, error=population.error)
    true = (f[:, :, None] - population.centers).norm(dim=-1)
    mine = true.gather(2, LABELS[:, None, None].expand(-1, V, 1))[..., 0]
    over = [float(population.gram[0, 1] - found.products[0, 1])]
    over += (mine - found.radius[LABELS, None])[inside[1]].flatten().tolist()
    return max(*over, found.bound.left - found.bound.right if not found.bound.premise else -1.0)


HEIGHTS = (
    *(by_companion, by_theorem_1, by_theorem_2, by_theorem_3, by_theorem_4),
    by_theorem_3_of_the_population,
)


@pytest.mark.parametrize("steps", [8, pytest.param(3_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("height", HEIGHTS)
def test_no_climb_breaks_a_bound(height, steps):
    for seed, (views, dim) in enumerate(((2, 2), (3, 3))):
        generator = torch.Generator().manual_seed(seed)
        corner = torch.eye(2, dim, dtype=torch.float64)[LABELS][:, None]
        here = normalize(corner + 0.2 * normal(generator, 5, views, dim), dim=-1)
        best = height(Population(here, LABELS, WEIGHTS))
        for step in range(steps):
            scale = 0.3 * 10 ** (-3 * step / steps)
            there = normalize(here + scale * normal(generator, *here.shape), dim=-1)
            value = height(Population(there, LABELS, WEIGHTS))
            if value > best:
                here, best = there, value
        assert best <= 1e-7, (seed, best)
