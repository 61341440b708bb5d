"""The report's section on data: pictures of views, and how concentrated augmented data is."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from marginlab.study import Markup, Run

from . import figures
from .labels import GRIDS
from .orders import Orders, orders
from .shared import CONTROL, Kept, by_label


def pictures(run: Run, pixels: Kept) -> None:
    """Show views of images, and the pairs of images that come closest."""
    run.report.text(
        "## What the augmentations do\n\nThe first picture of each row is the image itself, the "
        "others are views of it."
    )
    shown = by_label(
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
                    [np.concatenate(list(views), axis=1) for views in shown_["views"]], axis=0
                ),
                f"views under {name}",
            )
            for name, shown_ in loaded.items()
        ]
    )
    run.report.text(
        "### Pairs of images that realise the smallest d_A within a class\n\nImage, its nearest "
        "view, the other image's nearest view, that image. Where both views are almost empty, what "
        "they share is background and not the class."
    )
    for name, shown_ in loaded.items():
        pairs = zip(shown_["pairs"], pixels[shown[name]]["pairs"], strict=True)
        run.report.images(
            [
                (
                    np.concatenate(list(four), axis=1),
                    f"{name}: {pair['class']}, d_A = {pair['distance']:.2f}",
                )
                for four, pair in pairs
            ]
        )


def concentration(run: Run, pixels: Kept) -> None:
    """Show 1 - sigma by delta, views and images, beside its control, and the orders it gives."""
    chosen, report, named = run.settings, run.report, by_label(pixels)
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
        GRIDS[grid]: by_label({key: found for key, found in pixels.items() if key[0] == grid})
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
        [name.cells for name in named],
    )
    report.table(
        [_scalars(name, found) for name, found in named.items()],
        "Other single numbers, means over blocks. Area: mean of 1 - sigma over delta in [0, "
        "delta_max]. Half: the delta at which 1 - sigma = 0.5. Norm.: with delta in units of the "
        "root mean square deviation of the views from their mean, the area up to that of delta_max "
        "on clean images. Between: for images of different classes, of the first block.",
        [name.cells for name in named],
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
