"""Verification of identity: a threshold on the distance of two images' features.

    d = || x/||x|| - y/||y|| ||^2 = 2 - 2 cos(x, y), in [0, 4];     accepted: d < t

    accuracy by folds:   t_f = argmax over t of accuracy on all folds but f
                         a_f = accuracy(t_f) on fold f;   mean and deviation of a_f
    TAR at FAR:          TAR(t) = P(d < t | genuine)
                         at the largest t with FAR(t) = P(d < t | impostor) <= far

The threshold of a fold is chosen on pairs outside it. Sources: the restricted protocol of LFW,
Huang et al. 2007 (ten folds of 600 pairs whose people differ); the folds, the grid and `dist < t`
of the evaluation that goes with ArcFace, Deng et al. 2019; interval of a rate: Clopper and Pearson
1934.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from marginlab.evaluation.check import Array, as_tensor, check_features, directions

_GRID = torch.arange(400, dtype=torch.float64) * 0.01  # 0, 0.01, ..., 3.99
_BLOCK = 1 << 22  # numbers that are widened to float64 at a time


class Verification(NamedTuple):
    """Accuracy over folds: mean, standard deviation, and each fold's accuracy and threshold on d.

    The deviation is that of the population, as published tables give it.
    """

    accuracy: float
    deviation: float
    folds: tuple[float, ...]
    thresholds: tuple[float, ...]

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over k folds, as LFW's table gives it.

        It is sample deviation / sqrt(k) = deviation / sqrt(k - 1).
        """
        return self.deviation / math.sqrt(len(self.folds) - 1)


class TarAtFar(NamedTuple):
    """The share of genuine pairs accepted at a threshold on d, with its interval.

    The threshold accepts the share `far` of the impostor pairs.
    """

    tar: float
    low: float
    high: float
    far: float
    threshold: float
    genuine: int
    impostors: int


def verification_accuracy(
    first: Float[Array, "n D"],
    second: Float[Array, "n D"],
    same: Bool[Array, " n"],
    folds: int = 10,
    *,
    thresholds: Literal["exact", "grid"] = "exact",
) -> Verification:
    """Return the accuracy of "genuine if d < t" over contiguous folds.

    Each fold is judged by the best t of the others. Of equally good thresholds the smallest is
    taken.

    Args:
        first: Features of the pairs' first images; they need not be normalised.
        second: Features of their second images.
        same: Marks the genuine pairs.
        folds: Number k of blocks of pairs in the given order; the first n mod k are one longer
            (scikit-learn's KFold without shuffling). The caller makes folds whose identities
            differ, as `pairs` does.
        thresholds: "exact" tries every one that makes a difference, midway between two distances;
            "grid" tries the published 0, 0.01, ..., 3.99.

    Raises:
        ValueError: Shapes differ, values are not finite, there are fewer pairs than folds or fewer
            than 2 folds, pairs are of one kind only, or `thresholds` is another word.

    Example:
        >>> x = torch.eye(2)[[0, 0, 1, 1]]
        >>> y, same = torch.eye(2)[[0, 1, 1, 0]], torch.tensor([True, False, True, False])
        >>> verification_accuracy(x, y, same, folds=2)
        Verification(accuracy=1.0, deviation=0.0, folds=(1.0, 1.0), thresholds=(1.0, 1.0))
    """
    return accuracy_of(*_distances(first, second, same), folds, thresholds=thresholds)


def accuracy_of(
    distances: Float64[Tensor, " n"],
    same: Bool[Tensor, " n"],
    folds: int,
    *,
    thresholds: str = "exact",
) -> Verification:
    """Return `verification_accuracy` from the distances of pairs, on the CPU."""
    if not 2 <= folds <= len(distances):
        raise ValueError(
            f"{len(distances)} pairs fall into 2 to {len(distances)} folds, not into {folds}. Give "
            "more pairs, or fewer folds."
        )
    if thresholds not in ("exact", "grid"):
        raise ValueError(f"thresholds is 'exact' or 'grid', not {thresholds!r}.")
    accuracies, chosen = [], []
    for held in torch.arange(len(distances)).tensor_split(folds):
        low, high = int(held[0]), int(held[-1]) + 1
        others, others_same = (
            torch.cat([distances[:low], distances[high:]]),
            torch.cat([same[:low], same[high:]]),
        )
        t = _best(others, others_same, _candidates(others) if thresholds == "exact" else _GRID)
        accuracies.append(float(((distances[low:high] < t) == same[low:high]).double().mean()))
        chosen.append(t)
    values = torch.tensor(accuracies, dtype=torch.float64)
    return Verification(
        float(values.mean()), float(values.std(correction=0)), tuple(accuracies), tuple(chosen)
    )


def tar_at_far(
    first: Float[Array, "n D"],
    second: Float[Array, "n D"],
    same: Bool[Array, " n"],
    far: float,
    *,
    point: Literal["below", "nearest"] = "below",
    confidence: float = 0.95,
) -> TarAtFar:
    """Return the share of genuine pairs accepted at a false accept rate, without interpolation.

    The threshold is one that exists on these pairs. `low` and `high` hold the TAR at the true false
    accept rate `far` with the given confidence, if pairs are independent. The threshold of that
    rate lies between two order statistics of the impostors' distances. The TAR at each of the two
    has a Clopper-Pearson interval among the genuine pairs. Each of the four errors gets a quarter
    of the risk. Pairs that share images or identities are not independent, and the true interval is
    wider.

    The published evaluation of IJB-B and IJB-C also takes the rate nearest to `far`, but among the
    points of scikit-learn's `roc_curve`. By default that drops points on a line between two others.
    The result differs from `point="nearest"` where our point was dropped, between two impostors
    without a genuine pair in between. Its rate is then farther from `far`, and its TAR, without
    equal distances, is the same or larger. Of two rates equally near it takes the larger. With 20
    to 200 impostors the TAR differed in a seventh of 768 draws, by up to 0.31. The number of
    accepted impostors is what matters: at a FAR of 1e-6 of 8 million they are 8.
    `roc_curve(..., drop_intermediate=False)` has all points.

    Args:
        first: Features of the pairs' first images; they need not be normalised.
        second: Features of their second images.
        same: Marks the genuine pairs.
        far: The false accept rate asked for, in (0, 1). The result's `far` is the rate that the
            threshold has on these pairs.
        point: "below" is the largest threshold whose rate is not above `far`. "nearest" is the
            threshold with the rate nearest to it, of two equally near the smaller, and the most
            genuine pairs there.
        confidence: Confidence of the interval.

    Raises:
        ValueError: As for `verification_accuracy`; or there are fewer than 1/far impostor pairs,
            far or confidence is outside (0, 1), or `point` is another word.

    Example:
        >>> x = torch.eye(3)[[0, 1, 2, 0]]
        >>> y = torch.tensor([[1.0, 0.1, 0], [0, 1, 1], [0, 1, 0], [0, 0, 1]])
        >>> found = tar_at_far(x, y, torch.tensor([True, True, False, False]), far=0.5)
        >>> found.tar, found.far
        (1.0, 0.0)
    """
    _check_rates(far, confidence)
    if point not in ("below", "nearest"):
        raise ValueError(f"point is 'below' or 'nearest', not {point!r}.")
    return accepted_at(*_distances(first, second, same), far, point=point, confidence=confidence)


def _check_rates(far: float, confidence: float) -> None:
    if not (0 < far < 1 and 0 < confidence < 1):
        raise ValueError(f"far and confidence lie in (0, 1), not at {far} and {confidence}.")


def accepted_at(
    distances: Float64[Tensor, " n"],
    same: Bool[Tensor, " n"],
    far: float,
    *,
    point: str = "below",
    confidence: float = 0.95,
) -> TarAtFar:
    """Return `tar_at_far` from the distances of pairs, on the CPU."""
    _check_rates(far, confidence)
    genuine, impostors = distances[same].sort().values, distances[~same].sort().values
    if far * len(impostors) < 1 - 1e-9:
        need = math.ceil(1 / far - 1e-9)
        raise ValueError(
            f"A false accept rate of {far:g} needs at least {need:,} impostor pairs; there are "
            f"{len(impostors):,}. Draw more pairs."
        )
    candidates = _candidates(distances)
    accepted = torch.searchsorted(impostors, candidates)  # impostors with d < t
    # counts are compared with far n, so that a rate of exactly far, as 0.3 of 10, is not above it
    # by rounding
    excess = accepted.double() - far * len(impostors)
    slack = 1e-9 * len(impostors)
    if point == "below":
        at = int((excess <= slack).sum()) - 1
    else:
        away = excess.abs()
        near = int(
            accepted[int((away <= away.min() + slack).int().argmax())]
        )  # the fewest impostors among the nearest rates
        at = int((accepted <= near).sum()) - 1  # and the most genuine pairs with them
    t = float(candidates[at])
    below = int(torch.searchsorted(genuine, t))
    low, high = _interval(genuine, impostors, far, (1 - confidence) / 4)
    return TarAtFar(
        below / len(genuine),
        low,
        high,
        int(accepted[at]) / len(impostors),
        t,
        len(genuine),
        len(impostors),
    )


def _distances(first: Array, second: Array, same: Array) -> tuple[Tensor, Tensor]:
    """Return squared distances (n,) of two features' directions, and the pairs' kinds, all checked.

    The distances are float64.
    """
    first, second = (
        as_tensor(f"features of the {name}", x)
        for name, x in (("first", first), ("second", second))
    )
    if (
        first.ndim != 2
        or first.shape != second.shape
        or not first.is_floating_point()
        or not second.is_floating_point()
    ):
        given = f"{first.dtype} {tuple(first.shape)} and {second.dtype} {tuple(second.shape)}"
        raise ValueError(f"Pairs are two (n, D) tensors of floating-point features, not {given}.")
    same = as_tensor("kinds of pairs", same)
    if same.shape != first.shape[:1] or same.dtype != torch.bool:
        remedy = "" if same.dtype == torch.bool else " Compare the labels, or take (x > 0)."
        raise ValueError(
            f"{len(first)} pairs need as many bools that say which are genuine, not {same.dtype} "
            f"{tuple(same.shape)}.{remedy}"
        )
    genuine = int(same.sum())
    if not 0 < genuine < len(same):
        raise ValueError(
            f"Of {len(same)} pairs {genuine} are genuine: at least one of each kind is needed. "
            "Draw them with `pairs`."
        )
    first, second = (
        check_features("first features", first),
        check_features("second features", second),
    )
    blocks = zip(first.split(_rows(first)), second.split(_rows(first)), strict=True)
    return torch.cat([_apart(x, y.to(x.device)) for x, y in blocks]), same.cpu()


def distances_between(
    features: Float[Tensor, "N D"], first: Int64[Tensor, " n"], second: Int64[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """Return squared distances of the directions of pairs of checked features, on the CPU.

    Features are gathered a block of pairs at a time, because there can be many more pairs than
    features.
    """
    blocks = zip(first.split(_rows(features)), second.split(_rows(features)), strict=True)
    return torch.cat([_apart(features[i], features[j]) for i, j in blocks])


def _rows(features: Tensor) -> int:
    return max(1, _BLOCK // max(1, features.shape[1]))


def _apart(x: Tensor, y: Tensor) -> Float64[Tensor, " n"]:
    return (directions(x, torch.float64) - directions(y, torch.float64)).square().sum(1).cpu()


def _candidates(distances: Float64[Tensor, " n"]) -> Float64[Tensor, " m"]:
    """Return all thresholds that make a difference, ascending.

    They are 0 (nothing is accepted), one between each two neighbouring distances, and infinity
    (everything is accepted).
    """
    levels = distances.unique()
    low, high = levels[:-1], levels[1:]
    middle = low + (high - low) / 2
    middle = torch.where(
        middle > low, middle, high
    )  # between neighbouring floats the middle rounds to one of them; then d < high is right
    return torch.cat([levels.new_zeros(1), middle, levels.new_full((1,), math.inf)])


def _best(distances: Tensor, same: Tensor, candidates: Tensor) -> float:
    """Return the smallest threshold with the most right answers, counted in integers."""
    genuine, impostors = distances[same].sort().values, distances[~same].sort().values
    right = torch.searchsorted(genuine, candidates) - torch.searchsorted(
        impostors, candidates
    )  # right answers minus the number of impostors
    return float(candidates[int((right == right.max()).int().argmax())])


def _interval(genuine: Tensor, impostors: Tensor, far: float, error: float) -> tuple[float, float]:
    """Return bounds of the TAR at the true rate `far`.

    Each of the two steps of a bound errs with probability at most `error`. Let F be the impostors'
    distribution and X_(k) the k-th smallest of n distances. Then P(F(X_(k)) > far) =
    P(Bin(n, far) < k). So if this is small for a k, X_(k) is below the threshold of `far`. If
    P(Bin(n, far) >= k) is small, X_(k) is above it.
    """
    import scipy.stats  # takes a while to import

    n = len(impostors)
    # "low" accepts d < X_(k) for the largest k with P(Bin < k) <= error; 0 if there is no such k
    k = int(
        scipy.stats.binom.ppf(error, n, far)
    )  # the least k with P(Bin <= k) >= error, so that P(Bin < k) < error
    below = int(torch.searchsorted(genuine, impostors[k - 1])) if k else 0
    # "high" accepts d <= X_(k) for the smallest k with P(Bin >= k) <= error; everything if there is
    # no such k
    k = int(scipy.stats.binom.isf(error, n, far)) + 1  # the least k with P(Bin > k - 1) <= error
    above = (
        int(torch.searchsorted(genuine, impostors[k - 1], right=True)) if k <= n else len(genuine)
    )
    low = float(scipy.stats.beta.ppf(error, below, len(genuine) - below + 1)) if below else 0.0
    high = (
        float(scipy.stats.beta.isf(error, above + 1, len(genuine) - above))
        if above < len(genuine)
        else 1.0
    )
    return low, high
