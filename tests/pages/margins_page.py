"""The page of the study margins, from its tables."""

import importlib

from page import Page, near, rows, table

from marginlab import study

HERE = study.load("margins")
tables = importlib.import_module(f"{HERE.module.__name__}.tables")
OMNIGLOT = (
    "norm-softmax",
    "arcface",
    "softmax",
    "cosface",
    "norm-softmax+intra",
    "norm-softmax+inter",
    "triplet",
    "arcface-exact",
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


def ends(of: list[dict[str, str]], column: str = "target_angle") -> list[float]:
    """The mean target angles of the losses after training."""
    losses = dict.fromkeys(row["loss"] for row in of)
    found = [values(of, quantity=column, loss=loss, space="") for loss in losses]
    return [sum(some) / len(some) for some in found if some]


def untrained(of: list[dict[str, str]]) -> str:
    """The accuracy of the networks before training, over the seeds."""
    found = rows(of, epoch=0, quantity="verification_accuracy", loss="arcface", space="projector")
    return shown([float(row["value"]) for row in found])


def margins() -> Page:
    page = Page("studies/margins/README.md")
    omniglot = table("studies/margins/measured/omniglot.csv")
    lfw = table("studies/margins/measured/lfw.csv")
    verified(page, omniglot, OMNIGLOT)
    ours = angles(page, omniglot, OMNIGLOT)
    least = min(row["W-EC"] for row in ours if row["W-EC"] == row["W-EC"])
    page.says(f"W-EC is above {int(least)} degrees")
    published = tables.published_angles(HERE.home)
    for loss, row in published.items():
        cells = [f"{row[title]:.2f}" if title in row else "" for title in tables.ANGLES]
        page.says(f"| {loss}, published | {' | '.join(cells)} |".replace("|  ", "| "))
    for row in tables.orders(ours, published):
        here, there = (row[side] for side in ("here", "published"))
        page.says(f"| {row['angle']} | {here} | {there} | {row['agree']} of {row['of']} |")
    page.says(f"An untrained network has an accuracy of {untrained(omniglot)} on characters")
    verified(page, lfw, LFW)
    angles(page, lfw, LFW)
    page.says(f"An untrained network has an accuracy of {untrained(lfw)} on people")
    angle = ends(omniglot) + ends(lfw)
    page.says(f"here they end between {min(angle):.0f} and {max(angle):.0f}")
    given(page)
    return page


def given(page: Page) -> None:
    """Settings and citations of the page."""
    page.given(
        "settings, in the heads of measured/*.csv and in the presets",
        "TAR at a FAR of 0.1 and of 0.01",
        "ArcFace(0.5) by its own derivative",
        "| 4, one seed |",
        "| 8, three seeds | 45 minutes",
        "the 6 other margins",
        "32 x 32 | 4, three seeds | 20 minutes",
        "View 2 at 64 x 64, ten trainings for each loss and seed | 4, three seeds |",
        "| 20, three seeds |",
        "| 8 and 3, three seeds |",
        "View 1",
        "LFW's View 1",
        "2 cores shared with other work, 1 thread",
        "a ResNet-18 of an eighth of its width, with an embedding of 64 dimensions",
        "| loss | accuracy | TAR at FAR 0.1 | TAR at FAR 0.01 |",
        "Intra1 and Inter1 of training images, Intra2 and Inter2 of classes",
        "| loss | W-EC | W-Inter | Intra1 | Inter1 | Intra2 | Inter2 |",
        "the largest mean at a FAR of 0.01; its differences at a FAR of 0.01 were not taken",
        "twice the steps",
        "do not hold 0",
        "does not hold 0",
        "holds 0",
        "964 characters, 6 drawings of each, 4 epochs at batch 64, s = 16, 28 x 28 pixels",
        "six epochs at batch 64, s = 16, 32 x 32 pixels",
        "Intra2 counts people with one image, whose angle to their own center is 0",
        "in 64 dimensions here and in 512 there",
        "Here are 3,000",
        "s = 64 is for tens of thousands of classes; at s = 16",
        "W-EC leans upwards and Intra1 downwards",
    )
    page.given(
        "counted: n of the rows of measured/lfw.csv.gz",
        "629 people",
        "4,288 images",
        "1,711 people",
    )
    page.given(
        "the paper, and tables of others",
        "CASIA-WebFace and a ResNet-50",
        "about 30 degrees",
        "A FAR of 1e-4 or 1e-6",
        "112 x 112",
    )
