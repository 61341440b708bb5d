"""Rows of the cells: means over identities with intervals over draws of identities.

Images of one identity belong together, so an interval draws identities, of all seeds together. It
says nothing of other networks: each seed is one network, and there are few.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marginlab.evaluation import bootstrap, verification_accuracy
from marginlab.study import Cell

SCORES = ("cosine", "rank1", "rank5", "median_rank")
DISTANCES = ("kernel_distance", "frechet_distance", "nearest_pixels", "regenerated")
FOLDS = 5  # of the verification of generated images, which are few


def kept_images(folder: Path) -> dict[str, Tensor]:
    """Read what an inversion kept: images and embeddings by the judge."""
    with np.load(folder / "images.npz") as held:
        return {name: torch.from_numpy(held[name]) for name in held.files}


def joined(found: list[dict[str, Any]], name: str) -> Tensor:
    """Return a list of each seed as one tensor."""
    return torch.cat([torch.tensor(each[name], dtype=torch.float64) for each in found])


def record_means(cell: Cell, identity: Tensor, columns: dict[tuple[str, str, str], Tensor]) -> None:
    """Record columns (quantity, space, at) of values of images, each with its interval.

    Args:
        cell: Where.
        identity: (n,) the identity of each image.
        columns: (n,) values each; of a quantity that begins with "median" the median is recorded.
    """
    whose = identity.unique(return_inverse=True)[1]
    medians = [name.startswith("median") for name, *_ in columns]

    def statistic(weights: Tensor) -> list[float]:
        each = weights[whose]
        total = each.sum()
        found = []
        for values, median in zip(columns.values(), medians, strict=True):
            if median:
                found.append(float(values.repeat_interleave(each.long()).quantile(0.5)))
            else:
                found.append(float((each * values).sum() / total))
        return found

    n = len(identity)
    for (quantity, space, at), got in zip(
        columns, bootstrap(statistic, int(whose.max()) + 1), strict=True
    ):
        cell.record(quantity, got.value, got.low, got.high, n, space=space, at=at)


def record_scores(cell: Cell, found: list[dict[str, Any]]) -> None:
    """Record cosines and ranks of all seeds, in the network's space and in the judge's."""
    columns = {}
    for space, cosine, rank in (
        ("own", "own cosine", "own rank"),
        ("judge", "judge cosine", "judge rank"),
        ("shuffled", "judge cosine shuffled", "judge rank shuffled"),
    ):
        ranks = joined(found, rank)
        scores = joined(found, cosine), (ranks == 1).double(), (ranks <= 5).double(), ranks
        columns |= {(name, space, ""): x for name, x in zip(SCORES, scores, strict=True)}
    for space in ("generated", "real"):
        columns["nearest_pixels", space, ""] = joined(found, f"pixels {space}")
    record_means(cell, joined(found, "identity"), columns)
    names = ("identity", "batch_norm", "total_variation", "l2")
    for name, value in zip(names, np.mean([each["objective"] for each in found], 0), strict=True):
        cell.record(f"objective_{name}", float(value))
    for seed, each in zip(cell.settings.seeds, found, strict=True):
        hits = (joined([each], "judge rank") == 1).double().mean()
        cell.record("cosine", float(joined([each], "judge cosine").mean()), space=f"seed {seed}")
        cell.record("rank1", float(hits), space=f"seed {seed}")


def record_difference(
    cell: Cell, found: list[dict[str, Any]], others: list[dict[str, Any]], label: str
) -> None:
    """Record this case minus another one, image by image, under the judge."""
    hits = [(joined(each, "judge rank") == 1).double() for each in (found, others)]
    cosines = [joined(each, "judge cosine") for each in (found, others)]
    columns = {
        ("cosine", "difference", label): cosines[0] - cosines[1],
        ("rank1", "difference", label): hits[0] - hits[1],
    }
    record_means(cell, joined(found, "identity"), columns)


def record_verification(cell: Cell, space: str, made: Tensor, real: Tensor) -> None:
    """Record the accuracy of pairs of an image and a real one, of one identity and of neighbours.

    Args:
        cell: Where.
        space: "generated" or "real": what the first images are.
        made: (n, D) the judge's embeddings of the first images, one of each identity.
        real: (n, D) those of a real image of the same identity.
    """
    first = made.repeat_interleave(2, 0)
    second = torch.stack([real, real.roll(1, 0)], 1).flatten(0, 1)
    same = torch.tensor([True, False]).repeat(len(made))
    if len(made) < 2 * FOLDS:
        return
    found = verification_accuracy(first, second, same, FOLDS)
    cell.record("regenerated", *interval(list(found.folds)), len(first), space=space)


def record_maps(cell: Cell, found: list[dict[str, Any]], undefended: list[dict[str, Any]]) -> None:
    """Record what maps tell, by pairs and by dimensions, and what is verified."""
    named = [(f"pairs {n}", "by pairs", k) for k, n in enumerate(found[0]["pairs"])]
    named += [(f"dims {n}", "by dims", k) for k, n in enumerate(found[0].get("dims", ()))]
    columns = {}
    for at, where, k in named:
        for name in ("cosine", "rank1"):
            values = [torch.tensor(each[where][k][name]) for each in found]
            columns[f"map_{name}", "", at] = torch.cat(values).double()
    if "alone" in found[0]:
        for name in ("cosine", "rank1"):
            values = [torch.tensor(each["alone"][name]) for each in found]
            columns[f"map_{name}", "", "no pair"] = torch.cat(values).double()
    if "real" in found[0]:
        columns["map_rank1", "", "the images themselves"] = joined(found, "real")
    record_means(cell, joined(found, "identity"), columns)
    folds = np.array([each["folds"] for each in found]).mean(0)
    before = np.array([each["folds"] for each in undefended]).mean(0)
    cell.record("verification", *interval(folds.tolist()), cell.settings.verified)
    cell.record("verification_lost", *interval((100 * (before - folds)).tolist()))
    for name in found[0].get("probe", {}):
        values = [each["probe"][name] for each in found]
        cell.record("probe", *interval(values), len(values), space=name)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return a mean over folds or seeds with its 95 % interval, of a normal distribution."""
    x = torch.tensor(values, dtype=torch.float64)
    half = 1.96 * float(x.std()) / len(x) ** 0.5 if len(x) > 1 else float("nan")
    return float(x.mean()), float(x.mean()) - half, float(x.mean()) + half
