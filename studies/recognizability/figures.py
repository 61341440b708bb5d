"""The report: a table for each question, the figure of the cluster, pictures, the published one."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from marginlab.study import Run, literal, of_cells

ALL = "all"
COLUMNS = {"spearman_resolution": "Spearman, rows", "spearman_within": "Spearman, within"}


def write(run: Run) -> None:
    """Write all sections of the report."""
    chosen = run.settings
    run.report.title = f"Recognizability: {literal(chosen.recipe.data)}"
    run.report.lead = (
        f"{literal(chosen.recipe.method)}, {chosen.recipe.epochs} epochs on full images, then "
        f"{chosen.tuning_epochs} at {chosen.low[0]} to {chosen.low[1]} rows of pixels. Judged: "
        f"identities of the split {literal(chosen.protocol.split)}. Means over "
        f"{len(chosen.seeds)} seed(s), 95 % intervals over identities."
    )
    _cluster(run)
    _recognition(run)
    _quality(run)
    _attention(run)
    _pictures(run)
    with (run.home / "published.csv").open(encoding="utf-8") as file:
        published = list(csv.DictReader(file))
    run.report.text(
        "## Published\n\nThe figure is of another data set: faces that a camera saw small, with "
        "153,428 distractors in the gallery, and a network trained on millions of faces. Images "
        "here are made small by an average of pixels, and the gallery has no distractors. So the "
        "numbers cannot be compared."
    )
    run.report.table(published, "What others have measured.")


def interval(row: Any) -> str:
    """Write a value with its interval."""
    if np.isnan(row["low"]):
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _of(run: Run, **columns: Any) -> str:
    found = run.select(seed=ALL, **columns)
    return interval(found[0]) if found else "–"


def _variants(run: Run) -> list[str]:
    return [v for v in run.settings.variants if run.select(seed=ALL, variant=v)]


def _cluster(run: Run) -> None:
    rows = run.settings.protocol.rows
    figure = go.Figure()
    for space, title in (("trained", "trained network"), ("untrained", "untrained network")):
        found = [run.select(seed=ALL, quantity="resultant", space=space, at=str(r)) for r in rows]
        shown = [(r, one[0]) for r, one in zip(rows, found, strict=True) if one]
        figure.add_scatter(
            x=[r for r, _ in shown],
            y=[one["value"] for _, one in shown],
            error_y={
                "array": [one["high"] - one["value"] for _, one in shown],
                "arrayminus": [one["value"] - one["low"] for _, one in shown],
            },
            name=title,
            **of_cells(seed=ALL),
        )
    figure.update_xaxes(title="rows of pixels", type="log").update_yaxes(title="resultant")
    run.report.text("## Does a cluster of unrecognizable images emerge?")
    run.report.figure(figure, "Length of the mean of unit embeddings of all judged identities.")
    table = [
        {
            "rows": r,
            "resultant": _of(run, quantity="resultant", space="trained", at=str(r)),
            "untrained": _of(run, quantity="resultant", space="untrained", at=str(r)),
            "index": _of(run, quantity="index", at=str(r)),
        }
        for r in rows
    ]
    run.report.table(table, "The same in numbers, and the mean index of the trained classes.")
    bank = ("bank_cosine", "bank_share", "bank_ratio", "bank_accepted", "centers_cosine")
    run.report.table(
        [{name: _of(run, quantity=name) for name in (*bank, "index_spearman")}],
        "The bank by clustering: its cosine with ruined images (at least 0.9), its share of full "
        "images (at most 0.5), its size over that of the next cluster, the part of seeds on which "
        "it is accepted, and its cosine with the center of ruined images.",
    )


def _recognition(run: Run) -> None:
    table = []
    for v in _variants(run):
        per_rows = {
            f"{r} rows": _of(run, variant=v, quantity="rank1", at=str(r))
            for r in run.settings.protocol.probed
        }
        table.append(
            {
                "variant": v,
                "rank-1": _of(run, variant=v, quantity="rank1", at=""),
                "gain": _of(run, variant=v, quantity="rank1_gain", at=""),
                "TPIR": _of(run, variant=v, quantity="tpir"),
                **per_rows,
                **{
                    f"cosine, {name}": _of(run, variant=v, quantity="center_cosine", space=name)
                    for name in ("before", "after", "own")
                },
            }
        )
    run.report.text("## What do the terms of the loss change?")
    run.report.table(
        table,
        "Rank-1 of probes in a gallery at full resolution; its paired gain over the classification "
        "loss alone; TPIR at rank 20 and an FPIR of 0.1; mean cosine of probes with the center of "
        "unrecognizable images: of the first network, of this network with that center, and with "
        "its own center.",
    )


def _quality(run: Run) -> None:
    run.report.text("## How good are the scores of quality?")
    for v in _variants(run):
        scores = [
            row["space"] for row in run.select(seed=ALL, variant=v, quantity="spearman_within")
        ]
        areas = list(
            dict.fromkeys(
                row["at"] for row in run.select(seed=ALL, variant=v, quantity="discard_area")
            )
        )
        table = []
        for score in scores:
            row = {"score": score}
            for quantity, title in COLUMNS.items():
                row[title] = _of(run, variant=v, quantity=quantity, space=score)
            for at in areas:
                row[f"area {at}"] = _of(run, variant=v, quantity="discard_area", space=score, at=at)
                row[f"index less it, {at}"] = _of(
                    run, variant=v, quantity="discard_gain", space=score, at=at
                )
            table.append(row)
        run.report.table(
            table,
            f"{literal(v)}: Spearman's correlation with the rows of pixels, and with the genuine "
            "cosine among probes of as many rows; relative area under error versus discard from "
            "an initial FNMR to a share of discarded pairs. `gallery` is the highest cosine with "
            "the gallery, `rows` the true number of rows.",
        )


def _attention(run: Run) -> None:
    table = [
        {
            "variant": v,
            "quantity": row["quantity"],
            "map": row["space"],
            "rows": row["at"],
            "value": interval(row),
        }
        for v in _variants(run)
        for row in run.select(seed=ALL, variant=v)
        if row["quantity"].split("_")[0] in ("attention", "deletion", "insertion")
    ]
    if table:
        run.report.text("## Does attention look at what can be recognised?")
        run.report.table(
            table,
            "Share of the heat map on the visible half of half-covered images (0.5 is a uniform "
            "map); mean genuine cosine while pixels of most heat are deleted (less is better) and "
            "inserted (more is better), by the trained map, an untrained and a random one. Gains "
            "are the trained map's less the other's.",
        )


def _pictures(run: Run) -> None:
    from PIL import Image

    shown = []
    for folder in sorted((run.folder / "once").glob("judged-*")):
        for name in ("sheet.png", "maps.png"):
            if (folder / name).is_file():
                with Image.open(folder / name) as file:
                    shown.append((np.asarray(file.convert("RGB")), f"{_said(folder)}, {name}"))
    run.report.images(shown, "Probes in the order of the predicted index, and heat maps")


def _said(folder: Path) -> str:
    """Name the variant and the training that a judgement is of."""
    told = json.loads((folder / "told.json").read_text())
    return f"{told['variant']}, seed {told['seed']}"
