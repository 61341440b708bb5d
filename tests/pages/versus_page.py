"""The page of the study versus, from the table of the preset `two-hours`."""

import itertools

import numpy as np
from page import Page, near, rows, table

from marginlab import study
from marginlab.statistics.intervals import student_interval

HERE = study.load("versus")
TABLE = "studies/versus/measured/two-hours.csv.gz"
SEEDS = ("0", "1", "2")
ERRORS = ("kNN", "linear")


def chosen():
    return HERE.settings("two-hours")


def by_seed(of, quantity: str, at: str, space: str, **columns: str) -> list[float]:
    """A quantity that is measured once, of each seed."""
    found = rows(of, quantity=quantity, at=at, space=space, epoch=-1, **columns)
    values = {row["seed"]: float(row["value"]) for row in found}
    return [values[seed] for seed in SEEDS]


def spread(values: list[float]) -> str:
    """A mean and the half width of its 95 % Student interval over seeds."""
    low, high = student_interval(values)
    return f"{near(float(np.mean(values)))} +- {near((high - low) / 2)}"


def base(of) -> list[list[str]]:
    """Rows of the base cell: method, errors, and how many labels it saw."""
    made = []
    for method, name in HERE.module.pages.names(chosen().methods).items():
        at = {"factor": "base", "method": method}
        errors = [spread(by_seed(of, "error", error, "backbone", **at)) for error in ERRORS]
        seen = int(by_seed(of, "labels_seen", "", "", **at)[0])
        made.append([name, HERE.module.family(method), str(seen), *errors])
    return made


def contrasts(of) -> list[list[str]]:
    """Rows of the differences of the two families, by level, for both errors."""
    made = []
    for factor, level in HERE.module.levels(chosen()):
        cells = []
        for error in ERRORS:
            by_family = [
                np.mean(
                    [
                        by_seed(
                            of, "error", error, "backbone", factor=factor, level=level, method=m
                        )
                        for m in chosen().methods
                        if HERE.module.family(m) == family
                    ],
                    axis=0,
                )
                for family in ("contrastive", "margin")
            ]
            cells.append(spread(list(by_family[0] - by_family[1])))
        made.append([f"{factor}: `{level}`" if factor != "base" else "base", *cells])
    return made


def moved() -> list[dict[str, str]]:
    """Columns of the base cell, then of each other augmentation."""
    levels = [("base", "base"), *(("augmentations", level) for level in chosen().augmentations)]
    return [{"factor": factor, "level": level} for factor, level in levels]


def prediction(of, family: str, name: str, space: str):
    """A predictor against the kNN error over the augmentations, for the methods of a family."""
    methods = [m for m in chosen().methods if HERE.module.family(m) == family]
    x, control, y = (
        np.array(
            [[by_seed(of, quantity, at, in_, method=m, **w) for w in moved()] for m in methods]
        )
        for quantity, at, in_ in (
            ("predictor", name, space),
            ("predictor_control", name, space),
            ("error", "kNN", "backbone"),
        )
    )
    return HERE.module.pages.prediction(x, control, y)


def predictions(of) -> list[list[str]]:
    """Rows of what predicts the kNN error over the augmentations, by family."""
    found = rows(of, quantity="predictor", **moved()[0])
    named = list(dict.fromkeys((row["space"], row["at"]) for row in found))
    made = []
    for family, (space, name) in itertools.product(("contrastive", "margin"), named):
        one = prediction(of, family, name, space)
        seen = not np.isnan(one.control)
        null = [near(one.control, 2), near(one.excess, 2), near(one.excess_low, 2)]
        interval = f"{near(one.low, 2)} to {near(one.high, 2)}"
        shown = [family, f"{name}, {space}", near(one.r, 2), interval, near(one.p, 2)]
        made.append([*shown, *(null if seen else [""] * 3)])
    return made


def versus() -> Page:
    page = Page("studies/versus/README.md")
    of = table(TABLE)
    page.says_rows(*base(of))
    page.says_rows(*contrasts(of))
    page.says_rows(*predictions(of))
    page.given("a formula", "and 1 - sigma in pixels")
    page.given(
        "settings, in the head of the table and in the presets",
        "400 images, 6 epochs at batch 50",
        "Two processes shared the 324 cells",
        "of 400 images they are four",
        "100 test images in 6 views",
        "95 % Student intervals over three seeds",
        "5! = 120 relabellings",
        "no p below 1/120",
    )
    return page
