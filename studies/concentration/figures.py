"""The report of the concentration study: what the augmentations do, how concentrated they are, what the encoders learn, how well it predicts."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots
from scipy.stats import spearmanr

from marginlab.study import Run

LETTERS = "(a) resized crop, (b) Gaussian blur, (c) grey, (d) colour jitter, (e) horizontal flip"
ERRORS = {"knn_error/backbone": "kNN", "nearest_center_error/backbone": "center", "linear_error/backbone": "linear"}
MEANT = "kNN with k=200, T=0.1; nearest class center, Err(G_f) of the paper, centers over views, errors on clean images; linear probe"
MARKS = {"ladder": ("square", "#d1622b"), "strength": ("diamond", "#2e8b57"), "pairs": ("circle", "#2458a6")}  # of the grids
NAMED = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def write(run: Run, kept: dict[tuple[str, float, str], dict[str, Any]]) -> None:
    """Write the report; `kept` holds what `concentrate` measured, by (letters, strength, grid)."""
    chosen, report = run.settings, run.report
    n = min(found["n"] for found in kept.values())
    report.title = f"Concentration of augmented data and contrastive learning: {chosen.data}"
    report.lead = (
        f"An augmentation is a (sigma, delta)-augmentation if in every class a part of at least sigma of the images lies within an augmented "
        f"distance d_A of delta of each other (Huang et al., ICLR 2023, definition 1). Here 1 - sigma is estimated for each augmentation on "
        f"{n} images a class and {chosen.views} views of each, and backbones are trained with each: {LETTERS}."
    )
    _pictures(run, kept)
    _curves(run, kept)
    _errors(run)
    _training(run)
    _published(run)
    report.text(
        "## How to read these numbers\n\n"
        f"d_A is a minimum over *sampled* views, so it is an upper estimate, and it has not converged in their number: compare augmentations at "
        f"the same V only. The two ends of a band bound the largest clique of the sampled graph (greedy clique and greedy colouring), not the "
        f"population's sigma. Errors are of the last epoch on clean test images, with {len(chosen.seeds)} training "
        f"seed{'s' if len(chosen.seeds) > 1 else ''}; pairs share letters, so a rank correlation over pairs has no simple test."
    )


def _label(letters: str, strength: float) -> str:
    return letters if strength == 0.5 else f"{letters}, s={strength:g}"


def _colors(labels: Any) -> dict[str, str]:
    """A colour for each augmentation, the same in all figures."""
    return {label: qualitative.D3[number % 10] for number, label in enumerate(dict.fromkeys(labels))}


def _last(run: Run, name: str, **columns: Any) -> list[float]:
    """Values of the last epoch, one for each seed."""
    rows = run.results.select(name=name, **columns)
    epoch = max((row["epoch"] for row in rows), default=-1)
    return [row["value"] for row in rows if row["epoch"] == epoch]


def _pictures(run: Run, kept: dict[tuple[str, float, str], dict[str, Any]]) -> None:
    run.report.text("## What the augmentations do\n\nThe first picture of each row is the image itself, the others are views of it.")
    shown = [key for key in kept if key[2] == "ladder"] or list(kept)[:5]
    for key in shown:
        pictures = np.load(run.folder / "once" / kept[key]["folder"] / "pictures.npz")
        rows = [np.concatenate(list(views), axis=1) for views in pictures["views"]]
        run.report.images([(np.concatenate(rows, axis=0), f"views under {_label(*key[:2])}")])
    run.report.text(
        "### Pairs of images that realise the smallest d_A within a class\n\nImage, its nearest view, the other image's nearest view, that image. "
        "Where both views are almost empty, what they share is background and not the class."
    )
    for key in shown:
        pictures = np.load(run.folder / "once" / kept[key]["folder"] / "pictures.npz")
        found = [
            (np.concatenate(list(four), axis=1), f"{_label(*key[:2])}: {pair['class']}, d_A = {pair['distance']:.2f}")
            for four, pair in zip(pictures["pairs"], kept[key]["pairs"], strict=True)
        ]
        run.report.images(found)


def _curves(run: Run, kept: dict[tuple[str, float, str], dict[str, Any]]) -> None:
    chosen = run.settings
    grids = [grid for grid in ("ladder", "strength", "pairs") if any(key[2] == grid for key in kept)]
    n = min(found["n"] for found in kept.values())
    fewer = " (fewer than asked for: all that the measure's memory budget holds)" if any(found["subsampled"] for found in kept.values()) else ""
    names = {"ladder": "ladder (Table 1)", "strength": "strength of colour (Table 2)", "pairs": "pairs (Figure 3)"}
    colors = _colors(_label(*key[:2]) for key in kept)
    figure = make_subplots(1, len(grids), subplot_titles=[names[grid] for grid in grids], shared_yaxes=True, horizontal_spacing=0.04)
    for column, grid in enumerate(grids, 1):
        for number, (key, found) in enumerate((k, f) for k, f in kept.items() if k[2] == grid):
            color, deltas = colors[_label(*key[:2])], found["deltas"]
            low, high = found["curves"]["mean"]
            band = {"x": deltas + deltas[::-1], "y": [*high, *low[::-1]], "fill": "toself", "opacity": 0.15, "line": {"width": 0}}
            group = {"legendgroup": f"{grid}{number}", "legend": "legend" if column == 1 else f"legend{column}"}
            figure.add_scatter(**band, fillcolor=color, hoverinfo="skip", showlegend=False, **group, row=1, col=column)
            figure.add_scatter(x=deltas, y=high, name=_label(*key[:2]), line={"color": color}, **group, row=1, col=column)
        place = chosen.delta * found["delta_max"]
        figure.add_vline(place, line={"dash": "dot", "color": "#888"}, row=1, col=column)
        figure.update_xaxes(title="delta (pixel l2)", row=1, col=column)
        axis = figure.layout["xaxis" if column == 1 else f"xaxis{column}"].domain
        figure.update_layout({("legend" if column == 1 else f"legend{column}"): {"x": axis[0] + 0.01, "y": 0.02, "yanchor": "bottom"}})
    figure.update_yaxes(title="1 - sigma (mean over classes)", range=[-0.02, 1.02], row=1, col=1)
    figure.update_layout(height=430)
    run.report.text("## How concentrated the augmented data is\n\nThe lower a curve, the sharper the concentration.")
    run.report.figure(
        figure,
        f"1 - sigma against delta: mean over classes, n = {n} images of each{fewer}, V = {chosen.views} views, the image among them. "
        f"The line is the greedy clique's, the band reaches down to the colouring bound. Dotted: where the numbers below are read, "
        f"{chosen.delta:g} of delta_max, the 90 % quantile of the distances between clean images of a class.",
    )
    figure = go.Figure()
    for number, (key, found) in enumerate(kept.items()):
        if any(key[:2] == other[:2] for other in list(kept)[:number]):
            continue  # ab is on the ladder and among the pairs
        label = _label(*key[:2])
        figure.add_scatter(x=found["levels"], y=found["by_level"], name=label, mode="lines+markers", line={"color": colors[label]})
    figure.update_xaxes(title="V, views of an image", type="log", tickvals=found["levels"])
    figure.update_yaxes(title="1 - sigma", range=[-0.02, 1.02])
    run.report.figure(figure, "The same at the dotted delta, against the number of views: where a line still falls, the estimate has not converged.")


def _errors(run: Run) -> None:
    chosen = run.settings
    table = []
    for cell in run.cells:
        columns = {name: cell[name] for name in ("grid", "letters", "strength", "method", "seed")}
        rows = run.results.select(**columns)
        if not rows:
            continue
        entry: dict[str, Any] = {**columns, "1 - sigma": next(row["value"] for row in rows if row["name"] == "1-sigma")}
        for name, title in ERRORS.items():
            entry[title] = _last(run, name, **columns)[0]
            entry[f"{title} before"] = next((row["value"] for row in rows if row["name"] == name and row["epoch"] == 0), math.nan)
        table.append(entry)
    run.report.text("## Concentration and error")
    for method in chosen.methods:
        mine = [entry for entry in table if entry["method"] == method]
        if mine:
            _scatter(run, method, mine)
    run.report.table(
        _varying(table),
        f"Concentration at the dotted delta and test errors after the last epoch, beside those before, of the untrained network: {MEANT}, "
        f"all on L2-normalised backbone features. {_fixed(table)}",
    )


def _scatter(run: Run, method: str, entries: list[dict[str, Any]]) -> None:
    """Error against 1 - sigma, one picture for each error, one mark for each augmentation of each grid, seeds averaged."""
    figure = make_subplots(1, len(ERRORS), subplot_titles=list(ERRORS.values()), horizontal_spacing=0.06)
    words, seeds = [], len(run.settings.seeds)
    for column, title in enumerate(ERRORS.values(), 1):
        for grid, (symbol, color) in MARKS.items():
            averaged: dict[str, list[tuple[float, float]]] = {}
            for entry in entries:
                if entry["grid"] == grid:
                    averaged.setdefault(_label(entry["letters"], entry["strength"]), []).append((entry["1 - sigma"], entry[title]))
            if not averaged:
                continue
            x, y = np.array([np.mean(values, axis=0) for values in averaged.values()]).T
            marks = {"mode": "markers+text", "textposition": "top center", "marker": {"size": 9, "symbol": symbol, "color": color}}
            group = {"name": grid, "legendgroup": grid, "showlegend": column == 1}
            figure.add_scatter(x=x, y=y, text=list(averaged), cliponaxis=False, **marks, **group, row=1, col=column)
            if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
                words.append(f"{grid}, {title} {spearmanr(x, y).statistic:.2f}")
    figure.update_xaxes(title="1 - sigma")
    figure.update_yaxes(title="test error", row=1, col=1)
    figure.update_layout(height=400)
    said = f" Spearman's rank correlation: {'; '.join(words)}." if words else ""
    over = f"mean over {seeds} seeds" if seeds > 1 else "1 seed"
    run.report.figure(figure, f"{method}: test error ({MEANT}) against 1 - sigma, {over}.{said}")


def _varying(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table without the columns of settings that are the same in all rows."""
    same = [name for name in ("strength", "method", "seed") if len({entry[name] for entry in table}) == 1]
    return [{name: value for name, value in entry.items() if name not in same} for entry in table]


def _fixed(table: list[dict[str, Any]]) -> str:
    shown = _varying(table)
    same = {name: value for name, value in table[0].items() if name not in shown[0]} if table else {}
    return f"In all rows: {', '.join(f'{name} {value}' for name, value in same.items())}." if same else ""


def _training(run: Run) -> None:
    chosen = run.settings
    run.report.text("## What the encoders learn")
    grid = "ladder" if "ladder" in chosen.grids else chosen.grids[0]
    drawn = {
        "alignment/backbone": "alignment",
        "divergence_mean/backbone": "mean mu_k . mu_l",
        "divergence_max/backbone": "largest mu_k . mu_l",
        "knn_error/backbone": "kNN error",
    }
    colors = _colors(_label(str(cell["letters"]), float(cell["strength"])) for cell in run.cells)
    for method in chosen.methods:
        figure = make_subplots(1, len(drawn), subplot_titles=list(drawn.values()), horizontal_spacing=0.05)
        cells = [cell for cell in run.cells if cell["grid"] == grid and cell["method"] == method and cell["seed"] == chosen.seeds[0]]
        for cell in cells:
            label = _label(str(cell["letters"]), float(cell["strength"]))
            for column, name in enumerate(drawn, 1):
                rows = sorted(
                    (row for row in run.results.select(name=name, **{c: cell[c] for c in ("grid", "letters", "strength", "method", "seed")})),
                    key=lambda row: row["epoch"],
                )
                style = {"line": {"color": colors[label]}, "name": label, "legendgroup": label, "showlegend": column == 1}
                figure.add_scatter(x=[r["epoch"] for r in rows], y=[r["value"] for r in rows], mode="lines+markers", **style, row=1, col=column)
        figure.update_xaxes(title="epoch")
        figure.update_layout(height=360)
        run.report.figure(
            figure,
            f"{method}, {grid}, seed {chosen.seeds[0]}: on L2-normalised backbone features of 300 test images, 8 views of each under the "
            "augmentation trained with; epoch 0 is the untrained network. Alignment is E ||f(x_1) - f(x_2)||^2 over two views of an image, "
            "under each cell's own augmentation; mu_k is the center of class k.",
        )


def published(home: Path) -> list[dict[str, str]]:
    """The paper's tables."""
    with (home / "published.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _published(run: Run) -> None:
    chosen = run.settings
    data = chosen.data if chosen.data in NAMED else "cifar10"
    table = []
    for row in published(run.home):
        grid = "ladder" if row["table"] == "Table 1" else "strength"
        for method in chosen.methods:
            if row["data"] != data or not method.startswith(f"{row['method']}(") or grid not in chosen.grids:
                continue
            columns = {"grid": grid, "letters": row["letters"], "strength": float(row["strength"]), "method": method}
            ours = [1 - error for error in _last(run, "knn_error/backbone", **columns)]
            if ours:
                theirs = {f"published, {NAMED[data]}": float(row["knn_accuracy"]), "their std": float(row["std"]), "from": row["table"]}
                table.append({**columns, f"ours, {chosen.data}": 100 * float(np.mean(ours)), **theirs})
    if table:
        run.report.text(
            "## Beside the published tables\n\n"
            f"The paper trains a ResNet-18 with the cifar stem for 800 epochs at batch 512 on {NAMED[data]} and reports the best epoch of three "
            f"runs. Here: {chosen.backbone}, {chosen.epochs} epochs, batch {chosen.batch}, "
            f"{chosen.images or 'all'} training images of {chosen.data}, the last epoch. Compare orders, not levels."
        )
        same = len({entry["method"] for entry in table}) == 1
        shown = [{name: value for name, value in entry.items() if name != "method" or not same} for entry in table]
        run.report.table(shown, "kNN accuracy in per cent, ours and published (Huang et al., ICLR 2023, Tables 1 and 2).")
