"""Theorem 3 of the population that new images come from: InfoNCE's L_2 tells the centers apart.

Centers, reaches and an order of the classes are fixed as for Theorem 1 of the population. The other
new images give, for each pair of classes, disjoint pairs of images: the i-th of one class and the
i-th of the other. Per pair of images InfoNCE's second part, over four views of each, lies in
[log 2, 1 + log 2] (`mean_limits` takes care of the rest). With the risk alpha = 1 - confidence,

    alpha / 2    the event of the population form: not good, or of a class that does not hold
    alpha / 8    q, lower limits of the share of a class within either reach
    alpha / 8    a_k = E ||nu||^2, lower limits, from one image each
    alpha / 8    || mu_k ||^2, lower limits, from two images of the class each
    alpha / 16   L_kl, upper limits, and as much
    alpha / 16   mu_k . mu_l, upper limits of the products of the same images, without a loss

The first form takes products from L_kl, by Theorem 3. The second takes the smaller of these and the
direct limits, and shows what the way by the loss costs. Both hold at once (`theorem_3_population`;
docs/derivations.md, 4.1).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.rng import Key
from marginlab.statistics import index_within_group
from marginlab.theory.bound import SLACK, Bound
from marginlab.theory.certificates.by_class import lower_limit
from marginlab.theory.certificates.form import BY_LOSS, Form
from marginlab.theory.certificates.population_form import (
    Plan,
    event_limit,
    farthest,
    plan,
    split,
)
from marginlab.theory.certificates.unseen import NewImages
from marginlab.theory.mean_limits import STAKE, lower_mean, upper_mean
from marginlab.theory.population import Population
from marginlab.theory.theorems.theorem_1_population import least_lengths, spread_of
from marginlab.theory.theorems.theorem_3_population import (
    FAR,
    least_apart,
    product_limits,
    radius_of,
    room_of,
)

VIEWS = 4  # of an image in the loss
VALUES = 500_000  # images of a class times pairs of classes, beyond which images are left out
MOST_CLASSES = 700  # with more, a pair of classes would have one pair of images or none


class PairLimits(NamedTuple):
    """Limits of the distribution, all at once.

    Attributes:
        by_loss: Upper limits of mu_k . mu_l by L_kl, (C, C).
        direct: Upper limits of mu_k . mu_l without a loss, (C, C).
        lengths: Lower limits of || mu_k ||^2, (C,).
        aligned: Lower limits of a_k, (C,).
    """

    by_loss: Float[Tensor, "C C"]
    direct: Float[Tensor, "C C"]
    lengths: Float[Tensor, " C"]
    aligned: Float[Tensor, " C"]


def pair_limits(new: NewImages, classes: int, risk: float, seed: int = 0) -> PairLimits:
    """Return limits of products and lengths of class centers from new images.

    Args:
        new: The new images. Those of a class without a center are left out.
        classes: C.
        risk: The probability with which any of the limits may fail: a third of it for the a_k, a
            third for the lengths, a sixth for the L_kl and a sixth for the products.
        seed: Seed of the choice of views.
    """
    share = risk / 6
    f, counts = _by_class(new, classes)
    nu = f.mean(2)  # (n, C, D)
    few = _views(f, seed)
    aligned = lower_mean(few.mean(2).square().sum(-1), counts, 2 * share / classes)
    twice = counts // 2
    first, second = nu[: 2 * (len(nu) // 2) : 2], nu[1::2]
    within = lower_mean(((first * second).sum(-1) + 1) / 2, twice, 2 * share / classes)
    pairs = torch.minimum(counts[:, None], counts)
    number = classes * (classes - 1) / 2
    # of features of length 1, rounding aside
    loss = (_losses(few) - math.log(2)).clamp(0, 1)
    upper = upper_mean(loss, pairs, share / number) + math.log(2)
    products = ((nu @ nu.mT + 1) / 2).clamp(0, 1)
    direct = 2 * upper_mean(products, pairs, share / number) - 1
    lengths = (2 * within - 1).clamp(0, 1)
    return PairLimits(product_limits(upper, aligned.clamp(0, 1)), direct, lengths, aligned)


def contrastive_forms(
    population: Population, new: NewImages, confidence: float, seed: int = 0
) -> tuple[Form, Form]:
    """Return Theorem 1 for the population, by Theorem 3 and by limits of products as well."""
    C = len(population.p)
    said = f"population, confidence {confidence:g}"
    titles = (
        ("theorem_3", f"Theorem 3 and Theorem 1, {said}"),
        ("products", f"Theorem 1 by limits of products, {said}"),
    )
    if C > MOST_CLASSES:
        many = f"Of {C} classes the pairs are too many: at most {MOST_CLASSES} classes are taken."
        one, two = (
            Form(key, Bound(title, math.nan, 1.0, 1.0, many), BY_LOSS) for key, title in titles
        )
        return one, two
    pilot, new = split(new, seed)
    expected = _expected_room(population, len(new.labels), confidence)
    fixed = plan(population, pilot, len(new.labels), confidence, expected)
    good, q = _shares(fixed, new, C, confidence)
    found = pair_limits(new, C, 3 * (1 - confidence) / 8, seed)
    spread = spread_of(q, fixed.reach).center
    lengths = torch.maximum(found.lengths, least_lengths(fixed.centers, q[-1], spread))
    forms = []
    for (key, title), products in zip(
        titles, (found.by_loss, torch.minimum(found.by_loss, found.direct)), strict=True
    ):
        radius, room = room_of(products, lengths, q, fixed.reach)
        holds = room > SLACK
        right = event_limit(fixed.order, holds, good, new, confidence)
        form = Form(
            key,
            Bound(title, math.nan, right, 1.0, "" if bool(holds.any()) else FAR),
            BY_LOSS,
            delta=float(2 * fixed.reach[-1].max()),
            outside=1 - float(good.double().mean()),
            rho=float(radius.max()),
            margin=float(room[holds].min() if bool(holds.any()) else room.max()),
        )
        forms.append(form)
    return forms[0], forms[1]


def _expected_room(
    population: Population, n: int, confidence: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the room of (T') that n new images like those at hand would leave, by q and reaches.

    A limit by betting of values that do not vary is log(1 / risk) / (STAKE n) away.
    """
    C, p = len(population.p), population.p
    off = math.log(16 * C**2 / (1 - confidence)) / (STAKE * n * torch.minimum(p[:, None], p))
    lengths = (population.gram.diagonal() - 4 * off.diagonal()).clamp(0, 1)
    aligned = population.of_class(population.nu.square().sum(-1)).clamp(0, 1)
    phi = torch.logaddexp(aligned[:, None].expand(C, C), population.gram)
    loss = ((phi + phi.T) / 2 + off).clamp(max=1 + math.log(2))
    products = product_limits(loss, (aligned - off.diagonal()).clamp(min=0)).clamp(max=1)
    apart = least_apart(products, lengths)

    def room(q: Tensor, s: Tensor) -> Tensor:
        return apart - 2 * radius_of(lengths, q, s)

    return room


def _shares(fixed: Plan, new: NewImages, C: int, confidence: float) -> tuple[Tensor, Tensor]:
    """Return which new images are good, and the lower limits q within either reach."""
    far = farthest(new.features, new.labels, fixed.centers)
    inside = (far <= fixed.reach[:, new.labels]) & new.known
    n = torch.bincount(new.labels[new.known], minlength=C)
    each = 1 - (1 - confidence) / (16 * C)
    q = torch.stack(
        [lower_limit(torch.bincount(new.labels[within], minlength=C), n, each) for within in inside]
    )
    return inside[-1], q.cummax(0).values


def _by_class(new: NewImages, C: int) -> tuple[Float[Tensor, "n C V D"], Int[Tensor, " C"]]:
    """Return the i-th new image of each class, and the number of each; the rest is 0."""
    f, labels = new.features[new.known], new.labels[new.known]
    place = index_within_group(labels)
    most = min(VALUES // C**2, int(place.max()) + 1 if len(place) else 0)
    taken = place < most
    found = f.new_zeros(most, C, *f.shape[1:])
    found[place[taken], labels[taken]] = f[taken]
    return found, torch.bincount(labels[taken], minlength=C)


def _views(f: Float[Tensor, "n C V D"], seed: int) -> Float[Tensor, "n C W D"]:
    """Draw views of each image, without replacement and whatever they are."""
    n, C, V, D = f.shape
    if V <= VIEWS:
        return f
    key = Key(seed).named("views of the loss")
    drawn = key.at(torch.arange(n * C * V)).uniform().view(n, C, V)
    order = drawn.argsort(-1)[..., :VIEWS].to(f.device)
    return f.gather(2, order[..., None].expand(-1, -1, -1, D))


def _losses(f: Float[Tensor, "n C W D"]) -> Float[Tensor, "n C C"]:
    """Return InfoNCE's second part between the i-th images of two classes, in both orders."""
    n, C, W, _ = f.shape
    near = (f @ f.mT).exp()  # (n, C, W, W); products are at most 1, and nothing overflows
    total = f.new_zeros(n, C, C)
    for anchor in range(W):
        for other in range(W):
            far = (f[:, :, anchor] @ f[:, :, other].mT).exp()
            for positive in range(W):
                total += (near[:, :, anchor, positive, None] + far).log()
    total /= W**3
    return (total + total.mT) / 2
