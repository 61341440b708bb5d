"""Verification in folds, as tables of LFW, CFP-FP and AgeDB-30 give it, from scores of pairs.

    z = (f(x) + f(mirror of x)) / || f(x) + f(mirror of x) ||          (the sum is not normalised)
    s = cos(z1, z2),    d = || z1 - z2 ||^2 = 2 - 2 s, in [0, 4];      accepted: d < t

    accuracy     t_f = first best of 0, 0.01, ..., 3.99 on the pairs outside fold f
    VAL@FAR=r    t_f = threshold at which the FAR outside fold f is r, on the straight line
                 between two of 0, 0.001, ..., 3.999; 0 if no threshold reaches r

Folds are contiguous blocks of the pairs in the given order. The numbers are the mean over folds and
the standard deviation of the population.

Source: the evaluation that goes with ArcFace, Deng et al. 2019 (10 folds; LFW, AgeDB-30, CALFW and
CPLFW have 6,000 pairs, CFP-FP has 7,000).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int, Integer
from torch import Tensor

from marginlab.evaluation.check import Array, as_tensor, check_features
from marginlab.evaluation.protocols.bootstrap import Interval, bootstrap, pair_weights
from marginlab.evaluation.protocols.roc import check_scores
from marginlab.evaluation.verification import Verification, accuracy_of
from marginlab.statistics import unit_vectors

_GRID = torch.arange(400, dtype=torch.float64) * 0.01
_FINE = torch.arange(4000, dtype=torch.float64) * 0.001


class FlipSum(NamedTuple):
    """Directions of the sums of features and those of mirror images, and a sign of health.

    `norm` is the mean length of the features of both, which published tables call XNorm.
    """

    directions: Float[Tensor, "N D"]
    norm: float


class ValAtFar(NamedTuple):
    """Validation rate at a false accept rate: mean and deviation over folds, and the mean FAR."""

    val: float
    deviation: float
    far: float


def flip_sum(features: Float[Array, "N D"], mirrored: Float[Array, "N D"]) -> FlipSum:
    """Sum the features of images and of their mirror images, and scale the sums to length 1.

    Args:
        features: Features of the images, not normalised.
        mirrored: Features of their mirror images.

    Raises:
        ValueError: Features are of two shapes, empty or not finite.

    Example:
        >>> flip_sum(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
        FlipSum(directions=tensor([[0.6000, 0.8000]]), norm=3.5)
    """
    wide = check_features("features", features)
    other = check_features("features of the mirror images", mirrored, dim=wide.shape[1])
    if wide.shape != other.shape:
        raise ValueError(
            f"{len(wide)} images have as many mirror images, not {len(other)}. Encode the same "
            "images, mirrored."
        )
    norm = torch.cat([wide, other.to(wide)]).double().norm(dim=1).mean()
    return FlipSum(unit_vectors(wide + other.to(wide)), float(norm))


def fold_verification(
    scores: Float[Array, " M"], same: Bool[Array, " M"], folds: int = 10
) -> Verification:
    """Return the accuracy over contiguous folds from cosines of pairs, by the published grid.

    Args:
        scores: Cosines of the pairs, fold by fold.
        same: Marks the genuine pairs.
        folds: Number of folds; the first M mod `folds` are one pair longer.

    Raises:
        ValueError: Shapes differ, scores are no cosines, there are fewer pairs than folds or fewer
            than 2 folds, or pairs are of one kind only.

    Example:
        >>> same = torch.tensor([True, False] * 10)
        >>> found = fold_verification(same.double(), same)
        >>> found.accuracy, found.deviation, found.thresholds[0]
        (1.0, 0.0, 0.01)
        >>> fold_verification(torch.full((20,), 0.3), same).accuracy
        0.5
    """
    distances, kinds = _distances(scores, same)
    return accuracy_of(distances, kinds, folds, thresholds="grid")


def val_at_far(
    scores: Float[Array, " M"], same: Bool[Array, " M"], far: float = 1e-3, folds: int = 10
) -> ValAtFar:
    """Return the share of genuine pairs accepted at a false accept rate, over contiguous folds.

    The threshold of a fold is that of the others, so the fold's own rate is another: its mean is
    returned. A fold without impostor or genuine pairs is left out of the mean that it has no
    number for. Impostors of one score are accepted together by the interpolated threshold, as the
    published evaluation has it: look at the mean FAR, which the example shows at 1.

    Args:
        scores: Cosines of the pairs, fold by fold.
        same: Marks the genuine pairs.
        far: The false accept rate asked for, in (0, 1).
        folds: Number of folds.

    Raises:
        ValueError: As for `fold_verification`, or `far` is outside (0, 1).

    Example:
        >>> same = torch.tensor([True, False] * 10)
        >>> val_at_far(same.double(), same)
        ValAtFar(val=1.0, deviation=0.0, far=1.0)
    """
    if not 0 < far < 1:
        raise ValueError(f"A false accept rate lies in (0, 1), not at {far}.")
    distances, kinds = _distances(scores, same)
    _check_folds(len(distances), folds)
    values, rates = [], []
    for held in torch.arange(len(distances)).tensor_split(folds):
        outside = torch.ones(len(distances), dtype=torch.bool)
        outside[held] = False
        t = _threshold(distances[outside & ~kinds], far)
        accepted = distances[held] < t
        values.append(accepted[kinds[held]].double().mean())
        rates.append(accepted[~kinds[held]].double().mean())
    val, rate = (torch.stack(part) for part in (values, rates))
    val, rate = val[~val.isnan()], rate[~rate.isnan()]
    return ValAtFar(float(val.mean()), float(val.std(correction=0)), float(rate.mean()))


def fold_interval(
    scores: Float[Array, " M"],
    same: Bool[Array, " M"],
    first: Integer[Array, " M"],
    second: Integer[Array, " M"],
    folds: int = 10,
    *,
    replicates: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the accuracy of `fold_verification` with its bootstrap interval over identities.

    Each draw chooses the thresholds anew. A fold of which no person is drawn is left out.

    Args:
        scores: Cosines of the pairs, fold by fold.
        same: Marks the genuine pairs.
        first: The identity of each pair's first image, from 0 on.
        second: That of its second image.
        folds: Number of folds.
        replicates: Number of draws.
        confidence: Confidence of the interval.
        seed: Seed of the draws.

    Raises:
        ValueError: As for `fold_verification` and `bootstrap`; or identities contradict `same`.

    Example:
        >>> scores, same = torch.tensor([0.9, 0.1, 0.8, 0.2]), torch.tensor([True, False] * 2)
        >>> a, b = torch.tensor([0, 0, 2, 2]), torch.tensor([0, 1, 2, 3])
        >>> fold_interval(scores, same, a, b, folds=2, replicates=50).value
        0.75
    """
    distances, kinds = _distances(scores, same)
    _check_folds(len(distances), folds)
    a, b, number = check_people(first, second, kinds)
    # d < t for the thresholds from `bins` on
    bins = torch.searchsorted(_GRID, distances, right=True)
    fold = torch.cat(
        [torch.full((len(part),), k) for k, part in enumerate(bins.tensor_split(folds))]
    )
    cell = fold * (len(_GRID) + 1) + bins
    size = folds * (len(_GRID) + 1)
    sign = torch.where(kinds, 1.0, -1.0).double()

    def accuracy(weights: Tensor) -> list[float]:
        of_pairs = pair_weights(weights, a, b)
        gained = torch.bincount(cell, of_pairs * sign, size).view(folds, -1).cumsum(1)[:, :-1]
        impostors = torch.bincount(fold, of_pairs * ~kinds, folds)
        total = torch.bincount(fold, of_pairs, folds)
        right = gained + impostors[:, None]
        best = (right.sum(0) - right).argmax(1)  # of equals the first
        return [float((right.gather(1, best[:, None])[:, 0] / total)[total > 0].mean())]

    [found] = bootstrap(accuracy, number, replicates=replicates, confidence=confidence, seed=seed)
    return found


def check_people(
    first: Array, second: Array, same: Tensor
) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"], int]:
    """Read the identities of pairs, numbered densely, and their number.

    Raises:
        ValueError: They are not one integer a pair, or contradict the kinds of the pairs.
    """
    read = [as_tensor("identities of pairs", x).cpu() for x in (first, second)]
    for x in read:
        if x.shape != same.shape or x.is_floating_point():
            raise ValueError(
                f"{len(same)} pairs have as many identities, which are integers, not {x.dtype} "
                f"{tuple(x.shape)}."
            )
    if not bool(((read[0] == read[1]) == same).all()):
        at = int(((read[0] == read[1]) != same).int().argmax())
        raise ValueError(
            f"Pair {at} is marked as {'genuine' if bool(same[at]) else 'an impostor'}, but its "
            f"identities are {int(read[0][at])} and {int(read[1][at])}. Correct one of them."
        )
    people = torch.cat([x.unique() for x in read]).unique()
    # int32, since there may be tens of millions of pairs
    first, second = (torch.searchsorted(people, x.contiguous(), out_int32=True) for x in read)
    return first, second, len(people)


def _distances(scores: Array, same: Array) -> tuple[Float64[Tensor, " M"], Tensor]:
    """Return squared distances of the pairs' directions, from their cosines."""
    found, kinds = check_scores(scores, same)
    largest = float(found.abs().max())
    if largest > 1 + 1e-3:
        raise ValueError(
            f"Scores of this protocol are cosines, in [-1, 1], but one has the size {largest:g}. "
            "Give cosines of features; for other scores take `roc`."
        )
    return 2 - 2 * found.clamp(-1, 1), kinds


def _check_folds(n: int, folds: int) -> None:
    if not 2 <= folds <= n:
        raise ValueError(f"{n} pairs fall into 2 to {n} folds, not into {folds}.")


def _threshold(impostors: Float64[Tensor, " n"], far: float) -> float:
    """Return the distance below which the share `far` of impostors lies, or 0."""
    if not len(impostors):
        return 0.0
    rate = torch.searchsorted(impostors.sort().values, _FINE).double() / len(impostors)
    reached = rate >= far
    if not bool(reached.any()):
        return 0.0
    at = int(reached.int().argmax())  # not 0, where nothing is accepted
    share = (far - float(rate[at - 1])) / float(rate[at] - rate[at - 1])
    return float(_FINE[at - 1]) + share * float(_FINE[at] - _FINE[at - 1])
