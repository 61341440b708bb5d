"""The report: the paper's table, terms and differences, maps, defences, and contact sheets."""

import csv
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from marginlab.study import Run, literal, of_cells

NAMES = {"NoMargin": "softmax"}


def short(loss: str) -> str:
    """Name a loss as papers do.

    Example:
        >>> short("ArcFace(0.3, gradient='straight_through')"), short("NoMargin()")
        ('ArcFace 0.3', 'softmax')
    """
    name, _, rest = loss.partition("(")
    margin = rest.split(",")[0].rstrip(")")
    return f"{NAMES.get(name, name)} {margin}".strip()


def number(run: Run, quantity: str, space: str = "", at: str = "", **columns: str) -> list[float]:
    """Return value, low and high of a quantity; NaN where it is not there."""
    found = run.select(quantity=quantity, space=space, at=at, **columns)
    row: Any = found[0] if found else {}
    return [row.get(name, math.nan) for name in ("value", "low", "high")]


def told(numbers: list[float], digits: int = 3) -> str:
    """Write a number with its interval."""
    value, low, high = (f"{x:.{digits}f}" for x in numbers)
    return "–" if math.isnan(numbers[0]) else f"{value} ({low} to {high})"


def report(run: Run) -> None:
    """Write all sections."""
    chosen = run.settings
    recipe, steps = chosen.recipe, chosen.inversion.steps
    run.report.title = f"Images from embeddings: {literal(recipe.data)}"
    people = number(run, "identities", "judged")[0]
    real = number(run, "identities", "rank-1 of the judge among them")[0]
    run.report.lead = (
        f"{literal(recipe.data)} at {recipe.image_size} pixels, {recipe.epochs} epochs; "
        f"{chosen.targets} images for each of {len(chosen.seeds)} seed(s), {steps} steps, total "
        f"variation as {literal(chosen.inversion.variation)}. Of {people:.0f} identities the judge "
        f"finds {real:.2f} of the real images that it has not seen."
    )
    run.report.table(
        [_scored(run, loss, attack) for loss in chosen.losses for attack in ("closed", "open")],
        "By loss, under the judge, with 95 % intervals over identities. Distances are taken on the "
        "judge's features. `regenerated` is the accuracy of pairs of a generated and a real image.",
        [_of(loss, attack) for loss in chosen.losses for attack in ("closed", "open")],
    )
    last = chosen.losses[-1]
    run.report.table(
        [
            _scored(run, last, attack, terms=terms)
            for attack in ("closed", "open")
            for terms in ("all", *chosen.terms)
        ],
        f"Without a term: {literal(short(last))}.",
        [
            _of(last, attack, terms=terms)
            for attack in ("closed", "open")
            for terms in ("all", *chosen.terms)
        ],
    )
    run.report.table(_differences(run), "Differences of the same targets, image by image.")
    run.report.figure(_maps(run), "Rank-1 of targets that are read through a linear map.")
    run.report.table(_probes(run), "An attribute, read by a linear probe; mean over seeds.")
    run.report.table(_defences(run), f"Defences of {literal(short(last))}, open set.")
    run.report.figure(_curve(run), "Leakage against what the defence costs.")
    _sheets(run)
    with (run.home / "published.csv").open(encoding="utf-8") as file:
        run.report.text("## Published\n\nFaces of 112 pixels, an R50 trained on MS1MV3.")
        run.report.table(list(csv.DictReader(file)), "Deng et al. 2022, tables of section 4.5.")


def _of(loss: str, attack: str, **columns: str) -> dict[str, str]:
    """Return the columns of a cell that inverts."""
    return {"loss": loss, "attack": attack, "terms": "all", "defence": "none", **columns}


def _scored(run: Run, loss: str, attack: str, **columns: str) -> dict[str, Any]:
    of = _of(loss, attack, **columns)
    row = {"loss": short(loss), "set": attack, "terms": of["terms"]}
    row["Frechet"] = f"{number(run, 'frechet_distance', 'generated', **of)[0]:.3f}"
    row["own rank-1"] = told(number(run, "rank1", "own", **of), 2)
    for title, name in (("cosine", "cosine"), ("rank-1", "rank1"), ("rank-5", "rank5")):
        row[title] = told(number(run, name, "judge", **of), 2)
        row[f"{title}, shuffled"] = told(number(run, name, "shuffled", **of), 2)
    row["median rank"] = told(number(run, "median_rank", "judge", **of), 0)
    row["regenerated"] = told(number(run, "regenerated", "generated", **of), 2)
    row["real"] = told(number(run, "regenerated", "real", **of), 2)
    return row


def _differences(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "loss": short(row["loss"]),
            "set": row["attack"],
            "terms": row["terms"],
            "minus": short(row["at"]) if row["at"] in run.settings.losses else row["at"],
            "of": row["quantity"],
            "difference": told([row["value"], row["low"], row["high"]]),
            "interval holds 0": "yes" if row["low"] <= 0 <= row["high"] else "no",
        }
        for row in run.select(space="difference")
    ]


def _maps(run: Run) -> go.Figure:
    figure = go.Figure()
    for loss in run.settings.losses:
        for kind, dash in (("pairs", "solid"), ("dims", "dot")):
            rows = run.select(
                quantity="map_rank1", loss=loss, attack="map", defence="none", space=""
            )
            points = [
                (int(row["at"].split()[1]), row) for row in rows if row["at"].startswith(kind)
            ]
            figure.add_scatter(
                x=[x for x, _ in points],
                y=[row["value"] for _, row in points],
                error_y=_bars([row for _, row in points]),
                name=f"{short(loss)}, by {kind}",
                line_dash=dash,
                **of_cells(loss=loss, attack="map", defence="none"),
            )
    figure.update_xaxes(title="pairs of embeddings, or dimensions kept", type="log")
    return figure.update_yaxes(title="rank-1 in the judge's space")


def _bars(rows: list[dict[str, Any]]) -> dict[str, Any]:
    up = [row["high"] - row["value"] for row in rows]
    down = [row["value"] - row["low"] for row in rows]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down}


def _probes(run: Run) -> list[dict[str, Any]]:
    return [
        {"loss": short(row["loss"]), "of": row["space"], "value": row["value"]}
        for row in run.select(quantity="probe", defence="none")
    ]


def _defences(run: Run) -> list[dict[str, Any]]:
    """Return leakage by inversion and by maps, and what is verified, by defence."""
    last = run.settings.losses[-1]
    every = max(_pair_numbers(run), default=0)
    rows = []
    for defence in ("none", "no BN", *run.settings.defences):
        stored = "none" if defence == "no BN" else defence
        terms = defence if defence == "no BN" else "all"
        read = {"loss": last, "attack": "map", "defence": stored}
        made = {"loss": last, "attack": "open", "defence": stored, "terms": terms}
        inverted = number(run, "rank1", "judge", **made)
        lost = number(run, "verification_lost", **read)
        rows.append(
            {
                "defence": defence,
                "verification": told(number(run, "verification", **read)),
                "points lost": told(lost, 2),
                "rank-1 by inversion": told(inverted, 2),
                "by a map, all pairs": told(number(run, "map_rank1", "", f"pairs {every}", **read)),
                "without a pair": told(number(run, "map_rank1", "", "no pair", **read)),
            }
        )
    return rows


def _pair_numbers(run: Run) -> set[int]:
    rows = run.select(quantity="map_rank1", attack="map")
    return {int(row["at"].split()[1]) for row in rows if row["at"].startswith("pairs ")}


def _curve(run: Run) -> go.Figure:
    last = run.settings.losses[-1]
    every = max(_pair_numbers(run), default=0)
    figure = go.Figure()
    for name, of in (
        ("by inversion", {"quantity": "rank1", "space": "judge", "attack": "open", "terms": "all"}),
        ("by a map", {"quantity": "map_rank1", "attack": "map", "at": f"pairs {every}"}),
    ):
        points = []
        for defence in ("none", *run.settings.defences):
            lost = number(run, "verification_lost", loss=last, attack="map", defence=defence)[0]
            rows = run.select(loss=last, defence=defence, **of)
            if rows and not np.isnan(lost):
                points.append((lost, rows[0], defence))
        points.sort(key=lambda point: point[0])
        figure.add_scatter(
            x=[lost for lost, *_ in points],
            y=[row["value"] for _, row, _ in points],
            error_y=_bars([row for _, row, _ in points]),
            text=[defence for *_, defence in points],
            mode="markers+text",
            textposition="top center",
            name=name,
            **of_cells(loss=last, attack=of["attack"], defence=[d for *_, d in points]),
        )
    figure.update_xaxes(title="verification lost, points")
    return figure.update_yaxes(title="rank-1 under the judge")


def _sheets(run: Run) -> None:
    from PIL import Image

    pictures = []
    for cell in run.cells:
        file = cell.folder / "sheet.png"
        if file.is_file():
            with Image.open(file) as picture:
                words = f"{short(str(cell['loss']))}, {cell['attack']}, {cell['terms']} terms, "
                pictures.append(
                    (np.asarray(picture.convert("RGB")), f"{words}defence {cell['defence']}")
                )
    if pictures:
        run.report.images(pictures, "Targets, each beside what was generated")
