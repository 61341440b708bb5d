"""The report of the concentration study, in the order of its story.

It tells what augmentations do, how concentrated their views are, what encoders learn, how well the
one predicts the other, what the paper published, and what follows.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from marginlab.evaluation import associate, associate_replicates
from marginlab.study import Markup, Run, literal

from . import beside, figures
from .figures import GRIDS, label
from .findings import Orders, by_block, findings, in_words, orders

LETTERS = "(a) resized crop, (b) Gaussian blur, (c) grey, (d) colour jitter, (e) horizontal flip"
# of backbone features
ERRORS = {
    "kNN": "knn_error",
    "nearest center": "nearest_center_error",
    "linear": "linear_error",
}
MEANT = (
    "kNN with k=200, T=0.1; nearest class center, Err(G_f) of the paper, centers over views, "
    "errors on clean images; linear probe"
)
CONTROL = "Dotted: the null control, the same for groups of equal size drawn across classes."
# of delta_max, beside the setting's, at which the correlation is looked at again
SHARES = (0.3, 0.7)
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
Kept = Mapping[tuple[str, str, float], dict[str, Any]]
Encoded = Mapping[tuple[str, str, float, str, int], dict[str, Any]]


def write(run: Run, pixels: Kept, features: Encoded) -> None:
    """Write the report.

    `pixels` holds the results of `concentrate` by (grid, letters, strength), `features` those of
    `encoded`, by method and seed too.
    """
    chosen, report = run.settings, run.report
    n, blocks = (
        min(found["n"] for found in pixels.values()),
        min(found["blocks"] for found in pixels.values()),
    )
    report.title = (
        f"Concentration of augmented data and contrastive learning: {literal(chosen.data)}"
    )
    report.lead = (
        "An augmentation is a (sigma, delta)-augmentation if in every class a part of at least "
        "sigma of the images lies within an augmented distance d_A of delta of each other (Huang "
        "et al., ICLR 2023, definition 1): the smaller 1 - sigma, the sharper the concentration. "
        "The paper gives no estimator of it. Here 1 - sigma is estimated for each augmentation on "
        f"{blocks} disjoint block{'s' if blocks > 1 else ''} of n = {n} images a class with V = "
        f"{chosen.views} views of each, every number beside a null control, and backbones are "
        f"trained with each: {LETTERS}."
    )
    _pictures(run, pixels)
    _concentration(run, pixels)
    _learnt(run, features)
    for method in chosen.methods:
        _errors(run, method, pixels, features)
    beside.write(run)
    _findings(run, pixels, features)


def _named(kept: Mapping[tuple[Any, ...], Any]) -> dict[str, Any]:
    """By label, each augmentation once: ab is on the ladder and among the pairs.

    Those of the strength grid jitter always, and are named so.
    """
    found: dict[str, Any] = {}
    for (grid, letters, strength, *_), value in kept.items():
        found.setdefault(
            label(letters, strength) if grid != "strength" else f"{letters}, s={strength:g}", value
        )
    return found


def _pictures(run: Run, pixels: Kept) -> None:
    run.report.text(
        "## What the augmentations do\n\nThe first picture of each row is the image itself, the "
        "others are views of it."
    )
    shown = _named(
        {key: key for key in pixels if key[0] != "pairs"} or {key: key for key in pixels}
    )
    loaded = {
        name: np.load(run.folder / "once" / pixels[key]["folder"] / "pictures.npz")
        for name, key in shown.items()
    }
    run.report.images(
        [
            (
                np.concatenate(
                    [np.concatenate(list(views), axis=1) for views in pictures["views"]], axis=0
                ),
                f"views under {name}",
            )
            for name, pictures in loaded.items()
        ]
    )
    run.report.text(
        "### Pairs of images that realise the smallest d_A within a class\n\nImage, its nearest "
        "view, the other image's nearest view, that image. Where both views are almost empty, what "
        "they share is background and not the class."
    )
    for name, pictures in loaded.items():
        pairs = zip(pictures["pairs"], pixels[shown[name]]["pairs"], strict=True)
        run.report.images(
            [
                (
                    np.concatenate(list(four), axis=1),
                    f"{name}: {pair['class']}, d_A = {pair['distance']:.2f}",
                )
                for four, pair in pairs
            ]
        )


def _concentration(run: Run, pixels: Kept) -> None:
    chosen, report, named = run.settings, run.report, _named(pixels)
    some = next(iter(pixels.values()))
    at, n, V = chosen.delta * some["delta_max"], some["n"], chosen.views
    fewer = (
        " Fewer images than asked for: all that the measure's memory budget holds."
        if any(f["subsampled"] for f in pixels.values())
        else ""
    )
    report.text(
        "## How concentrated the augmented data is\n\n"
        f"d_A is a minimum over sampled views, an upper estimate; the largest clique of "
        f"the graph d_A <= delta is bounded from both sides (greedy; "
        f"colouring or matching), exactly where a number is set against error. Both sides "
        f"speak of the sampled graph of (n, V) = ({n}, {V}), not "
        "of the "
        f"population's sigma. Images, blocks and draws are the same for all augmentations.{fewer}"
    )
    grids = [grid for grid in GRIDS if any(key[0] == grid for key in pixels)]
    panels = {
        GRIDS[grid]: _named({key: found for key, found in pixels.items() if key[0] == grid})
        for grid in grids
    }
    report.figure(
        figures.over_delta(panels, at, "delta (pixel l2)"),
        f"1 - sigma against delta, mean over classes, n = {n}, V = {V}; a band holds both sides "
        f"and all blocks of images. {CONTROL} Dashed: where numbers are read, {chosen.delta:g} of "
        "delta_max, the 90 % quantile of the distances between clean images of a class.",
    )
    report.figure(
        figures.beside_control(named),
        "The same for each augmentation by itself, a line for each block of images. Where the two "
        "bundles lie on each other, 1 - sigma says nothing of classes: images of different classes "
        "concentrate as much as those of one.",
    )
    deep = some["deep"]
    sharp = deep.get("sharpened")
    searched = (
        f" The stars: {sharp['n']} images a class, after a search over both views' parameters from "
        "the best sampled pair."
        if sharp
        else ""
    )
    report.figure(
        figures.over_views(named),
        f"1 - sigma at the dashed delta against the number of views, on {deep['n']} images a "
        "class. Views are added, never redrawn: where a line still falls, the estimate has not "
        f"converged.{searched} {CONTROL}",
    )
    report.figure(
        figures.over_images(named),
        "1 - sigma at the dashed delta against n: it optimises over cliques, so its estimand "
        f"changes with n. Bars: standard deviation over disjoint parts. {CONTROL}",
    )
    if all(found["anchored"] for found in named.values()):
        report.figure(
            figures.anchored(named, at),
            f"The anchor form: the share of held-out images (n = {some['anchored']['n']} a class) "
            f"none of whose {V} views lies within delta / 2 of a point that was chosen on the "
            "first block for the dashed delta; classes pooled, with the exact 95 % binomial "
            "interval at each delta. A main part of this form is one of the paper's, but not the "
            f"largest. {CONTROL}",
        )
    report.table(
        [_sigmas(name, found) for name, found in named.items()],
        "1 - sigma at the dashed delta, mean over blocks, its 95 % Student interval over blocks, "
        "its null control; on fewer images of a class with the most views, and after the search "
        "for nearer views, which brings d_A to so many times what it was.",
    )
    report.table(
        [_scalars(name, found) for name, found in named.items()],
        "Other single numbers, means over blocks. Area: mean of 1 - sigma over delta in [0, "
        "delta_max]. Half: the delta at which 1 - sigma = 0.5. Norm.: with delta in units of the "
        "root mean square deviation of the views from their mean, the area up to that of delta_max "
        "on clean images. Between: for images of different classes, of the first block.",
    )
    order = orders(named)
    shown = [
        {"1 - sigma of": one, **{other: _sign(order, one, other) for other in named}}
        for one in named
    ]
    report.table(
        shown,
        f"Orders of augmentations, by paired differences over blocks. **<** and **>**: at V = {V}, "
        "at every V >= 32 of the curve in V, and after sharpening. (<) and (>): an order at V = "
        f"{V} only. A dash: undecided.",
    )


def _sign(order: Orders, one: str, other: str) -> str | None:
    for sign, first, second in (("<", one, other), (">", other, one)):
        claim = f"{first} < {second}"
        if claim in order.stable or claim in order.local:
            return Markup(f"**{sign}**") if claim in order.stable else f"({sign})"
    return None


def _sigmas(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    sigma, deep = found["rows"]["one_minus_sigma"], found["deep"]
    value, low, high, _ = sigma[""]
    entry: dict[str, Any] = {
        "augmentation": name,
        "1 - sigma": value,
        "from": low,
        "to": high,
        "control": sigma["control"][0],
    }
    entry["worst class"] = sigma["worst_class"][0]
    if "sharpened" in deep:
        few = deep["sharpened"]
        entry[f"{few['n']} images, V = {deep['levels'][-1]}"] = few["within_by_level"][-1][1]
        entry["sharpened"] = few["within"][1]
        entry["its control"] = few["control"][1]
        entry["d_A, times"] = few["within_ratio"]
    return entry


def _scalars(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    rows = found["rows"]
    shown = {
        "area": rows["area"][""],
        "control": rows["area"]["control"],
        "norm. area": rows["area"]["normalized"],
        "half": rows["delta_at_half"][""],
        "norm. half": rows["delta_at_half"]["normalized"],
        "median d_A": rows["median_d_A"]["within"],
        "between": rows["median_d_A"]["between"],
        "smallest d_A": rows["smallest_d_A"]["within"],
        "between ": rows["smallest_d_A"]["between"],
    }
    return {"augmentation": name, **{title: number[0] for title, number in shown.items()}}


def _learnt(run: Run, features: Encoded) -> None:
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
        lines: dict[str, dict[str, list[tuple[int, float]]]] = {title: {} for title in drawn}
        for title, quantity in drawn.items():
            for cell in run.cells:
                columns = {key: cell[key] for key in ("grid", "letters", "strength", "method")}
                if cell.finished and (cell["grid"], cell["method"]) == (grid, method):
                    found = run.series(quantity, space="backbone", **columns)
                    name = label(cell["letters"], cell["strength"])
                    lines[title][name] = list(zip(*found, strict=True))
        report.figure(
            figures.over_epochs(lines),
            f"{literal(method)}, {GRIDS[grid]}, mean over {_seeds(run)}: on L2-normalised backbone "
            f"features of {chosen.monitored} test images, 8 views of each under the augmentation "
            "trained with; epoch 0 is the untrained network. Alignment is E ||f(x_1) - f(x_2)||^2 "
            "over two views of an image; mu_k is the center of class k.",
        )
        mine = {key: found for key, found in features.items() if key[3] == method}
        panels = {
            GRIDS[grid]: _named(
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
            figures.over_delta(panels, chosen.delta, "delta / delta_max of the encoder"),
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


def _seeds(run: Run) -> str:
    n = len(run.settings.seeds)
    return f"{n} seeds" if n > 1 else "1 seed"


def _of_method(run: Run, method: str) -> dict[str, dict[str, list[float]]]:
    """Errors of the last epoch: title -> augmentation -> by seed."""
    keys = _named(
        {
            (cell["grid"], cell["letters"], cell["strength"]): cell
            for cell in run.cells
            if cell.finished and cell["method"] == method
        }
    )
    return {
        title: {name: _by_seed(run, quantity, cell) for name, cell in keys.items()}
        for title, quantity in ERRORS.items()
    }


def _by_seed(run: Run, quantity: str, cell: Mapping[str, Any]) -> list[float]:
    """Return the last value with each seed that is finished, at the other columns of a cell."""
    columns = {key: cell[key] for key in ("grid", "letters", "strength", "method")}
    values = (
        run.last(quantity, space="backbone", seed=seed, **columns) for seed in run.settings.seeds
    )
    return [value for value in values if not math.isnan(value)]


def _errors(run: Run, method: str, pixels: Kept, features: Encoded) -> None:
    report, named = run.report, _named(pixels)
    errors = _of_method(run, method)
    sigma = {name: by_block(found) for name, found in named.items()}
    untrained = {
        title: next(iter(run.series(quantity, space="backbone", method=method).values), math.nan)
        for title, quantity in ERRORS.items()
    }
    points = {
        title: {
            grid: {
                name: (sigma[name], found)
                for name in _named({key: 0 for key in pixels if key[0] == grid})
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
        figures.against_error(points, controls, untrained),
        f"Test error ({MEANT}) after the last epoch against 1 - sigma at the dashed delta. Bars "
        f"are ranges over {next(iter(named.values()))['blocks']} blocks of images and "
        f"{_seeds(run)}; a cross stands where the null control's 1 - sigma is; dashed: the "
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
    over = f"mean and range over {_seeds(run)}"
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
        f"{_seeds(run)}: conditional on these ten pairs, and no confidence interval for others.",
    )
    run.report.table(
        list(table.values()),
        "Other numbers as predictors of error: Spearman's correlation and its one-sided p, by the "
        "same test. They were not chosen beforehand: of so many, some p will be small by chance. "
        "The area in features is of the trained encoder, not of the augmentation alone.",
    )


def _findings(run: Run, pixels: Kept, features: Encoded) -> None:
    named = _named(pixels)
    for method in run.settings.methods:
        by_label: dict[str, list[dict[str, Any]]] = {}
        for (grid, letters, strength, of, seed), found in features.items():
            # the grid an augmentation is taken from
            first = _named({key[:3]: key for key in features})
            if of == method and first[label(letters, strength)][0] == grid:
                by_label.setdefault(label(letters, strength), []).append(found)
            del seed
        said = findings(named, by_label, _of_method(run, method), SHARES)
        run.report.text(f"## What follows: {literal(method)}\n\n{in_words(said)}")
        run.report.table(
            [finding._asdict() for finding in said],
            "Statements and verdicts, made from the numbers above. Of two augmentations one is "
            "called smaller if the 95 % interval of the paired difference (over blocks of images, "
            "or over seeds) says so.",
        )
