"""Probes of low resolution looked up in a gallery of high resolution, by resolution.

    rank-k(r)      = rank-k of the probes of resolution r       (`closed_set`, with distractors)
    TPIR_k(r, f)   = TPIR of the probes of resolution r at an FPIR of f         (`open_set`)

The gallery is the same at all resolutions. It holds entries of high resolution, or of any other,
and distractors, which are nobody's. Rank-k is over the probes that have a mate; the others count
for FPIR only. The threshold of TPIR is found anew at each resolution: a system that knows how small
its probes are.

Sources: TinyFace, Cheng et al., ACCV 2018, and QMUL-SurvFace, Cheng et al. 2018 (native low
resolution, distractors, open set); SCface, Grgic et al. 2011 (mugshots against three distances).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Integer, Shaped
from torch import Tensor

from marginlab.evaluation.check import Array, as_tensor
from marginlab.evaluation.protocols.blocks import Search, read_labels
from marginlab.evaluation.protocols.bootstrap import Interval
from marginlab.evaluation.protocols.identification import identification_intervals


class AtResolution(NamedTuple):
    """Rates of the probes of one resolution, with intervals over their identities.

    Attributes:
        resolution: The resolution, or None for the probes of all.
        probes: Number of probes.
        mated: Number of probes with a mate in the gallery.
        rank: Rank-k for each of the asked ranks.
        tpir: TPIR for each of the asked FPIRs.
    """

    resolution: float | None
    probes: int
    mated: int
    rank: tuple[Interval, ...]
    tpir: tuple[Interval, ...]


def low_resolution(
    found: Search,
    identities: Integer[Array, " N"],
    resolutions: Shaped[Array, " N"],
    *,
    ranks: Sequence[int] = (1, 5, 20),
    fpirs: Sequence[float] = (),
    rank: int = 20,
    replicates: int = 500,
    seed: int = 0,
) -> list[AtResolution]:
    """Return the rates of probes of several resolutions, after one search of their gallery.

    Args:
        found: What `search` returns.
        identities: The identity of each probe, the unmated ones too: those of nobody in the
            gallery still differ from each other.
        resolutions: The resolution of each probe, such as its native rows of pixels.
        ranks: The ranks k of rank-k.
        fpirs: False positive identification rates; each resolution then has unmated probes.
        rank: The rank of TPIR.
        replicates: Number of draws of each interval.
        seed: Seed of the draws.

    Returns:
        One result for each resolution, from the lowest, and last that of all probes.

    Raises:
        ValueError: As in `identification_intervals`; the message names the resolution.

    Example:
        >>> from marginlab.evaluation.protocols.blocks import search
        >>> people = torch.arange(6)
        >>> scores = torch.eye(6)
        >>> scores[:3] = 0.0  # the first three probes are of 4 pixels and like nobody
        >>> rows = torch.tensor([4, 4, 4, 32, 32, 32])
        >>> rates = low_resolution(search(scores, people, people), people, rows, ranks=(1,))
        >>> [(each.resolution, round(each.rank[0].value, 3)) for each in rates]
        [(4.0, 0.167), (32.0, 1.0), (None, 0.583)]
    """
    who = read_labels("probes", identities)
    level = as_tensor("resolutions", resolutions).cpu().double()
    if who.shape != found.best.shape or level.shape != who.shape:
        raise ValueError(
            f"{len(found.best)} probes have as many identities and resolutions, not "
            f"{tuple(who.shape)} and {tuple(level.shape)}."
        )
    if not bool(level.isfinite().all()):
        raise ValueError("Resolutions are finite, but some are NaN or infinite.")
    levels: list[float | None] = [*level.unique().tolist(), None]
    results = []
    for value in levels:
        rows = torch.ones_like(who, dtype=torch.bool) if value is None else level == value
        some = _of_rows(found, rows)
        try:
            rates = identification_intervals(
                some,
                who[rows],
                ranks=ranks,
                fpirs=fpirs,
                rank=rank,
                replicates=replicates,
                seed=seed,
            )
        except ValueError as error:
            told = "all resolutions" if value is None else f"resolution {value:g}"
            raise ValueError(f"Probes of {told}: {error}") from error
        mated = int(some.mated.sum())
        of_rank, of_fpir = rates[: len(ranks)], rates[len(ranks) :]
        results.append(AtResolution(value, int(rows.sum()), mated, of_rank, of_fpir))
    return results


def _of_rows(found: Search, rows: Tensor) -> Search:
    """Return the search of some probes."""
    best, mates, above, tied, highest, gallery = found
    return Search(best[rows], mates[rows], above[rows], tied[rows], highest[rows], gallery)
