"""The report's sections on encoders: what they learn, and whether concentration predicts error."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from marginlab.evaluation import associate, associate_replicates
from marginlab.study import Run, literal

from . import figures
from .labels import GRIDS, Label, label
from .orders import by_block
from .shared import CONTROL, ERRORS, Encoded, Kept, by_label, errors_of, seeds_of

MEANT = (
    "kNN with k=200, T=0.1; nearest class center, Err(G_f) of the paper, centers over views, "
    "errors on clean images; linear probe"
)
# numbers of an augmentation that may predict error: title -> quantity and at, of pixels
PREDICTORS = {
    "1 - sigma at delta": ("one_minus_sigma", ""),
    "area under 1 - sigma": ("area", ""),
    "area, contrast-normalized": ("area", "normalized"),
    "delta at 1 - sigma = 0.5": ("delta_at_half", ""),
    "the same, contrast-normalized": ("delta_at_half", "normalized"),
    "1 - sigma, sharpened": ("one_minus_sigma", "sharpened"),
    "1 - sigma, worst class": ("one_minus_sigma", "worst_class"),
    "1 - sigma, null control": ("one_minus_sigma", "control"),
}
IN_FEATURES = "area in features"  # one more, of the trained encoders


def learnt(run: Run, features: Encoded) -> None:
    """Show alignment, divergence and error over training, and concentration of features."""
    chosen, report = run.settings, run.report
    report.text("## What the encoders learn")
    drawn = {
        "alignment": "alignment",
        "mean mu_k . mu_l": "divergence_mean",
        "largest mu_k . mu_l": "divergence_max",
        "kNN error": "knn_error",
    }
    grid = "ladder" if "ladder" in chosen.grids else chosen.grids[0]
    for method in chosen.methods:
        lines: dict[str, dict[Label, list[tuple[int, float]]]] = {title: {} for title in drawn}
        for title, quantity in drawn.items():
            for cell in run.cells:
                columns = {key: cell[key] for key in ("grid", "letters", "strength", "method")}
                if cell.finished and (cell["grid"], cell["method"]) == (grid, method):
                    found = run.series(quantity, space="backbone", **columns)
                    name = label(cell["letters"], cell["strength"])
                    lines[title][name] = list(zip(*found, strict=True))
        report.figure(
            figures.over_epochs(lines, method=method),
            f"{literal(method)}, {GRIDS[grid]}, mean over {seeds_of(run)}: on L2-normalised "
            f"backbone features of {chosen.monitor.images} test images, {chosen.monitor.views} "
            "views of each under the augmentation trained with; epoch 0 is the untrained network. "
            "Alignment is E ||f(x_1) - f(x_2)||^2 over two views of an image; mu_k is the center "
            "of class k.",
        )
        mine = {key: found for key, found in features.items() if key[3] == method}
        panels = {
            GRIDS[grid]: by_label(
                {
                    key[:3]: _mean([f for k, f in mine.items() if k[:3] == key[:3]])
                    for key in mine
                    if key[0] == grid
                }
            )
            for grid in GRIDS
            if any(key[0] == grid for key in mine)
        }
        report.figure(
            figures.over_delta(
                panels, chosen.delta, "delta / delta_max of the encoder", method=method
            ),
            f"Concentration in feature space, {literal(method)}: the same images and views as in "
            "pixels (block 0), as L2-normalised backbone features of the encoder trained with "
            "that augmentation; the band holds all seeds. delta_max is each encoder's own. "
            f"{CONTROL} The gap between the two is what the encoder knows of classes.",
        )


def _mean(found: list[dict[str, Any]]) -> dict[str, Any]:
    """One entry of several seeds: their curves together."""
    curves = {
        which: {
            "low": np.min([f["curves"][which]["low"] for f in found], axis=0).tolist(),
            "high": np.max([f["curves"][which]["high"] for f in found], axis=0).tolist(),
            "blocks": [curve for f in found for curve in f["curves"][which]["blocks"]],
        }
        for which in ("within", "control")
    }
    return {"deltas": found[0]["deltas"], "curves": curves}


def prediction(run: Run, method: str, pixels: Kept, features: Encoded) -> None:
    """Show the errors of a method against 1 - sigma, and test the correlation."""
    report, named = run.report, by_label(pixels)
    errors = errors_of(run, method)
    sigma = {name: by_block(found) for name, found in named.items()}
    untrained = {
        title: next(iter(run.series(quantity, space="backbone", method=method).values), math.nan)
        for title, quantity in ERRORS.items()
    }
    points = {
        title: {
            grid: {
                name: (sigma[name], found)
                for name in by_label({key: 0 for key in pixels if key[0] == grid})
                if (found := errors[title].get(name))
            }
            for grid in GRIDS
            if any(key[0] == grid for key in pixels)
        }
        for title in ERRORS
    }
    report.text(f"## Concentration and error: {literal(method)}")
    controls = {
        name: found["rows"]["one_minus_sigma"]["control"][0] for name, found in named.items()
    }
    report.figure(
        figures.against_error(points, controls, untrained, method=method),
        f"Test error ({MEANT}) after the last epoch against 1 - sigma at the dashed delta. Bars "
        f"are ranges over {next(iter(named.values()))['blocks']} blocks of images and "
        f"{seeds_of(run)}; a cross stands where the null control's 1 - sigma is; dashed: the "
        "untrained network.",
    )
    table = [
        {
            "augmentation": "untrained",
            "1 - sigma": math.nan,
            **{f"{title} error": f"{value:.4f}" for title, value in untrained.items()},
        }
    ]
    for name in errors["kNN"]:
        entry: dict[str, Any] = {"augmentation": name, "1 - sigma": float(np.mean(sigma[name]))}
        for title in ERRORS:
            values = errors[title][name]
            over_seeds = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            entry[f"{title} error"] = f"{np.mean(values):.4f}{over_seeds}"
        table.append(entry)
    over = f"mean and range over {seeds_of(run)}"
    report.table(
        table,
        f"Errors on clean test images after the last epoch, {over}, all on L2-normalised backbone "
        "features.",
    )
    pairs = [name for name in named if len(name) == 2 and errors["kNN"].get(name)]
    if len(pairs) == 10:
        _tests(run, method, {name: named[name] for name in pairs}, errors, features)
    else:
        report.text(
            "A test of the correlation wants all ten pairs of the five operations (they share "
            f"letters); this run has {len(pairs)} of them, and claims none."
        )


def _tests(
    run: Run,
    method: str,
    pairs: Mapping[str, dict[str, Any]],
    errors: Mapping[str, Mapping[str, list[float]]],
    features: Encoded,
) -> None:
    """The correlation over the ten pairs, its permutation test, and its spread."""
    inside = {
        name: float(
            np.mean(
                [
                    f["rows"]["area"][""][0]
                    for key, f in features.items()
                    if key[0] == "pairs" and key[1] == name and key[3] == method
                ]
            )
        )
        for name in pairs
    }
    headline: list[dict[str, Any]] = []
    predictors = {
        title: {
            pair: kept["rows"].get(quantity, {}).get(at, [math.nan])[0]
            for pair, kept in pairs.items()
        }
        for title, (quantity, at) in PREDICTORS.items()
    }
    predictors[IN_FEATURES] = inside
    table: dict[str, dict[str, Any]] = {name: {"predictor": name} for name in predictors}
    for title, of in errors.items():
        y = {name: float(np.mean(of[name])) for name in pairs}
        seeds = [
            {name: of[name][seed] for name in pairs}
            for seed in range(min(len(of[name]) for name in pairs))
        ]
        sigma = [
            {name: by_block(found)[block] for name, found in pairs.items()}
            for block in range(min(len(by_block(f)) for f in pairs.values()))
        ]
        found, spread = (
            associate(predictors["1 - sigma at delta"], y),
            associate_replicates(sigma, seeds),
        )
        for statistic in ("spearman", "kendall", "pearson"):
            one, over = getattr(found, statistic), getattr(spread, statistic)
            entry = {"error": title, "statistic": statistic.capitalize(), "value": one.value}
            tested = {"p, one-sided": one.greater, "p, two-sided": one.two_sided}
            headline.append(
                {
                    **entry,
                    **tested,
                    "lowest": over.least,
                    "highest": over.largest,
                    "standard deviation": over.deviation,
                }
            )
        for name, x in predictors.items():
            other = None if any(math.isnan(value) for value in x.values()) else associate(x, y)
            if other is not None:
                table[name][f"{title} error"] = (
                    f"{other.spearman.value:.2f} (p = {other.spearman.greater:.3f})"
                )
    blocks = len(by_block(next(iter(pairs.values()))))
    run.report.table(
        headline,
        f"Does error rise with 1 - sigma over the ten pairs? {literal(method)}. Pairs share "
        "letters, so the test relabels the five operations, in all 120 ways; the smallest p it "
        f"can give is 1/120. Lowest, highest and standard deviation are over {blocks} blocks x "
        f"{seeds_of(run)}: conditional on these ten pairs, and no confidence interval for others.",
    )
    run.report.table(
        list(table.values()),
        "Other numbers as predictors of error: Spearman's correlation and its one-sided p, by the "
        "same test. They were not chosen beforehand: of so many, some p will be small by chance. "
        "The area in features is of the trained encoder, not of the augmentation alone.",
    )
