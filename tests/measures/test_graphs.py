import itertools

import hypothesis.strategies as st
import networkx
import torch
from hypothesis import given

from marginlab.measures.functional import bounds, colouring, greedy_clique, matching


def largest_clique(graph):
    """By looking at every set of vertices."""
    n = len(graph)
    neighbours = [sum(1 << j for j in range(n) if j != i and graph[i, j]) for i in range(n)]
    cliques, best = [(0, (1 << n) - 1)], 0
    while cliques:
        size, candidates = cliques.pop()
        best = max(best, size)
        while candidates:
            i = candidates.bit_length() - 1
            candidates &= ~(1 << i)  # cliques whose highest vertex is i
            cliques.append((size + 1, candidates & neighbours[i]))
    return best


@st.composite
def graphs(draw, most=12):
    n, share, seed = draw(st.integers(1, most)), draw(st.floats(0, 1)), draw(st.integers(0, 2**20))
    weights = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))
    return (weights + weights.T) / 2 < share


def is_clique(graph, kept):
    return all(graph[i, j] for i, j in itertools.combinations(kept.nonzero()[:, 0].tolist(), 2))


@given(graphs())
def test_greedy_clique_is_at_most_the_largest_which_is_at_most_the_colours(graph):
    kept, colours = greedy_clique(graph), colouring(graph)
    assert is_clique(graph, kept)
    proper = graph.clone().fill_diagonal_(False)
    assert not bool((proper & (colours[:, None] == colours)).any())
    assert sorted(set(colours.tolist())) == list(range(int(colours.max()) + 1))
    assert 1 <= int(kept.sum()) <= largest_clique(graph) <= int(colours.max()) + 1


def test_the_search_that_judges_is_right_itself():
    assert largest_clique(torch.ones(5, 5).bool()) == 5
    assert largest_clique(torch.eye(5).bool()) == 1
    cycle = torch.eye(5).roll(1, 0).bool()
    assert largest_clique(cycle | cycle.T) == 2


@given(st.integers(1, 9), st.integers(0, 2**20))
def test_many_graphs_at_once_are_answered_as_one_by_one(n, seed):
    weights = torch.rand(2, 3, n, n, generator=torch.Generator().manual_seed(seed))
    many = (weights + weights.mT) / 2 < 0.6
    for function in (greedy_clique, colouring, matching):
        assert torch.equal(
            function(many),
            torch.stack([torch.stack([function(graph) for graph in row]) for row in many]),
        )


@given(graphs())
def test_the_larger_of_matching_and_colouring_is_at_most_the_truth_which_is_at_most_greedy(graph):
    n, exact = len(graph), 1 - largest_clique(graph) / len(graph)
    from_above = max(int(matching(graph)) / n, 1 - (int(colouring(graph).max()) + 1) / n)
    assert from_above <= exact + 1e-12
    assert exact <= 1 - int(greedy_clique(graph).sum()) / n + 1e-12


@given(graphs(most=20))
def test_a_matching_is_maximal_and_no_larger_than_the_largest(graph):
    missing = ~graph & ~torch.eye(len(graph)).bool()
    largest = len(
        networkx.max_weight_matching(
            networkx.from_numpy_array(missing.int().numpy()), maxcardinality=True
        )
    )
    assert largest / 2 <= int(matching(graph)) <= largest


def test_extremes():
    full, empty = torch.ones(6, 6).bool(), torch.zeros(6, 6).bool()
    assert int(greedy_clique(full).sum()) == 6
    assert int(greedy_clique(empty).sum()) == 1
    assert colouring(full).tolist() == list(range(6))
    assert colouring(empty).tolist() == [0] * 6
    assert [int(matching(graph)) for graph in (full, empty, empty[:5, :5], empty[:1, :1])] == [
        0,
        3,
        2,
        0,
    ]
    halves = torch.block_diag(torch.ones(3, 3), torch.ones(4, 4)).bool()
    assert int(greedy_clique(halves).sum()) == 4
    assert int(colouring(halves).max()) == 3


@given(st.integers(1, 12), st.integers(0, 2**20))
def test_bounds_enclose_the_truth_do_not_depend_on_the_order_or_the_budget(n, seed):
    generator = torch.Generator().manual_seed(seed)
    distance = torch.rand(1, n, n, generator=generator).double()
    distance = (distance + distance.mT).masked_fill(torch.eye(n).bool(), 0)
    deltas = torch.tensor([0.0, 0.7, 1.0, 1.3, 2.0]).double()
    lower, upper = bounds(distance, deltas)
    for delta, low, high in zip(deltas, lower[0], upper[0], strict=True):
        assert float(low) <= largest_clique(distance[0] <= delta) / n + 1e-12
        assert float(high) >= largest_clique(distance[0] <= delta) / n - 1e-12
    order = torch.randperm(n, generator=generator)
    for other in (
        bounds(distance[:, order][..., order], deltas),
        bounds(distance, deltas, budget=1),
    ):
        assert torch.equal(lower, other[0])
        assert torch.equal(upper, other[1])
