"""A certificate for new images: centers and reaches are fixed on one split.

The images of another split are counted.

    main_k = { x in C_k : min over views || f(x_v) - c_k || <= delta_k / 2 }
    S_eps_k: views of x at most epsilon_k apart
    class k holds if  min over l of || c_k - c_l ||  >  delta_k + 2 epsilon_k     (`fixed_centers`)

A new image is good if its class holds and it is in main_k and S_eps_k. The nearest c reads it
rightly then. The number of images that are not good is binomial. So its exact upper limit (Clopper
and Pearson 1934) bounds the error of the nearest c on the population they are drawn from. No view
that was not drawn enters: if the image and one of its views are within epsilon_k of each other, and
that view within delta_k / 2 of c_k, then the image itself is nearer to c_k than to any other
center. The errors are among what is counted, so a direct limit of the error is never above this
one.

The encoder, too, is fixed before the new images are seen: it was neither trained on them nor chosen
by them. The limit is for images in the class shares of those that were counted; `by_class` has
limits for other shares. Where the numbers of each class were fixed beforehand, the count is a sum
of binomials of several probabilities. Its lower tail is no heavier than that of one binomial of
their mean (Hoeffding, Annals of Mathematical Statistics 27, 1956; below the mean less one), so the
limit keeps its confidence.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from marginlab.kernels import BUDGET
from marginlab.measures.views.alignment import alignment
from marginlab.rng import Key
from marginlab.statistics import to_nearest_other, unit_vectors
from marginlab.statistics.distances import EXACTLY
from marginlab.theory.bound import SLACK, Bound
from marginlab.theory.certificates.by_class import ByClass, upper_limit
from marginlab.theory.certificates.form import NEW, Form
from marginlab.theory.population import Population
from marginlab.theory.theorems.fixed_centers import fixed_centers

ROUNDING = 1e-7  # accuracy of distances of float32 features


class Reach(NamedTuple):
    """The fixed quantities of the form with fixed centers.

    A class that cannot hold has delta_k = epsilon_k = 0.

    Attributes:
        centers: c_k (C, D).
        delta: delta_k (C,).
        epsilon: epsilon_k (C,).
    """

    centers: Float[Tensor, "C D"]
    delta: Float[Tensor, " C"]
    epsilon: Float[Tensor, " C"]

    @property
    def nearest(self) -> Float[Tensor, " C"]:
        """Distance of each center from the nearest other one."""
        return to_nearest_other(self.centers)

    @property
    def holds(self) -> Bool[Tensor, " C"]:
        """Mask of the classes with good images nearer to their center than to any other."""
        return self.nearest - self.delta - 2 * self.epsilon > SLACK


def fix_centers(population: Population) -> Reach:
    """Return class centers, and for each class the (delta_k, epsilon_k) with the most good images.

    These are images in the main part and S_eps. delta_k + 2 epsilon_k lies just below the distance
    to the next center. The larger epsilon_k is, the more images are aligned and the smaller main_k
    may be. Of equally good epsilon_k the middle one is taken, because an image on the edge does not
    carry over to other images.
    """
    centers = population.centers
    apart = to_nearest_other(centers)
    near = (population.f - centers[population.labels, None]).norm(dim=-1).amin(1)
    delta, epsilon = torch.zeros_like(apart), torch.zeros_like(apart)
    for k, distance in enumerate(apart.tolist()):
        own = population.labels == k
        spread, close, w = population.diameters[own], near[own], population.w[own]
        if distance <= ROUNDING:
            continue
        half = (distance - ROUNDING) / 2  # delta_k / 2 + epsilon_k
        edges = (
            torch.cat((spread, spread.new_zeros(1), half - close, spread.new_full((1,), half)))
            .clamp(0, half)
            .unique()
        )
        candidates = torch.cat((edges, (edges[1:] + edges[:-1]) / 2)).sort().values
        blocks = candidates[:, None].split(max(BUDGET // (8 * len(w)), 1))
        good = torch.cat(
            [((spread <= block) & (close <= half - block)).double() @ w for block in blocks]
        )
        most = candidates[good >= good.max() - 1e-12]
        middle = (most - most.mean()).abs().argmin()
        epsilon[k], delta[k] = most[middle], 2 * (half - most[middle])
    return Reach(centers, delta, epsilon)


class Counted(NamedTuple):
    """For each of M images its class, and what became of it.

    Attributes:
        labels: The class: 0..C-1, or C where it has no center.
        outside: True outside main_k.
        unaligned: True outside S_eps_k.
        bad: True if not good.
        wrong: True if the nearest c reads it as another class.
    """

    labels: Int[Tensor, " M"]
    outside: Bool[Tensor, " M"]
    unaligned: Bool[Tensor, " M"]
    bad: Bool[Tensor, " M"]
    wrong: Bool[Tensor, " M"]

    def of_class(self, which: Bool[Tensor, " M"], classes: int) -> Int[Tensor, " C"]:
        """Count the selected images of each class."""
        return torch.bincount(self.labels[which], minlength=classes)[:classes]


def counted(
    reach: Reach,
    new: tuple[Float[Tensor, "M W D"], Int[Tensor, " M"]],
    names: Int[Tensor, " C"],
    *,
    unknown: bool = False,
) -> Counted:
    """Tell which new images are outside the main part, unaligned, not good or read wrongly.

    Args:
        reach: The fixed centers and reaches.
        new: Features and labels of the new images.
        names: Labels of the classes that have a center.
        unknown: Allow images of a class without a center, which count as wrong.

    Raises:
        ValueError: A class without a center is not allowed, features are of another dimension, or
            there is no image.
    """
    f, y = unit(new[0], "The new features"), new[1]
    if f.shape[2] != reach.centers.shape[1] or y.shape != (len(f),) or len(f) == 0:
        raise ValueError(
            f"New features are (M, V, {reach.centers.shape[1]}) with labels (M,), not "
            f"{tuple(f.shape)} and {tuple(y.shape)}."
        )
    known = torch.isin(y, names)
    if not unknown and not bool(known.all()):
        raise ValueError(
            f"New images are of the classes {names.tolist()}, not also of "
            f"{y[~torch.isin(y, names)].unique().tolist()}."
        )
    place = torch.where(known, torch.searchsorted(names, y), 0)
    found = _counted(reach, f, place, alignment(f, normalize=False)[1])
    lost = [part | ~known for part in found[1:]]
    return Counted(torch.where(known, place, len(names)), *lost)


def _counted(reach: Reach, f: Tensor, y: Tensor, diameters: Tensor) -> Counted:
    near = (f - reach.centers[y, None]).norm(dim=-1).amin(1)
    outside, unaligned = near > reach.delta[y] / 2, diameters > reach.epsilon[y]
    wrong = torch.cdist(f[:, 0], reach.centers, compute_mode=EXACTLY).argmin(1) != y
    return Counted(y, outside, unaligned, outside | unaligned | ~reach.holds[y], wrong)


def of_sampled(population: Population, reach: Reach) -> tuple[Form, Counted]:
    """Return the form with fixed centers for the images that they were fixed on."""
    found = _counted(reach, population.f, population.labels, population.diameters)
    q = population.share(~(found.outside | found.unaligned)).clamp(0, 1)
    result = fixed_centers(
        p=population.p,
        centers=reach.centers,
        q=q,
        delta=reach.delta,
        epsilon=reach.epsilon,
        error=population.error,
    )
    room = result.nearest - reach.delta - 2 * reach.epsilon
    held = reach.holds[population.labels]
    outside, unaligned = (
        min(population.probability(held & which), 1.0) for which in (found.outside, found.unaligned)
    )
    form = Form(
        "fixed_centers", result.bound, outside=outside, R_epsilon=unaligned,
        margin=float(room[result.holds].min() if bool(result.holds.any()) else room.max()),
    )  # fmt: skip
    return form, found


def of_new(reach: Reach, found: Counted, confidence: float) -> tuple[Form, tuple[float, float]]:
    """Return the form with fixed centers for new images, and their error with its direct limit.

    Both come from the numbers of images that are not good and wrong.
    """
    n, wrong = (
        found.bad.new_full((1,), len(found.bad), dtype=torch.int64),
        float(found.wrong.double().mean()),
    )
    upper, direct = (
        float(upper_limit(count.sum()[None], n, confidence)) for count in (found.bad, found.wrong)
    )
    premise = (
        ""
        if bool(reach.holds.any())
        else "No class holds: every center has another within delta_k + 2 epsilon_k of it."
    )
    bound = Bound(
        f"Fixed centers, new images, confidence {confidence:g}", wrong, upper, 1.0, premise
    )
    shares = {
        "outside": float(found.outside.double().mean()),
        "R_epsilon": float(found.unaligned.double().mean()),
    }
    return Form("new_images", bound, NEW, **shares), (wrong, direct)


def by_class(
    population: Population,
    reach: Reach,
    here: Counted,
    new: Counted | None,
    names: Int[Tensor, " C"],
    confidence: float,
) -> ByClass:
    """Return what was fixed and what it costs, class by class, with limits for new images.

    The limits hold for all classes at once.
    """
    C = len(names)
    if new is None:
        new = Counted(here.labels[:0], *(found[:0] for found in here[1:]))
    n, bad, wrong = (
        new.of_class(which, C) for which in (torch.ones_like(new.bad), new.bad, new.wrong)
    )
    each = 1 - (1 - confidence) / C
    outside, unaligned, lost = (
        population.share(which).clamp(0, 1) for which in (here.outside, here.unaligned, here.bad)
    )
    return ByClass(
        names,
        population.p,
        reach.nearest,
        reach.delta,
        reach.epsilon,
        reach.holds,
        outside,
        unaligned,
        lost,
        n,
        bad,
        wrong,
        upper_limit(bad, n, each),
        upper_limit(wrong, n, each),
        confidence,
        int((new.labels == C).sum()),
    )


def put_aside(labels: Int[Tensor, " N"], share: float, seed: int) -> Bool[Tensor, " N"]:
    """Draw the images to count: a simple random sample of this share, at least one and not all.

    The sample does not have so many of each class. With at least one of each, rare classes would
    weigh more than in the population, and the limit would be of another error.

    Example:
        >>> put_aside(torch.tensor([0, 0, 0, 0, 1, 1]), 0.5, seed=0).sum()
        tensor(3)
    """
    if not 0 < share < 1:
        raise ValueError(
            f"The share of the images that is put aside lies between 0 and 1, not at {share}."
        )
    n = len(labels)
    if n < 2:
        raise ValueError(f"Of {n} image(s) no share can be put aside: give more, or new images.")
    order = Key(seed).named("put aside").permutation(n).to(labels.device)
    aside = torch.zeros_like(labels, dtype=torch.bool)
    aside[order[: min(max(round(share * n), 1), n - 1)]] = True
    return aside


def unit(features: Tensor, name: str) -> Tensor:
    """Return features at length one, in float64; refuse features without a length."""
    f = features.detach().double()
    if (
        f.ndim != 3
        or f.shape[1] < 2
        or not bool(f.isfinite().all())
        or bool((f == 0).all(-1).any())
    ):
        raise ValueError(
            f"{name} are finite, not zero, and of at least two views, (N, V, D), the image itself "
            f"first: {tuple(f.shape)} are not."
        )
    return unit_vectors(f)
