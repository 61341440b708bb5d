"""Numbers of a concentration: means over blocks with their intervals, and curves."""

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from marginlab.measures import Concentration, ConcentrationResult

from .blocks import BUDGET, Both

NODES = 20_000  # of the search for a class's largest clique
NAN = float("nan")

# the measured numbers of an augmentation: rows[quantity][at]
Rows = dict[str, dict[str, "Number"]]


class Number(NamedTuple):
    """A value, its interval, and the number of images of a class on which it rests."""

    value: float
    low: float = NAN
    high: float = NAN
    n: int = 0


class Clean(NamedTuple):
    """Statistics of clean images: delta_max and their root mean square deviation from their mean.

    delta_max is the 90 % quantile of their distances within a class.
    """

    delta_max: float
    spread: float

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> "Clean":
        measure = Concentration(levels=(1,), budget=BUDGET, sync_on_compute=False)
        measure.update(images, labels)
        found = measure.compute()
        return cls(
            float(
                np.quantile(np.concatenate([upper(matrix) for matrix in found.distances()]), 0.9)
            ),
            found.spread,
        )


def over_blocks(found: list[Both], delta: float, clean: Clean, n: int) -> Rows:
    """Return the scalars of each block, and their means over blocks.

    A mean's low and high are its 95 % Student interval over blocks.
    """
    rows: Rows = {}

    def mean(quantity: str, at: str, values: list[float]) -> None:
        rows.setdefault(quantity, {})[at] = Number(float(np.mean(values)), *interval(values), n)

    sides = [both.within.sigma(delta, reduce="mean", nodes=NODES) for both in found]
    null = [both.control.sigma(delta, reduce="mean", nodes=NODES) for both in found]
    mean("one_minus_sigma", "", [1 - low for low, _ in sides])
    if len(found) > 1:
        rows["one_minus_sigma_by_block"] = {
            str(number): Number(1 - low, 1 - high, 1 - low, n)
            for number, (low, high) in enumerate(sides)
        }
    mean("one_minus_sigma", "worst_class", [1 - both.within.sigma(delta)[0] for both in found])
    mean("one_minus_sigma", "control", [1 - low for low, _ in null])
    mean(
        "one_minus_sigma",
        "control_minus_class",
        [low - across for (low, _), (across, _) in zip(sides, null, strict=True)],
    )
    for at, normalized in (("", False), ("normalized", True)):
        # the same for all augmentations
        limit = clean.delta_max / clean.spread if normalized else clean.delta_max
        mean(
            "area",
            at,
            [both.within.area(limit, points=41, normalized=normalized)[1] for both in found],
        )
        mean(
            "delta_at_half",
            at,
            [both.within.delta_at(0.5, normalized=normalized)[1] for both in found],
        )
    areas = [both.control.area(clean.delta_max, points=41)[1] for both in found]
    mean("area", "control", areas)
    mean("spread_of_views", "", [both.within.spread for both in found])
    mean("median_d_A", "within", [_median(both.within) for both in found])
    mean("smallest_d_A", "within", [both.within.closest(1)[0].distance for both in found])
    between = found[0].between  # nine times as many pairs as within: of one block only
    assert between is not None
    rows["median_d_A"]["between"] = Number(float(between.median[-1]), n=n)
    rows["smallest_d_A"]["between"] = Number(float(between.smallest[-1]), n=n)
    rows["delta_max"] = {"": Number(clean.delta_max, n=n)}
    return rows


def _median(found: ConcentrationResult) -> float:
    return float(np.median(np.concatenate([upper(matrix) for matrix in found.distances()])))


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % Student interval of a mean; NaN for one value.

    >>> interval([1.0])
    (nan, nan)
    """
    if len(values) < 2:
        return NAN, NAN
    half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def curves_of(found: list[Any], deltas: Any) -> dict[str, Any]:
    """Return 1 - sigma over delta, mean over classes.

    Both sides are of the first block, and the upper side of every block.
    """
    curves = [result.curve(deltas, reduce="mean") for result in found]
    return {
        "low": curves[0].lower.tolist(),
        "high": curves[0].upper.tolist(),
        "blocks": [curve.upper.tolist() for curve in curves],
    }


def by_n(found: list[ConcentrationResult], delta: float) -> dict[str, list[float]]:
    """Return 1 - sigma of disjoint parts with fewer images of a class.

    It optimises over cliques, so it changes with n.
    """
    n = int(found[0].n.min())
    sizes = sorted({size for size in (n // 8, n // 4, n // 2, n) if size >= 2})
    return {
        str(size): [
            1 - part.sigma(delta, reduce="mean")[0]
            for result in found
            for part in result.split(size)
        ]
        for size in sizes
    }


def upper(matrix: Tensor) -> Any:
    return matrix[torch.triu_indices(len(matrix), len(matrix), 1).unbind()].numpy()
