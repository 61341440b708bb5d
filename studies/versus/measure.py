"""Labels that a method may see, its errors, and what might predict them.

    error                kNN and a logistic regression on backbone features of the images whose
                         labels may be seen, under the labels that are seen, noise included; judged
                         on test images under their true labels
    predictors           of views of test images, in pixels and in backbone features of length one
    their null control   the same with the classes shuffled; NaN where a predictor sees no class

A contrastive method trains on all images and sees no label; its judge sees those of `Labels`. A
method that sees labels trains on the images whose labels may be seen, for as many steps.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import marginlab.train
from marginlab import augment, data, settings
from marginlab.augment import Augmentation
from marginlab.data import ImageSet
from marginlab.data.corruption import flip_labels
from marginlab.encoding import encode, encode_views
from marginlab.evaluation import knn_accuracy, linear_probe_accuracy
from marginlab.measures import Concentration
from marginlab.measures.functional import (
    alignment,
    augmentation_confusion,
    class_divergence,
    class_variance,
    rankme,
    uniformity,
)
from marginlab.rng import Key
from marginlab.settings import SettingsError
from marginlab.statistics.intervals import wilson
from marginlab.study import Cell
from marginlab.train import Monitor, Recipe, fit

VIEW_SEED = 1  # of the views that are measured; trainings draw theirs from their own seeds
SHARE = 0.5  # of the 90 % quantile of clean distances, where 1 - sigma is taken


@dataclass(frozen=True)
class Labels:
    """The labels that may be seen.

    Args:
        share: Share of the training images whose labels may be seen.
        noise: Share of the labels that are flipped to another class.
        sees: Whether the method sees labels while it trains.
        seed: Seed of the choice and of the flips.
    """

    share: float
    noise: float
    sees: bool
    seed: int


@dataclass(frozen=True)
class Predictors:
    """The views and the test images that give the predictors."""

    data: str
    image_size: int
    augmentation: str
    images: int
    views: int


# --- training and judging -------------------------------------------------------------------------


def train(
    cell: Cell, recipe: Recipe, monitor: Monitor, labels: Labels, neighbours: int
) -> dict[str, Any]:
    """Train and judge, each once in the run; return rows, errors, and what was seen.

    A contrastive method trains once for all choices of labels: only its judge sees them.
    `folder` is the name of the training's folder under once/.
    """
    shown = labels if labels.sees else replace(labels, share=1.0, noise=0.0)
    function = functools.partial(_train, say=cell.say)
    found: dict[str, Any] = cell.once("training", function, recipe, monitor, shown)
    return found | cell.once("judged", _judge, recipe, labels, neighbours, found["folder"])


def _train(
    recipe: Recipe,
    monitor: Monitor,
    labels: Labels,
    *,
    say: Callable[[str], None],
    folder: Path,
) -> dict[str, Any]:
    whole, test = marginlab.train.check(recipe)
    images = seen(whole, labels) if labels.sees else whole
    done = fit(
        _same_steps(recipe, len(whole), len(images)),
        folder / "run",
        monitor,
        data=(images, test),
        say=say,
        precision_in=folder.parent,
    )
    rows = [row._asdict() for row in done.rows]
    return {"folder": folder.name, "rows": rows, "images_seen": len(images)}


def _judge(
    recipe: Recipe, labels: Labels, neighbours: int, training: str, *, folder: Path
) -> dict[str, Any]:
    whole, test = marginlab.train.check(recipe)
    method = marginlab.train.load(folder.parent / training / "run")
    labelled = seen(whole, labels)
    return {
        "errors": judge(method, labelled, test, neighbours),
        "labels_seen": len(labelled) if labels.sees else 0,
    }


def seen(images: ImageSet, labels: Labels) -> ImageSet:
    """Return the images whose labels may be seen, under the labels that are seen."""
    noisy = flip_labels(images, labels.noise, seed=labels.seed).images if labels.noise else images
    n = max(round(labels.share * len(images)), 2)
    chosen = noisy.subset(n if n < len(images) else 0, labels.seed)
    unseen = sorted(set(range(len(images.classes))) - set(chosen.labels.tolist()))
    if unseen:
        raise SettingsError(
            f"A share of {labels.share:g} of {len(images)} labels shows no image of "
            f"{images.classes[unseen[0]]}, and a noise of {labels.noise:g} may flip the last one. "
            "Let more labels be seen."
        )
    return chosen


def _same_steps(recipe: Recipe, whole: int, n: int) -> Recipe:
    """Change the epochs, so that n images get as many steps as all of them."""
    batch = min(recipe.batch, n)
    steps = recipe.epochs * (whole // recipe.batch)
    changes = {"batch": batch, "epochs": max(1, round(steps / (n // batch))), "image_size": 0}
    return settings.replaced(recipe, changes | {"images": 0})


def judge(
    method: Any, labelled: ImageSet, test: ImageSet, neighbours: int
) -> dict[str, tuple[float, float, float, int]]:
    """Return the errors of kNN and of a logistic regression, with Wilson's 95 % intervals."""
    bank, queries = (normalize(encode(method, s.images), dim=-1) for s in (labelled, test))
    truth = test.labels
    errors = {
        "kNN": 1 - knn_accuracy(bank, labelled.labels, queries, truth, k=neighbours),
        "linear": 1 - linear_probe_accuracy(bank, labelled.labels, queries, truth),
    }
    return {at: (error, *wilson(error, len(test)), len(test)) for at, error in errors.items()}


# --- predictors -----------------------------------------------------------------------------------


def pixels(asked: Predictors, *, folder: Path) -> dict[str, list[float]]:
    """Return the concentration of the views as pixels, with its null control."""
    images, augmentation = _of(asked)
    rows = torch.arange(len(images))
    views = _draw(augmentation, images.images, index=rows, n_views=asked.views).flatten(2)
    return {"one_minus_sigma": _concentration(views, images.labels)}


def predict(asked: Predictors, training: str, *, folder: Path) -> dict[str, list[float]]:
    """Return the predictors of an encoder, each with its null control."""
    method = marginlab.train.load(folder.parent / training / "run")
    images, augmentation = _of(asked)
    draw = functools.partial(_draw, augmentation)
    features = encode_views(method, images.images, draw, asked.views).cpu()
    return predictors(normalize(features.float(), dim=-1), images.labels)


def predictors(features: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Return quantities of features (N, V, D) of length one, each with its null control."""
    labels = labels.unique(return_inverse=True)[1]
    shuffled = _shuffled(labels)
    squares, diameters = alignment(features)
    found = {
        "alignment": [float(squares.mean()), math.nan],
        "worst_view": [float(diameters.square().mean()), math.nan],
        "uniformity": [float(uniformity(features)[0]), math.nan],
        "rank": [float(rankme(features).RankMe), math.nan],
        "confusion": [float(augmentation_confusion(features).mean()), math.nan],
    }
    for name, function in (("divergence", _divergence), ("class_variance", _variance)):
        found[name] = [function(features, labels), function(features, shuffled)]
    found["one_minus_sigma"] = _concentration(features, labels)
    return found


def _divergence(features: Tensor, labels: Tensor) -> float:
    gram = class_divergence(features, labels, int(labels.max()) + 1).gram
    return float(gram[~torch.eye(len(gram), dtype=torch.bool)].nanmean())


def _variance(features: Tensor, labels: Tensor) -> float:
    """V over the mean squared distance of two centers: the ratio of means, which stays finite."""
    found = class_variance(features, labels, int(labels.max()) + 1)
    apart = found.distances[~torch.eye(len(found.distances), dtype=torch.bool)].nanmean()
    return float(found.variance / apart.clamp(min=1e-6))


def _concentration(views: Tensor, labels: Tensor) -> list[float]:
    """1 - sigma, mean over classes, at half of the 90 % quantile of clean distances in a class."""
    labels = labels.unique(return_inverse=True)[1]
    clean = _measured(views[:, :1], labels, levels=(1,))
    distances = torch.cat([_upper(torch.as_tensor(matrix)) for matrix in clean.distances()])
    delta = SHARE * float(distances.double().quantile(0.9))
    return [
        1 - _measured(views, groups).sigma(delta, reduce="mean")[0]
        for groups in (labels, _shuffled(labels))
    ]


def _measured(views: Tensor, labels: Tensor, levels: tuple[int, ...] | None = None) -> Any:
    measure = Concentration(levels, sync_on_compute=False)
    measure.update(views, labels)
    return measure.compute()


def _upper(matrix: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(len(matrix), len(matrix), 1)
    return matrix[rows, columns]


def _shuffled(labels: Tensor) -> Tensor:
    """Shuffle the labels, so that the classes keep their sizes."""
    return labels[Key(0).named("versus", "control").permutation(len(labels))]


def _of(asked: Predictors) -> tuple[ImageSet, Augmentation]:
    images = data.load(asked.data, "test", size=asked.image_size).subset(asked.images)
    counts = torch.bincount(images.labels, minlength=len(images.classes))
    if int(counts[counts > 0].min()) < 2:
        raise SettingsError(
            f"{asked.images} test images of {asked.data} leave a class with one image, so no "
            "distance within it. Raise `measured`."
        )
    return images, settings.make(asked.augmentation, augment, Augmentation)


def _draw(augmentation: Augmentation, images: Tensor, *, index: Tensor, n_views: int) -> Tensor:
    return augmentation.views(
        images.cpu(), index=index, n_views=n_views, seed=VIEW_SEED, identity=True
    )
