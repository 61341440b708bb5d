"""The report of the study: tables of what was found and gained, and the curves over the angle."""

import csv
import math
import statistics
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import scipy.stats
from plotly.colors import qualitative

from marginlab.study import Run, literal

from .planting import CONFLICT

SHARES = ("dominant_clean", "dominant_noisy", "other_clean", "other_noisy")  # of figure 7
SPACE = "projector"
STAGES = {
    "planted": "as planted",
    "fixed": "purified at the fixed angle",
    "mixture": "purified at the angle from the data",
    "right": "right labels only",
}
RIVALS = (
    ("angle", "fixed"),
    ("angle", "mixture"),
    ("loss", "mixture"),
    ("loss", "known share"),
    ("mean", "mixture"),
    ("confidence", ""),
)


def spread(values: Sequence[float]) -> str:
    """Write a mean with its 95 % interval over seeds (Student's t), or one value as it is."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return f"{mean:.3f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error
    return f"{mean:.3f} +- {half:.3f}"


def write(run: Run) -> None:
    """Write the report."""
    chosen = run.settings
    faults = ", ".join(literal(noise) for noise in chosen.noises)
    run.report.lead = (
        f"{chosen.classes or 'All'} classes of {literal(chosen.recipe.data)} with planted faults "
        f"({faults}). {literal(chosen.margin)} at s = {chosen.scale:g}, {chosen.recipe.epochs} "
        f"epochs. Means over {len(chosen.seeds)} seed(s) with 95 % intervals."
    )
    groups = _groups(run)
    verified = [
        {
            **_varied(groups, group),
            "stage": STAGES[group["stage"]],
            "accuracy": spread(_values(run, group, "verification_accuracy", SPACE)),
            **{
                f"TAR at FAR {far:g}": spread(_values(run, group, "tar_at_far", SPACE, f"{far:g}"))
                for far in chosen.monitor.fars
            },
            "images kept": spread(_values(run, group, "kept", "images")),
            "wrong among them": spread(_values(run, group, "kept_wrong", "images")),
        }
        for group in groups
    ]
    run.report.table(verified, "Verification of identities that no training saw.", groups)
    _noise(run, groups)
    _conflict(run, groups)
    with (run.home / "published.csv").open(encoding="utf-8") as file:
        published = list(csv.DictReader(file))
    run.report.text("## Published\n\nFaces: MS1MV0 is noisy, MS1MV3 cleaned. Percent.")
    run.report.table(published, "Deng et al. 2022, table 3 and figure 7.")


def _noise(run: Run, groups: list[dict[str, Any]]) -> None:
    """Add the table of scores, the curves, and the shares of figure 7."""
    judges = [g for g in groups if _values(run, g, "recall", "angle", "fixed")]
    if not judges:
        return
    scored = [
        (group, space, at)
        for group in judges
        for space, at in RIVALS
        if _values(run, group, "recall", space, at)
    ]
    scores = [
        {
            **_short(judges, group),
            "score": f"{space}, {at}" if at else space,
            **{
                name: spread(_values(run, group, name, space, at))
                for name in ("threshold", "precision", "recall", "auc")
            },
        }
        for group, space, at in scored
    ]
    run.report.text("## Noise found")
    run.report.table(
        scores,
        f"Images that a score drops: at {run.settings.max_angle:g} degrees, at the threshold from "
        "the data, or as many as are wrong.",
        [group for group, *_ in scored],
    )
    figure = curves(run, judges)
    run.report.figure(figure, "Precision (solid) and recall (dotted) of what lies beyond an angle.")
    shares = [
        {
            **_short(judges, group),
            **{name: spread(_values(run, group, name, "figure 7")) for name in SHARES},
            "dead sub-centers": spread(_values(run, group, "dead_subcenters", "votes")),
        }
        for group in judges
    ]
    words = "Shares of the images by sub-center and truth, as in figure 7."
    run.report.table(shares, words, judges)


def curves(run: Run, judges: list[dict[str, Any]]) -> go.Figure:
    """Plot precision and recall against the angle, a color for each classifier."""
    figure = go.Figure()
    for number, group in enumerate(judges):
        color = qualitative.D3[number % len(qualitative.D3)]
        name = ", ".join(f"{key} {value}" for key, value in _short(judges, group).items())
        ats = _ats(run, group, "curve")
        for of, look in run.parts("seed", **group):
            for quantity, dash in (("precision", "solid"), ("recall", "dot")):
                x = [float(at) for at in ats]
                y = [statistics.fmean(_values(run, of, quantity, "curve", at)) for at in ats]
                line = {"color": color, "dash": dash}
                style = {"name": name, "line": line, "showlegend": dash == "solid", "mode": "lines"}
                figure.add_scatter(x=x, y=y, **style, **look)
    figure.add_vline(x=run.settings.max_angle, line={"color": "gray", "width": 1})
    figure.update_yaxes(title="precision, recall", range=[0, 1.01])
    return figure.update_xaxes(title="angle, degrees")


def _conflict(run: Run, groups: list[dict[str, Any]]) -> None:
    """Add what sampling does to twins and to small classes."""
    table = []
    seen = [group for group in groups if _values(run, group, "passive", "steps", "whole")]
    for group in seen:
        row: dict[str, Any] = _short(seen, group)
        for title, quantity, space, at in (
            ("negatives that are twins", "twin_negatives", "steps", ""),
            ("rows that meet their twin", "twins_seen", "steps", ""),
            ("passive per positive update, whole", "passive", "steps", "whole"),
            ("cut", "passive", "steps", "cut"),
            ("cosine of twins", "center_cosine", "centers", "twins"),
            ("of other pairs", "center_cosine", "centers", "other pairs"),
            ("angle to the center, whole", "center_angle", "centers", "whole"),
            ("angle, cut", "center_angle", "centers", "cut"),
        ):
            row[title] = spread(_values(run, group, quantity, space, at))
        table.append(row)
    if not any(group["noise"] in CONFLICT for group in seen):
        return
    run.report.text("## Classes at odds")
    words = "By sampling rate and filter; `cut` classes are split or cut short."
    run.report.table(table, words, seen)
    pairs = [
        {**_short(groups, group), "angle": at}
        | {name: spread(_values(run, group, name, "pairs", at)) for name in ("precision", "recall")}
        for group in groups
        for at in _ats(run, group, "pairs")
    ]
    if pairs:
        run.report.table(pairs, "Pairs of classes whose centers are nearer than an angle.")


def _groups(run: Run) -> list[dict[str, Any]]:
    """The cells without their seeds, each once, in the order of the grid."""
    found = [{k: v for k, v in cell.items() if k != "seed"} for cell in run.cells]
    return [group for number, group in enumerate(found) if group not in found[:number]]


def _varied(groups: Sequence[dict[str, Any]], group: dict[str, Any]) -> dict[str, Any]:
    """The columns in which the groups differ; all but the backbone where they are alike."""
    differ = {key for key in group if len({str(other[key]) for other in groups}) > 1}
    kept = differ or set(group) - {"backbone"}
    return {key: value for key, value in group.items() if key in kept}


def _short(groups: Sequence[dict[str, Any]], group: dict[str, Any]) -> dict[str, Any]:
    """The columns in which the groups differ, without the stage."""
    return {key: value for key, value in _varied(groups, group).items() if key != "stage"}


def _values(
    run: Run, group: dict[str, Any], quantity: str, space: str, at: str = ""
) -> list[float]:
    rows = run.select(quantity=quantity, space=space, at=at, **group)
    return [row["value"] for row in rows]


def _ats(run: Run, group: dict[str, Any], space: str) -> list[str]:
    """The thresholds of a curve that every seed has."""
    rows = run.select(space=space, quantity="recall", **group)
    seeds = {row["seed"] for row in rows}
    ats = dict.fromkeys(row["at"] for row in rows)
    found = {quantity: run.select(space=space, quantity=quantity, **group) for quantity in
             ("precision", "recall")}  # fmt: skip
    return [
        at
        for at in ats
        if all({row["seed"] for row in rows if row["at"] == at} == seeds for rows in found.values())
    ]
