"""`certify`: every bound of the nearest-center error that the theory gives for an encoder.

The bounds are computed from the encoder's features, with the cost of each of their terms:

    Theorem 1       Err(G_f) <= (1 - sigma) + R_eps
                    under (P), (T) or (T'), best over a grid of (delta, epsilon)
    per class       Err(G_f) <= sum over classes that hold of p_l (1 - q_l), over others of p_l
                    each class at its own best point of the grid
    fixed centers   P[nearest c wrong] <= the same sum
                    with delta_k and epsilon_k chosen to make it least
    companion       P[a view is read wrong] <= sum_k p_k min(1, 4 V_k / min ||mu_k - mu_l||^2)
                    no condition

of images that training has not seen, with exact binomial limits:

    image-wise      P[nearest c wrong] <= P[near(x) + diam(x) >= half the way to the next center]
    fixed centers   the same, with delta_k and epsilon_k fixed beforehand
    prototypes      P[nearest prototype wrong], with J points of each class
    population      Err(G_f) of the distribution, by Theorem 1 under (T) and by a weaker condition
    Theorem 3       Err(G_f) of the distribution, by Theorem 3 of each pair of classes and Theorem 1
                    under (T'), and by limits of mu_k . mu_l that need no loss

Features have length one (r = 1), and delta is in feature space, so that no Lipschitz constant
enters. Given pixels, Theorem 1 also comes in the pixel form, with L delta replaced by the largest
distance observed. Huang et al. 2023, sections 2 and 3; the corollaries: docs/derivations.md, 2.

Which images a bound is about: a bound computed from V views of N images is exact for the finite
population that they make, and optimistic for views that were not drawn. For new images:
`new_images`, `prototypes`, `population_form` and `contrastive_form` of this folder.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from marginlab.kernels import BUDGET
from marginlab.kernels.minimum import minimum
from marginlab.theory import inputs
from marginlab.theory.certificates.certificate import Certificate
from marginlab.theory.certificates.contrastive_form import contrastive_forms
from marginlab.theory.certificates.form import Form
from marginlab.theory.certificates.grid import (
    Grid,
    class_by_class,
    main_parts,
    over_grid,
    quantiles,
)
from marginlab.theory.certificates.main_parts import nearest_views
from marginlab.theory.certificates.new_images import (
    ROUNDING,
    by_class,
    counted,
    fix_centers,
    of_new,
    of_sampled,
)
from marginlab.theory.certificates.population_form import population_forms
from marginlab.theory.certificates.prototypes import prototype_form
from marginlab.theory.certificates.unseen import checked, put_aside, unit
from marginlab.theory.population import Population
from marginlab.theory.theorems.companion import companion

GRID = 12  # points of each axis of the default grid


def certify(
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    views: Num[Tensor, "N V 3 H W"] | None = None,
    images: Num[Tensor, "N 3 H W"] | None = None,
    *,
    new: tuple[Float[Tensor, "M W D"], Int[Tensor, " M"]] | float | None = None,
    priors: Float[Tensor, " C"] | None = None,
    deltas: Sequence[float] | None = None,
    epsilons: Sequence[float] | None = None,
    confidence: float = 0.95,
    prototypes: Sequence[int] = (1, 3, 10),
    v_curve: bool = True,
    nodes: int = 0,
    seed: int = 0,
    budget: int = BUDGET,
) -> Certificate:
    """Certify an encoder by all bounds of the theory, from V views of N images.

    The first view of each image is the image itself.

    Args:
        features: Features of the views. They are given length one here.
        labels: Classes, in any numbering. Every class has an image.
        views: The pixels, for the pixel form.
        images: The images, with which their first views are compared. Without them the first view
            is taken to be the image, and the certificate says so.
        new: Features and labels of images that training has not seen, from which the forms of new
            images and of the population are certified. Their first view is the image as well. The
            encoder must not have been trained on them, nor chosen by them: for images that it was
            trained on, the limit may be far below the true error. A number is the share of these
            images that is put aside. They are drawn by `seed` whatever their classes, and nothing
            else is computed from them. Then the encoder must not have been trained on any of
            `features`. An image put aside with no other of its class counts as wrong.
        priors: p_k of the classes, in the order of their labels, for the bounds of these images. By
            default their shares. New images are counted as they come: for them, see
            `Certificate.by_class`. Nothing is said of a class whose images are all among those put
            aside: the priors of the others are divided by their sum, and the certificate names the
            class (`left_out`).
        deltas: The grid's deltas. By default quantiles of the distances within classes.
        epsilons: The grid's epsilons. By default quantiles of the largest distances between views
            of an image.
        confidence: Confidence of the limits for new images, of each form by itself.
        prototypes: Numbers of prototypes of a class among which the best is chosen, on the images
            that are not new. Empty leaves the form out.
        v_curve: Compute the certificate also for the first 2, 4, 8, ... views.
        nodes: Steps of the search for the largest main parts (`largest_clique`). 0 takes greedy
            ones, which a search improves little.
        seed: Seed of the choice of images that are put aside, of the pilot of the population, and
            of the search for prototypes.
        budget: Bytes of a block of distances.

    Returns:
        The certificate.

    Raises:
        ValueError: Shapes do not fit, there are fewer than two views or classes, features are zero
            or not finite, a first view is not the image, new images are of a class that is not
            among the others, or a grid, confidence or number of prototypes makes no sense.

    Example:
        >>> from marginlab.theory import rounded_up
        >>> g = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(3).repeat_interleave(20)
        >>> images = torch.eye(3)[labels][:, None] + 0.03 * torch.randn(60, 1, 3, generator=g)
        >>> features = images + 0.01 * torch.randn(60, 4, 3, generator=g)
        >>> certificate = certify(features, labels)
        >>> certificate.error, certificate["T"].bound.certifies
        (0.0, True)
        >>> other = certify(features, labels, new=0.5, v_curve=False).best("new images")
        >>> print(f"{other.title}: error at most {rounded_up(other.value, 3)}")
        Image by image, new images, confidence 0.95: error at most 0.096
    """
    f, y, pixels, names = _checked(features, labels, views, images, deltas, epsilons, confidence)
    if not all(isinstance(each, int) and each >= 1 for each in prototypes):
        raise ValueError(f"Numbers of prototypes are whole and at least 1, not {prototypes}.")
    p = None if priors is None else _class_priors(priors, y)
    left_out: tuple[int, ...] = ()
    share = new is not None and not isinstance(new, tuple | list)
    if new is not None and not isinstance(new, tuple | list):
        aside = put_aside(y, new, seed)
        new = f[aside], labels[aside]
        f, pixels = f[~aside], None if pixels is None else pixels[~aside]
        every = names
        names, y = labels[~aside].unique(return_inverse=True)
        if len(names) < 2:
            raise ValueError(
                f"Of the images that are not put aside all are of class {names.tolist()}: put "
                "aside a smaller share, or give more images."
            )
        here = torch.isin(every, names)
        left_out = tuple(every[~here].tolist())
        if p is not None and left_out:
            p = p[here] / p[here].sum()
    weights = None if p is None else (p / torch.bincount(y))[y]
    population = Population(f, y, weights)
    reach = fix_centers(population)
    unseen = None if new is None else checked(new, names, f.shape[2], unknown=share)
    found = None if unseen is None else counted(reach, unseen)
    forms, grid = _of_population(population, deltas, epsilons, nodes, budget)
    curve = {}
    if v_curve:
        for V in _levels(f.shape[1]):
            few = (
                forms
                if f.shape[1] == V
                else _of_population(
                    Population(f[:, :V], y, weights), deltas, epsilons, nodes, budget
                )[0]
            )
            curve[V] = {form.key: form.value for form in few}
    if pixels is not None:
        forms += _pixel_form(population, pixels, grid.epsilons, nodes, budget)
    counts, new_error = of_sampled(population, reach)[1], (math.nan, math.nan)
    if found is not None and unseen is not None:
        fixed, image_wise, new_error = of_new(reach, found, confidence)
        forms += [image_wise, fixed]  # of equal ones `best` takes the first
        if prototypes:
            forms.append(prototype_form(population, unseen, prototypes, confidence, seed))
        forms += population_forms(population, unseen, confidence, seed)
        forms += contrastive_forms(population, unseen, confidence, seed)
    return Certificate(
        forms=tuple(forms),
        error=population.error,
        new_error=new_error,
        classes=len(population.p),
        images=len(f),
        views=f.shape[1],
        new_images=0 if found is None else len(found.bad),
        confidence=confidence,
        deltas=grid.deltas,
        epsilons=grid.epsilons,
        holds=grid.holds,
        bounds=grid.bounds,
        v_curve=curve,
        by_class=by_class(population, reach, counts, found, names, confidence),
        compared=images is not None,
        left_out=left_out,
    )


def _class_priors(priors: Tensor, y: Tensor) -> Tensor:
    """Return the priors p_k (C,) of the classes of the images."""
    p, classes = inputs.priors(priors).to(y.device), int(y.max()) + 1
    if len(p) != classes:
        raise ValueError(f"Class priors are one for each of {classes} classes, not {len(p)}.")
    return p


def _of_population(
    population: Population,
    deltas: Sequence[float] | None,
    epsilons: Sequence[float] | None,
    nodes: int,
    budget: int,
) -> tuple[list[Form], Grid]:
    """Return the forms of a finite population, with delta in feature space, and the grid."""
    distances = [
        minimum(population.f[population.labels == k], budget=budget).distance[0]
        for k in range(len(population.p))
    ]
    d = (
        torch.as_tensor(deltas, dtype=torch.float64)
        if deltas is not None
        else quantiles(distances, GRID)
    )
    e = (
        torch.as_tensor(epsilons, dtype=torch.float64)
        if epsilons is not None
        else quantiles([population.diameters], GRID)
    )
    parts = main_parts(population, distances, d, nodes)
    grid = over_grid(population, parts, d, e)
    fixed = of_sampled(population, fix_centers(population))[0]
    spread = companion(
        p=population.p,
        gram=population.gram,
        within=population.within,
        view_error=population.view_error,
    )
    return [
        *grid.forms,
        class_by_class(population, parts, e),
        fixed,
        Form("companion", spread),
    ], grid


def _pixel_form(
    population: Population, views: Tensor, epsilons: Tensor, nodes: int, budget: int
) -> list[Form]:
    """Return Theorem 1 with main parts by pixel distances.

    L delta is replaced by the largest distance seen in a part.
    """
    own = [(population.labels == k).nonzero()[:, 0] for k in range(len(population.p))]
    distances, moved = zip(
        *(nearest_views(views[images], population.f[images], budget=budget) for images in own),
        strict=True,
    )
    deltas = quantiles(distances, GRID)
    parts = main_parts(population, distances, deltas, nodes)
    seen = parts.stretch.clone()
    for k, (apart, images) in enumerate(zip(moved, own, strict=True)):
        for t, inside in enumerate(parts.members[:, images]):
            seen[t, k] = apart[inside][:, inside].max() + ROUNDING
    forms = over_grid(population, replace(parts, stretch=seen), deltas, epsilons).forms
    return [
        replace(
            form,
            key=f"{form.key}_pixels",
            bound=replace(form.bound, name=f"{form.title}, pixels"),
        )
        for form in forms
    ]


def _levels(V: int) -> list[int]:
    """Return 2, 4, 8, ..., V."""
    return [*(2**k for k in range(1, V.bit_length()) if 2**k < V), V]


def _checked(
    features: Tensor,
    labels: Tensor,
    views: Tensor | None,
    images: Tensor | None,
    deltas: Sequence[float] | None,
    epsilons: Sequence[float] | None,
    confidence: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    f = unit(features, "Features")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"Labels are integers, not {labels.dtype}.")
    if labels.shape != (len(f),):
        raise ValueError(f"Labels are one for each of {len(f)} images, not {tuple(labels.shape)}.")
    names, y = labels.unique(return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"A certificate is of at least two classes, not of {names.tolist()}.")
    for name, grid in (("deltas", deltas), ("epsilons", epsilons)):
        if grid is not None and (
            len(grid) == 0 or not all(0 <= value < math.inf for value in grid)
        ):
            raise ValueError(f"{name} are distances, at least one, not {list(grid)}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is between 0 and 1, not {confidence}.")
    if views is None and images is not None:
        raise ValueError("Images are compared with the first of their views: give views as well.")
    if views is None:
        return f, y, None, names
    if views.shape[:2] != f.shape[:2] or (
        images is not None and images.shape != (len(views), *views.shape[2:])
    ):
        of = "" if images is None else f" and images {tuple(images.shape)}"
        raise ValueError(
            f"Views {tuple(views.shape)}{of} are those of the features {tuple(f.shape)}."
        )
    pixels = _floating(views)
    if images is None:
        return f, y, pixels, names
    clean = _floating(images)
    off = (pixels[:, 0] - clean).abs().flatten(1).amax(1) > 1e-3
    if bool(off.any()):
        raise ValueError(
            f"The first view of {int(off.sum())} of {len(f)} images is not the image itself, which "
            "the theory has among the views (x in A(x)). Take Augmentation.views(..., "
            "identity=True)."
        )
    return f, y, pixels, names


def _floating(pixels: Tensor) -> Tensor:
    return pixels / 255 if pixels.dtype == torch.uint8 else pixels
