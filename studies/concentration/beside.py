"""Our numbers beside those of the paper, and every setting in which the two differ."""

import csv
import math
from pathlib import Path

from marginlab.study import Run, literal

NAMED = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def published(home: Path) -> list[dict[str, str]]:
    """The paper's tables."""
    with (home / "published.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(run: Run) -> None:
    """Write the section of the report."""
    chosen = run.settings
    data = chosen.recipe.data if chosen.recipe.data in NAMED else "cifar10"
    of = {row["method"] for row in published(run.home)}
    table = []
    for method in chosen.methods:
        name = method.split("(")[0]
        for row in published(run.home) if name in of else []:
            grid = "ladder" if row["table"] == "Table 1" else "strength"
            columns = {
                "grid": grid,
                "letters": row["letters"],
                "strength": float(row["strength"]),
                "method": method,
            }
            ours = 100 * (1 - run.last("knn_error", space="backbone", **columns))
            there = not math.isnan(ours) or grid not in chosen.grids
            if row["data"] == data and row["method"] == name and there:
                theirs = {
                    f"published, {NAMED[data]}": float(row["knn_accuracy"]),
                    "their std": float(row["std"]),
                    "from": row["table"],
                }
                table.append({**columns, f"ours, {chosen.recipe.data}": ours, **theirs})
    if not table:
        return
    run.report.text(f"## Beside the published tables\n\n{_differences(run, data)}")
    same = len({entry["method"] for entry in table}) == 1
    shown_ = [
        {name: value for name, value in entry.items() if name != "method" or not same}
        for entry in table
    ]
    caption = (
        "kNN accuracy in per cent, ours and published (Huang et al., ICLR 2023, Tables 1 and 2); a "
        "dash where this run has no such cell."
    )
    run.report.table(
        shown_, f"{caption} The paper prints no numbers for its Figure 3, the ten pairs."
    )


def _differences(run: Run, data: str) -> str:
    """Every setting in which this run is not the paper's."""
    c, recipe, bank = run.settings, run.settings.recipe, run.settings.monitor.bank
    theirs = {
        "data": (NAMED[data], NAMED.get(recipe.data, recipe.data)),
        "training images": ("50,000", f"{recipe.images:,}" if recipe.images else "all"),
        "backbone": (
            "ResNet-18, cifar stem (3x3, stride 1, no pooling), 512 features",
            recipe.backbone,
        ),
        "epochs": ("800 (200 for the pairs)", str(recipe.epochs)),
        "batch": ("512", str(recipe.batch)),
        "optimizer": (
            "SGD with cosine, lr 0.06 (SimCLR) or 0.11 (Barlow Twins)",
            f"{', '.join(c.optimizers)} with warm-up and cosine",
        ),
        "method": (
            "SimCLR(temperature=0.5), BarlowTwins(off_diagonal_weight=0.005)",
            ", ".join(c.methods),
        ),
        "seeds": ("0, 1, 2", ", ".join(map(str, c.seeds))),
        "accuracy of": ("the best epoch on the test set", "the last epoch"),
        "precision": ("float32", recipe.precision),
        "kNN": (
            "k = 200, T = 0.1, all training images",
            f"k = 200, T = 0.1, {f'{bank:,}' if bank else 'all'} images trained on",
        ),
        "1 - sigma": (
            "method, views, images and delta not published",
            f"n = {c.per_class}, V = {c.views}, delta = {c.delta:g} delta_max",
        ),
    }
    lines = [
        f"- {name}: {literal(paper)} there, {literal(ours)} here"
        for name, (paper, ours) in theirs.items()
        if paper != ours
    ]
    return "Compare orders, not levels. The settings that differ:\n\n" + "\n".join(lines)
