import hypothesis.strategies as st
import networkx
import pytest
import torch
from hypothesis import given
from test_graphs import graphs, is_clique

from marginlab.measures.functional import colouring, greedy_clique, largest_clique, matching


def omega(graph):
    """Of the largest clique, by networkx."""
    loops = torch.eye(len(graph)).bool()
    return networkx.max_weight_clique(
        networkx.from_numpy_array((graph & ~loops).int().numpy()), weight=None
    )[1]


@given(graphs(most=25))
def test_a_search_that_ends_gives_the_largest_clique(graph):
    found = largest_clique(graph)
    assert found.exact
    assert found.lower == found.upper == int(found.vertices.sum()) == omega(graph)
    assert is_clique(graph, found.vertices)


@given(graphs(most=25), st.integers(0, 8))
def test_a_search_that_is_stopped_encloses_it(graph, nodes):
    found, truth = largest_clique(graph, nodes=nodes), omega(graph)
    assert is_clique(graph, found.vertices)
    assert int(greedy_clique(graph).sum()) <= found.lower == int(found.vertices.sum()) <= truth
    assert (
        truth
        <= found.upper
        <= min(int(colouring(graph).max()) + 1, len(graph) - int(matching(graph)))
    )
    assert found.exact == (found.lower == found.upper)


@given(graphs(most=20), st.integers(0, 2**20))
def test_edges_on_the_diagonal_do_not_matter_and_the_graph_is_left_alone(graph, seed):
    loops = graph ^ torch.eye(len(graph)).bool() & (
        torch.rand(len(graph), generator=torch.Generator().manual_seed(seed)) < 0.5
    )
    before = loops.clone()
    one, two = largest_clique(graph), largest_clique(loops)
    assert torch.equal(one.vertices, two.vertices)
    assert one[1:] == two[1:]
    assert int(matching(graph)) == int(matching(loops))
    assert torch.equal(before, loops)


def hard():
    weights = torch.rand(150, 150, generator=torch.Generator().manual_seed(0))
    return (weights + weights.T) / 2 < 0.66


def test_both_limits_stop_a_search_and_more_nodes_never_widen_the_bracket():
    graph = hard()
    brackets = [largest_clique(graph, nodes=nodes)[1:3] for nodes in (0, 10, 100, 1000, 5000)]
    lower, upper = zip(*brackets, strict=True)
    assert list(lower) == sorted(lower)
    assert list(upper) == sorted(upper, reverse=True)
    assert lower[0] < lower[-1] < upper[-1]
    again, timed = largest_clique(graph, nodes=1000), largest_clique(graph, seconds=0.0)
    assert again[1:3] == brackets[3]
    assert not again.exact
    assert timed[1:3] == brackets[0]


def test_a_planted_clique_is_found_and_proved():
    graph = torch.rand(120, 120, generator=torch.Generator().manual_seed(1)) < 0.15
    graph = graph | graph.T
    planted = torch.randperm(120, generator=torch.Generator().manual_seed(2))[:14]
    graph[planted[:, None], planted] = True
    found = largest_clique(graph)
    assert found.exact
    assert sorted(planted.tolist()) == found.vertices.nonzero()[:, 0].tolist()


def test_bad_limits_are_refused():
    graph = torch.ones(3, 3).bool()
    for arguments in ({"nodes": -1}, {"seconds": -1.0}):
        with pytest.raises(ValueError, match="limits of at least 0"):
            largest_clique(graph, **arguments)
    with pytest.raises(ValueError, match="not 0 vertices"):
        largest_clique(graph[:0, :0])
