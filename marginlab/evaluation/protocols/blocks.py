"""Scores of probes with a gallery, a block at a time, and five numbers of each search.

    best(p)    = max of s(p, g) over gallery entries g of the identity of probe p (its mates)
    above(p)   = #{other entries with s(p, g) > best(p)}
    tied(p)    = #{other entries with s(p, g) = best(p)}
    highest(p) = max of s(p, g) over all entries

These five numbers a probe (the fifth counts the mates of score `best`) give its rank among any
number of distractors, closed or open set. Scores are made twice where a block holds mates: once for
`best`, and once to count. So neither the scores nor lists of neighbours are held, and a gallery of
a million is searched by a hundred thousand probes within one block and the features.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer
from torch import Tensor

from marginlab.evaluation.check import Array, as_tensor, check_features
from marginlab.kernels.walk import BUDGET, walk
from marginlab.statistics import unit_vectors

Blocks = Callable[[slice, slice], Tensor]
"""Scores of the probes of the first slice (rows) with the gallery entries of the second (columns).

A call with the same slices returns the same scores.
"""

_ENTRY = 24  # bytes of a score in float64, and of the comparisons of it that are held
_ROWS = 1 << 13  # features that are checked at a time


class Search(NamedTuple):
    """Five numbers for each of N probes, which tell its rank, on the CPU.

    A probe without mates has `best` of minus infinity, and `mates`, `above` and `tied` of 0.
    """

    best: Float64[Tensor, " N"]
    """Largest score of a mate."""
    mates: Int64[Tensor, " N"]
    """Number of mates with that score."""
    above: Int64[Tensor, " N"]
    """Number of other entries with a larger score."""
    tied: Int64[Tensor, " N"]
    """Number of other entries with the same score."""
    highest: Float64[Tensor, " N"]
    """Largest score of any entry."""
    gallery: int
    """Number of entries."""

    @property
    def mated(self) -> Bool[Tensor, " N"]:
        """Marks the probes that have a mate in the gallery."""
        return self.mates > 0


def cosine_blocks(probes: Float[Array, "N D"], gallery: Float[Array, "G D"]) -> Blocks:
    """Return a function that makes blocks of cosines of features.

    Features are scaled to length 1 a block at a time, so a memory-mapped array of a million stays
    on the disk.

    Args:
        probes: Features of the probes, a tensor or an array.
        gallery: Features of the gallery.

    Raises:
        ValueError: Features are empty, of two widths, or not finite.

    Example:
        >>> blocks = cosine_blocks(torch.tensor([[2.0, 0.0]]), torch.eye(2))
        >>> blocks(slice(0, 1), slice(0, 2))
        tensor([[1., 0.]])
    """
    for name, part in (("probes", probes), ("gallery", gallery)):
        if getattr(part, "ndim", 0) != 2 or not len(part):
            raise ValueError(
                f"Features of the {name} are (N, D) numbers, at least one row, not "
                f"{tuple(getattr(part, 'shape', ()))}."
            )
        for at in range(0, len(part), _ROWS):
            check_features(name, part[at : at + _ROWS], dim=probes.shape[1])

    def block(rows: slice, columns: slice) -> Tensor:
        x = unit_vectors(as_tensor("probes", probes[rows]))
        y = unit_vectors(as_tensor("gallery", gallery[columns])).to(x)
        return x @ y.T

    return block


def search(
    scores: Float[Array, "N G"] | Blocks,
    probe_labels: Integer[Array, " N"],
    gallery_labels: Integer[Array, " G"],
    *,
    budget: int = BUDGET,
) -> Search:
    """Search a gallery for the mates of probes, and count what scores higher.

    Args:
        scores: The scores, the larger the more alike, whole or as a function of blocks.
        probe_labels: The identity of each probe. A negative one is nobody's.
        gallery_labels: The identity of each entry. Distractors have a negative one, or that of no
            probe.
        budget: Bytes of a block.

    Raises:
        ValueError: Shapes differ, labels are no integers, or a block holds NaN.

    Example:
        >>> scores = torch.tensor([[0.9, 0.5, 0.7], [0.2, 0.3, 0.3]])
        >>> found = search(scores, torch.tensor([0, 1]), torch.tensor([0, 1, -1]))
        >>> found.above.tolist(), found.tied.tolist()
        ([0, 0], [0, 1])
    """
    asked, entries = read_labels("probes", probe_labels), read_labels("gallery", gallery_labels)
    N, G = len(asked), len(entries)
    block = of_blocks(scores, N, G)
    best = torch.full((N,), -torch.inf, dtype=torch.float64)
    highest = best.clone()
    mates, above, tied = (torch.zeros(N, dtype=torch.int64) for _ in range(3))
    for rows, columns in by_rows(N, G, budget):
        own = asked[rows]
        # starts of the blocks that hold mates
        mated = {c.start for c in columns if bool(torch.isin(entries[c], own[own >= 0]).any())}
        for c in (c for c in columns if c.start in mated):
            found = check_block(block(rows, c), rows, c)
            mate = mates_of(own, entries[c], found.device)
            reached = found.masked_fill(~mate, -torch.inf).amax(1).double().cpu()
            best[rows] = torch.maximum(best[rows], reached)
        for c in columns:
            found = check_block(block(rows, c), rows, c)
            bar = best[rows, None].to(found.device, found.dtype)
            highest[rows] = torch.maximum(highest[rows], found.amax(1).double().cpu())
            equal, larger = found == bar, found > bar
            if c.start in mated:
                mate = mates_of(own, entries[c], found.device)
                mates[rows] += (equal & mate).sum(1).cpu()
                equal &= ~mate
            above[rows] += larger.sum(1).cpu()
            tied[rows] += equal.sum(1).cpu()
    alone = mates == 0
    return Search(best, mates, above.masked_fill(alone, 0), tied.masked_fill(alone, 0), highest, G)


def by_rows(N: int, G: int, budget: int) -> Iterator[tuple[slice, list[slice]]]:
    """Yield blocks of rows, each with its blocks of columns."""
    blocks = walk(N, G, entry=_ENTRY, budget=budget)
    for _, group in itertools.groupby(blocks, key=lambda block: block[0].start):
        row = list(group)
        yield row[0][0], [columns for _, columns in row]


def mates_of(own: Tensor, entries: Tensor, device: torch.device) -> Bool[Tensor, "n m"]:
    """Mark the entries of a block that are of the identity of a probe."""
    own, entries = own.to(device), entries.to(device)
    return (own[:, None] == entries) & (own >= 0)[:, None]


def check_block(found: Tensor, rows: slice, columns: slice) -> Tensor:
    """Return a block of scores, or refuse it.

    Raises:
        ValueError: It has another shape or type than asked for, or holds NaN.
    """
    due = (rows.stop - rows.start, columns.stop - columns.start)
    if tuple(found.shape) != due or not found.is_floating_point():
        raise ValueError(
            f"A block of scores is of floating-point numbers {due}, not {found.dtype} "
            f"{tuple(found.shape)}. Return scores[rows, columns]."
        )
    if bool(found.isnan().any()):
        raise ValueError(
            f"Scores of probes {rows.start} to {rows.stop - 1} with entries {columns.start} to "
            f"{columns.stop - 1} hold NaN. Look for what made them."
        )
    return found


def of_blocks(scores: Array | Blocks, N: int, G: int) -> Blocks:
    """Return scores as a function of blocks."""
    if not N or not G:
        raise ValueError(f"A search has probes and a gallery, not {N} probes and {G} entries.")
    if not isinstance(scores, Tensor) and callable(scores):
        return scores
    if getattr(scores, "shape", None) != (N, G):
        raise ValueError(
            f"{N} probes and {G} gallery entries have scores ({N}, {G}), not "
            f"{tuple(getattr(scores, 'shape', ()))}."
        )
    return lambda rows, columns: as_tensor("scores", scores[rows, columns])


def read_labels(name: str, labels: Array) -> Int64[Tensor, " n"]:
    found = as_tensor(f"labels of the {name}", labels).cpu()
    if found.ndim != 1 or found.is_floating_point() or found.dtype == torch.bool:
        given = f"{found.dtype} {tuple(found.shape)}"
        raise ValueError(f"Labels of the {name} are one integer each, (N,), not {given}.")
    return found.long()
