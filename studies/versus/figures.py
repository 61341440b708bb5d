"""The figures: errors by factor, errors against what might predict them, and training."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from marginlab.study import Run, of_cells

from .values import augmentations, values

COLORS = ("#2458a6", "#3a9fb5", "#8e4aa3", "#6b6f76", "#d1622b", "#c23b5a", "#2e8b57", "#b8892b")


def panels(
    run: Run, shown: Mapping[str, str], levels: Sequence[tuple[str, str]], factors: Sequence[str]
) -> go.Figure:
    """Plot the kNN error of each method at the levels of each factor."""
    figure = make_subplots(1, max(len(factors), 1), subplot_titles=factors, shared_yaxes=True)
    for column, factor in enumerate(factors, 1):
        own = [("base", "base"), *((f, level) for f, level in levels if f == factor)]
        for number, (method, name) in enumerate(shown.items()):
            found = [
                np.mean(values(run, "error", "kNN", "backbone", factor=f, level=v, method=method))
                for f, v in own
            ]
            figure.add_scatter(
                x=[v.partition("(")[2].rstrip(")")[:24] or v for _, v in own],
                y=found,
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": COLORS[number % len(COLORS)]},
                row=1,
                col=column,
                **of_cells(method=method, factor=[f for f, _ in own], level=[v for _, v in own]),
            )
    figure.update_xaxes(type="category").update_yaxes(title="kNN error", row=1, col=1)
    return figure.update_layout(height=420, legend={"orientation": "h", "y": -0.35})


def scatter(run: Run, shown: Mapping[str, str], families: Mapping[str, str]) -> go.Figure:
    """Plot the kNN error against each predictor in features."""
    where = augmentations(run)
    names_of = list(
        dict.fromkeys(
            row["at"] for row in run.select(quantity="predictor", space="backbone", **where[0])
        )
    )

    def mean(quantity: str, at: str, method: str) -> list[float]:
        found = [values(run, quantity, at, "backbone", method=method, **a) for a in where]
        return [float(np.mean(of_seeds)) for of_seeds in found]

    figure = make_subplots(2, math.ceil(len(names_of) / 2), shared_yaxes=True)
    for place, name in enumerate(names_of):
        row, column = divmod(place, math.ceil(len(names_of) / 2))
        for number, (method, title) in enumerate(shown.items()):
            figure.add_scatter(
                x=mean("predictor", name, method),
                y=mean("error", "kNN", method),
                name=title,
                legendgroup=title,
                showlegend=place == 0,
                mode="markers",
                marker={"color": COLORS[number % len(COLORS)]},
                row=row + 1,
                col=column + 1,
                **of_cells(method=method, **{key: [a[key] for a in where] for key in where[0]}),
            )
    for place, name in enumerate(names_of):
        row, column = divmod(place, math.ceil(len(names_of) / 2))
        figure.update_xaxes(title=name, row=row + 1, col=column + 1)
    figure.update_yaxes(title="kNN error", col=1)
    return figure.update_layout(height=600, legend={"orientation": "h", "y": -0.2})


def training(run: Run, shown: Mapping[str, str]) -> go.Figure:
    """Plot alignment, divergence and the two theorems' losses over training in the base cell."""
    quantities = ("alignment", "divergence_mean", "InfoNCE_L_2", "CrossCorrelation_L_2")
    figure = make_subplots(1, len(quantities), subplot_titles=quantities)
    for number, (method, name) in enumerate(shown.items()):
        for column, quantity in enumerate(quantities, 1):
            for of, look in run.parts("seed", factor="base", method=method):
                found = run.series(quantity, space="projector", **of)
                if not found.epochs:
                    found = run.series(quantity, space="backbone", **of)
                figure.add_scatter(
                    x=found.epochs,
                    y=found.values,
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    mode="lines+markers",
                    line={"color": COLORS[number % len(COLORS)]},
                    row=1,
                    col=column,
                    **look,
                )
    figure.update_xaxes(title="epoch").update_yaxes(type="log", row=1, col=4)
    return figure.update_layout(height=380, legend={"orientation": "h", "y": -0.25})
