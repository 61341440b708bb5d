"""Verification from features and labels alone: pairs are drawn, and two numbers are taken on them.

    verification_accuracy   of n pairs in k folds whose identities differ:
                            mean of a_f, +- 1.96 of its standard error over folds
    tar_at_far              of other pairs of all images:
                            TAR(t) at the largest t with FAR(t) <= far, with its 95 % interval

They are the two numbers that tables of verification give. Sources: as in
`marginlab.evaluation.verification`, which has the formulas.
"""

from typing import NamedTuple

from jaxtyping import Float, Integer

from marginlab.evaluation.check import Array, as_tensor, check_features
from marginlab.evaluation.pairing import pairs
from marginlab.evaluation.verification import accepted_at, accuracy_of, distances_between
from marginlab.statistics.intervals import normal_interval


class Rate(NamedTuple):
    """A rate, the bounds of its 95 % interval, and the number of its pairs.

    The pairs are all pairs, or the genuine ones.
    """

    value: float
    low: float
    high: float
    n: int


class Verified(NamedTuple):
    """The result of `verify`.

    Attributes:
        accuracy: The verification accuracy over the folds.
        tar: The true accept rate at each false accept rate.
    """

    accuracy: Rate
    tar: dict[float, Rate]


def verify(
    features: Float[Array, "N D"],
    labels: Integer[Array, " N"],
    *,
    n: int = 6000,
    folds: int = 10,
    far_pairs: int = 200_000,
    fars: tuple[float, ...] = (0.01, 0.001),
    seed: int = 0,
) -> Verified:
    """Measure how well the distance of features tells pairs of one identity from pairs of two.

    The distance is that of the features' directions. The interval of a TAR treats pairs as
    independent. They share images, so it is too narrow.

    Args:
        features: Features of the images; they need not be normalised.
        labels: The identity of each image.
        n: Number of pairs for the accuracy, half of them genuine.
        folds: Number of folds of these pairs, whose identities differ.
        far_pairs: Number of pairs for the true accept rates, half of them genuine.
        fars: False accept rates at which the true accept rate is taken.
        seed: Seed of the pairs.

    Returns:
        The accuracy, and the true accept rate at each false accept rate.

    Raises:
        ValueError: Features and labels do not fit, values are not finite, or `pairs`,
            `verification_accuracy` or `tar_at_far` refuses its input.

    Example:
        >>> import torch
        >>> labels = torch.arange(40) // 4
        >>> found = verify(torch.eye(10)[labels], labels, n=20, folds=5, far_pairs=80, fars=(0.1,))
        >>> found.accuracy.value, found.tar[0.1].value
        (1.0, 1.0)
    """
    wide, identities = check_features("features", features), as_tensor("labels", labels)
    if len(identities.flatten()) != len(wide):
        raise ValueError(
            f"{len(wide)} features have as many labels, the identity of each image, not "
            f"{identities.dtype} {tuple(identities.shape)}."
        )
    identities = identities.to(wide.device)
    drawn = pairs(identities, n, folds=folds, seed=seed)
    found = accuracy_of(distances_between(wide, drawn.first, drawn.second), drawn.same.cpu(), folds)
    ends = normal_interval(found.accuracy, found.standard_error)
    accuracy = Rate(found.accuracy, *ends, n)
    drawn = pairs(identities, far_pairs, folds=1, seed=seed)
    distances, same = distances_between(wide, drawn.first, drawn.second), drawn.same.cpu()
    tar = dict[float, Rate]()
    for far in fars:
        accepted = accepted_at(distances, same, far)
        tar[far] = Rate(accepted.tar, accepted.low, accepted.high, accepted.genuine)
    return Verified(accuracy, tar)
