"""The part of the page of bounds that is about images that training has not seen, over seeds."""

import math

from page import Page, near, rows, table, up
from scipy import stats

PRESETS = {
    "population": "shapes",
    "digits-seeds": "digits",
    "contrastive": "shapes-5, 16 pixels",
    "contrastive-digits": "digits",
}
KEYS = ("new_images", "image_wise", "prototypes", "population_T", "population")
SPELLED = {
    "MarginClassifier(margin='CosFace(0.5)', scale=4.0": "CosFace(0.5), s = 4",
    "MarginClassifier(margin='ArcFace(0.5)', scale=8.0": "ArcFace(0.5), s = 8",
    "SimCLR": "SimCLR",
}


class Unseen:
    """What a preset with three seeds certifies by images that training has not seen."""

    def __init__(self, preset: str):
        self.all = table(f"studies/bounds/measured/{preset}.csv")
        self.methods = list(dict.fromkeys(r["method"] for r in self.all))

    def seeds(
        self, method: str, quantity: str, at: str = "", space: str = "projector"
    ) -> list[float]:
        """A quantity for each seed."""
        found = rows(self.all, method=method, space=space, quantity=quantity, at=at)
        assert len(found) == 3, f"{len(found)} seeds of {quantity} {at}"
        return [float(r["value"]) for r in sorted(found, key=lambda r: int(r["seed"]))]

    def shown(self, method: str, quantity: str, at: str = "", space: str = "projector") -> str:
        """The mean over seeds, half its 95 % interval, and of what is certified the largest."""
        found = self.seeds(method, quantity, at, space)
        mean, half = interval(found)
        if quantity != "certified_unseen":
            return f"{near(mean, 4)} ± {near(half, 4)}"
        if min(found) >= 1:
            return "-"
        return f"{near(mean, 4)} ± {near(half, 4)}, at most {up(max(found), 4)}"

    def row(self, method: str, space: str = "projector") -> list[str]:
        return [
            self.shown(method, "error_unseen", space=space),
            *(self.shown(method, "certified_unseen", key, space) for key in KEYS),
            self.shown(method, "error_unseen", "prototypes", space),
        ]


def interval(values: list[float]) -> tuple[float, float]:
    """The mean, and half the 95 % interval over seeds."""
    mean = sum(values) / len(values)
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def spelled(method: str) -> str:
    (title,) = [title for start, title in SPELLED.items() if method.startswith(start)]
    return title


def unseen(page: Page) -> None:
    """Hold the table and the sentences on unseen images to the tables of three seeds."""
    of = {preset: Unseen(preset) for preset in PRESETS}
    lines = [
        [f"{data}, {spelled(method)}", *found.row(method)]
        for (preset, data), found in zip(PRESETS.items(), of.values(), strict=True)
        for method in found.methods
    ]
    page.says_rows(*lines)
    for preset in ("contrastive", "contrastive-digits"):
        (method,) = of[preset].methods
        page.says_rows([PRESETS[preset], *of[preset].row(method, "backbone")])
    for preset in of:
        for method in of[preset].methods:
            assert all(
                bound >= error
                for bound, error in zip(
                    of[preset].seeds(method, "certified_unseen", "image_wise"),
                    of[preset].seeds(method, "error_unseen"),
                    strict=True,
                )
            ), "the observed error is inside"


def difference(one: list[float], other: list[float]) -> str:
    """The mean of paired differences, and its 95 % interval."""
    mean, half = interval([a - b for a, b in zip(one, other, strict=True)])
    assert not math.isnan(half)
    return f"{near(mean, 4)} ({near(mean - half, 4)} to {near(mean + half, 4)})"


if __name__ == "__main__":  # the rows of the table, to be put into the page
    for preset, data in PRESETS.items():
        found = Unseen(preset)
        for method in found.methods:
            print("|", f"{data}, {spelled(method)}", "|", " | ".join(found.row(method)), "|")
            print("|", f"{data}", "| backbone", " | ".join(found.row(method, "backbone")), "|")
