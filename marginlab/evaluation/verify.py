"""Verification from features and labels alone: pairs are drawn, and the two numbers that tables of verification give are taken on them.

    verification_accuracy       of n pairs in k folds whose identities differ: mean of a_f, +- 1.96 of its standard error over folds
    TAR@FAR=far                 of other pairs of all images: TAR(t) at the largest t with FAR(t) <= far, with its 95 % interval

Sources: as `marginlab.evaluation.verification`, which has the formulas.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from marginlab.evaluation.verification import pairs, tar_at_far, verification_accuracy


class Rate(NamedTuple):
    """A rate, the bounds of its 95 % interval, and how many pairs it is a rate of: all of them, or the genuine ones."""

    value: float
    low: float
    high: float
    n: int


def verify(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    *,
    n: int = 6000,
    folds: int = 10,
    far_pairs: int = 200_000,
    fars: tuple[float, ...] = (0.01, 0.001),
    seed: int = 0,
) -> dict[str, Rate]:
    """How well pairs of these images are told to be of one identity or of two, by the distance of their features' directions.

    Parameters
    ----------
    features: of the images; they need not be normalised.
    labels: the identity of each image.
    n: pairs for the accuracy, half of them genuine, in so many `folds`.
    far_pairs: pairs for the true accept rates, half of them genuine.
    fars: false accept rates; of each the true accept rate is given, named `TAR@FAR=` and the rate.
    seed: of the pairs.

    The interval of a TAR takes pairs for independent; they share images, so it is too narrow.

    Raises
    ------
    ValueError: whatever `pairs`, `verification_accuracy` and `tar_at_far` refuse.

    >>> labels = torch.arange(40) // 4
    >>> found = verify(torch.eye(10)[labels], labels, n=20, folds=5, far_pairs=80, fars=(0.1,))
    >>> {name: rate.value for name, rate in found.items()}
    {'verification_accuracy': 1.0, 'TAR@FAR=0.1': 1.0}

    """
    drawn = pairs(labels, n, folds=folds, seed=seed)
    found = verification_accuracy(features[drawn.first], features[drawn.second], drawn.same, folds)
    half = 1.96 * found.standard_error
    rates = {"verification_accuracy": Rate(found.accuracy, found.accuracy - half, found.accuracy + half, n)}
    drawn = pairs(labels, far_pairs, folds=1, seed=seed)
    for far in fars:
        accepted = tar_at_far(features[drawn.first], features[drawn.second], drawn.same, far)
        rates[f"TAR@FAR={far:g}"] = Rate(accepted.tar, accepted.low, accepted.high, accepted.genuine)
    return rates
