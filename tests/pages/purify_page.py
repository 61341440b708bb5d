"""The page of the study of wrong labels, from its tables: means over seeds and their intervals."""

import math
import statistics

import scipy.stats
from page import near, rows, table

SEEDS = ("0", "1", "2")
# of the first table: title, then the columns of its cells
TRAININGS = {
    "as planted, K = 1": {"noise": "uniform", "stage": "planted", "subcenters": "1"},
    "as planted, K = 3": {"noise": "uniform", "stage": "planted", "subcenters": "3"},
    "purified by K = 3 at 75 degrees": {"stage": "fixed", "subcenters": "3"},
    "purified by K = 3 at the angle from the data": {"stage": "mixture", "subcenters": "3"},
    "purified by K = 1 at the angle from the data": {"stage": "mixture", "subcenters": "1"},
    "right labels only": {"stage": "right"},
    "no noise": {"noise": "none"},
}
# of the second: title, sub-centers, space, at
SCORES = {
    "K = 3, 75 degrees": ("3", "angle", "fixed"),
    "K = 3, angle from the data": ("3", "angle", "mixture"),
    "K = 1, 75 degrees": ("1", "angle", "fixed"),
    "K = 1, angle from the data": ("1", "angle", "mixture"),
    "K = 1, small loss, mixture": ("1", "loss", "mixture"),
    "K = 1, small loss, the known share": ("1", "loss", "known share"),
    "K = 1, distance to the class mean, mixture": ("1", "mean", "mixture"),
    "K = 1, confident learning": ("1", "confidence", ""),
}
SHARES = ("dominant_clean", "dominant_noisy", "other_clean", "other_noisy")


def spread(values: list[float], digits: int = 3) -> str:
    """Write a mean over seeds and the half width of its 95 % interval (Student's t)."""
    n = len(values)
    half = float(scipy.stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return f"{near(statistics.fmean(values), digits)} +- {near(half, digits)}"


class Kept:
    """A committed table, a value for each seed."""

    def __init__(self, preset: str):
        self.all = table(f"studies/purify/measured/{preset}.csv")

    def values(self, quantity: str, space: str, at: str = "", **columns: str) -> list[float]:
        found = rows(self.all, quantity=quantity, space=space, at=at, **columns)
        by_seed = {r["seed"]: float(r["value"]) for r in found}
        assert len(found) == len(by_seed), f"one row a seed of {quantity}, {columns}"
        return [by_seed[seed] for seed in SEEDS if seed in by_seed]

    def shown(self, quantity: str, space: str, at: str = "", digits: int = 3, **columns) -> str:
        found = self.values(quantity, space, at, **columns)
        return spread(found, digits) if len(found) == len(SEEDS) else "-"


def gaps(of: Kept, clean: str, purified: str) -> list[float]:
    """The shares of the gap in accuracy between noisy and clean training that are closed."""
    accuracy = {
        name: of.values("verification_accuracy", "projector", **TRAININGS[name])
        for name in ("as planted, K = 1", purified, clean)
    }
    noisy, found, best = accuracy.values()
    return [(f - n) / (b - n) for n, f, b in zip(noisy, found, best, strict=True)]


def trainings(of: Kept) -> list[list[str]]:
    out = []
    for title, columns in TRAININGS.items():
        verified = [
            of.shown(quantity, "projector", at, **columns)
            for quantity, at in (
                ("verification_accuracy", ""), ("tar_at_far", "0.01"), ("tar_at_far", "0.001")
            )
        ]  # fmt: skip
        left = [of.shown(name, "images", **columns) for name in ("kept", "kept_wrong")]
        out.append([title, *verified, *left])
    return out


def scores(of: Kept) -> list[list[str]]:
    out = []
    for title, (K, space, at) in SCORES.items():
        columns = {"noise": "uniform", "stage": "planted", "subcenters": K}
        digits = {"threshold": 1, "precision": 3, "recall": 3, "auc": 3}
        found = [of.shown(name, space, at, n, **columns) for name, n in digits.items()]
        out.append([title, *found])
    return out


def shares(of: Kept) -> list[list[str]]:
    out = []
    for K in ("1", "3"):
        columns = {"noise": "uniform", "stage": "planted", "subcenters": K}
        found = [of.shown(name, "figure 7", **columns) for name in SHARES]
        out.append([f"K = {K}", *found, of.shown("dead_subcenters", "votes", **columns)])
    return out
