"""Receiver operating characteristic of scores: rates of false and true accepts at every threshold.

    accepted: s >= t
    FAR(t) = P(s >= t | impostor),    TAR(t) = P(s >= t | genuine),    FRR(t) = 1 - TAR(t)
    EER    = FAR where FAR = FRR, on the straight line between the two points around it
    ROC: TAR against FAR;    DET: FRR against FAR, both on normal deviates

Equal scores are accepted together: they make one point, whatever their order. So constant scores
have the points (0, 0) and (1, 1) alone, and an EER of one half. The points are those of
scikit-learn's `roc_curve(..., drop_intermediate=False)`.

Source of the DET curve: Martin et al., "The DET curve in assessment of detection task performance",
Eurospeech 1997. Pairs may carry weights, as a resampling of identities gives them.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from marginlab.evaluation.check import Array, as_tensor

_SLACK = 1e-9  # a rate of 0.3 of 10 pairs is 3 of them, not 2.9999


class RocPoint(NamedTuple):
    """The point of a curve that is chosen for a rate: its threshold accepts s >= t."""

    tar: float
    far: float
    threshold: float


class Roc(NamedTuple):
    """Rates at T thresholds, which fall from infinity (nothing is accepted) to the least score.

    `genuine` and `impostors` are the numbers of pairs, or the sums of their weights.
    """

    thresholds: Float64[Tensor, " T"]
    far: Float64[Tensor, " T"]
    tar: Float64[Tensor, " T"]
    genuine: float
    impostors: float

    @property
    def frr(self) -> Float64[Tensor, " T"]:
        """False reject rates, the ordinate of a DET curve."""
        return 1 - self.tar

    @property
    def eer(self) -> float:
        """Equal error rate: 0 for scores that separate the kinds, 1/2 for constant scores."""
        gap = 1 - self.tar - self.far  # falls from 1
        at = int((gap <= 0).int().argmax())
        if float(gap[at]) > 0:  # no curve ends there, unless not all genuine pairs can be accepted
            return float("nan")
        before, after = float(gap[at - 1]), float(gap[at])
        share = before / (before - after)
        return float(self.far[at - 1] + share * (self.far[at] - self.far[at - 1]))

    @property
    def auc(self) -> float:
        """Area under the curve: P(genuine > impostor) + P(equal) / 2."""
        return float(torch.trapezoid(self.tar, self.far))

    def at(self, far: float, point: Literal["below", "nearest"] = "below") -> RocPoint:
        """Return the point for a false accept rate, without interpolation.

        Args:
            far: The rate asked for, in (0, 1).
            point: "below" is the point with the largest rate that is not above `far`; "nearest",
                as evaluations of IJB choose it, the point with the rate nearest to it, and of two
                equally near ones the smaller. Of points of one rate the one with the largest TAR
                is taken.

        Raises:
            ValueError: `far` is outside (0, 1), or `point` is another word.

        Example:
            >>> scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
            >>> roc(scores, torch.tensor([True, False, True, False])).at(0.6)
            RocPoint(tar=1.0, far=0.5, threshold=0.699999988079071)
        """
        if not 0 < far < 1:
            raise ValueError(f"A false accept rate lies in (0, 1), not at {far}.")
        if point == "below":
            at = int((self.far <= far + _SLACK).sum()) - 1
        elif point == "nearest":
            away = (self.far - far).abs()
            rate = self.far[int((away <= away.min() + _SLACK).int().argmax())]
            at = int((self.far <= rate).sum()) - 1
        else:
            raise ValueError(f"point is 'below' or 'nearest', not {point!r}.")
        return RocPoint(float(self.tar[at]), float(self.far[at]), float(self.thresholds[at]))


def roc(
    scores: Float[Array, " M"],
    same: Bool[Array, " M"],
    weights: Float[Array, " M"] | None = None,
) -> Roc:
    """Return the curve of scores of pairs, on the CPU.

    Args:
        scores: The larger, the more alike; any finite numbers. Give minus a distance.
        same: Marks the genuine pairs.
        weights: Weights of the pairs, not negative; 1 by default.

    Raises:
        ValueError: Shapes differ, scores are not finite, or a kind has no pair or no weight.

    Example:
        >>> scores = torch.tensor([0.9, 0.8, 0.8, 0.1])
        >>> found = roc(scores, torch.tensor([True, True, False, False]))
        >>> found.far.tolist(), found.tar.tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
        >>> found.eer, found.auc
        (0.25, 0.875)
    """
    found, kinds = check_scores(scores, same)
    return Levels(found, kinds).curve(check_weights(weights, len(found)))


class Levels:
    """Sorted scores of pairs, of which a curve is made for any weights of the pairs.

    Args:
        scores: Finite scores (M,) in float64.
        same: Marks the genuine pairs.
        falling: The scores fall already, and so do the weights that `curve` is given.
    """

    def __init__(
        self, scores: Float64[Tensor, " M"], same: Bool[Tensor, " M"], *, falling: bool = False
    ) -> None:
        self.order: Int64[Tensor, " M"] | None = None
        if not falling:
            scores, self.order = scores.sort(descending=True, stable=True)
        last = torch.ones(len(scores), dtype=torch.bool)
        last[:-1] = scores[1:] != scores[:-1]
        self.ends: Int64[Tensor, " L"] = last.nonzero()[:, 0]
        self.thresholds = torch.cat([scores.new_full((1,), torch.inf), scores[self.ends]])
        self.same = same if self.order is None else same[self.order]

    def curve(self, weights: Float64[Tensor, " M"], genuine: float | None = None) -> Roc:
        """Return the curve for these weights.

        Args:
            weights: Weights of the pairs.
            genuine: The weight that counts as all genuine pairs; by default the sum of theirs. It
                is larger where some genuine pairs can never be accepted.

        Raises:
            ValueError: A kind has no weight.
        """
        if self.order is not None:
            weights = weights[self.order]
        right, wrong = (self._accepted(weights * kind) for kind in (self.same, ~self.same))
        whole = float(right[-1]) if genuine is None else genuine
        others = float(wrong[-1])
        if whole <= 0 or others <= 0:
            raise ValueError(
                f"The genuine pairs weigh {whole:g} and the impostors {others:g}: at least one "
                "pair of each kind is needed."
            )
        return Roc(self.thresholds, wrong.div_(others), right.div_(whole), whole, others)

    def _accepted(self, weights: Float64[Tensor, " M"]) -> Float64[Tensor, " T"]:
        """Return the sums of weights above each threshold; the weights are overwritten."""
        weights.cumsum_(0)
        found = weights.new_zeros(len(self.ends) + 1)
        torch.index_select(weights, 0, self.ends, out=found[1:])
        return found


def check_scores(scores: Array, same: Array) -> tuple[Tensor, Tensor]:
    """Read scores of pairs as float64 and their kinds as bools, both (M,) on the CPU.

    Raises:
        ValueError: Shapes or types do not fit, scores are not finite, or a kind has no pair.
    """
    found, kinds = as_tensor("scores of pairs", scores).cpu(), as_tensor("kinds", same).cpu()
    if found.ndim != 1 or not found.is_floating_point():
        given = f"{found.dtype} {tuple(found.shape)}"
        raise ValueError(f"Scores of pairs are (M,) floating-point numbers, not {given}.")
    if kinds.shape != found.shape or kinds.dtype != torch.bool:
        raise ValueError(
            f"{len(found)} scores need as many bools that say which pairs are genuine, not "
            f"{kinds.dtype} {tuple(kinds.shape)}. Compare the labels, or take (x > 0)."
        )
    bad = int((~found.isfinite()).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(found)} scores are not finite (NaN or infinity). Look for what made "
            "them, or leave these pairs out."
        )
    genuine = int(kinds.sum())
    if not 0 < genuine < len(kinds):
        raise ValueError(
            f"Of {len(kinds)} pairs {genuine} are genuine: at least one of each kind is needed."
        )
    return found.double(), kinds


def check_weights(weights: Array | None, n: int) -> Float64[Tensor, " M"]:
    """Read the weights of n pairs or probes as float64 on the CPU; None is 1 for each.

    Raises:
        ValueError: There are not n of them, or one is negative or not finite.
    """
    if weights is None:
        return torch.ones(n, dtype=torch.float64)
    found = as_tensor("weights", weights).cpu().double()
    if found.shape != (n,) or not bool((found.isfinite() & (found >= 0)).all()):
        raise ValueError(
            f"Weights are {n} finite numbers that are not negative, not {tuple(found.shape)} with "
            f"a least value of {float(found.min()) if found.numel() else 'none'}."
        )
    return found
