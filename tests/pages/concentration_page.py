"""The page of the study of concentration, from its tables."""

import itertools
import math
import statistics

import scipy.stats
from page import Page, near, rows, table
from small_pages import RATES, learning_rate_errors

from marginlab.evaluation import associate

# columns of a table: space, quantity, at
Columns = tuple[str, str, str]
SIGMA = ("pixels", "one_minus_sigma", "")
CONTROL = ("pixels", "one_minus_sigma", "control")
SHARPENED = ("pixels", "one_minus_sigma", "sharpened")
IN_FEATURES = ("backbone", "area", "")
MOST_VIEWS = ("pixels", "one_minus_sigma_by_views", "256")
ERRORS = (
    ("backbone", "knn_error", ""),
    ("backbone", "nearest_center_error", ""),
    ("backbone", "linear_error", ""),
)
LADDER = ("abcde", "abcd", "abc", "ab", "a")


def minutes() -> int:
    """Return the minutes of the default preset in float32, from the committed seconds."""
    (row,) = rows(table("studies/concentration/measured/seconds.csv"), precision="float32")
    return round(float(row["seconds"]) / 60)


class Table:
    """A committed table: means over the seeds, of augmentations by their letters."""

    def __init__(self, preset: str):
        self.all = table(f"studies/concentration/measured/{preset}.csv")
        self.last = str(max(int(r["epoch"]) for r in self.all))

    def each(self, of: Columns, letters: str, epoch: str = "-1") -> list[float]:
        found = rows(self.of(of), letters=letters, epoch=epoch)
        return [float(r["value"]) for r in found]

    def of(self, of: Columns) -> list[dict[str, str]]:
        space, quantity, at = of
        return rows(self.all, space=space, quantity=quantity, at=at)

    def mean(self, name: Columns, letters: str, epoch: str = "-1") -> float:
        return statistics.fmean(self.each(name, letters, epoch))

    def error(self, name: Columns, letters: str) -> float:
        return round(self.mean(name, letters, self.last), 9)

    def letters(self) -> list[str]:
        return sorted({r["letters"] for r in self.all}, key=lambda x: self.mean(SIGMA, x))

    def untrained(self, name: Columns) -> str:
        found = [float(r["value"]) for r in rows(self.of(name), epoch="0")]
        return near(statistics.fmean(found))


def sigma_rows(page: Page, of: Table, *columns: Columns) -> None:
    found = []
    for letters in of.letters():
        pixels = [near(round(of.mean(name, letters), 9)) for name in columns]
        errors = [near(of.error(name, letters)) for name in ERRORS]
        area = [near(of.mean(IN_FEATURES, letters))] if MOST_VIEWS in columns else []
        found.append([letters, *pixels, *errors, *area])
    page.says_rows(*found)


def spearman(x: list[float], y: list[float]) -> float:
    return float(scipy.stats.spearmanr(x, y).statistic)


def p(x: float) -> str:
    return near(x, 3 if x < 0.1 else 2).removeprefix("0")


def correlations(of: Table) -> dict[Columns, list[tuple[float, float]]]:
    pairs = of.letters()
    found = {}
    for name in (SIGMA, CONTROL, SHARPENED, IN_FEATURES):
        x = {k: of.mean(name, k) for k in pairs}
        got = [associate(x, {k: of.error(error, k) for k in pairs}).spearman for error in ERRORS]
        found[name] = [(one.value, one.greater) for one in got]
    return found


def concentration() -> Page:
    page = Page("studies/concentration/README.md")
    cpu, default, small = (Table(name) for name in ("cifar10-cpu", "default", "cifar10-small"))
    sigma_rows(page, cpu, SIGMA, CONTROL, MOST_VIEWS)
    untrained = [cpu.untrained(name) for name in ERRORS]
    page.says(f"| untrained | | | | {' | '.join(untrained)} | |")
    titles = {
        SIGMA: "1 - sigma in pixels, delta = 0.5 delta_max",
        CONTROL: "the same of the null control",
        SHARPENED: "the same, sharpened (n = 16)",
        IN_FEATURES: "area under 1 - sigma in the trained features",
    }
    for name, found in correlations(cpu).items():
        shown = [f"{near(value, 2)} (p = {p(chance)})" for value, chance in found]
        page.says(f"| {titles[name]} | {' | '.join(shown)} |")
    pairs = cpu.letters()
    gaps = [cpu.mean(CONTROL, k) - cpu.mean(SIGMA, k) for k in pairs]
    assert min(gaps) > 0, "for all ten pairs"
    page.says(f"for all ten pairs, by {near(statistics.fmean(gaps))} of 1 - sigma on average")
    gaps = [
        cpu.mean(("backbone", *CONTROL[1:]), k) - cpu.mean(("backbone", *SIGMA[1:]), k)
        for k in pairs
    ]
    page.says(f"so it is in the features, by {near(statistics.fmean(gaps))} at half")
    assert min(cpu.each(("pixels", "smallest_d_A", "between"), "ad")) == 0
    page.says("under (a,d) it is 0:")
    best = ", ".join(learning_rate_errors("knn"))
    page.says(f"kNN error {best} at {', '.join(RATES)})")

    views = ("pixels", "one_minus_sigma_by_views", "64")
    sigma_rows(page, default, SIGMA, CONTROL, views)
    _untrained(page, default, "| | | |")
    for kind, letters, errors in (
        ("ladder", LADDER, ERRORS[:2]),
        ("pairs", ("ab", "ac", "ad", "ae"), ERRORS[:1]),
    ):
        sigma = [default.mean(SIGMA, k) for k in letters]
        found = [near(spearman(sigma, [default.error(e, k) for k in letters]), 1) for e in errors]
        words = f"Spearman {found[0]} (kNN) and {found[-1]} on the ladder"
        page.says(words if kind == "ladder" else f"{found[0]} on the four pairs")

    sigma_rows(page, small, SIGMA)
    _untrained(page, small, "| |")
    times = small.mean(SIGMA, "ac") / small.mean(SIGMA, "ad")
    page.says(f"{near(times, 1)} times its 1 - sigma")
    sigma = [small.mean(SIGMA, k) for k in small.letters()]
    found = [near(spearman(sigma, [small.error(e, k) for k in small.letters()]), 1) for e in ERRORS]
    page.says(f"Spearman's is {found[0]} for kNN and {found[1]} for the other two")
    assert found[1] == found[2], "the other two"
    orders = list(_orders(4))
    share = sum(order >= 0.8 - 1e-9 for order in orders) / len(orders)
    assert math.isclose(share, 1 / 6), "one of six random orders"
    page.says("would be 0.8 or more in one of six random orders")
    page.says(f"{minutes()} minutes on 2 older ones")
    page.given(
        "settings, in the heads of measured/*.csv and in the presets",
        "the curve up to 256 views",
        "it holds at every V >= 32 and after it",
        "at every V >= 32 and after sharpening",
        "tested by relabelling the five operations (120 ways)",
        "one-sided p over 120 relabellings",
        "`shapes`, rendered; 2,000 images | ladder, four pairs | 5 minutes on 2 cores with fast",
        "CIFAR-10, 5,000 images | four pairs | 11 to 15 minutes on 2 cores |",
        "CIFAR-10, 5,000 images, the whole test set | all ten pairs, 3 seeds | 78 minutes on 2",
        "MoCo and SimSiam, 3 seeds | a GPU",
        "1 - sigma over delta (n = 100, V = 32; dotted the null control)",
        "bars are ranges over 4 blocks and 3 seeds",
        "| pair | 1 - sigma | control | V = 256 (n = 50) |",
        "1 - sigma has not converged at 256 views",
        "the 95 % interval of the paired difference",
        "stored as JPEG of quality 90",
        "| 1 - sigma | control | V = 64 (n = 12) |",
        "Note that k = 200 is the number",
        "Means over 3 seeds",
        "One block of n = 100 images",
        "1 - sigma has not converged at 32 views",
        "5,000 training images (500 a class), errors on 5,000 test images",
    )
    page.given(
        "the smallest detectable differences, measured over ten runs: studies/README.md",
        "a difference below .02 to .03 of an error is none",
        "A difference below .08 of kNN error or .15 of linear error is none",
    )
    page.given("the symbol 1 - sigma, the share outside the clique", "1 - sigma")
    return page


def _untrained(page: Page, of: Table, empty: str) -> None:
    knn, linear = of.untrained(ERRORS[0]), of.untrained(ERRORS[2])
    nearest = [float(r["value"]) for r in rows(of.of(ERRORS[1]), epoch="0")]
    low, high = near(min(nearest)), near(max(nearest))
    page.says(f"| untrained {empty} {knn} | {low} to {high} | {linear} |")


def _orders(n: int) -> list[float]:
    return [spearman(list(range(n)), list(order)) for order in itertools.permutations(range(n))]
