"""The figures of the bounds study's report: certificates, terms and theorems over the training.

Each is of embeddings, as a mean over seeds; a colour is a method.
"""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from marginlab.study import Run, Series

# title of a form in the report: quantity, at
FORMS = {
    "new": ("certified", "image_wise"),
    "new, fixed": ("certified", "new_images"),
    "new, prototypes": ("certified", "prototypes"),
    "population": ("certified", "population"),
    "P": ("certified", "P"),
    "T": ("certified", "T"),
    "T'": ("certified", "T_lengths"),
    "per class": ("certified", "per_class"),
    "fixed centers": ("certified", "fixed_centers"),
    "P, test": ("certified_test", "P"),
    "T, test": ("certified_test", "T"),
    "T', test": ("certified_test", "T_lengths"),
}
# what the panels on geometry show of the measures that a run has, and whether their axis is
# logarithmic
GEOMETRY = {
    ("NeuralCollapse", "NC1"): ("NC1, 0 at collapse", True),
    ("ClassVariance", "CDNV"): ("CDNV", True),
    ("Uniformity", "L_unif"): ("uniformity, least when even", False),
    ("EffectiveRank", "RankMe"): ("RankMe, directions used", True),
    ("AugmentationConfusion", "ACR"): ("ACR, confused by views", False),
}


def series_of(run: Run, quantity: str, at: str = "", **of: Any) -> Series:
    """Return a quantity of embeddings over the training, as a mean over the cells with `of`."""
    return run.series(quantity, space="projector", at=at, **of)


def curves(run: Run, names: dict[str, str]) -> go.Figure:
    """Plot certified error by three forms, and the error of new images, over the training."""
    titles = (
        "new images, image by image",
        "training images, Theorem 1 (T')",
        "the same, as printed (P)",
    )
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.06)
    for number, (method, name) in enumerate(names.items()):
        line = {"color": _color(number)}
        for of, look in run.parts("seed", method=method):
            look |= {"name": name, "legendgroup": name}
            for column, form in enumerate(("new", "T'", "P"), 1):
                x, y = series_of(run, *FORMS[form], **of)
                style = {"mode": "lines+markers", "line": line, "showlegend": column == 1}
                figure.add_scatter(x=x, y=y, **style, **look, row=1, col=column)
            x, y = series_of(run, "new_error", **of)
            style = {"showlegend": False, "line": line | {"dash": "dot"}}
            figure.add_scatter(x=x, y=y, **style, **look, row=1, col=1)
    return (
        figure.update_xaxes(title="epoch")
        .update_yaxes(range=[0, 1.05])
        .update_annotations(font_size=12)
        .update_layout(height=420)
    )


def panels(
    run: Run, names: dict[str, str], shown: tuple[tuple[str, str], ...], titles: tuple[str, ...]
) -> go.Figure:
    """Plot quantities over training: `shown` holds the quantity and `at` of each panel."""
    figure = make_subplots(1, len(shown), subplot_titles=titles, horizontal_spacing=0.06)
    for number, (method, name) in enumerate(names.items()):
        for of, look in run.parts("seed", method=method):
            look |= {"mode": "lines+markers", "line": {"color": _color(number)}, "name": name}
            for column, (quantity, at) in enumerate(shown, 1):
                x, y = series_of(run, quantity, at, **of)
                group = {"legendgroup": name, "showlegend": column == 1}
                figure.add_scatter(x=x, y=y, **look, **group, row=1, col=column)
    return (
        figure.update_xaxes(title="epoch")
        .update_annotations(font_size=12)
        .update_layout(height=380, legend={"orientation": "h", "y": -0.25})
    )


def tension(run: Run, names: dict[str, str]) -> go.Figure:
    """Plot Theorem 4: L_2 against tau', and its bounds over the training."""
    titles = ("L_2 and tau', over training", "bound of |mu_k . mu_l| in r^2; dotted: refined")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    for number, (method, name) in enumerate(names.items()):
        line = {"color": _color(number)}
        for of, look in run.parts("seed", method=method):
            look |= {"legendgroup": name}
            L_2 = series_of(run, "CrossCorrelation_L_2", **of).values
            tau = series_of(run, "tau", **of).values
            style = {"name": name, "mode": "lines+markers", "line": line}
            figure.add_scatter(x=tau, y=L_2, **style, **look, row=1, col=1)
            for bound, dash in (("printed", "solid"), ("refined", "dot")):
                x, y = series_of(run, f"theorem_4_{bound}", **of)
                style = {"name": f"{name}, {bound}", "line": line | {"dash": dash}}
                figure.add_scatter(x=x, y=y, **style, **look, showlegend=False, row=1, col=2)
    figure.add_hline(y=1, line_dash="dash", row=1, col=2)
    figure.update_xaxes(title="tau'", type="log", dtick=2, row=1, col=1).update_yaxes(
        title="L_2", type="log", dtick=1, row=1, col=1
    )
    figure.update_xaxes(title="epoch", row=1, col=2).update_yaxes(type="log", dtick=1, row=1, col=2)
    return figure.update_annotations(font_size=12).update_layout(height=420)


def _color(number: int) -> str:
    return ("#2458a6", "#3a9fb5", "#6b6f76", "#d1622b", "#2e8b57", "#8e4aa3", "#b8892b", "#c23b5a")[
        number % 8
    ]
