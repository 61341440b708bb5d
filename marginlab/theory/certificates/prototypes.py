"""The form with J prototypes of each class, for encoders whose classes fall into clusters.

Contrastive encoders keep the clusters of a class apart: its center is far from all of them. J
points of each class, found by k-means among the views of images at hand, replace it. Labels only
say of which class a prototype is. A new image is certified if for some view

    (distance to the nearest prototype of another class) - (to the nearest of its own)  >  2 diam(x)

Then all its views are nearest to a prototype of its class (`prototype_margin`). The number of the
other images is binomial, because prototypes and J depend on the images at hand only: J is chosen by
letting either half of them be certified by prototypes of the other half. Derived in
docs/derivations.md, 2.10.
"""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.rng import Key
from marginlab.statistics import index_within_group
from marginlab.theory.bound import Bound
from marginlab.theory.certificates.form import PROTOTYPES, Form
from marginlab.theory.certificates.new_images import pooled
from marginlab.theory.certificates.unseen import NewImages
from marginlab.theory.population import Population
from marginlab.theory.theorems.image_wise import certain, prototype_margin, read_by_prototypes

STEPS = 10  # of k-means


def find_prototypes(
    features: Float[Tensor, "N V D"], labels: Int[Tensor, " N"], each: int, seed: int = 0
) -> list[Float[Tensor, "_ D"]]:
    """Return points of each class 0..C-1: the centers of k-means among its views.

    A class with fewer different views has as many prototypes as these. One prototype is the mean.

    Args:
        features: Features of the views.
        labels: Classes 0..C-1, each with an image.
        each: Number J of prototypes of a class.
        seed: Seed of the starts of k-means.

    Raises:
        ValueError: J is less than 1.

    Example:
        >>> views = torch.tensor([[[0.0]], [[1.0]], [[9.0]], [[5.0]]]).double()
        >>> points = find_prototypes(views, torch.tensor([0, 0, 0, 1]), 2)
        >>> [sorted(point[:, 0].tolist()) for point in points]
        [[0.5, 9.0], [5.0]]
    """
    if each < 1:
        raise ValueError(f"Every class has at least one prototype, not {each}.")
    classes = range(int(labels.max()) + 1)
    return [_means(features[labels == k].flatten(0, 1), each, seed) for k in classes]


def _means(points: Tensor, each: int, seed: int) -> Tensor:
    from scipy.cluster.vq import kmeans2

    if each == 1:
        mean: Tensor = points.mean(0, keepdim=True)
        return mean
    distinct: Tensor = points.unique(dim=0)
    if len(distinct) <= each:
        return distinct
    first = int(Key(seed).named("prototypes").permutation(2**16)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster keeps its last center
        found = kmeans2(points.cpu().numpy(), each, iter=STEPS, minit="++", seed=first)[0]
    return torch.from_numpy(found).to(points)


def choose_number(population: Population, tried: Sequence[int], seed: int = 0) -> int:
    """Return the J of those tried that certifies most images of one half by the other half.

    Halves are drawn, of each class alike. Of equally good J the smallest is taken.
    """
    if len(tried) == 1:
        return tried[0]
    order = Key(seed).named("halves").permutation(len(population.labels))
    order = order.to(population.labels.device)
    first = torch.empty_like(population.labels, dtype=torch.bool)
    first[order] = index_within_group(population.labels[order]) % 2 == 0
    lost = {each: _lost(population, first, each, seed) for each in sorted(tried)}
    return min(lost, key=lambda each: (round(lost[each], 9), each))


def _lost(population: Population, first: Tensor, each: int, seed: int) -> float:
    """Return the weight of the images that are not certified by the other half's prototypes."""
    lost = 0.0
    for here in (first, ~first):
        if not bool(here.any()) or not bool((~here).any()):
            continue
        names, fitted = population.labels[~here].unique(return_inverse=True)
        points = find_prototypes(population.f[~here], fitted, each, seed)
        labels = population.labels[here]
        known = torch.isin(labels, names)
        place = torch.where(known, torch.searchsorted(names, labels), 0)
        if len(names) < 2:
            return 1.0
        margin = prototype_margin(population.f[here], place, points, population.diameters[here])
        lost += float(population.w[here] @ (~certain(margin) | ~known).double())
    return lost


def prototype_form(
    population: Population, new: NewImages, tried: Sequence[int], confidence: float, seed: int = 0
) -> Form:
    """Return the form of new images with J prototypes, J chosen on the population at hand."""
    each = choose_number(population, tried, seed)
    points = find_prototypes(population.f, population.labels, each, seed)
    margin = prototype_margin(new.features, new.labels, points, new.diameters)
    wrong = (read_by_prototypes(new.features[:, 0], points) != new.labels) | ~new.known
    bound = Bound(
        f"{each} prototype{'' if each == 1 else 's'} a class, new images, confidence "
        f"{confidence:g}",
        float(wrong.double().mean()),
        pooled(~certain(margin) | ~new.known, confidence),
        1.0,
    )
    return Form("prototypes", bound, PROTOTYPES, prototypes=each)
