import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given

from marginlab.measures import AugmentationGraph
from marginlab.measures.graphs import augmentation_graph as module
from marginlab.measures.graphs.partitions import bisected


@st.composite
def graphs(draw, most=9, blocks=st.integers(1, 3)):
    """Draws over views of which each image has a few; images of different blocks share none, or
    hardly any.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    N, X, groups = draw(st.integers(2, 8)), draw(st.integers(3, most)), draw(blocks)
    leak = draw(st.sampled_from([0.0, 0.01, 1.0]))
    near = torch.where(torch.arange(N)[:, None] % groups == torch.arange(X) % groups, 1.0, leak)
    draws = torch.rand(N, X, generator=generator, dtype=torch.float64) * near
    draws = draws[draws.sum(1) > 0]
    draws = draws[:, draws.sum(0) > 0]
    weights = (
        torch.rand(len(draws), generator=generator, dtype=torch.float64) + 0.05
        if draw(st.booleans())
        else None
    )
    labels = torch.randint(0, 3, (len(draws),), generator=generator)
    return AugmentationGraph(
        draws / draws.sum(1, keepdim=True), None if weights is None else weights / weights.sum()
    ), labels


def pairs(graph):
    """w_xx' by enumeration of the images and of the two views."""
    N, X = graph.draws.shape
    w = torch.zeros(X, X, dtype=torch.float64)
    for i, x, y in itertools.product(range(N), range(X), range(X)):
        w[x, y] += (
            (1 / N if graph.weights is None else graph.weights[i])
            * graph.draws[i, x]
            * graph.draws[i, y]
        )
    return w


@given(graphs())
def test_spectrum_and_labels_are_those_of_the_population(drawn):
    graph, labels = drawn
    w = pairs(graph)
    torch.testing.assert_close(graph.adjacency, w)
    torch.testing.assert_close(graph.mass, w.sum(1))
    values = scipy.linalg.eigh(
        (w / w.sum(1).sqrt()[:, None] / w.sum(1).sqrt()).numpy(), eigvals_only=True
    )
    np.testing.assert_allclose(
        graph.eigenvalues.numpy(), np.clip(1 - values[::-1], 0, None), atol=1e-12
    )
    assert graph.eigenvalues[0] < 1e-12
    assert float(graph.eigenvalues.max()) <= 1 + 1e-12
    assert int((graph.eigenvalues < 1e-10).sum()) == graph.components
    assert (graph.spectral_gap > 1e-10) == (graph.components == 1)
    product = graph.normalized @ graph.eigenvectors
    torch.testing.assert_close(
        product, graph.eigenvectors * (1 - graph.eigenvalues), rtol=0, atol=1e-12
    )
    # a table from views to labels is right most often if it is so at each view
    joint, known = graph.joint, labels.unique()
    best = sum(
        max(float(joint[labels == k, x].sum()) for k in known) for x in range(len(graph.mass))
    )
    assert graph.alpha(labels) == pytest.approx(1 - best, abs=1e-12)
    read = graph.likeliest(labels)
    right = sum(float(joint[labels == read[x], x].sum()) for x in range(len(graph.mass)))
    assert right == pytest.approx(best, abs=1e-12)
    phi = graph.disagreement(read)
    assert phi == pytest.approx(float(w[read[:, None] != read].sum()), abs=1e-12)
    assert phi <= 2 * graph.alpha(labels) + 1e-12
    parts = graph.conductances(read)
    masses = torch.stack([graph.mass[read == k].sum() for k in read.unique()])
    assert float(parts @ masses) == pytest.approx(phi, abs=1e-12)
    assert bool(((parts >= 0) & (parts <= 1)).all())


def by_every_assignment(graph, m):
    X, w, mass = len(graph.mass), graph.adjacency, graph.mass
    best = np.inf
    for names in itertools.product(range(m), repeat=X):
        if len(set(names)) == m:
            parts = torch.tensor(names)
            best = min(
                best,
                max(
                    float(w[parts == i][:, parts != i].sum() / mass[parts == i].sum())
                    for i in range(m)
                ),
            )
    return best


@given(graphs(most=6), st.integers(1, 4))
def test_the_smallest_conductance_is_that_of_the_best_of_all_partitions(drawn, m):
    graph, _ = drawn
    m = min(m, len(graph.mass))
    found = graph.smallest_conductance(m)
    assert found.lower == found.upper == pytest.approx(by_every_assignment(graph, m), abs=1e-12)
    assert found.partition.unique().tolist() == list(range(m))
    assert float(graph.conductances(found.partition).max()) == pytest.approx(found.upper, abs=1e-12)


@given(graphs(most=12), st.integers(1, 5))
def test_the_two_sides_enclose_what_the_search_finds(drawn, m):
    graph, _ = drawn
    m = min(m, len(graph.mass))
    exact = graph.smallest_conductance(m).upper
    parts = bisected(graph.adjacency, graph.mass, graph.normalized, m)
    upper = float(graph.conductances(parts).max())
    assert parts.unique().tolist() == list(range(m))
    assert float(graph.eigenvalues[m - 1]) / 2 <= exact + 1e-12
    assert exact <= upper + 1e-12
    if m == 2:
        assert upper <= (2 * graph.spectral_gap) ** 0.5 + 1e-7  # Cheeger; sqrt(rounding of 0)
    if m <= graph.components:
        assert exact == 0
    assert graph.smallest_conductance(1).upper == 0


def test_beyond_the_search_the_sides_are_said(monkeypatch):
    blocks = torch.block_diag(*[torch.ones(4, 5)] * 4).double() + 0.01
    graph = AugmentationGraph(blocks / blocks.sum(1, keepdim=True))
    found = graph.smallest_conductance(4)
    assert 0 < found.lower < found.upper < 0.1
    assert "lambda_4 / 2" in found.meaning
    # the blocks themselves
    assert len({tuple(sorted(set(part.tolist()))) for part in found.partition.view(4, 5)}) == 4
    assert "sqrt(2 lambda_2)" in graph.smallest_conductance(2).meaning
    monkeypatch.setattr(module, "EXHAUSTIVE", 20)
    halves = AugmentationGraph(torch.block_diag(*[torch.ones(1, 3)] * 2).double() / 3)
    assert halves.smallest_conductance(2).upper == 0


@given(graphs(), st.integers(0, 2**20))
def test_names_of_images_and_views_change_nothing(drawn, seed):
    graph, labels = drawn
    generator = torch.Generator().manual_seed(seed)
    images, views = (
        torch.randperm(len(graph.draws), generator=generator),
        torch.randperm(len(graph.mass), generator=generator),
    )
    other = AugmentationGraph(
        graph.draws[images][:, views], None if graph.weights is None else graph.weights[images]
    )
    torch.testing.assert_close(other.eigenvalues, graph.eigenvalues, rtol=0, atol=1e-12)
    assert other.alpha(labels[images]) == pytest.approx(graph.alpha(labels), abs=1e-12)
    assert other.smallest_conductance(2).upper == pytest.approx(
        graph.smallest_conductance(2).upper, abs=1e-12
    )
    assert other.components == graph.components


def test_views_are_shared_where_they_are_equal():
    pixels = (
        torch.randint(0, 2, (6, 4, 3, 2, 2), generator=torch.Generator().manual_seed(0))
        .float()[:, :, :, :1, :1]
        .expand(-1, -1, -1, 2, 2)
    )
    graph = AugmentationGraph.of_views(pixels)
    N, V = 6, 4
    w = torch.zeros(len(graph.mass), len(graph.mass), dtype=torch.float64)
    known = pixels.reshape(N * V, -1).unique(dim=0)
    names = (pixels.reshape(N, V, 1, -1) == known).all(-1).int().argmax(-1)
    for i, u, v in itertools.product(range(N), range(V), range(V)):
        w[names[i, u], names[i, v]] += 1 / (N * V * V)
    torch.testing.assert_close(graph.adjacency, w)
    one = AugmentationGraph.of_views(torch.tensor([[3, 3]]))
    assert (one.components, one.spectral_gap, one.alpha(torch.tensor([0]))) == (1, 1.0, 0.0)
    assert one.smallest_conductance(1).upper == 0


def test_draws_of_a_continuous_augmentation_are_refused():
    views = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="falls into 5 components and says nothing"):
        AugmentationGraph.of_views(views)


def test_bad_input_is_refused(unchecked):
    good = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    for draws, weights, sentence in (
        (good[0], None, r"shape \(N, X\), not \(2,\)"),
        (good * 2, None, "is a distribution"),
        (torch.tensor([[1.5, -0.5]]), None, "is a distribution"),
        (torch.tensor([[float("nan"), 1.0]]), None, "is a distribution"),
        (torch.tensor([[1.0, 0.0]]), None, r"Views \[1\] are drawn of no image"),
        (good, torch.tensor([0.5, 0.6]), "2 images have as many probabilities"),
    ):
        with pytest.raises(ValueError, match=sentence):
            AugmentationGraph(draws, weights)
    graph = AugmentationGraph(good)
    with pytest.raises(ValueError, match="1 to 2 parts, not 3"):
        graph.smallest_conductance(3)
    with pytest.raises(ValueError, match="as many labels"):
        graph.alpha(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="set of some of the 2 views"):
        graph.conductance(torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"shape \(N, V, \.\.\.\)"):
        AugmentationGraph.of_views(torch.zeros(3))
