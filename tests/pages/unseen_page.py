"""The part of the page of bounds that is about images that training has not seen, over seeds."""

from page import Page, down, near, rows, table, up
from scipy import stats

PRESET = "population"
KEYS = ("new_images", "image_wise", "prototypes", "population_T", "population")


class Unseen:
    """The certificates of a preset with three seeds, by images that training has not seen."""

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


def difference(one: list[float], other: list[float]) -> str:
    """The mean of paired differences, and its 95 % interval."""
    mean, half = interval([a - b for a, b in zip(one, other, strict=True)])
    return f"{near(mean, 4)} ({near(mean - half, 4)} to {near(mean + half, 4)})"


def unseen(page: Page) -> None:
    """Hold the table and the sentences on unseen images to the table of three seeds."""
    of = Unseen(PRESET)
    (method,) = of.methods
    page.says_rows(
        ["embeddings", *of.row(method)], ["backbone features", *of.row(method, "backbone")]
    )
    fixed, each, points, _, population = (of.seeds(method, "certified_unseen", key) for key in KEYS)
    errors = of.seeds(method, "error_unseen")
    assert all(bound >= error for bound, error in zip(each, errors, strict=True))
    page.says(f"the population errs at most {up(max(population), 4)}")
    less = difference(fixed, each)
    page.says(f"fixed reaches less image by image {less}, so no difference is shown")
    page.says(f"image by image less prototypes {difference(each, points)}")
    assert of.seeds(method, "term_unseen", "prototypes_prototypes") == [1.0] * 3
    assert min(of.seeds(method, "certified_unseen", "population_T")) == 1
    radius = of.seeds(method, "term_unseen", "population_rho")
    outside = of.seeds(method, "term_unseen", "population_outside")
    page.says(f"D of {near(min(radius), 2)} to {near(max(radius), 2)}")
    page.says(f"{down(100 * min(outside), 1)} to {up(100 * max(outside), 1)} % of new images")
    page.given(
        "settings of the preset, the confidence, and the distance of ten even centers",
        "CosFace(0.5) at s = 4, 2,000 training images, 16 epochs",
        "is certified by 16,000 images",
        "half of its 95 % interval, and",
        "with confidence 0.95 for each seed",
        "less than 1.5 apart",
        "mean and 95 % interval: fixed",
    )
