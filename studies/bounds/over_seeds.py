"""Means over seeds with intervals, and differences that are paired by the seed.

    mean +- t s / sqrt(n)     t of n - 1 degrees of freedom, s over the seeds

A difference of two methods, or of two forms, is taken within each seed first: what the seeds share
cancels. Three seeds give wide intervals, and a difference whose interval holds 0 is none.
"""

import itertools
import math
import statistics
from typing import Any

from scipy import special

from marginlab.study import Run
from marginlab.study.run import Rows
from marginlab.theory import rounded_up

TITLES = {
    "new_images": "fixed centers",
    "image_wise": "image by image",
    "prototypes": "prototypes",
    "population_T": "population, (T)",
    "population": "population",
    "theorem_3": "population, Theorem 3",
    "products": "population, products",
}


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and half the 95 % interval over seeds; NaN for a single one.

    Example:
        >>> mean, half = interval([1.0, 2.0, 3.0])
        >>> round(mean, 2), round(half, 2)
        (2.0, 2.48)
    """
    n = len(values)
    if n < 2:
        return statistics.fmean(values), math.nan
    quantile = float(special.stdtrit(n - 1, 0.975))
    return statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(n)


def values_of(rows: Rows, method: str, quantity: str, at: str, space: str) -> dict[int, float]:
    """Return a quantity of a method by seed, as it is measured after the training."""
    found = rows.select(method=method, quantity=quantity, at=at, space=space)
    return {int(row["seed"]): float(row["value"]) for row in found}


def write(run: Run, names: dict[str, str]) -> None:
    """Report what is certified by images that training has not seen."""
    rows = run.results
    if not rows.select(quantity="certified_unseen"):
        return
    run.report.text("## By images that training has not seen")
    sizes = sorted({row["n"] for row in rows.select(quantity="certified_unseen")})
    shown = [
        (method, space)
        for space in ("projector", "backbone")
        for method in names
        if values_of(rows, method, "certified_unseen", "image_wise", space)
    ]
    run.report.table(
        [_row(rows, names, method, space) for method, space in shown],
        f"Certified by {', '.join(map(str, sizes))} new images with confidence 0.95 for each "
        "encoder: mean over the seeds +- half of its 95 % interval, and the largest, rounded up. "
        "Errors are those that were counted.",
        [{"method": method} for method, _ in shown],
    )
    differences = _differences(rows, names)
    if differences:
        run.report.table(
            differences,
            "Differences of what is certified, paired by the seed: mean and 95 % interval. A "
            "method is compared with the next by the form image by image.",
        )


def _row(rows: Rows, names: dict[str, str], method: str, space: str) -> dict[str, Any]:
    def shown(quantity: str, at: str) -> str:
        found = list(values_of(rows, method, quantity, at, space).values())
        mean, half = interval(found)
        spread = "" if math.isnan(half) else f" +- {half:.4f}"
        return f"{mean:.4f}{spread}"

    row = {"method": names[method], "features": space, "error": shown("error_unseen", "")}
    for key, title in TITLES.items():
        worst = max(values_of(rows, method, "certified_unseen", key, space).values(), default=1.0)
        row[title] = (
            "-" if worst >= 1 else f"{shown('certified_unseen', key)}, at most {rounded_up(worst)}"
        )
    row["error, prototypes"] = shown("error_unseen", "prototypes")
    return row


def _differences(rows: Rows, names: dict[str, str]) -> list[dict[str, Any]]:
    pairs = [((m, "new_images"), (m, "image_wise")) for m in names]
    pairs += [((a, "image_wise"), (b, "image_wise")) for a, b in itertools.pairwise(names)]
    table = []
    for one, other in pairs:
        found = [
            values_of(rows, method, "certified_unseen", key, "projector")
            for method, key in (one, other)
        ]
        seeds = sorted(found[0].keys() & found[1].keys())
        if len(seeds) < 2:
            continue
        mean, half = interval([found[0][seed] - found[1][seed] for seed in seeds])
        table.append(
            {
                "first": f"{names[one[0]]}, {TITLES[one[1]]}",
                "second": f"{names[other[0]]}, {TITLES[other[1]]}",
                "first less second": f"{mean:.4f} ({mean - half:.4f} to {mean + half:.4f})",
                "seeds": len(seeds),
            }
        )
    return table
