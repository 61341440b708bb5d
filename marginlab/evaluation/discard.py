"""Error versus discard: how much error a quality score takes away with the worst pairs.

    pair quality q = min of the two images' scores;   accepted: similarity s > t
    error(x) = share of the genuine pairs that t rejects, after a share x of the pairs of lowest q
               is dropped; pairs of equal q are dropped together

Two conventions are in use, whose numbers cannot be compared:

    "fixed"     t is fixed on all pairs. x counts genuine pairs. Area by steps (ISO/IEC 29794-1).
    "renewed"   t is estimated again on the pairs left, at x = 0, 0.05, ..., 0.95 of all pairs,
                genuine and impostor. Area by trapezoids (Meng et al. 2021, MagFace; Boutros et
                al. 2023, CR-FIQA).

A score that is the same for all pairs drops nothing, so its area is exactly that of no score. Where
ties are broken by the order of the pairs, a constant score can look better than any real one: it
did, with a relative area of 0.42, in a trial whose genuine pairs were listed first.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from marginlab.evaluation.check import Array, as_tensor

Convention = Literal["fixed", "renewed"]
FRACTIONS = tuple(number / 20 for number in range(20))
"""Discarded shares 0, 0.05, ..., 0.95 of the convention "renewed"."""

_SLACK = 1e-9  # so that a count of exactly x n is not taken for more by rounding


class DiscardCurve(NamedTuple):
    """Error at growing shares of discarded pairs.

    Attributes:
        discard: Shares of dropped pairs, increasing from 0.
        error: False non-match rate of the genuine pairs left.
        threshold: The threshold on similarity at each share.
        errors: Number of rejected genuine pairs before any is dropped.
        pairs: Number of genuine pairs.
        convention: "fixed" or "renewed" (see above).
    """

    discard: Float64[Tensor, " M"]
    error: Float64[Tensor, " M"]
    threshold: Float64[Tensor, " M"]
    errors: int
    pairs: int
    convention: str

    def area(self, limit: float, *, relative: bool = True) -> float:
        """Return the area under the curve from 0 to a share `limit`.

        Args:
            limit: The largest share, in (0, 1): 0.2 or 0.3 is what operation allows, 0.95 is also
                published. With "renewed" it is one of the curve's shares.
            relative: Divide by the area without a score, which is error(0) times the limit: 1 means
                that the score is worth nothing, above 1 that it drops the wrong pairs.

        Raises:
            ValueError: The limit is outside (0, 1), or the curve has no such point.

        Example:
            >>> best_curve(10, 100).area(0.3) < 0.2 < worst_curve(10, 100).area(0.3)
            True
        """
        if not 0 < limit < 1:
            raise ValueError(f"The largest share of discarded pairs is in (0, 1), not {limit}.")
        level = self.error / self.error[0]
        if self.convention == "fixed":
            inside = self.discard < limit
            left = self.discard[inside]
            widths = torch.cat([left[1:], left.new_tensor([limit])]) - left
            heights = level[inside]
        else:
            last = int((self.discard - limit).abs().argmin())
            if abs(float(self.discard[last]) - limit) > _SLACK or last == 0:
                raise ValueError(
                    f"The curve has no point at {limit}: it has {self.discard.tolist()}. Take one "
                    "of these, or give more pairs."
                )
            widths = self.discard[1 : last + 1] - self.discard[:last]
            heights = (level[:last] + level[1 : last + 1]) / 2
        ratio = float((widths * heights).sum() / widths.sum())
        return ratio if relative else ratio * float(self.error[0]) * limit

    def at(self, share: float) -> float:
        """Return the error at a share of discarded pairs, by steps.

        Raises:
            ValueError: The share is outside [0, 1).
        """
        if not 0 <= share < 1:
            raise ValueError(f"A share of discarded pairs is in [0, 1), not {share}.")
        place = int((self.discard <= share + _SLACK).sum()) - 1
        return float(self.error[place])


def pair_quality(
    quality: Float[Array, " N"], first: Int[Array, " M"], second: Int[Array, " M"]
) -> Float64[Tensor, " M"]:
    """Return the quality of pairs of images: the lower score of the two.

    Args:
        quality: A score for each image; higher is better.
        first, second: Numbers of the images of each pair.

    Example:
        >>> scores = torch.tensor([0.2, 0.9, 0.5])
        >>> pair_quality(scores, torch.tensor([0, 1]), torch.tensor([1, 2]))
        tensor([0.2000, 0.5000], dtype=torch.float64)
    """
    scores = as_tensor("scores", quality).double().cpu()
    i, j = (as_tensor("numbers of images", x).long().cpu() for x in (first, second))
    return torch.minimum(scores[i], scores[j])


def error_versus_discard(
    similarities: Float[Array, " M"],
    same: Bool[Array, " M"],
    quality: Float[Array, " M"],
    *,
    fmr: float | None = None,
    fnmr: float | None = None,
    convention: Convention = "fixed",
) -> DiscardCurve:
    """Return the error of verification as pairs of low quality are dropped.

    Args:
        similarities: Similarity of each pair, higher for more alike.
        same: Marks the genuine pairs.
        quality: Quality of each pair, see `pair_quality`.
        fmr: The threshold rejects all but this share of impostor pairs.
        fnmr: The threshold rejects at most this share of genuine pairs. Give either `fmr` or
            `fnmr`; "renewed" takes `fmr`.
        convention: "fixed" or "renewed" (see the head of the file).

    Raises:
        ValueError: Shapes differ, values are not finite, there are no genuine pairs, too few
            impostor pairs for `fmr`, or no errors at the threshold. Or not exactly one of `fmr` and
            `fnmr` is given.

    Example:
        >>> similarities = torch.tensor([0.9, 0.8, 0.2, 0.7])
        >>> same, quality = torch.ones(4, dtype=torch.bool), torch.tensor([3.0, 2.0, 1.0, 2.0])
        >>> curve = error_versus_discard(similarities, same, quality, fnmr=0.25)
        >>> curve.discard.tolist(), curve.error.tolist()
        ([0.0, 0.25, 0.75], [0.25, 0.0, 0.0])
    """
    s, kind, q = _checked(similarities, same, quality)
    _check_rate(fmr, fnmr, convention, int((~kind).sum()))
    first = _genuine_threshold(s[kind], fnmr) if fmr is None else _threshold(s[~kind], fmr)
    errors, pairs = int((s[kind] <= first).sum()), int(kind.sum())
    if errors == 0:
        raise ValueError(
            f"None of {pairs} genuine pairs is rejected at the threshold {first:g}, so no score "
            "can lower the error. Take a stricter rate, or harder pairs."
        )
    if convention == "fixed":
        return _fixed(s[kind], q[kind], first)
    assert fmr is not None
    return _renewed(s, kind, q, fmr)


def best_curve(errors: int, pairs: int) -> DiscardCurve:
    """Return the lowest curve of the convention "fixed": rejected pairs are dropped first.

    After k of e rejected among n pairs the error is (e - k) / (n - k). The published line e / n - x
    divides by all pairs and lies below what can be reached; `area` of it is `line_area`.

    Example:
        >>> best_curve(1, 4).error.tolist()
        [0.25, 0.0]
    """
    _check_counts(errors, pairs)
    gone = torch.arange(errors + 1 if errors < pairs else pairs, dtype=torch.float64)
    return _bound((errors - gone) / (pairs - gone), gone, errors, pairs)


def worst_curve(errors: int, pairs: int) -> DiscardCurve:
    """Return the highest curve of the convention "fixed": accepted pairs are dropped first.

    Example:
        >>> [round(error, 2) for error in worst_curve(1, 4).error.tolist()]
        [0.25, 0.33, 0.5, 1.0]
    """
    _check_counts(errors, pairs)
    gone = torch.arange(pairs - errors + 1, dtype=torch.float64)
    return _bound(errors / (pairs - gone), gone, errors, pairs)


def line_area(errors: int, pairs: int, limit: float) -> float:
    """Return the area under max(0, errors / pairs - x) from 0 to `limit`, relative to no score.

    ISO/IEC 29794-1 subtracts this line as the theoretical best.

    Example:
        >>> line_area(10, 100, 0.2)
        0.25
    """
    _check_counts(errors, pairs)
    if not 0 < limit < 1:
        raise ValueError(f"The largest share of discarded pairs is in (0, 1), not {limit}.")
    start = errors / pairs
    reach = min(limit, start)
    return reach * (start - reach / 2) / (start * limit)


def _fixed(s: Tensor, q: Tensor, threshold: float) -> DiscardCurve:
    """Return the curve at one threshold, from the genuine pairs."""
    _, level, sizes = q.unique(return_inverse=True, return_counts=True)
    wrong = torch.zeros(len(sizes), dtype=torch.int64).index_add_(0, level, (s <= threshold).long())
    gone = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
    left = torch.cat([wrong.new_zeros(1), wrong.cumsum(0)[:-1]])
    errors = int(wrong.sum())
    error = (errors - left).double() / (len(s) - gone)
    thresholds = torch.full_like(error, threshold)
    return DiscardCurve(gone.double() / len(s), error, thresholds, errors, len(s), "fixed")


def _renewed(s: Tensor, kind: Tensor, q: Tensor, fmr: float) -> DiscardCurve:
    """Return the curve with a threshold for each share of all pairs."""
    order = q.sort(stable=True).indices
    s, kind, q = s[order], kind[order], q[order]
    _, sizes = q.unique(return_counts=True)
    ends = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    shares, found, thresholds = [], [], []
    for fraction in FRACTIONS:
        begin = int(ends[ends <= fraction * len(s) + _SLACK * len(s)][-1])
        left, of = s[begin:], kind[begin:]
        if not bool(of.any()) or bool(of.all()):
            break  # no rate is known without pairs of both kinds
        t = _threshold(left[~of], fmr)
        shares.append(fraction)
        found.append(float((left[of] <= t).double().mean()))
        thresholds.append(t)
    x, y, t_of_x = (torch.tensor(z, dtype=torch.float64) for z in (shares, found, thresholds))
    errors = int((s[kind] <= thresholds[0]).sum())
    return DiscardCurve(x, y, t_of_x, errors, int(kind.sum()), "renewed")


def _threshold(impostors: Tensor, fmr: float) -> float:
    """Return the lowest threshold above which at most the share `fmr` of impostors lies."""
    allowed = math.floor(fmr * len(impostors) + _SLACK * len(impostors))
    if allowed >= len(impostors):
        return -math.inf
    return float(impostors.sort(descending=True).values[allowed])


def _genuine_threshold(genuine: Tensor, fnmr: float | None) -> float:
    """Return the highest threshold at or below which at most the share `fnmr` of pairs lies."""
    assert fnmr is not None
    levels, sizes = genuine.unique(return_counts=True)
    fits = sizes.cumsum(0) <= fnmr * len(genuine) + _SLACK * len(genuine)
    return float(levels[fits][-1]) if bool(fits.any()) else -math.inf


def _bound(error: Tensor, gone: Tensor, errors: int, pairs: int) -> DiscardCurve:
    return DiscardCurve(
        gone / pairs, error, torch.full_like(error, math.nan), errors, pairs, "fixed"
    )


def _check_counts(errors: int, pairs: int) -> None:
    if not 0 < errors <= pairs:
        raise ValueError(
            f"Of the genuine pairs at least one is rejected and at most all, not {errors} of "
            f"{pairs}."
        )


def _check_rate(fmr: float | None, fnmr: float | None, convention: str, impostors: int) -> None:
    if convention not in ("fixed", "renewed"):
        raise ValueError(f"convention is 'fixed' or 'renewed', not {convention!r}.")
    if (fmr is None) == (fnmr is None) or (convention == "renewed" and fmr is None):
        raise ValueError(
            f"Give either fmr or fnmr, and with convention='renewed' fmr, not fmr={fmr} and "
            f"fnmr={fnmr}."
        )
    rate = fmr if fmr is not None else fnmr
    if rate is None or not 0 < rate < 1:
        raise ValueError(f"A rate of errors is in (0, 1), not {rate}.")
    if fmr is not None and impostors * fmr < 1 - _SLACK:
        raise ValueError(
            f"A false match rate of {fmr:g} needs at least {math.ceil(1 / fmr - _SLACK):,} "
            f"impostor pairs; there are {impostors:,}. Draw more pairs."
        )


def _checked(similarities: Array, same: Array, quality: Array) -> tuple[Tensor, Tensor, Tensor]:
    s, q = (
        as_tensor(name, x).double().cpu()
        for name, x in (("similarities", similarities), ("qualities", quality))
    )
    kind = as_tensor("kinds of pairs", same).cpu()
    if s.ndim != 1 or q.shape != s.shape or kind.shape != s.shape or kind.dtype != torch.bool:
        raise ValueError(
            "Similarities, kinds and qualities of M pairs are (M,) numbers, bools and numbers, not "
            f"{tuple(s.shape)}, {kind.dtype} {tuple(kind.shape)} and {tuple(q.shape)}."
        )
    if not bool(s.isfinite().all() & q.isfinite().all()):
        raise ValueError(
            "Similarities and qualities are finite, but some are NaN or infinite. Leave these "
            "pairs out, or look for what made them."
        )
    if not bool(kind.any()):
        raise ValueError(f"None of {len(s)} pairs is genuine: at least one is needed.")
    return s, kind, q
