"""The grid of a certificate is what the theorems say at each of its points, and its main parts are
cliques, greedy or searched for.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from populations import ROUND, augmented, samples

from marginlab.measures.graphs.cliques import largest_clique
from marginlab.theory import per_class, theorem_1
from marginlab.theory.certificates.grid import class_by_class, main_parts, over_grid, quantiles


def distances(population):
    return [augmented(population.f[population.labels == k])[0] for k in range(len(population.p))]


@given(
    samples(r=1.0),
    st.lists(
        st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5, 1.0]), min_size=1, max_size=3, unique=True
    ),
)
def test_at_each_point_the_grid_says_what_the_theorems_say(sample, sizes):
    population, C = sample.population, len(sample.population.p)
    deltas, epsilons = (
        torch.tensor(sorted(sizes)).double(),
        quantiles([population.diameters], 3).cpu(),
    )
    parts = main_parts(population, distances(population), deltas)
    grid = over_grid(population, parts, deltas, epsilons)
    best = torch.zeros(C, dtype=torch.float64)
    least = dict.fromkeys(("printed", "distance", "with_lengths"), 1.0)
    for i in range(len(deltas)):
        assert float(parts.size[i].max()) <= float(deltas[i]) + 2e-7
        assert float(parts.sigma[i]) == pytest.approx(
            float(population.share(parts.members[i]).min())
        )
        assert float(parts.sigma[i]) <= float(parts.sigma_most[i]) + ROUND
        for j, epsilon in enumerate(epsilons.tolist()):
            R, stretch = min(population.R(epsilon), 1.0), parts.stretch[i]
            theorem = theorem_1(
                p=population.p,
                gram=population.gram,
                sigma=float(parts.sigma[i]),
                R_epsilon=R,
                epsilon=epsilon,
                stretch=float(stretch.max()),
            )
            forms = {name: getattr(theorem, name) for name in least}
            certain = [not form.premise for form in forms.values()]
            assert int(grid.holds[i, j]) == (
                3 if certain[0] else 2 if certain[1] else int(certain[2])
            )
            assert float(grid.bounds[i, j]) == pytest.approx(theorem.printed.right)
            least = {
                name: min(value, forms[name].right if forms[name].certifies else 1.0)
                for name, value in least.items()
            }
            q = population.share(parts.members[i] & population.aligned(epsilon)).clamp(0, 1)
            held = per_class(
                p=population.p,
                gram=population.gram,
                q=q,
                epsilon=torch.full_like(q, epsilon),
                stretch=stretch,
            ).holds
            best = torch.where(held, torch.maximum(best, q), best)
    assert [form.value for form in grid.forms] == pytest.approx(list(least.values()))
    assert class_by_class(population, parts, epsilons).bound.right == pytest.approx(
        float(population.p @ (1 - best))
    )


@given(samples(r=1.0, tame=False), st.sampled_from([0.1, 0.5, 1.0]))
def test_main_parts_are_cliques_and_a_search_finds_the_largest(sample, delta):
    population = sample.population
    apart, deltas = distances(population), torch.tensor([delta, 2 * delta]).double()
    greedy, exact = (
        main_parts(population, apart, deltas),
        main_parts(population, apart, deltas, nodes=10_000),
    )
    for t in range(2):
        for k, matrix in enumerate(apart):
            own = population.labels == k
            for parts in (greedy, exact):
                part = parts.members[t, own]
                assert bool((matrix[part][:, part] <= deltas[t]).all())
                assert bool(part.any())
            assert int(exact.members[t, own].sum()) == largest_clique(matrix <= deltas[t]).lower
            assert int(greedy.members[t, own].sum()) <= int(exact.members[t, own].sum())
    assert bool((greedy.sigma_most >= exact.sigma_most - ROUND).all())


def test_quantiles_are_of_what_is_positive_and_end_at_the_largest():
    grid = quantiles([torch.tensor([[0.0, 3.0], [3.0, 0.0]]), torch.tensor([[0.0]])], 12)
    assert grid.tolist() == [3.0]
    assert quantiles([torch.zeros(2, 2)], 5).tolist() == [0.0]
    many = quantiles([torch.linspace(0, 1, 1001)], 5)
    assert float(many[-1]) == 1.0
    assert bool((many.diff().diff() < 0).all())  # finer where they are larger
