"""Certificates for new images: centers and reaches are fixed on one split, another is counted.

The main form goes image by image and has nothing to choose (`image_wise`): an image is certified if

    min over views || f(x_v) - c_k ||  +  diam(x)   <   min over l of || c_k - c_l || / 2

The form with fixed reaches (delta_k, epsilon_k) certifies a part of the same images:

    main_k = { x in C_k : min over views || f(x_v) - c_k || <= delta_k / 2 }
    S_eps_k: views of x at most epsilon_k apart
    class k holds if  min over l of || c_k - c_l ||  >  delta_k + 2 epsilon_k     (`fixed_centers`)

There an image is good if its class holds and it is in main_k and S_eps_k. The nearest c reads a
certified or good image rightly, in all its drawn views. The number of the others is binomial. So
its exact upper limit (Clopper and Pearson 1934) bounds the error of the nearest c on the population
they are drawn from, and the probability that some view is misread. No view that was not drawn
enters: the image itself is among the views. The errors are among what is counted, so a direct limit
of the error is never above this one.

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
from marginlab.statistics import to_nearest_other
from marginlab.statistics.distances import EXACTLY
from marginlab.theory.bound import SLACK, Bound
from marginlab.theory.certificates.by_class import ByClass, upper_limit
from marginlab.theory.certificates.form import NEW, Form
from marginlab.theory.certificates.unseen import NewImages
from marginlab.theory.population import Population
from marginlab.theory.theorems.fixed_centers import fixed_centers
from marginlab.theory.theorems.image_wise import certain, image_wise

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
        uncertified: True if the image-wise condition fails; then it is bad, too.
        wrong: True if the nearest c reads it as another class.
    """

    labels: Int[Tensor, " M"]
    outside: Bool[Tensor, " M"]
    unaligned: Bool[Tensor, " M"]
    bad: Bool[Tensor, " M"]
    uncertified: Bool[Tensor, " M"]
    wrong: Bool[Tensor, " M"]

    def of_class(self, which: Bool[Tensor, " M"], classes: int) -> Int[Tensor, " C"]:
        """Count the selected images of each class."""
        return torch.bincount(self.labels[which], minlength=classes)[:classes]


def counted(reach: Reach, new: NewImages) -> Counted:
    """Tell which images are outside the main part, unaligned, not good, uncertified or misread."""
    f, y = new.features, new.labels
    near = (f - reach.centers[y, None]).norm(dim=-1).amin(1)
    outside, unaligned = near > reach.delta[y] / 2, new.diameters > reach.epsilon[y]
    found = (
        outside,
        unaligned,
        outside | unaligned | ~reach.holds[y],
        ~certain(image_wise(f, y, reach.centers, new.diameters)),
        torch.cdist(f[:, 0], reach.centers, compute_mode=EXACTLY).argmin(1) != y,
    )
    labels = torch.where(new.known, y, len(reach.centers))
    return Counted(labels, *(which | ~new.known for which in found))


def sampled(population: Population) -> NewImages:
    """Return the images of a population in the form of new ones."""
    known = torch.ones_like(population.labels, dtype=torch.bool)
    return NewImages(population.f, population.labels, known, population.diameters)


def of_sampled(population: Population, reach: Reach) -> tuple[Form, Counted]:
    """Return the form with fixed centers for the images that they were fixed on."""
    found = counted(reach, sampled(population))
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


def of_new(
    reach: Reach, found: Counted, confidence: float
) -> tuple[Form, Form, tuple[float, float]]:
    """Return the forms with fixed centers for new images, and their error with its direct limit.

    The first form has fixed reaches, the second goes image by image. All come from the numbers of
    images that are not good, not certified, and wrong.
    """
    wrong = float(found.wrong.double().mean())
    bad, uncertified, direct = (
        pooled(which, confidence) for which in (found.bad, found.uncertified, found.wrong)
    )
    premise = (
        ""
        if bool(reach.holds.any())
        else "No class holds: every center has another within delta_k + 2 epsilon_k of it."
    )
    outside, unaligned = (
        float(which.double().mean()) for which in (found.outside, found.unaligned)
    )
    said = f"new images, confidence {confidence:g}"
    return (
        Form(
            "new_images",
            Bound(f"Fixed centers, {said}", wrong, bad, 1.0, premise),
            NEW,
            outside=outside,
            R_epsilon=unaligned,
        ),
        Form("image_wise", Bound(f"Image by image, {said}", wrong, uncertified, 1.0), NEW),
        (wrong, direct),
    )


def pooled(which: Bool[Tensor, " M"], confidence: float) -> float:
    """Return the exact upper limit of the probability of what is True, from all images together."""
    n = torch.tensor([len(which)])
    return float(upper_limit(which.sum()[None].cpu(), n, confidence))


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
    n, bad, uncertified, wrong = (
        new.of_class(which, C)
        for which in (torch.ones_like(new.bad), new.bad, new.uncertified, new.wrong)
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
        uncertified,
        wrong,
        upper_limit(uncertified, n, each),
        upper_limit(wrong, n, each),
        confidence,
        int((new.labels == C).sum()),
    )
