"""The tables of the margins study: verification over seeds, angles, and their orders."""

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scipy.stats

from marginlab.study import Run

# the columns of the published table of angles, and ours
ANGLES = {
    "W-EC": "W_EC",
    "W-Inter": "W_Inter",
    "Intra1": "Intra",
    "Inter1": "Inter",
    "Intra2": "Intra_unseen",
    "Inter2": "Inter_unseen",
}


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of values and the half width of its 95 % interval by Student's t.

    The half width is NaN for fewer than two values.
    """
    if not values:
        return math.nan, math.nan
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    quantile = float(scipy.stats.t.ppf(0.975, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / len(values) ** 0.5


def verified(run: Run, loss: str, backbone: str, last: int) -> dict[str, Any]:
    """Return a row of the table of verification: means over seeds with their intervals."""
    row: dict[str, Any] = {"loss": loss}
    quantities: dict[str, tuple[str, str | float]] = {"accuracy": ("verification_accuracy", "")}
    for far in run.settings.monitor.fars:
        quantities[f"TAR at FAR {far:g}"] = ("tar_at_far", f"{far:g}")
    for title, (quantity, at) in quantities.items():
        rows = run.select(
            quantity=quantity, at=at, loss=loss, backbone=backbone, epoch=last, space="projector"
        )
        mean, half = over_seeds([found["value"] for found in rows])
        row[title] = mean
        row[f"{title}, half width"] = half
    return row


def over_folds(run: Run, loss: str, backbone: str) -> dict[str, Any]:
    """Return accuracy and equal error rate as means over the folds of each seed."""
    row: dict[str, Any] = {"loss": loss}
    for title, quantity in (("accuracy", "fold_accuracy"), ("equal error rate", "fold_eer")):
        by_seed: dict[int, list[float]] = {}
        for found in run.select(quantity=quantity, loss=loss, backbone=backbone):
            by_seed.setdefault(found["seed"], []).append(found["value"])
        mean, half = over_seeds([statistics.fmean(values) for values in by_seed.values()])
        row[title] = mean
        row[f"{title}, half width"] = half
    return row


def angles_of(run: Run, loss: str, backbone: str) -> dict[str, float]:
    """Return the table's angles of a loss after training; NaN for a loss without weights."""
    return {
        title: run.last("class_angle", space="projector", at=at, loss=loss, backbone=backbone)
        for title, at in ANGLES.items()
    }


def published_angles(home: Path) -> dict[str, dict[str, float]]:
    """Return the published table of angles, by loss and column."""
    found: dict[str, dict[str, float]] = {}
    with (home / "published.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["table"] == "angles":
                found.setdefault(row["loss"], {})[row["name"]] = float(row["value"])
    return found


def orders(
    ours: list[dict[str, Any]], published: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """Return the order of the losses by each angle, ours and the published one, of those in both.

    `agree` counts the pairs of losses that stand in the same order in both.
    """
    rows = []
    for title in ANGLES:
        here = {r["loss"]: r[title] for r in ours if not math.isnan(r[title])}
        there = {name: angles[title] for name, angles in published.items() if title in angles}
        both = sorted(here.keys() & there.keys())
        pairs = [(a, b) for n, a in enumerate(both) for b in both[n + 1 :]]
        agree = sum((here[a] < here[b]) == (there[a] < there[b]) for a, b in pairs)
        rows.append(
            {
                "angle": title,
                "here": " < ".join(sorted(both, key=here.__getitem__)),
                "published": " < ".join(sorted(both, key=there.__getitem__)),
                "agree": agree,
                "of": len(pairs),
            }
        )
    return rows
