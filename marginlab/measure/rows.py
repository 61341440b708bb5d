"""All measures of features and labels as rows, and the same of shuffled classes as a control.

    features of views     alignment, R_epsilon, uniformity, LiDAR, augmentation confusion, sigma
    features and classes  centers, variance, collapse, angles, spectrum
    training and test     kNN, linear probe, nearest center, retrieval, certificates

Geometry is measured on the test images; classifiers learn from the training images and are judged
on the test images. Certificates are of the training images, and of the test images as new ones.

The control permutes the classes of the images of each split. What it measures is what features that
know nothing of the classes would show, for the same numbers of images, classes and dimensions.

A number has the 95 % interval that its measure states: exact binomial ones for error rates. Where
there is none, `low` and `high` are NaN. For 1 - sigma they are the two sides between which it lies.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from marginlab.evaluation import (
    knn_accuracy,
    linear_probe,
    nearest_center_error,
    retrieval,
)
from marginlab.measure.features import Features, Split
from marginlab.measures import (
    Alignment,
    AngleStatistics,
    AugmentationConfusion,
    ClassDivergence,
    ClassVariance,
    Concentration,
    EffectiveRank,
    IntraAngle,
    LiDAR,
    NeuralCollapse,
    SpectrumDecay,
    Uniformity,
)
from marginlab.measures.composed import with_intervals
from marginlab.measures.measure import Measure
from marginlab.rng import Key
from marginlab.statistics.intervals import clopper_pearson, normal_interval, within
from marginlab.theory import Certificate, certify
from marginlab.theory.certificates.form import SAMPLED

EPSILONS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SHUFFLED = "shuffled classes"
_PROBED = 200  # classes: a logistic regression of more takes minutes
_PAIRED = 2000  # images whose distances are all taken


class Row(NamedTuple):
    """One number: its space, its name, where it is taken, its value, interval and images.

    `at` is a value (an epsilon), or a name (the key of a theorem's form), or empty.
    """

    space: str
    quantity: str
    at: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0


class Measured(NamedTuple):
    """All rows of one space, and its certificate, which needs two views of an image or more."""

    rows: list[Row]
    certificate: Certificate | None


def measure(features: Features, *, seed: int = 0) -> Measured:
    """Measure features and their control.

    Args:
        features: Features of training and test images.
        seed: Seed of the shuffled classes.

    Returns:
        The rows of the space and those of `SPACE, shuffled classes`, and the certificate.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(3).repeat_interleave(10)
        >>> x = torch.eye(3)[labels][:, None] + 0.1 * torch.randn(30, 2, 3, generator=g)
        >>> found = measure(Features("backbone", Split(x, labels), Split(x, labels)))
        >>> errors = {row.space: row.value for row in found.rows if row.quantity == "knn_error"}
        >>> errors["backbone"], errors["backbone, shuffled classes"] > 0.3
        (0.0, True)
    """
    rows = list(_of_views(features.space, features.test))
    by_classes, certificate = _of_classes(features.space, features)
    mixed = Features(
        f"{features.space}, {SHUFFLED}",
        _shuffled(features.train, seed, "train"),
        _shuffled(features.test, seed, "test"),
    )
    control, _ = _of_classes(mixed.space, mixed)
    return Measured(rows + by_classes + control, certificate)


def _shuffled(split: Split, seed: int, side: str) -> Split:
    order = Key(seed).named("measure", SHUFFLED, side).permutation(len(split.labels))
    return split._replace(labels=split.labels[order])


def _of_views(space: str, split: Split) -> Iterator[Row]:
    """Yield what needs no classes."""
    features, n = split.features, len(split.features)
    dim = features.shape[2]
    several = features.shape[1] > 1
    if several:
        alignment = Alignment(epsilons=torch.tensor(EPSILONS))
        yield from of_measure(space, alignment, split, "alignment")
        found = alignment.compute()
        for k, epsilon in enumerate(EPSILONS):
            ends = float(found.lower[k]), float(found.upper[k])
            yield Row(space, "R_epsilon", f"{epsilon:g}", float(found.exceeding[k]), *ends, n)
    if n > 1:
        yield from of_measure(space, Uniformity(), split)
        yield from of_measure(space, EffectiveRank(dim), split)
        if dim > 2:
            yield from of_measure(space, SpectrumDecay(dim), split)
    if several and n > 1:
        yield from of_measure(space, LiDAR(dim), split)
        yield from of_measure(space, AugmentationConfusion(), split)


def _of_classes(space: str, features: Features) -> tuple[list[Row], Certificate | None]:
    """Return what depends on the classes."""
    rows = [
        *_centers(space, features),
        *_concentration(space, features),
        *_classifiers(space, features),
    ]
    if features.views < 2:
        return rows, None
    known = torch.isin(features.test.labels, features.train.labels)
    new = features.test.features[known], features.test.labels[known]
    certificate = certify(
        *features.train, new=new if len(new[1]) else None, v_curve=not space.endswith(SHUFFLED)
    )
    for form in certificate.forms:
        n = certificate.images if form.of == SAMPLED else certificate.new_images
        rows.append(Row(space, "certified", form.key, form.value, n=n))
    rows.append(Row(space, "nearest_center_error", "training images", certificate.error,
                    n=certificate.images))  # fmt: skip
    error, limit = certificate.new_error
    if certificate.new_images:
        rows.append(Row(space, "nearest_center_error", "new images", error, high=limit,
                        n=certificate.new_images))  # fmt: skip
    return rows, certificate


def _centers(space: str, features: Features) -> Iterator[Row]:
    """Yield how the classes of the test images lie."""
    test, C, dim = features.test, features.classes, features.test.features.shape[2]
    n = len(test.labels)
    divergence = ClassDivergence(C, dim)
    divergence.update(*test)
    found = divergence.compute()
    if int((found.n > 0).sum()) > 1:
        product = found.largest_product()
        ends = within(product.low, -1.0, 1.0), within(product.high, -1.0, 1.0)
        yield Row(space, "divergence_max", "", product.value, *ends, n)
        length = found.shortest_center()
        least, low, high = (math.sqrt(max(end, 0.0)) for end in length)
        yield Row(space, "center_norm_min", "", least, low, within(high, 0.0, 1.0), n)
        yield Row(space, "delta_mu", "", float(found.Delta_mu), n=n)
        yield from of_measure(space, ClassVariance(C, dim), test)
        yield from of_measure(space, NeuralCollapse(C, dim), test)
        yield from of_measure(space, AngleStatistics(C, dim), test)
    known = AngleStatistics(C, dim)
    known.update(*features.train)
    centers = known.compute().centers
    here = torch.isin(test.labels, features.train.labels)
    if bool(here.any()):
        seen = Split(test.features[here], test.labels[here])
        yield from of_measure(space, IntraAngle(torch.nan_to_num(centers)), seen)


def _concentration(space: str, features: Features) -> Iterator[Row]:
    """Yield both sides of 1 - sigma of the test features, of classes with two images or more."""
    test = features.test
    several = (torch.bincount(test.labels) > 1)[test.labels]
    if features.views < 2 or len(test.labels[several].unique()) < 2:
        return
    most = max(_PAIRED // len(test.labels[several].unique()), 2)
    # of shuffled classes, groups across them and distances between them say nothing more
    controls = not space.endswith(SHUFFLED)
    concentration = Concentration(normalize=True, max_images=most, controls=controls)
    concentration.update(test.features[several], test.labels[several])
    found = concentration.compute()
    n = int(found.n.sum())
    curve = found.curve(torch.tensor(EPSILONS, dtype=torch.float64), reduce="mean")
    for epsilon, low, high in zip(
        EPSILONS, curve.lower.tolist(), curve.upper.tolist(), strict=True
    ):
        yield Row(space, "one_minus_sigma", f"{epsilon:g}", high, low, high, n)
    if found.between is not None:
        between = found.between
        yield Row(space, "distance_between", "smallest", float(between.smallest[-1]), n=n)
        yield Row(space, "distance_between", "median", float(between.median[-1]), n=n)


def _classifiers(space: str, features: Features) -> Iterator[Row]:
    """Yield errors of test images by what the training images teach."""
    train, test = features.train, features.test
    bank, asked = train.features[:, 0], test.features[:, 0]
    n = len(test.labels)
    accuracy = knn_accuracy(bank, train.labels, asked, test.labels)
    yield rate(space, "knn_error", "", 1 - accuracy, n)
    if features.classes <= _PROBED:
        probe = linear_probe(bank, train.labels, asked, test.labels)
        yield rate(space, "probe_error", "", 1 - probe.accuracy, n)
    known = torch.isin(test.labels, train.labels)
    if not bool(known.any()):
        return
    found = nearest_center_error(train.features, train.labels, asked[known], test.labels[known])
    yield rate(space, "nearest_center_error", "test images", found.error, found.n)
    searched = retrieval(bank, train.labels, asked[known], test.labels[known])
    for name in ("precision_at_1", "r_precision", "map_at_r"):
        value, error = getattr(searched, name), getattr(searched, f"error_{name}")
        low, high = (within(end, 0.0, 1.0) for end in normal_interval(value, error))
        yield Row(space, name, "", value, low, high, searched.n)


def rate(space: str, quantity: str, at: str, value: float, n: int) -> Row:
    """Return an error rate with its exact binomial 95 % interval."""
    low, high = (float(end) for end in clopper_pearson(torch.tensor([round(value * n)]), n))
    return Row(space, quantity, at, value, low, high, n)


def of_measure(space: str, of: Measure, split: Split, only: str = "") -> Iterator[Row]:
    """Yield a row `Measure.field` for each number of a measure of a split.

    Numbers that the measure cannot know of features and classes alone are NaN, and make no row.

    Args:
        space: The space of the rows.
        of: The measure, without images so far.
        split: The features.
        only: The name of the row of a measure with one number, in place of `Measure.field`.
    """
    of.update(split.features, split.labels)
    result: Any = of.compute()
    for name, (value, low, high) in with_intervals(result, of.intervals).items():
        if not math.isnan(value):
            quantity = only or f"{type(of).__name__}.{name}"
            yield Row(space, quantity, "", value, low, high, len(split.labels))


def stacked(rows: list[Row]) -> list[dict[str, Any]]:
    """Return a table with a line for each quantity: its value, and that of shuffled classes."""
    control = {
        (row.space.removesuffix(f", {SHUFFLED}"), row.quantity, row.at): row.value
        for row in rows
        if row.space.endswith(SHUFFLED)
    }
    return [
        row._asdict() | {SHUFFLED: control.get((row.space, row.quantity, row.at))}
        for row in rows
        if not row.space.endswith(SHUFFLED)
    ]
