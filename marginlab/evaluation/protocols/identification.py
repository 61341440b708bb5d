"""Identification: is a probe's mate among the first k of a gallery, and is a stranger turned away?

    hit_k(p)   = P(a mate of p is among the first k), with equal scores in random order
    rank-k     = mean of hit_k over probes; each has a mate, distractors have no probe

    FPIR(t)    = share of unmated probes with highest(p) >= t
    TPIR_k(t)  = mean over mated probes of hit_k(p) [best(p) >= t]

With a entries above the best mate, t others and m mates at its score, and j = k - a places left,

    hit_k = 0 if j <= 0,  1 if j > t,  else 1 - C(t, j) / C(t + m, j).

So a gallery of G equal scores gives rank-k of k / G with one mate: chance, and not the luck of an
order. A probe hits if any of its mates is within the rank.

Sources: TinyFace, Cheng et al., ACCV 2018 (closed set with distractors); QMUL-SurvFace, Cheng et
al. 2018, and Grother and Ngan, NIST IR 8009 (TPIR at FPIR); MegaFace, Kemelmacher-Shlizerman et
al., CVPR 2016 (TAR at FAR of probes with all entries).
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64, Int64, Integer
from torch import Tensor

from marginlab.evaluation.check import Array
from marginlab.evaluation.protocols.blocks import (
    Blocks,
    Search,
    by_rows,
    check_block,
    mates_of,
    of_blocks,
    read_labels,
)
from marginlab.evaluation.protocols.bootstrap import Interval, bootstrap
from marginlab.evaluation.protocols.roc import Levels, Roc, RocPoint, check_weights
from marginlab.kernels.walk import BUDGET

_SLACK = 1e-9
_MOST = 1 << 26  # impostor scores that are kept; 512 MiB in float64


def hits(found: Search, rank: int) -> Float64[Tensor, " N"]:
    """Return the probability that a mate is within the rank, for each probe; 0 without a mate.

    Raises:
        ValueError: The rank is below 1.

    Example:
        >>> from marginlab.evaluation.protocols.blocks import search
        >>> found = search(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([0, 1, 2, 3]))
        >>> [round(float(hits(found, k)), 9) for k in (1, 2, 4)]
        [0.25, 0.5, 1.0]
    """
    if rank < 1:
        raise ValueError(f"A rank is 1 or more, not {rank}.")
    left = (rank - found.above).double()
    tied, mates = found.tied.double(), found.mates.double()
    j = left.clamp(min=0).minimum(tied)
    miss = (_log_choose(tied, j) - _log_choose(tied + mates, j)).exp()
    hit = torch.where(left <= 0, 0.0, torch.where(left > tied, 1.0, 1 - miss))
    return hit * found.mated


def closed_set(
    found: Search,
    ranks: Sequence[int] = (1, 5, 20),
    weights: Float[Array, " N"] | None = None,
) -> tuple[float, ...]:
    """Return the rank-k rates of probes that all have a mate.

    Args:
        found: What `search` returns.
        ranks: The ranks k.
        weights: Weights of the probes; 1 by default.

    Raises:
        ValueError: A probe has no mate, or a rank is below 1.

    Example:
        >>> from marginlab.evaluation.protocols.blocks import search
        >>> scores = torch.tensor([[0.9, 0.5, 0.7], [0.2, 0.3, 0.8]])
        >>> closed_set(search(scores, torch.tensor([0, 1]), torch.tensor([0, 1, -1])), (1, 2))
        (0.5, 1.0)
    """
    alone = int((~found.mated).sum())
    if alone:
        raise ValueError(
            f"{alone} of {len(found.best)} probes have no mate in the gallery, and a closed set "
            "has one for each. Leave them out, or measure an open set."
        )
    weight = check_weights(weights, len(found.best))
    return tuple(float((hits(found, k) * weight).sum() / weight.sum()) for k in ranks)


def open_set(found: Search, rank: int = 20, weights: Float[Array, " N"] | None = None) -> Roc:
    """Return the curve of TPIR (as `tar`) against FPIR (as `far`) over all thresholds.

    `open_set(found).at(0.01)` is TPIR at an FPIR of 1 %, by the largest rate that is not above it.
    Evaluations of IJB take the score of unmated probe number ceil(FPIR n) as threshold, which
    accepts it and no mate between it and the next one.

    Args:
        found: What `search` returns.
        rank: The mate's rank is at most this. The size of the gallery asks for the threshold only.
        weights: Weights of the probes; 1 by default.

    Raises:
        ValueError: No probe has a mate, all have one, or the rank is below 1.

    Example:
        >>> from marginlab.evaluation.protocols.blocks import search
        >>> scores = torch.tensor([[0.9, 0.5], [0.2, 0.3], [0.4, 0.1]])
        >>> found = search(scores, torch.tensor([0, 1, -1]), torch.tensor([0, 1]))
        >>> open_set(found, rank=1).at(0.5).tar
        0.5
    """
    return _open_set(found, rank)(check_weights(weights, len(found.best)))


def _open_set(found: Search, rank: int) -> Callable[[Tensor], Roc]:
    """Return the function that maps weights of the probes to `open_set`, sorted once."""
    mated = found.mated
    n = int(mated.sum())
    if not 0 < n < len(mated):
        raise ValueError(
            f"{n} of {len(mated)} probes have a mate in the gallery. An open set has probes with "
            "and without one."
        )
    hit = torch.where(mated, hits(found, rank), 1.0)
    levels = Levels(torch.where(mated, found.best, found.highest), mated)
    return lambda weight: levels.curve(weight * hit, float(weight[mated].sum()))


def identification_intervals(
    found: Search,
    identities: Integer[Array, " N"],
    *,
    ranks: Sequence[int] = (1, 5, 20),
    fpirs: Sequence[float] = (),
    rank: int = 20,
    replicates: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """Return rank-k rates, or TPIR at FPIRs, with intervals over the identities of the probes.

    The gallery stays as it is. Rank-k rates are those of the probes that have a mate.

    Args:
        found: What `search` returns.
        identities: The identity of each probe, the unmated ones too: those of nobody in the
            gallery still differ from each other.
        ranks: The ranks of rank-k.
        fpirs: The false positive identification rates; each gives a TPIR after the rank-k rates.
        rank: The rank of the TPIR.
        replicates: Number of draws.
        confidence: Confidence of the intervals.
        seed: Seed of the draws.

    Raises:
        ValueError: As for `open_set`, `Roc.at` and `bootstrap`, or identities do not fit.

    Example:
        >>> from marginlab.evaluation.protocols.blocks import search
        >>> people = torch.arange(8)
        >>> found = search(torch.eye(8), people, people)
        >>> identification_intervals(found, people, ranks=(1,), replicates=20)
        (Interval(value=1.0, low=1.0, high=1.0, n=8),)
    """
    number = read_labels("probes", identities)
    if len(number) != len(found.best):
        raise ValueError(f"{len(found.best)} probes have as many identities, not {len(number)}.")
    people, number = number.unique(return_inverse=True)
    reached = [hits(found, k) for k in ranks]
    mated = found.mated
    if not bool(mated.any()):
        raise ValueError("No probe has a mate in the gallery. Compare the two lists of labels.")
    curve_of = _open_set(found, rank) if fpirs else None

    def rates(weights: Tensor) -> list[float]:
        of_probes = weights[number]
        total = float(of_probes[mated].sum())
        closed = [float((hit * of_probes).sum()) / total for hit in reached]
        if curve_of is None:
            return closed
        if not float(of_probes[~mated].sum()):
            raise ZeroDivisionError("no unmated probe was drawn")
        curve = curve_of(of_probes)
        return closed + [curve.at(f).tar for f in fpirs]

    return bootstrap(rates, len(people), replicates=replicates, confidence=confidence, seed=seed)


def all_pairs_tar(
    scores: Float[Array, "N G"] | Blocks,
    probe_labels: Integer[Array, " N"],
    gallery_labels: Integer[Array, " G"],
    fars: Sequence[float] = (1e-6,),
    *,
    budget: int = BUDGET,
) -> tuple[RocPoint, ...]:
    """Return TAR at FARs over all pairs of a probe and an entry, a block at a time.

    Held are the genuine scores and as many of the largest impostor scores as the largest FAR
    accepts. The points are those of `roc(...).at(far)` on the same pairs.

    Args:
        scores: The scores, whole or as a function of blocks.
        probe_labels: The identity of each probe; a negative one is nobody's.
        gallery_labels: The identity of each entry; of distractors negative.
        fars: False accept rates in (0, 1).
        budget: Bytes of a block.

    Raises:
        ValueError: A kind has no pair; a rate is outside (0, 1), below one impostor pair, or
            accepts more than 2^26 of them; or as for `search`.

    Example:
        >>> scores = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.8, 0.3]])
        >>> all_pairs_tar(scores, torch.tensor([0, 1]), torch.tensor([0, 1, -1]), (0.25,))[0].tar
        1.0
    """
    asked, entries = read_labels("probes", probe_labels), read_labels("gallery", gallery_labels)
    block = of_blocks(scores, len(asked), len(entries))
    genuine, impostors = _count(asked, entries)
    kept = _kept(fars, genuine, impostors)
    mates: list[Tensor] = []
    largest = torch.empty(0, dtype=torch.float64)
    cut = -math.inf
    for rows, columns in by_rows(len(asked), len(entries), budget):
        for c in columns:
            found = check_block(block(rows, c), rows, c)
            mate = mates_of(asked[rows], entries[c], found.device)
            mates.append(found[mate].double().cpu())
            above = found[(found >= cut) & ~mate].double().cpu()
            largest = torch.cat([largest, above])
            if len(largest) > kept:
                largest = largest.topk(kept).values
                cut = float(largest[-1])
    reached, largest = torch.cat(mates).sort().values, largest.sort(descending=True).values
    points = []
    for far in fars:
        allowed = math.floor(far * impostors + _SLACK)
        first_refused = float(largest[allowed])
        accepted = int((largest > first_refused).sum())
        taken = len(reached) - int(torch.searchsorted(reached, first_refused, right=True))
        higher = torch.cat([reached[len(reached) - taken :], largest[:accepted]])
        t = float(higher.min()) if len(higher) else math.inf
        points.append(RocPoint(taken / genuine, accepted / impostors, t))
    return tuple(points)


def _count(asked: Int64[Tensor, " N"], entries: Int64[Tensor, " G"]) -> tuple[int, int]:
    """Count genuine and impostor pairs from the labels alone."""
    people, there = entries[entries >= 0].unique(return_counts=True)
    known = asked[asked >= 0]
    genuine = 0
    if len(people):
        place = torch.searchsorted(people, known).clamp(max=len(people) - 1)
        genuine = int(torch.where(people[place] == known, there[place], 0).sum())
    return genuine, len(asked) * len(entries) - genuine


def _kept(fars: Sequence[float], genuine: int, impostors: int) -> int:
    """Return how many impostor scores are kept, or refuse the rates."""
    if not genuine or not impostors:
        raise ValueError(
            f"There are {genuine} genuine and {impostors} impostor pairs: at least one of each "
            "kind is needed. Compare the two lists of labels."
        )
    for far in fars:
        if not 0 < far < 1:
            raise ValueError(f"A false accept rate lies in (0, 1), not at {far}.")
        if far * impostors < 1 - _SLACK or far * impostors > _MOST:
            raise ValueError(
                f"A false accept rate of {far:g} of {impostors:,} impostor pairs accepts "
                f"{far * impostors:,.3g} of them; from 1 to {_MOST:,} are possible."
            )
    if not fars:
        raise ValueError("Give at least one false accept rate.")
    return math.floor(max(fars) * impostors + _SLACK) + 1


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return (n + 1).lgamma() - (k + 1).lgamma() - (n - k + 1).lgamma()
