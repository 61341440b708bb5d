"""The figures of the margins study: margins, target angles after and over training."""

import statistics
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from marginlab import margins, settings
from marginlab.study import Run, of_cells


def curve(text: str, norm: float = 12.0) -> tuple[list[float], list[float], list[float]]:
    """Return angles in degrees, the target value, and its slope by the cosine, of a fresh margin.

    Args:
        text: The margin in call notation.
        norm: Length of the embeddings, for margins that look at it; 12 is about that of an
            embedding of 128 dimensions with unit variance.
    """
    degrees = torch.arange(1.0, 180.0)
    cosine = torch.deg2rad(degrees).cos()
    margin = settings.make(text, margins, margins.Margin).eval()
    found = margin.targets(cosine, torch.full_like(cosine, norm))
    return degrees.tolist(), found.value.tolist(), found.slope.tolist()


def margin_curves(texts: Mapping[str, str]) -> go.Figure:
    """Plot the target value and its slope over the angle, for margins by name."""
    figure = make_subplots(1, 2, subplot_titles=("target value", "slope by the cosine"))
    for number, (name, text) in enumerate(texts.items()):
        degrees, value, slope = curve(text)
        look = {"name": name, "legendgroup": name, **of_cells(loss=name)}
        look["line"] = {"color": qualitative.D3[number % len(qualitative.D3)]}
        figure.add_scatter(x=degrees, y=value, **look, row=1, col=1)
        figure.add_scatter(x=degrees, y=slope, **look, row=1, col=2, showlegend=False)
    return figure.update_xaxes(title="angle, degrees").update_yaxes(range=[0, 4], col=2)


def histograms(run: Run, backbone: str, losses: Sequence[str]) -> go.Figure:
    """Plot the histogram of target angles after training, a mean over seeds, by loss."""
    figure = go.Figure()
    last = run.settings.recipe.epochs
    for loss in losses:
        for of, look in run.parts("seed", loss=loss, backbone=backbone):
            sums: dict[int, list[float]] = {}
            for row in run.select(quantity="target_angle_share", epoch=last, **of):
                sums.setdefault(int(row["at"]), []).append(row["value"])
            if sums:
                x = sorted(sums)
                shares = [statistics.fmean(sums[at]) for at in x]
                figure.add_scatter(x=[at + 5 for at in x], y=shares, name=loss, **look)
    figure.update_xaxes(title="angle to the weight of the own class, degrees")
    return figure.update_yaxes(title="share of images")


def over_training(run: Run, backbone: str, losses: Sequence[str]) -> go.Figure:
    """Plot the mean target angle of each epoch, a mean over seeds, by loss."""
    figure = go.Figure()
    for loss in losses:
        for of, look in run.parts("seed", loss=loss, backbone=backbone):
            angle = run.series("target_angle", **of)
            figure.add_scatter(x=angle.epochs, y=angle.values, name=loss, **look)
    return figure.update_xaxes(title="epoch").update_yaxes(title="mean target angle, degrees")
