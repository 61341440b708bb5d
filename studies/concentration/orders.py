"""Orders of augmentations by paired differences, over blocks of images or over training seeds."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .estimates import interval

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be said"
LEAST_VIEWS = 32  # from which number of views an order must hold


def below(one: Sequence[float], other: Sequence[float]) -> bool | None:
    """Compare paired values: True if `one` is below `other`, False if above, None if uncertain."""
    difference = [a - b for a, b in zip(one, other, strict=True)]
    low, high = interval(difference)
    return True if high < 0 else False if low > 0 else None


def smallest(values: Mapping[str, Sequence[float]], name: str) -> tuple[str, str]:
    """Judge whether `name` has the smallest of all values, and give the words for it."""
    others = {other: below(values[name], values[other]) for other in values if other != name}
    means = sorted((float(np.mean(v)), k) for k, v in values.items())
    ranked = f"smallest are {', '.join(f'{k} {mean:.3f}' for mean, k in means[:3])}"
    if all(found is True for found in others.values()):
        return HOLDS, ranked
    above = [other for other, found in others.items() if found is False]
    return (FAILS, f"{', '.join(above)} below it; {ranked}") if above else (OPEN, ranked)


def increasing(values: Mapping[str, Sequence[float]], order: Sequence[str]) -> tuple[str, str]:
    """Judge whether values rise along `order`, and give the words for it."""
    found = [below(values[a], values[b]) for a, b in itertools.pairwise(order)]
    shown = ", ".join(f"{name} {float(np.mean(values[name])):.3f}" for name in order)
    if all(found):
        return HOLDS, shown
    return (FAILS if False in found else OPEN), shown


class Orders(NamedTuple):
    """Orders of pairs of augmentations by 1 - sigma: at every V >= 32 and sharpened, or at one V.

    An order holds at every V >= 32 and after sharpening, or only at the V of the blocks.
    """

    stable: list[str]
    local: list[str]
    undecided: list[str]

    def claims(self, one: str, other: str) -> bool:
        """Return whether `one` < `other` may be said without naming V."""
        return f"{one} < {other}" in self.stable


def orders(pixels: Mapping[str, Mapping[str, Any]]) -> Orders:
    """Return the orders of all pairs of augmentations, from the results of `concentrate`."""
    stable, local, undecided = [], [], []
    for one, other in itertools.permutations(pixels, 2):
        found = below(by_block(pixels[one]), by_block(pixels[other]))
        if found is None and one < other:
            undecided.append(f"{one}, {other}")
        if found:
            agrees = all(
                a < b for a, b in zip(_in_depth(pixels[one]), _in_depth(pixels[other]), strict=True)
            )
            (stable if agrees else local).append(f"{one} < {other}")
    return Orders(stable, local, undecided)


def by_block(found: Mapping[str, Any]) -> list[float]:
    """1 - sigma of each block of images."""
    rows = found["rows"]
    numbers = rows.get("one_minus_sigma_by_block") or {"": rows["one_minus_sigma"][""]}
    return [value for value, *_ in numbers.values()]


def _in_depth(found: Mapping[str, Any]) -> list[float]:
    """1 - sigma at every V >= 32, and after sharpening."""
    deep = found["deep"]
    by_level = [
        high
        for level, (_, high) in zip(deep["levels"], deep["within"], strict=True)
        if level >= LEAST_VIEWS
    ]
    return by_level + ([deep["sharpened"]["within"][1]] if "sharpened" in deep else [])
