"""Theorem 1 of the population that new images come from, with exact binomial limits.

Centers c_k are fixed on images at hand; two reaches of each class, an inner and an outer one, on a
fifth of the new images, the pilot, because images that training has seen lie nearer to their
centers than others. The other new images are counted: one is good if all its views lie within the
outer reach of its c_k. With the risk alpha = 1 - confidence,

    alpha / 2   q, lower limits of the share of a class within either reach, alpha / (4 C) each:
                they decide which classes hold (`theorem_1_population`)
    alpha / 2   an upper limit of P[not good, or of a class that does not hold], from all images
                together

The second event depends on which classes hold, and this on the images that are counted. So classes
are ordered beforehand, by the pilot, from the one that holds by least to the one that holds by
most; the j-th event is "not good, or of the first j classes". Half of the second risk goes
to j = 0, the other half to j = 1..C-1. The event that is taken is the first that contains all
classes that fail. Err(G_f) is at most its probability, with probability 1 - alpha
(docs/derivations.md, 2.11, which also says why the views may be drawn ones).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy import special
from torch import Tensor

from marginlab.rng import Key
from marginlab.statistics import to_nearest_other
from marginlab.theory.bound import SLACK, Bound
from marginlab.theory.certificates.by_class import lower_limit, upper_limit
from marginlab.theory.certificates.form import POPULATION, Form
from marginlab.theory.certificates.unseen import NewImages
from marginlab.theory.population import Population
from marginlab.theory.theorems.theorem_1_population import (
    NONE_HOLDS,
    Theorem1Population,
    conditions,
    theorem_1_population,
)

REACHES = 24  # candidates: equal parts of half the way to the next center
PILOT = 5  # one of so many new images is in the pilot
PRIOR = 5.0  # images by which the pilot of all classes counts in that of one


class Plan(NamedTuple):
    """Centers and reaches, fixed before new images are counted.

    Attributes:
        centers: c_k.
        reach: The inner reaches and the outer ones.
        order: The classes, from the one that holds by least on the pilot.
    """

    centers: Float[Tensor, "C D"]
    reach: Float[Tensor, "2 C"]
    order: Int[Tensor, " C"]


def farthest(
    features: Float[Tensor, "N V D"], labels: Int[Tensor, " N"], centers: Float[Tensor, "C D"]
) -> Float[Tensor, " N"]:
    """Return the distance of the farthest view of each image from the center of its class."""
    far: Tensor = (features - centers[labels, None]).norm(dim=-1).amax(1)
    return far


def plan(
    population: Population,
    pilot: NewImages,
    n: int,
    confidence: float,
    room_of: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Plan:
    """Fix reaches for n new images that come in the class shares of the population.

    `room_of` says by how much a condition holds, for limits q and reaches (G, R, C); None is (G).

    All outer reaches are the same share of half the way to the next center: the share that would
    certify most if new images were like the pilot. Of equally good shares the middle one is taken,
    because images on the edge do not carry over to others. The inner reach is the one that leaves
    most room.
    """
    half = to_nearest_other(population.centers) / 2
    far = farthest(pilot.features, pilot.labels, population.centers)
    far = torch.where(pilot.known, far / half[pilot.labels].clamp(min=1e-300), torch.inf)
    shares = torch.arange(1, REACHES + 1, dtype=torch.float64, device=half.device) / REACHES
    inside = (far <= shares[:, None]).double()
    of_class = torch.nn.functional.one_hot(pilot.labels, len(half)).double()
    of_class *= pilot.known[:, None]
    # of a class, few of the pilot: they count beside PRIOR images that are like all of it
    every = inside.sum(1, keepdim=True) / max(len(far), 1)
    good = (inside @ of_class + PRIOR * every) / (of_class.sum(0) + PRIOR)
    # as many are expected to be lost, and chance may lose two standard deviations more in a class;
    # neither need be a whole number
    lost = n * population.p * (1 - good)
    lost = torch.minimum(lost + 2 * (lost + 1).sqrt(), n * population.p)
    count = (n * population.p - lost).clamp(min=1e-9).cpu().numpy()
    risk = (1 - confidence) / (4 * len(half))
    q = (
        torch.from_numpy(special.betaincinv(count, lost.cpu().numpy() + 1, risk))
        .to(good)
        .clamp(0, 1)
    )
    values, inner, rooms = [], [], []
    for outer in range(REACHES):
        below = torch.arange(outer + 1, device=half.device)
        pairs = torch.stack((below, torch.full_like(below, outer)), 1)
        limits_and_reaches = q[pairs], shares[pairs, None] * half
        room = (
            conditions(population.centers, *limits_and_reaches).room
            if room_of is None
            else room_of(*limits_and_reaches)
        )
        inner.append(int(room.amin(1).argmax()))
        rooms.append(room[inner[-1]])
        lost_here = torch.where(rooms[-1] > SLACK, 1 - good[outer], 1.0)
        values.append(float(population.p @ lost_here))
    value = torch.tensor(values, dtype=torch.float64)
    best = (value <= value.min() + 1e-12).nonzero()[:, 0]
    at = int(best[len(best) // 2])
    reach = shares[[inner[at], at], None] * half
    return Plan(population.centers, reach, rooms[at].argsort(stable=True))


class Limits(NamedTuple):
    """Limits of a plan, counted on new images.

    Attributes:
        good: True for new images within the outer reach.
        q: Lower limits of the share of each class within the inner and the outer reach.
        theorem: The theorem at these limits. Its own bounds are for the class shares `p` of the
            images at hand; those of the forms come from all new images together.
    """

    good: Bool[Tensor, " M"]
    q: Float[Tensor, "2 C"]
    theorem: Theorem1Population


def limits(fixed: Plan, new: NewImages, p: Float[Tensor, " C"], confidence: float) -> Limits:
    """Return the lower limits q from new images, and which classes hold by them."""
    C = len(p)
    far = farthest(new.features, new.labels, fixed.centers)
    inside = (far <= fixed.reach[:, new.labels]) & new.known
    n = torch.bincount(new.labels[new.known], minlength=C)
    each = 1 - (1 - confidence) / (4 * C)
    q = torch.stack(
        [lower_limit(torch.bincount(new.labels[within], minlength=C), n, each) for within in inside]
    )
    theorem = theorem_1_population(p=p, centers=fixed.centers, q=q, reach=fixed.reach)
    return Limits(inside[1], q, theorem)


def split(new: NewImages, seed: int) -> tuple[NewImages, NewImages]:
    """Return the pilot, a fifth of the new images whatever their classes, and the others."""
    order = Key(seed).named("pilot").permutation(len(new.labels)).to(new.labels.device)
    size = len(order) // PILOT
    pilot, counted = (
        NewImages(*(rows[part] for rows in new)) for part in (order[:size], order[size:])
    )
    return pilot, counted


def population_forms(
    population: Population, new: NewImages, confidence: float, seed: int = 0
) -> tuple[Form, Form]:
    """Return Theorem 1 for the population under (T), and under the weaker condition (G)."""
    pilot, new = split(new, seed)
    fixed = plan(population, pilot, len(new.labels), confidence)
    found = limits(fixed, new, population.p, confidence)
    theorem = found.theorem
    said = f"confidence {confidence:g}"
    forms = []
    for key, title, holds, room in (
        ("population_T", "Theorem 1 for the population under (T)", theorem.holds_T, theorem.room_T),
        ("population", "Theorem 1 for the population", theorem.holds, theorem.room),
    ):
        right = event_limit(fixed.order, holds, found.good, new, confidence)
        bound = Bound(
            f"{title}, {said}", float("nan"), right, 1.0, "" if bool(holds.any()) else NONE_HOLDS
        )
        radius = theorem.rho if key == "population_T" else theorem.radius
        form = Form(
            key,
            bound,
            POPULATION,
            delta=float(2 * fixed.reach[1].max()),
            outside=1 - float(found.good.double().mean()),
            rho=float(radius.max()),
            margin=float(room[holds].min() if bool(holds.any()) else room.max()),
        )
        forms.append(form)
    return forms[0], forms[1]


def event_limit(
    order: Int[Tensor, " C"],
    holds: Bool[Tensor, " C"],
    good: Bool[Tensor, " M"],
    new: NewImages,
    confidence: float,
) -> float:
    """Return the limit of the first event, in the order fixed before, that contains what fails."""
    C, half = len(order), (1 - confidence) / 2
    failing = (~holds[order]).nonzero()
    j = int(failing.max()) + 1 if len(failing) else 0
    if j == C:
        return 1.0
    risk = half / 2 if j == 0 else half / 2 / (C - 1)
    dropped = torch.isin(new.labels, order[:j]) & new.known
    count = (~good | dropped).sum()[None].cpu()
    return float(upper_limit(count, torch.tensor([len(good)]), 1 - risk))
