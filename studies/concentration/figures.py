"""The figures of the concentration study's report.

Solid is the class, dotted its null control: groups of equal size drawn across classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .labels import MARKS, Label, colors, points

AXIS = "1 - sigma"
By = Mapping[Label, Mapping[str, Any]]


def over_delta(panels: Mapping[str, By], at: float | None, title: str, **columns: str) -> go.Figure:
    """Plot 1 - sigma over delta: a panel for each grid, a line for each augmentation.

    The band of a line holds the two sides and all blocks of images.
    """
    figure = make_subplots(
        1, len(panels), subplot_titles=list(panels), shared_yaxes=True, horizontal_spacing=0.04
    )
    color = colors(name for panel in panels.values() for name in panel)
    for column, (panel, kept) in enumerate(panels.items(), 1):
        place = {"row": 1, "col": column}
        legend = "legend" if column == 1 else f"legend{column}"
        for name, found in kept.items():
            deltas, within, control = (
                found["deltas"],
                found["curves"]["within"],
                found["curves"]["control"],
            )
            every = np.array([within["low"], within["high"], *within["blocks"]])
            group = {"legendgroup": f"{panel}{name}", "legend": legend, **name.look(**columns)}
            band = {
                "x": deltas + deltas[::-1],
                "y": [*every.max(0), *every.min(0)[::-1]],
                "fill": "toself",
                "opacity": 0.18,
                "line": {"width": 0},
            }
            band |= {"fillcolor": color[name], "hoverinfo": "skip", "name": f"{name}, range"}
            figure.add_scatter(**band, showlegend=False, **group, **place)
            middle = np.mean(within["blocks"], axis=0)
            figure.add_scatter(
                x=deltas, y=middle, name=name, line={"color": color[name]}, **group, **place
            )
            null = np.mean(control["blocks"], axis=0)
            dotted = {"color": color[name], "dash": "dot", "width": 1.2}
            figure.add_scatter(
                x=deltas,
                y=null,
                name=f"{name}, control",
                line=dotted,
                showlegend=False,
                **group,
                **place,
            )
        if at is not None:
            figure.add_vline(at, line={"dash": "dash", "color": "#888", "width": 1}, **place)
        figure.update_xaxes(title=title, **place)
        axis = figure.layout["xaxis" if column == 1 else f"xaxis{column}"].domain
        figure.update_layout({legend: {"x": axis[0] + 0.01, "y": 0.02, "yanchor": "bottom"}})
    figure.update_yaxes(title=f"{AXIS} (mean over classes)", range=[-0.02, 1.02], row=1, col=1)
    return figure.update_layout(height=460)


def beside_control(kept: By) -> go.Figure:
    """Plot the class and its control in every block of images.

    There is a small panel for each augmentation.
    """
    across = min(5, len(kept))
    figure = make_subplots(
        -(-len(kept) // across),
        across,
        subplot_titles=list(kept),
        shared_yaxes=True,
        shared_xaxes=True,
        vertical_spacing=0.12,
    )
    for number, (name, found) in enumerate(kept.items()):
        place = {"row": number // across + 1, "col": number % across + 1, **name.look()}
        for which, color, dash in (("within", "#2458a6", "solid"), ("control", "#c44", "dot")):
            for block, curve in enumerate(found["curves"][which]["blocks"]):
                title = "a class" if which == "within" else "across classes"
                style = {
                    "line": {"color": color, "width": 1, "dash": dash},
                    "name": title,
                    "legendgroup": which,
                    "showlegend": number + block == 0,
                }
                figure.add_scatter(x=found["deltas"], y=curve, mode="lines", **style, **place)
    figure.update_xaxes(title="delta (pixel l2)", row=-(-len(kept) // across))
    figure.update_yaxes(range=[-0.02, 1.02]).update_yaxes(title=AXIS, col=1)
    return figure.update_layout(
        height=210 * -(-len(kept) // across) + 90, legend={"orientation": "h", "y": -0.25}
    )


def over_views(kept: By) -> go.Figure:
    """Plot 1 - sigma against the number of views, and beyond them after the search.

    All deep images are on the left, the fewer that are sharpened on the right.
    """
    sharp = all("sharpened" in found["deep"] for found in kept.values())
    first = next(iter(kept.values()))["deep"]
    titles = [f"n = {first['n']}"] + (
        [f"n = {first['sharpened']['n']}, then sharpened"] if sharp else []
    )
    figure = make_subplots(
        1, len(titles), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04
    )
    color = colors(kept)
    for name, found in kept.items():
        deep = found["deep"]
        ticks = [str(level) for level in deep["levels"]]
        for which, dash in (("within", "solid"), ("control", "dot")):
            style = {
                "line": {"color": color[name], "dash": dash},
                "legendgroup": name,
                "name": name if which == "within" else f"{name}, control",
                **name.look(),
            }
            shown = which == "within"
            figure.add_scatter(
                x=ticks,
                y=[high for _, high in deep[which]],
                mode="lines+markers",
                showlegend=shown,
                **style,
                row=1,
                col=1,
            )
            if sharp:
                values = [high for _, high in deep["sharpened"][f"{which}_by_level"]] + [
                    deep["sharpened"][which][1]
                ]
                symbols = {
                    "symbol": ["circle"] * len(ticks) + ["star"],
                    "size": [6] * len(ticks) + [11],
                }
                figure.add_scatter(
                    x=[*ticks, "sharpened"],
                    y=values,
                    mode="lines+markers",
                    marker=symbols,
                    showlegend=False,
                    **style,
                    row=1,
                    col=2,
                )
    figure.update_xaxes(title="V, views of an image", type="category")
    figure.update_yaxes(range=[-0.02, 1.02])
    figure.update_yaxes(title=AXIS, row=1, col=1)
    return figure.update_layout(height=420)


def over_images(kept: By) -> go.Figure:
    """Plot 1 - sigma against the number of images of a class.

    A mark is the mean over disjoint parts, a bar their standard deviation.
    """
    figure, color = go.Figure(), colors(kept)
    for name, found in kept.items():
        for which, dash in (("within", "solid"), ("control", "dot")):
            sizes = list(found["by_n"][which])
            values = [found["by_n"][which][size] for size in sizes]
            style = {
                "line": {"color": color[name], "dash": dash},
                "legendgroup": name,
                "name": name if which == "within" else f"{name}, control",
                "showlegend": which == "within",
                **name.look(),
            }
            bars = {
                "type": "data",
                "array": [float(np.std(v)) for v in values],
                "visible": which == "within",
                "thickness": 1,
            }
            figure.add_scatter(
                x=[int(size) for size in sizes],
                y=[float(np.mean(v)) for v in values],
                mode="lines+markers",
                error_y=bars,
                **style,
            )
    ticks = list(next(iter(kept.values()))["by_n"]["within"])
    figure.update_xaxes(
        title="n, images of a class",
        type="log",
        tickvals=[int(tick) for tick in ticks],
        ticktext=ticks,
    )
    figure.update_yaxes(title=AXIS, range=[-0.02, 1.02])
    return figure.update_layout(height=400)


def anchored(kept: By, at: float) -> go.Figure:
    """1 - sigma of the anchor form on held-out images, with its exact interval."""
    figure, color = go.Figure(), colors(kept)
    for name, found in kept.items():
        deltas, class_, control = (
            found["deltas"],
            found["anchored"]["within"],
            found["anchored"]["control"],
        )
        band = {
            "x": deltas + deltas[::-1],
            "y": [*class_["high"], *class_["low"][::-1]],
            "fill": "toself",
            "opacity": 0.18,
            "line": {"width": 0},
        }
        band |= {"fillcolor": color[name], "hoverinfo": "skip", "name": f"{name}, interval"}
        group = {"legendgroup": name, **name.look()}
        figure.add_scatter(**band, showlegend=False, **group)
        line = {"color": color[name]}
        figure.add_scatter(x=deltas, y=class_["value"], name=name, line=line, **group)
        dotted = {"color": color[name], "dash": "dot", "width": 1.2}
        figure.add_scatter(
            x=deltas,
            y=control["value"],
            name=f"{name}, control",
            line=dotted,
            showlegend=False,
            **group,
        )
    figure.add_vline(at, line={"dash": "dash", "color": "#888", "width": 1})
    figure.update_xaxes(title="delta (pixel l2)")
    figure.update_yaxes(title=f"{AXIS}, anchor form", range=[-0.02, 1.02])
    return figure.update_layout(height=420)


def over_epochs(
    lines: Mapping[str, Mapping[Label, Sequence[tuple[int, float]]]], **columns: str
) -> go.Figure:
    """A panel for each quantity, a line for each augmentation, (epoch, value)."""
    figure = make_subplots(1, len(lines), subplot_titles=list(lines), horizontal_spacing=0.05)
    color = colors(name for panel in lines.values() for name in panel)
    for column, panel in enumerate(lines.values(), 1):
        for name, line in panel.items():
            style = {
                "line": {"color": color[name]},
                "name": name,
                "legendgroup": name,
                "showlegend": column == 1,
                **name.look(**columns),
            }
            figure.add_scatter(
                x=[epoch for epoch, _ in line],
                y=[value for _, value in line],
                mode="lines+markers",
                **style,
                row=1,
                col=column,
            )
    figure.update_xaxes(title="epoch")
    return figure.update_layout(height=360)


def against_error(
    errors: Mapping[str, Mapping[str, Mapping[Label, tuple[Sequence[float], Sequence[float]]]]],
    controls: Mapping[Label, float],
    untrained: Mapping[str, float],
    **columns: str,
) -> go.Figure:
    """Plot error against 1 - sigma: a panel for each error.

    errors[error][grid][augmentation] holds 1 - sigma by block and the errors by seed. Bars are
    ranges over blocks and seeds; crosses stand at the null control's 1 - sigma; the line is the
    untrained network's error.
    """
    figure = make_subplots(1, len(errors), subplot_titles=list(errors), horizontal_spacing=0.06)
    for column, (title, grids) in enumerate(errors.items(), 1):
        axes = {"row": 1, "col": column}
        for grid, named in grids.items():
            place = {**axes, **points(named, **columns)}
            symbol, color = MARKS[grid]
            x, y = ([float(np.mean(values[side])) for values in named.values()] for side in (0, 1))
            bars = {
                axis: {
                    "type": "data",
                    "symmetric": False,
                    "array": [
                        max(values[side]) - middle
                        for values, middle in zip(named.values(), means, strict=True)
                    ],
                    "arrayminus": [
                        middle - min(values[side])
                        for values, middle in zip(named.values(), means, strict=True)
                    ],
                    "thickness": 1,
                }
                for axis, side, means in (("error_x", 0, x), ("error_y", 1, y))
            }
            style = {
                "mode": "markers+text",
                "textposition": "top center",
                "marker": {"size": 8, "symbol": symbol, "color": color},
            }
            group = {"name": grid, "legendgroup": grid, "showlegend": column == 1}
            figure.add_scatter(
                x=x, y=y, text=list(named), cliponaxis=False, **bars, **style, **group, **place
            )
            crosses = {
                "mode": "markers",
                "marker": {"size": 7, "symbol": "x-thin", "line": {"width": 1.5, "color": "#c44"}},
            }
            named_ = {
                "name": "control's 1 - sigma",
                "legendgroup": "control",
                "showlegend": column == 1 and grid == next(iter(grids)),
            }
            figure.add_scatter(
                x=[controls[name] for name in named],
                y=y,
                hovertext=list(named),
                **crosses,
                **named_,
                **place,
            )
        figure.add_hline(
            untrained[title], line={"dash": "dash", "color": "#888", "width": 1}, **axes
        )
    figure.update_xaxes(title=AXIS)
    figure.update_yaxes(title="test error", row=1, col=1)
    return figure.update_layout(height=430)
