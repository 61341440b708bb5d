"""Hostile values in the suite: 2,000 of each kind. `fuzz_values.py --cases 20000` does more."""

import pytest
from fuzz_values import CASES, MEASURES, fuzz

from marginlab import measures
from marginlab.measures.measure import Measure


@pytest.mark.parametrize("kind", list(CASES))
def test_hostile_values_give_a_value_or_a_clear_error(kind, unchecked):
    assert list(fuzz(kind, 2000)) == []


def test_every_measure_is_among_them():
    public = (getattr(measures, name) for name in measures.__all__)
    every = {m.__name__ for m in public if isinstance(m, type) and issubclass(m, Measure)}
    assert every == set(MEASURES)
