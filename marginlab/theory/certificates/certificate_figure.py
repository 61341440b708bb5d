"""A certificate as a figure with three panels.

They show what each form certifies beside the observed error, where on the grid Theorem 1 holds, and
what more views change.

Colors are those of Okabe and Ito, told apart with any kind of color vision. Text or the shape of a
mark also says what they say.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from marginlab.theory.bound import rounded_up
from marginlab.theory.certificates.form import SAMPLED, Form

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8a919c",
)
LINES = (BLUE, SKY, PINK, YELLOW, ORANGE, GREEN)
MARKS = ("circle", "square", "diamond", "cross", "x", "triangle-up")
HOLDS = ("(T')", "(T), (T')", "(P), (T), (T')")
LABELS = {
    "P": "(P)",
    "T": "(T)",
    "T_lengths": "(T')",
    "per_class": "per class",
    "fixed_centers": "fixed centers",
    "companion": "companion (of views)",
    "new_images": "fixed centers, new images",
    "image_wise": "image by image, new images",
    "prototypes": "prototypes, new images",
    "population_T": "(T), population",
    "population": "(T) or (G), population",
    "theorem_3": "Theorem 3 and (T'), population",
    "products": "products and (T'), population",
    "P_pixels": "(P), pixels",
    "T_pixels": "(T), pixels",
    "T_lengths_pixels": "(T'), pixels",
}  # of forms, on the axis


class Grid(NamedTuple):
    """The grid of Theorem 1, as in `Certificate`."""

    deltas: Float[Tensor, " d"]
    epsilons: Float[Tensor, " e"]
    bounds: Float[Tensor, "d e"]
    holds: Int[Tensor, "d e"]


def draw(
    forms: Sequence[Form],
    grid: Grid,
    v_curve: Mapping[int, Mapping[str, float]],
    *,
    chance: float,
    limit: tuple[float, float] | None,
) -> Any:
    """Draw the plotly figure that `Certificate.figure` returns.

    Args:
        forms: The certificate's forms.
        grid: Its grid of delta and epsilon.
        v_curve: Its certified values with fewer views.
        chance: Error of guessing.
        limit: Upper limit of the error of new images, and its confidence; None without new images.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(
        1,
        3,
        subplot_titles=(
            "certified error",
            "(1 - sigma) + R<sub>eps</sub>, and where Theorem 1 holds",
            "certified error by number of views",
        ),
        column_widths=[0.4, 0.34, 0.26],
        horizontal_spacing=0.09,
    )
    _forms(figure, forms, chance, limit)
    _grid(figure, grid)
    _views(figure, forms, v_curve)
    height = max(450, 180 + 34 * len(forms))
    legend = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.01, "x": 0}
    layout = {
        "plot_bgcolor": "#ffffff",
        "paper_bgcolor": "#ffffff",
        "font": {"size": 12, "color": "#20242b"},
        "bargap": 0.35,
    }
    figure.update_layout(
        **layout, height=height, legend=legend, margin={"l": 10, "r": 20, "t": 50, "b": 110}
    )
    figure.update_xaxes(showline=True, linecolor=GREY, gridcolor="#e8eaee", zeroline=False)
    return figure.update_yaxes(showline=True, linecolor=GREY, gridcolor="#e8eaee", zeroline=False)


def _forms(
    figure: Any, forms: Sequence[Form], chance: float, limit: tuple[float, float] | None
) -> None:
    names = [LABELS[form.key] for form in forms]
    colors = [
        "#dfe3e8" if not form.bound.certifies else BLUE if form.of == SAMPLED else GREEN
        for form in forms
    ]
    figure.add_bar(
        y=names,
        x=[form.value for form in forms],
        orientation="h",
        marker={"color": colors},
        showlegend=False,
        name="certified",
        text=[
            rounded_up(form.value, 3) if form.bound.certifies else "certifies nothing"
            for form in forms
        ],
        cliponaxis=False,
        textposition=["outside" if form.bound.certifies else "inside" for form in forms],
        textangle=0,
        insidetextanchor="middle",
        hovertext=[form.bound.reason or f"of {form.of}" for form in forms],
        row=1,
        col=1,
    )
    mark = {
        "symbol": "diamond",
        "size": 9,
        "color": ORANGE,
        "line": {"color": "#ffffff", "width": 1},
    }
    figure.add_scatter(
        y=names,
        x=[form.bound.left for form in forms],
        mode="markers",
        marker=mark,
        name="observed error",
        row=1,
        col=1,
    )
    if limit is not None:
        mark = {"symbol": "line-ns", "size": 16, "line": {"color": ORANGE, "width": 3}}
        error, confidence = limit
        name = f"its own limit, confidence {confidence:g}"
        figure.add_scatter(
            y=[LABELS["image_wise"]],
            x=[error],
            mode="markers",
            marker=mark,
            name=name,
            row=1,
            col=1,
        )
    figure.add_vline(x=chance, line_dash="dot", line_color=GREY, row=1, col=1)
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="lines",
        line={"dash": "dot", "color": GREY},
        name="guessing, 1 - 1/C",
        row=1,
        col=1,
    )
    figure.update_xaxes(range=[-0.02, 1.06], title="error", row=1, col=1).update_yaxes(
        autorange="reversed", row=1, col=1
    )


def _grid(figure: Any, grid: Grid) -> None:
    rows, columns = (
        [f"{value:.2g}" for value in axis.tolist()] for axis in (grid.deltas, grid.epsilons)
    )
    figure.add_heatmap(
        x=list(range(len(columns))),
        y=list(range(len(rows))),
        z=grid.bounds.tolist(),
        zmin=0,
        zmax=1,
        colorscale=[[0, "#ffffff"], [1, "#6b7280"]],
        customdata=[[("none", *HOLDS)[number] for number in row] for row in grid.holds.tolist()],
        colorbar={"x": 0.715, "len": 0.85, "thickness": 9},
        name="",
        hovertemplate="(1 - sigma) + R = %{z:.3f}<br>holds: %{customdata}<extra></extra>",
        row=1,
        col=2,
    )
    for number, (name, color, symbol) in enumerate(
        zip(HOLDS, (SKY, BLUE, GREEN), MARKS, strict=False), 1
    ):
        at = (grid.holds == number).nonzero().tolist()
        if at:
            mark = {
                "symbol": symbol,
                "size": 9,
                "color": color,
                "line": {"color": "#ffffff", "width": 1},
            }
            figure.add_scatter(
                x=[e for _, e in at],
                y=[d for d, _ in at],
                mode="markers",
                marker=mark,
                name=f"{name} holds",
                row=1,
                col=2,
            )
    if not bool(grid.holds.any()):
        said = {
            "text": "no condition holds anywhere",
            "showarrow": False,
            "bgcolor": "#ffffff",
            "bordercolor": GREY,
            "borderpad": 4,
        }
        figure.add_annotation(x=(len(columns) - 1) / 2, y=(len(rows) - 1) / 2, **said, row=1, col=2)
    figure.update_xaxes(
        title="epsilon",
        tickvals=list(range(len(columns))),
        ticktext=columns,
        tickangle=-60,
        row=1,
        col=2,
    )
    figure.update_yaxes(
        title={"text": "delta", "standoff": 2},
        tickvals=list(range(len(rows))),
        ticktext=rows,
        row=1,
        col=2,
    )


def _views(figure: Any, forms: Sequence[Form], v_curve: Mapping[int, Mapping[str, float]]) -> None:
    """Draw the forms that certify something with some number of views.

    Bounds of fewer views are optimistic for more.
    """
    levels = list(v_curve)
    keys = [form.key for form in forms if any(at.get(form.key, 1.0) < 1 for at in v_curve.values())]
    for key, color, symbol in zip(keys, LINES, MARKS, strict=False):
        line = {
            "mode": "lines+markers",
            "line": {"color": color},
            "marker": {"symbol": symbol, "size": 8},
        }
        figure.add_scatter(
            x=levels,
            y=[v_curve[V][key] for V in levels],
            **line,
            name=LABELS[key],
            row=1,
            col=3,
        )
    if not keys:
        said = "nothing is certified with any number" if levels else "not computed (v_curve=False)"
        figure.add_annotation(
            x=0.5, y=0.5, xref="x3 domain", yref="y3 domain", text=said, showarrow=False
        )
    wide = [math.log10(levels[0]) - 0.1, math.log10(levels[-1]) + 0.1] if levels else [0, 1]
    figure.update_xaxes(
        title="views of an image", type="log", tickvals=levels, range=wide, row=1, col=3
    )
    figure.update_yaxes(range=[-0.02, 1.05], row=1, col=3)
