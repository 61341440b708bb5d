import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from marginlab.kernels import walk

sizes = st.integers(0, 40)


@given(
    sizes,
    sizes,
    st.integers(1, 900),
    st.integers(1, 8),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_blocks_cover_every_entry_once_within_the_budget(rows, columns, budget, entry, unit):
    seen = torch.zeros(rows, columns)
    for r, c in walk(rows, columns, entry=entry, budget=budget, unit=unit):
        seen[r, c] += 1
        height, width = r.stop - r.start, c.stop - c.start
        assert height * width * entry <= max(budget, unit[0] * unit[1] * entry)
        assert r.start % unit[0] == 0
        assert c.start % unit[1] == 0
    assert bool((seen == 1).all())


@given(sizes, st.integers(1, 900), st.integers(1, 4))
def test_the_upper_walk_sees_each_unordered_pair_once(n, budget, unit):
    seen = torch.zeros(n, n)
    for r, c in walk(n, n, budget=budget, unit=(unit, unit), upper=True):
        seen[r, c] += 1
    assert bool((seen <= 1).all())
    assert bool((torch.maximum(seen, seen.T) == 1).all())


def test_bad_walks_are_refused():
    with pytest.raises(ValueError, match="positive byte budget, not 0"):
        list(walk(2, 2, budget=0))
    with pytest.raises(ValueError, match="not one of 2 x 3"):
        list(walk(2, 3, upper=True))
