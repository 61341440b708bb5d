"""The report: errors by method and factor, and which quantity predicts them.

A quantity predicts the error of a family of methods as well as the mean, over its methods, of
Spearman's rank correlation over the augmentations:

    r = mean_m spearman_a(x(m, a), error(m, a))
    p = #{ relabellings s of the augmentations : |r(x o s)| >= |r(x)| } / A!

All methods of a family see the same augmentations, so one relabelling moves them all together.
"""

import csv
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from marginlab.statistics.intervals import student_interval
from marginlab.study import Run, literal

from .figures import panels, scatter, training
from .values import augmentations, values

ERRORS = ("kNN", "linear")


class Prediction(NamedTuple):
    """How well a quantity predicts an error, over the augmentations.

    Attributes:
        r: Mean of Spearman's correlation over methods, of means over seeds.
        p: Share of the relabellings with a correlation as far from zero.
        low: Lower end of the 95 % Student interval over seeds, NaN for one seed.
        high: Upper end.
        control: r of the null control, NaN where the quantity sees no class.
        excess: |r| - |control| for each seed, as a mean.
        excess_low: Lower end of its interval over seeds.
    """

    r: float
    p: float
    low: float
    high: float
    control: float
    excess: float
    excess_low: float


def names(methods: Sequence[str]) -> dict[str, str]:
    """Name methods by their class or margin; where two share a name, by all their settings."""
    short = {}
    for method in methods:
        margin = re.search(r"""margin=(['"])(.+?)\1""", method)
        short[method] = margin[2] if margin else method.partition("(")[0]
    return {
        method: name if list(short.values()).count(name) == 1 else method
        for method, name in short.items()
    }


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return the rank correlation of two vectors, 0 where one of them is constant.

    >>> spearman(np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.5, 0.3]))
    0.5
    """
    a, b = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    norm = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm else 0.0


def prediction(x: np.ndarray, control: np.ndarray, y: np.ndarray) -> Prediction:
    """Hold a quantity (methods, augmentations, seeds) and its control against an error."""

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([spearman(p, q) for p, q in zip(a, b, strict=True)]))

    r = mean(x.mean(-1), y.mean(-1))
    orders = itertools.permutations(range(x.shape[1]))
    others = [mean(x.mean(-1)[:, list(order)], y.mean(-1)) for order in orders]
    p = float(np.mean([abs(other) >= abs(r) - 1e-12 for other in others]))
    by_seed = [mean(x[..., s], y[..., s]) for s in range(x.shape[-1])]
    low, high = student_interval(by_seed)
    if not np.isfinite(control).all():
        return Prediction(r, p, low, high, math.nan, math.nan, math.nan)
    null = [mean(control[..., s], y[..., s]) for s in range(x.shape[-1])]
    excess = [abs(a) - abs(b) for a, b in zip(by_seed, null, strict=True)]
    apart = student_interval(excess)[0]
    return Prediction(
        r, p, low, high, mean(control.mean(-1), y.mean(-1)), float(np.mean(excess)), apart
    )


def write(run: Run, levels: Sequence[tuple[str, str]], families: Mapping[str, str]) -> None:
    """Write the report of a run."""
    chosen, shown = run.settings, names(list(families))
    seeds = len(chosen.seeds)
    run.report.title = f"Contrastive or margin: {literal(chosen.recipe.data)}"
    run.report.lead = (
        f"{len(shown)} methods on one backbone, {chosen.recipe.images or 'all'} images and as many "
        f"steps, {seeds} seed(s)"
        + ("." if seeds > 2 else ": no finding, for that takes three.")
        + " A contrastive method sees no label while it trains; the judge on its features sees as "
        "many as a method with labels does."
    )
    run.report.table(
        base(run, shown, families),
        "The base cell: mean and 95 % interval over seeds.",
        [{"factor": "base", "method": method} for method in shown],
    )
    factors = list(dict.fromkeys(factor for factor, _ in levels if factor != "base"))
    for error in ERRORS:
        rows = by_level(run, shown, families, levels, error)
        run.report.table(rows, f"{error} error of test images, mean over seeds.")
    run.report.table(
        contrasts(run, families, levels),
        "kNN error: mean over the contrastive methods minus mean over the margin methods, paired "
        "by seed, with its 95 % Student interval. Below zero, contrastive methods err less.",
    )
    run.report.figure(
        panels(run, shown, levels, factors), "kNN error at each level of each factor."
    )
    rows = predictions(run, families, levels)
    if rows:
        run.report.text("## What predicts the error over augmentations")
        run.report.table(
            rows,
            "r: Spearman's correlation over the augmentations, mean over the methods of a family; "
            "p by relabelling the augmentations; control: the same with the classes shuffled; "
            "excess: how much farther from zero r is than its control, by seed, with the lower "
            "end of its interval. Nothing is corrected for the number of rows.",
        )
        run.report.figure(
            scatter(run, shown, families), "Each point is a method with an augmentation."
        )
    run.report.text("## During training")
    run.report.figure(
        training(run, shown),
        "Embeddings of test images in the base cell: alignment and divergence beside the losses "
        "that Theorems 3 and 4 bound divergence by.",
    )
    with (run.home / "published.csv").open(encoding="utf-8") as file:
        run.report.text("## Published")
        run.report.table(list(csv.DictReader(file)), "Beside it, at other scales.")


def spread(numbers: Sequence[float]) -> str:
    """Return a mean with its interval over seeds, as text.

    >>> spread([0.1, 0.2, 0.3]), spread([0.5])
    ('0.200 [-0.048, 0.448]', '0.500')
    """
    low, high = student_interval(numbers)
    mean = f"{float(np.mean(numbers)):.3f}"
    return mean if math.isnan(low) else f"{mean} [{low:.3f}, {high:.3f}]"


def base(run: Run, shown: Mapping[str, str], families: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the rows of the base cell: errors, what was seen, the certificate, verification."""
    rows = []
    for method, name in shown.items():
        at = {"factor": "base", "method": method}
        row = {
            "method": name,
            "family": families[method],
            "labels seen": run.last("labels_seen", **at),
            **{f"{e} error": spread(values(run, "error", e, "backbone", **at)) for e in ERRORS},
            "certified, new images": run.last(
                "certified", space="projector", at="new_images", **at
            ),
            "their error": run.last("new_error", space="projector", **at),
        }
        verified = run.last("verification_accuracy", space="backbone", **at)
        rows.append(row if math.isnan(verified) else row | {"verification": verified})
    return rows


def by_level(
    run: Run,
    shown: Mapping[str, str],
    families: Mapping[str, str],
    levels: Sequence[tuple[str, str]],
    error: str,
) -> list[dict[str, Any]]:
    """Return a row for each level, and a column for each method."""
    return [
        {
            "factor": factor,
            "level": level,
            **{
                name: float(
                    np.mean(
                        values(
                            run, "error", error, "backbone", factor=factor, level=level, method=m
                        )
                    )
                )
                for m, name in shown.items()
            },
        }
        for factor, level in levels
    ]


def contrasts(
    run: Run, families: Mapping[str, str], levels: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return the paired difference of contrastive and margin methods at each level."""
    rows = []
    for factor, level in levels:
        by_family = {}
        for family in ("contrastive", "margin"):
            found = [
                values(run, "error", "kNN", "backbone", factor=factor, level=level, method=method)
                for method, of in families.items()
                if of == family
            ]
            if found:
                by_family[family] = np.mean(found, axis=0)
        if len(by_family) == 2:
            difference = list(by_family["contrastive"] - by_family["margin"])
            rows.append({"factor": factor, "level": level, "difference": spread(difference)})
    return rows


def predictions(
    run: Run, families: Mapping[str, str], levels: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return the rows on which quantity predicts which error of which family."""
    where = augmentations(run)
    found = run.select(quantity="predictor", **where[0])
    named = list(dict.fromkeys((row["space"], row["at"]) for row in found))
    rows: list[dict[str, Any]] = []
    if len(where) < 3:
        return rows
    for family, error, (space, name) in itertools.product(
        dict.fromkeys(families.values()), ERRORS, named
    ):
        methods = [method for method, of in families.items() if of == family]

        def of(quantity: str, at: str, space: str, methods: list[str] = methods) -> np.ndarray:
            return np.array(
                [[values(run, quantity, at, space, method=m, **a) for a in where] for m in methods]
            )

        y = of("error", error, "backbone")
        x, control = of("predictor", name, space), of("predictor_control", name, space)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            continue
        made = prediction(x, control, y)
        rows.append(
            {
                "family": family,
                "error": error,
                "quantity": name,
                "space": space,
                "r": made.r,
                "p": made.p,
                "r, low": made.low,
                "r, high": made.high,
                "control": made.control,
                "excess": made.excess,
                "excess, low": made.excess_low,
            }
        )
    return rows
