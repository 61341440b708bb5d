"""A set like Omniglot for small studies: characters of random strokes.

A character is a few strokes of random pixels, 16 x 16. Each of its 20 drawings loses some of them.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def draw_characters(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    evaluation: int,
    alphabet: Callable[[str, int], str] = lambda part, number: part,
) -> Path:
    """Write the set to a folder, and make it the working folder and that of the published sets.

    There are 12 characters in the part "background", and `evaluation` ones in "evaluation". The
    alphabet of a character is that of its part and number.
    """
    random = np.random.default_rng(0)
    fields = {}
    for part, n in (("background", 12), ("evaluation", evaluation)):
        ink = np.kron(random.random((n, 1, 4, 4)) < 0.4, np.ones((1, 1, 4, 4)))
        drawn = ink * (random.random((n, 20, 16, 16)) < 0.8)
        fields[f"{part}_images"] = (255 * (1 - drawn)).astype(np.uint8).reshape(-1, 16, 16)
        fields[f"{part}_labels"] = np.repeat(np.arange(n), 20)
        names = [f"{alphabet(part, number)}/{number}" for number in range(n)]
        fields[f"{part}_classes"] = np.array(names)
    np.savez(folder / "omniglot.npz", **fields)
    monkeypatch.setenv("MARGINLAB_DATA", str(folder))
    monkeypatch.chdir(folder)
    return folder
