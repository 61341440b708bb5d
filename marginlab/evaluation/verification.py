"""Verification: are two images of one identity? A threshold on the distance of their features, chosen on pairs that are not judged by it.

    d = || x/||x|| - y/||y|| ||^2 = 2 - 2 cos(x, y), in [0, 4];     accepted: d < t
    accuracy by folds:   t_f = argmax over t of accuracy on all folds but f;   a_f = accuracy(t_f) on fold f;   mean and deviation of a_f
    TAR at FAR:          TAR(t) = P(d < t | genuine) at the largest t with FAR(t) = P(d < t | impostor) <= far

Sources: the restricted protocol of LFW, Huang et al. 2007 (ten folds of 600 pairs whose people differ); the folds, the grid and `dist < t` of the
evaluation that goes with ArcFace, Deng et al. 2019; interval of a rate: Clopper and Pearson 1934.
"""

import math
from typing import Literal, NamedTuple

import scipy.stats
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor
from torch.nn.functional import normalize

from marginlab.rng import Key

_GRID = torch.arange(400, dtype=torch.float64) * 0.01  # 0, 0.01, ..., 3.99
_BLOCK = 1 << 22  # numbers that are widened to float64 at a time


class Verification(NamedTuple):
    """Accuracy over folds: mean, population standard deviation (as published tables give it), and each fold's accuracy and threshold on d."""

    accuracy: float
    deviation: float
    folds: tuple[float, ...]
    thresholds: tuple[float, ...]

    @property
    def standard_error(self) -> float:
        """Of the mean over k folds, sample deviation / sqrt(k) = deviation / sqrt(k - 1): what LFW's table gives."""
        return self.deviation / math.sqrt(len(self.folds) - 1)


class TarAtFar(NamedTuple):
    """The share of genuine pairs accepted, at a threshold on d that accepts the share `far` of the impostor pairs, with its interval."""

    tar: float
    low: float
    high: float
    far: float
    threshold: float
    genuine: int
    impostors: int


class Pairs(NamedTuple):
    """Numbers of the images of each pair, and whether it is genuine."""

    first: Int64[Tensor, " n"]
    second: Int64[Tensor, " n"]
    same: Bool[Tensor, " n"]


def verification_accuracy(
    first: Float[Tensor, "n D"],
    second: Float[Tensor, "n D"],
    same: Bool[Tensor, " n"],
    folds: int = 10,
    *,
    thresholds: Literal["exact", "grid"] = "exact",
) -> Verification:
    """Accuracy of "genuine if d < t" over contiguous folds, each judged by the threshold that is best on the others; of equals the smallest.

    Parameters
    ----------
    first, second: features of the pairs' images; they need not be normalised.
    same: which pairs are genuine.
    folds: k blocks of pairs as they stand, the first n mod k one longer (scikit-learn's KFold without shuffling). Folds whose identities differ
        are the caller's to make, as `pairs` does.
    thresholds: "exact" tries every one that makes a difference, midway between two distances; "grid" the published 0, 0.01, ..., 3.99.

    Raises
    ------
    ValueError: shapes that differ, values not finite, fewer pairs than folds or fewer than 2 folds, pairs of one kind only, another word.

    >>> x = torch.eye(2)[[0, 0, 1, 1]]
    >>> verification_accuracy(x, torch.eye(2)[[0, 1, 1, 0]], torch.tensor([True, False, True, False]), folds=2)
    Verification(accuracy=1.0, deviation=0.0, folds=(1.0, 1.0), thresholds=(1.0, 1.0))

    """
    distances = _distances(first, second, same)
    if not 2 <= folds <= len(distances):
        raise ValueError(f"{len(distances)} pairs fall into 2 to {len(distances)} folds, not into {folds}. Give more pairs, or fewer folds.")
    if thresholds not in ("exact", "grid"):
        raise ValueError(f"thresholds is 'exact' or 'grid', not {thresholds!r}.")
    same = same.cpu()
    accuracies, chosen = [], []
    for held in torch.arange(len(distances)).tensor_split(folds):
        low, high = int(held[0]), int(held[-1]) + 1
        others, others_same = torch.cat([distances[:low], distances[high:]]), torch.cat([same[:low], same[high:]])
        t = _best(others, others_same, _candidates(others) if thresholds == "exact" else _GRID)
        accuracies.append(float(((distances[low:high] < t) == same[low:high]).double().mean()))
        chosen.append(t)
    values = torch.tensor(accuracies, dtype=torch.float64)
    return Verification(float(values.mean()), float(values.std(correction=0)), tuple(accuracies), tuple(chosen))


def tar_at_far(
    first: Float[Tensor, "n D"],
    second: Float[Tensor, "n D"],
    same: Bool[Tensor, " n"],
    far: float,
    *,
    point: Literal["below", "nearest"] = "below",
    confidence: float = 0.95,
) -> TarAtFar:
    """The share of genuine pairs accepted at a false accept rate. Nothing is interpolated: the result is a threshold that exists.

    `low` and `high` hold the TAR at the true false accept rate `far` with the given confidence, if pairs are independent: the threshold of
    that rate lies between two order statistics of the impostors' distances, and the TAR at each has a Clopper-Pearson interval among the
    genuine pairs; each of the four errors gets a quarter. Pairs that share images or identities are not independent, and the true interval is
    wider.

    Parameters
    ----------
    first, second, same: as `verification_accuracy` takes them.
    far: the false accept rate asked for, in (0, 1); the result's `far` is the one that the threshold has on these pairs.
    point: "below" is the largest threshold whose rate is not above `far`; "nearest" the one with the rate nearest to it, which the published
        evaluation of IJB-B and IJB-C takes (of two equally near the smaller).
    confidence: of the interval.

    Raises
    ------
    ValueError: as `verification_accuracy`; fewer than 1/far impostor pairs; far or confidence outside (0, 1); another word.

    >>> x, y = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([[1.0, 0.1, 0], [0, 1, 1], [0, 1, 0], [0, 0, 1]])
    >>> found = tar_at_far(x, y, torch.tensor([True, True, False, False]), far=0.5)
    >>> found.tar, found.far
    (1.0, 0.0)

    """
    if not (0 < far < 1 and 0 < confidence < 1):
        raise ValueError(f"far and confidence lie in (0, 1), not at {far} and {confidence}.")
    if point not in ("below", "nearest"):
        raise ValueError(f"point is 'below' or 'nearest', not {point!r}.")
    distances, same = _distances(first, second, same), same.cpu()
    genuine, impostors = distances[same].sort().values, distances[~same].sort().values
    if far * len(impostors) < 1 - 1e-9:
        need = math.ceil(1 / far - 1e-9)
        raise ValueError(f"A false accept rate of {far:g} needs at least {need:,} impostor pairs; there are {len(impostors):,}. Draw more pairs.")
    candidates = _candidates(distances)
    accepted = torch.searchsorted(impostors, candidates)  # impostors with d < t
    # counts against far n: a rate of exactly far, such as 0.3 of 10, is not above it for the rounding of a product
    excess = accepted.double() - far * len(impostors)
    slack = 1e-9 * len(impostors)
    if point == "below":
        at = int((excess <= slack).sum()) - 1
    else:
        away = excess.abs()
        near = int(accepted[int((away <= away.min() + slack).int().argmax())])  # the fewest impostors of those nearest
        at = int((accepted <= near).sum()) - 1  # and the most genuine pairs with them
    t = float(candidates[at])
    below = int(torch.searchsorted(genuine, t))
    low, high = _interval(genuine, impostors, far, (1 - confidence) / 4)
    return TarAtFar(below / len(genuine), low, high, int(accepted[at]) / len(impostors), t, len(genuine), len(impostors))


def pairs(labels: Int[Tensor, " N"], n: int, *, seed: int = 0, folds: int = 10) -> Pairs:
    """Draw n different pairs of images, half of them genuine, in folds whose identities differ, as LFW's do.

    The identities are dealt out to the folds; a fold's genuine pairs are a uniform choice of all pairs of two images of one of its identities, its
    impostor pairs of all pairs of images of two of them. So an identity of m images is met in genuine pairs in proportion to m (m - 1). Pairs
    stand fold by fold, genuine and impostor in turn. Nothing quadratic is held: pairs are numbered, and the numbers drawn.

    Parameters
    ----------
    labels: the identity of each image.
    n: pairs, a multiple of 2 folds.
    seed: other seeds deal and draw otherwise.
    folds: 1 uses all pairs of images that there are, for a TAR at a small FAR.

    Raises
    ------
    ValueError: n no positive multiple of 2 folds; a fold with fewer pairs of a kind than asked for, or with more than 2**32.

    >>> labels = torch.arange(40) // 4
    >>> drawn = pairs(labels, 20, folds=5)
    >>> drawn.same[:4].tolist(), bool(((labels[drawn.first] == labels[drawn.second]) == drawn.same).all())
    ([True, False, True, False], True)

    """
    if folds < 1 or n < 2 * folds or n % (2 * folds):
        raise ValueError(f"Pairs are half genuine in each of at least 1 fold: n is a positive multiple of {2 * folds}, not {n}.")
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"Labels are (N,) integers, the identity of each image, not {labels.dtype} {tuple(labels.shape)}.")
    identities, identity = labels.cpu().unique(return_inverse=True)
    fold_of = Key(seed).named("pairs", "folds").permutation(len(identities)) % folds
    firsts, seconds = [], []
    for fold in range(folds):
        own = (fold_of[identity] == fold).nonzero().flatten()
        own = own[identity[own].argsort(stable=True)]  # an identity's images stand together
        for genuine in (True, False):
            low, high = _drawn(identity[own], n // (2 * folds), genuine, Key(seed).named("pairs", "genuine" if genuine else "impostor", fold), fold)
            firsts.append(own[low])
            seconds.append(own[high])
    # (folds, 2, n / 2 folds) -> genuine and impostor in turn
    first, second = (torch.stack(part).unflatten(0, (folds, 2)).transpose(1, 2).flatten() for part in (firsts, seconds))
    device = labels.device
    return Pairs(first.to(device), second.to(device), (torch.arange(n) % 2 == 0).to(device))


def _drawn(identity: Int64[Tensor, " M"], n: int, genuine: bool, key: Key, fold: int) -> tuple[Tensor, Tensor]:
    """Two places for each of n pairs, drawn among all pairs of a kind; the images are sorted by identity.

    Image i has as partners of its own kind those after it in its identity, and of the other kind all after its identity's end.
    """
    place = torch.arange(len(identity))
    end = torch.searchsorted(identity, identity, right=True)
    partners = end - place - 1 if genuine else len(identity) - end
    total = partners.cumsum(0)
    count, kind = int(total[-1]) if len(total) else 0, "genuine" if genuine else "impostor"
    if count < n:
        raise ValueError(f"Fold {fold} holds {count} {kind} pairs, fewer than the {n} asked for. Ask for fewer pairs or folds, or add images.")
    if count > 1 << 32:
        raise ValueError(f"Fold {fold} holds {count} {kind} pairs, and numbers are drawn up to 2**32. Take more folds, or fewer images.")
    number = key.shuffle(torch.arange(n), count)
    low = torch.searchsorted(total, number, right=True)
    start = place + 1 if genuine else end
    return low, start[low] + number - (total - partners)[low]


def _distances(first: Tensor, second: Tensor, same: Tensor) -> Float64[Tensor, " n"]:
    """Checked squared distances of the directions of two features, in float64, on the CPU."""
    if first.ndim != 2 or first.shape != second.shape or not first.is_floating_point() or not second.is_floating_point():
        given = f"{first.dtype} {tuple(first.shape)} and {second.dtype} {tuple(second.shape)}"
        raise ValueError(f"Pairs are two (n, D) tensors of floating-point features, not {given}.")
    if same.shape != first.shape[:1] or same.dtype != torch.bool:
        raise ValueError(f"{len(first)} pairs need as many bools that say which are genuine, not {same.dtype} {tuple(same.shape)}.")
    if not bool(first.isfinite().all() and second.isfinite().all()):
        raise ValueError(f"The features {tuple(first.shape)} hold values that are not finite (NaN or infinity). Look for what made them.")
    genuine = int(same.sum())
    if not 0 < genuine < len(same):
        raise ValueError(f"Of {len(same)} pairs {genuine} are genuine: at least one of each kind is needed. Draw them with `pairs`.")
    rows = max(1, _BLOCK // max(1, first.shape[1]))
    blocks = zip(first.detach().split(rows), second.detach().split(rows), strict=True)
    return torch.cat([(normalize(x.double(), dim=1) - normalize(y.double(), dim=1)).square().sum(1).cpu() for x, y in blocks])


def _candidates(distances: Float64[Tensor, " n"]) -> Float64[Tensor, " m"]:
    """All thresholds that differ, in order: 0 (nothing is accepted), one between each two distances, and infinity (everything is)."""
    levels = distances.unique()
    low, high = levels[:-1], levels[1:]
    middle = low + (high - low) / 2
    middle = torch.where(middle > low, middle, high)  # of neighbouring floats the middle rounds to one of them; d < high is right
    return torch.cat([levels.new_zeros(1), middle, levels.new_full((1,), math.inf)])


def _best(distances: Tensor, same: Tensor, candidates: Tensor) -> float:
    """The threshold with the most right answers, the smallest of equals; counted in integers."""
    genuine, impostors = distances[same].sort().values, distances[~same].sort().values
    right = torch.searchsorted(genuine, candidates) - torch.searchsorted(impostors, candidates)  # + number of impostors
    return float(candidates[int((right == right.max()).int().argmax())])


def _interval(genuine: Tensor, impostors: Tensor, far: float, error: float) -> tuple[float, float]:
    """Bounds of the TAR at the true rate `far`, each of whose two steps errs with probability at most `error`.

    With F the impostors' distribution and X_(k) the k-th smallest of n, P(F(X_(k)) > far) = P(Bin(n, far) < k), so that a k with a small value of
    it has X_(k) below the threshold of `far`, and a k with P(Bin(n, far) >= k) small has it above.
    """
    n = len(impostors)
    # "low" is accepted d < X_(k) with P(Bin < k) <= error: the largest such k; 0 where there is none
    k = int(scipy.stats.binom.ppf(error, n, far))  # the least k with P(Bin <= k) >= error, so that P(Bin < k) < error
    below = int(torch.searchsorted(genuine, impostors[k - 1])) if k else 0
    # "high" is accepted d <= X_(k) with P(Bin >= k) <= error: the smallest such k; everything where there is none
    k = int(scipy.stats.binom.isf(error, n, far)) + 1  # the least k with P(Bin > k - 1) <= error
    above = int(torch.searchsorted(genuine, impostors[k - 1], right=True)) if k <= n else len(genuine)
    low = float(scipy.stats.beta.ppf(error, below, len(genuine) - below + 1)) if below else 0.0
    high = float(scipy.stats.beta.isf(error, above + 1, len(genuine) - above)) if above < len(genuine) else 1.0
    return low, high
