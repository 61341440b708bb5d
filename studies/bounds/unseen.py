"""Certificates of a trained encoder by images that training has not seen, many more than it has.

    certified_unseen   at a form's key: of new images, of the population, or 1
    error_unseen       of the nearest center, and at `prototypes` of the nearest prototype
    term_unseen        the terms of a form: outside, rho, margin at `population`; the margin at
                       `theorem_3` and `products`; the number of prototypes at `prototypes`
    pac_bayes_unseen   bounds of the contrastive loss of new batches (`risk`)

Centers, reaches and prototypes are fixed on `fixing` training images; new images are counted. Of
`shapes` the new ones are rendered behind the test images. Of other data they are the test images
and the training images that the recipe leaves out. With the monitor's augmentation and V views, an
image comes as itself and V - 1 draws.
"""

import functools
from pathlib import Path

import torch
from torch import Tensor

from marginlab import augment
from marginlab.augment import Augmentation
from marginlab.data import ImageSet, Shapes
from marginlab.data import load as load_images
from marginlab.data.shapes import EASY
from marginlab.encoding import encode_views
from marginlab.methods import Method
from marginlab.settings import make
from marginlab.study import Cell
from marginlab.theory import Certificate, certify
from marginlab.train import Monitor, Recipe, check, load

from . import risk

FORMS = (
    *("new_images", "image_wise", "prototypes"),
    *("population_T", "population", "theorem_3", "products"),
)
TERMS = (
    ("population", "outside"),
    ("population", "rho"),
    ("population", "margin"),
    ("theorem_3", "margin"),
    ("products", "margin"),
    ("prototypes", "prototypes"),
)
RENDERED = {"shapes": Shapes(), "shapes-5": EASY}


def unseen_images(recipe: Recipe, test: ImageSet, count: int) -> ImageSet:
    """Return images that training has not seen.

    Of `shapes` the monitor's test images are passed over, so that a page's numbers are of different
    images.
    """
    if recipe.data not in RENDERED:
        return _left_out(recipe, test).subset(count, seed=0)
    rendered = RENDERED[recipe.data]
    if recipe.image_size:
        rendered = type(rendered)(**(vars(rendered) | {"size": recipe.image_size}))
    more = rendered.load("test", len(test) + count)
    return more.at(torch.arange(len(test), len(more)))


def _left_out(recipe: Recipe, test: ImageSet) -> ImageSet:
    """Return the test images, and the training images that the recipe leaves out."""
    if not recipe.images:
        return test
    train = load_images(recipe.data, "train", size=recipe.image_size)
    if recipe.images >= len(train):
        return test
    rest = train.without_subset(recipe.images, recipe.seed)
    images, labels = (
        torch.cat((getattr(test, name), getattr(rest, name))) for name in ("images", "labels")
    )
    return ImageSet(images, labels, test.classes, test.name)


def features(method: Method, images: ImageSet, monitor: Monitor, seed: int) -> dict[str, Tensor]:
    """Return features (N, V, D) of each image and its views, by space."""
    augmentation = make(monitor.augmentation, augment, Augmentation)
    dim = 0

    def both(batch: Tensor) -> Tensor:
        nonlocal dim
        found = method.encode(batch)
        dim = found.shape[1]
        return found if method.project is None else torch.cat((found, method.project(found)), 1)

    draw = functools.partial(augmentation.views, seed=seed, identity=True)
    with torch.no_grad():
        found = encode_views(both, images.images, draw, n_views=monitor.views)
    spaces = {"backbone": found[..., :dim], "projector": found[..., dim:]}
    return {name: rows for name, rows in spaces.items() if rows.shape[2]}


def record(
    cell: Cell, recipe: Recipe, monitor: Monitor, folder: Path, sizes: tuple[int, int]
) -> None:
    """Certify the trained encoder by new images, and record what is certified.

    Args:
        cell: The cell.
        recipe: The recipe of its training.
        monitor: Its views are certified.
        folder: Where the training is.
        sizes: Number of training images that fix centers, and of new images.
    """
    train, test = check(recipe)
    method = load(folder)
    seen, new = train.subset(min(sizes[0], len(train))), unseen_images(recipe, test, sizes[1])
    cell.say(f"certified by {len(new)} new images")
    of_seen, of_new = (
        features(method, images, monitor, seed) for images, seed in ((seen, 0), (new, 1))
    )
    for space, rows in of_seen.items():
        certificate = certify(rows, seen.labels, new=(of_new[space], new.labels), v_curve=False)
        _record(cell, certificate, space, recipe.epochs)
    if "projector" in of_new:
        risk.record(cell, of_new["projector"], recipe.epochs)


def _record(cell: Cell, certificate: Certificate, space: str, epoch: int) -> None:
    n = certificate.new_images
    where = {"n": n, "epoch": epoch, "space": space}
    for key in FORMS:
        cell.record("certified_unseen", certificate[key].value, at=key, **where)
    error, limit = certificate.new_error
    cell.record("error_unseen", error, high=limit, **where)
    cell.record("error_unseen", certificate["prototypes"].bound.left, at="prototypes", **where)
    for key, term in TERMS:
        cell.record("term_unseen", getattr(certificate[key], term), at=f"{key}_{term}", **where)
