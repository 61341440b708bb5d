"""The page of the study margins, from its tables."""

import importlib

from page import Page, near, rows, table

from marginlab import study

HERE = study.load("margins")
tables = importlib.import_module(f"{HERE.module.__name__}.tables")
OMNIGLOT = (
    "softmax",
    "norm-softmax",
    "cosface",
    "arcface",
    "arcface-exact",
    "norm-softmax+intra",
    "norm-softmax+inter",
    "triplet",
)
LFW = ("softmax", "norm-softmax", "cosface", "arcface")
FARS = ("0.1", "0.01")


def values(of: list[dict[str, str]], **columns: object) -> list[float]:
    """The values of all seeds at the last epoch."""
    last = max(int(row["epoch"]) for row in of)
    return [float(row["value"]) for row in rows(of, epoch=last, **columns)]


def shown(found: list[float]) -> str:
    """A mean over seeds, with the half width of its interval."""
    mean, half = tables.over_seeds(found)
    return f"{near(mean)} +- {near(half)}"


def verified(page: Page, of: list[dict[str, str]], losses: tuple[str, ...]) -> None:
    """The table of verification, and what the losses differ by from arcface."""
    for loss in losses:
        own = {"loss": loss, "space": "projector"}
        cells = [shown(values(of, quantity="verification_accuracy", **own))]
        cells += [shown(values(of, quantity="tar_at_far", at=far, **own)) for far in FARS]
        accuracy = values(of, quantity="verification_accuracy", **own)
        base = values(of, quantity="verification_accuracy", loss="arcface", space="projector")
        differences = [a - b for a, b in zip(accuracy, base, strict=True)]
        against = "" if loss == "arcface" else shown(differences)
        page.says(f"| {loss} | {' | '.join(cells)} | {against} |".replace("|  |", "| |"))


def angles(page: Page, of: list[dict[str, str]], losses: tuple[str, ...]) -> list[dict]:
    """The table of angles, in degrees."""
    found = []
    for loss in losses:
        row: dict = {"loss": loss}
        for title, at in tables.ANGLES.items():
            some = values(of, quantity="class_angle", at=at, loss=loss, space="projector")
            row[title] = sum(some) / len(some) if some else float("nan")
        shown_ = [near(x, 1) if x == x else "" for x in list(row.values())[1:]]
        page.says(f"| {loss} | {' | '.join(shown_)} |".replace("|  ", "| "))
        found.append(row)
    return found


def margins() -> Page:
    page = Page("studies/margins/README.md")
    omniglot = table("studies/margins/measured/omniglot.csv")
    lfw = table("studies/margins/measured/lfw.csv")
    verified(page, omniglot, OMNIGLOT)
    ours = angles(page, omniglot, OMNIGLOT)
    published = tables.published_angles(HERE.home)
    for loss, row in published.items():
        cells = [f"{row[title]:.2f}" if title in row else "" for title in tables.ANGLES]
        page.says(f"| {loss}, published | {' | '.join(cells)} |".replace("|  ", "| "))
    for row in tables.orders(ours, published):
        here, there = (row[side] for side in ("here", "published"))
        page.says(f"| {row['angle']} | {here} | {there} | {row['agree']} of {row['of']} |")
    verified(page, lfw, LFW)
    angles(page, lfw, LFW)
    return page
