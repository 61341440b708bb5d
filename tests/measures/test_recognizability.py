"""The recognizability index against a plain form, and the bank of unrecognizable images."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from marginlab.measures import RecognizabilityIndex, UnrecognizableBank
from marginlab.measures.functional import (
    recognizability_distances,
    recognizability_index,
    remove_direction,
)


def problem(seed, B=7, C=5, K=2, D=6, U=1):
    generator = torch.Generator().manual_seed(seed)
    x, w, u = (
        torch.randn(*shape, D, generator=generator, dtype=torch.float64)
        for shape in ((B,), (C, K), (U,))
    )
    return x, torch.randint(0, C, (B,), generator=generator), w, u


def plain(x, y, w, u):
    """By the formula, with all cosines held."""
    unit = torch.nn.functional.normalize
    cosines = torch.einsum("bd,ckd->bck", unit(x, dim=-1), unit(w, dim=-1)).amax(2)
    rows = torch.arange(len(x))
    own = cosines[rows, y]
    other = cosines.clone()
    other[rows, y] = -2
    far = 1 - (unit(x, dim=-1) @ unit(u, dim=-1).T).amax(1)
    return far * (1 - other.amax(1)) / (1 - own + 1e-7)


def test_the_golden_value():
    own, negative, far = (torch.tensor([d], dtype=torch.float64) for d in (0.2, 0.7, 0.9))
    assert float(recognizability_index(own, negative, far)) == pytest.approx(3.14999843, abs=1e-8)
    assert float(recognizability_index(own, negative, far, clamp=2.0)) == 2.0
    cosines = torch.tensor([0.8, 0.3, 0.1], dtype=torch.float64)
    x = torch.cat([cosines, (1 - cosines.square().sum()).sqrt()[None]])[None]
    axes = torch.eye(4, dtype=torch.float64)
    bank = UnrecognizableBank(axes[2:3], torch.ones(1), torch.ones(1).long(), torch.ones(1) > 0)
    index = RecognizabilityIndex(axes[:2], bank)
    assert float(index(x, torch.tensor([0]))) == pytest.approx(3.14999843, abs=1e-8)


@given(
    st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 9), st.sampled_from([1, 900, 10**6])
)
def test_it_is_the_plain_form_under_any_budget(seed, K, C, budget):
    x, y, w, u = problem(seed, C=C, K=K, U=2)
    found = recognizability_index(*recognizability_distances(x, y, w, u, budget=budget))
    torch.testing.assert_close(found, plain(x, y, w, u))
    lengths = torch.rand(len(x), 1, dtype=torch.float64) * 1e6 + 1e-6
    again = recognizability_index(*recognizability_distances(x * lengths, y, w * 7, u / 3))
    torch.testing.assert_close(again, found)


@given(st.integers(0, 10**6))
def test_it_exceeds_the_distance_to_the_unrecognizable_exactly_where_the_class_is_right(seed):
    x, y, w, u = problem(seed, K=1)
    found = recognizability_distances(x, y, w[:, 0], u)
    unit = torch.nn.functional.normalize
    right = (unit(x, dim=1) @ unit(w[:, 0], dim=1).T).argmax(1) == y
    assert torch.equal(recognizability_index(*found) > found.unrecognizable, right)


@given(st.integers(0, 10**6))
def test_a_row_has_its_index_in_any_batch(seed):
    x, y, w, u = problem(seed)
    whole = recognizability_distances(x, y, w, u)
    for row in range(len(x)):
        alone = recognizability_distances(x[row : row + 1], y[row : row + 1], w, u)
        for a, b in zip(whole, alone, strict=True):
            torch.testing.assert_close(a[row], b[0], rtol=0, atol=1e-12)


def test_it_has_no_gradient_and_is_float32_of_half_precision():
    x, y, w, u = problem(0)
    x.requires_grad_()
    w.requires_grad_()
    bank = UnrecognizableBank(u, torch.ones(1), torch.ones(1).long(), torch.ones(1) > 0)
    assert not RecognizabilityIndex(w, bank)(x, y).requires_grad
    half = RecognizabilityIndex(w.detach().bfloat16(), bank)(x.detach().bfloat16(), y)
    assert half.dtype == torch.float32


def on_a_rank(group, rank, x, y, w, u, rows, classes):
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
    shard = slice(sum(classes[:rank]), sum(classes[: rank + 1]))
    found = recognizability_distances(
        x[own], y[own], w[shard], u, first_class=shard.start, group=group
    )
    return recognizability_index(*found)


@pytest.mark.xdist_group("ranks")
@given(st.integers(0, 10**6), st.integers(1, 4), st.data())
def test_shards_of_classes_on_ranks_give_the_index_of_one_rank(pool, seed, n, data):
    sizes = st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(lambda s: sum(s) >= 2)
    rows, classes = data.draw(sizes), data.draw(sizes)
    x, y, w, u = problem(seed, B=sum(rows), C=sum(classes))
    answers = pool.run(n, on_a_rank, x, y, w, u, rows, classes)
    whole = recognizability_index(*recognizability_distances(x, y, w, u))
    torch.testing.assert_close(torch.cat(answers), whole, rtol=1e-10, atol=1e-10)


@given(st.integers(0, 10**6))
def test_the_projection_is_orthogonal(seed):
    x, _, _, u = problem(seed)
    left = remove_direction(x * 3, u[0] * 5)
    unit = torch.nn.functional.normalize
    along = unit(x, dim=1) @ unit(u[0], dim=0)
    assert float((left @ unit(u[0], dim=0)).abs().max()) < 1e-6
    torch.testing.assert_close(left.square().sum(1), 1 - along.square())


def pool_of_images(seed=0, bad=60, classes=8, each=12, D=16):
    """A tight cluster, and classes at large angles, half as tight."""
    generator = torch.Generator().manual_seed(seed)

    def cloud(center, n, spread):
        return center + spread * torch.randn(n, D, generator=generator) / D**0.5

    axes = torch.eye(D)
    parts = [cloud(axes[0], bad, 0.4)]
    parts += [cloud(axes[1 + number], each, 0.4) for number in range(classes)]
    mask = torch.arange(bad + classes * each) < bad
    return torch.cat(parts), mask


@given(st.integers(0, 1000))
def test_clustering_finds_the_center_of_the_unrecognizable(seed):
    x, mask = pool_of_images(seed)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    bank = UnrecognizableBank.from_clustering(x[order], recognizable=~mask[order])
    assert torch.equal(bank.members, mask[order])
    marked = UnrecognizableBank.from_mask(x, mask)
    ruined = UnrecognizableBank.from_degraded(x[mask])
    torch.testing.assert_close(bank.centers, marked.centers)
    torch.testing.assert_close(ruined.centers, marked.centers)
    assert float(bank.centers.square().sum()) == pytest.approx(1, abs=1e-6)
    mean = torch.nn.functional.normalize(x[mask]).mean(0)
    assert float(bank.resultants[0]) == pytest.approx(float(mean.norm()), abs=1e-5)
    assert int(bank.sizes[0]) == 60
    cosine, share = bank.accept(x[mask], x[~mask])
    assert cosine > 0.99
    assert share == 0
    assert float(bank.distances(x[mask]).max()) < 0.5 < float(bank.distances(x[~mask]).min())


def test_several_centers_and_the_nearest_counts():
    x, mask = pool_of_images(bad=30, each=25, classes=2)
    with pytest.raises(ValueError, match=r"resultants \[0\.\d+\] over \[80\] images, below 0\.8"):
        UnrecognizableBank.from_degraded(x)
    bank = UnrecognizableBank.from_degraded(x, centers=3)
    assert sorted(bank.sizes.tolist()) == [25, 25, 30]
    assert float(bank.distances(x).max()) < 0.5
    first = UnrecognizableBank.from_clustering(x, centers=2)
    assert first.sizes.tolist() == [30, 25]
    assert bool(first.members[mask].all())


def test_a_wrong_bank_is_refused_with_its_numbers():
    x, mask = pool_of_images(bad=20, each=40, classes=2)
    with pytest.raises(ValueError, match=r"50\.0% of 80 recognizable images fall into"):
        UnrecognizableBank.from_clustering(x, recognizable=~mask, most_recognizable=0.4)
    wrong = UnrecognizableBank.from_degraded(x[~mask][:40])
    with pytest.raises(ValueError, match=r"with 20 degraded ones is -?0\.\d+ .*50\.0% of 80"):
        wrong.accept(x[mask], x[~mask])
    with pytest.raises(ValueError, match="fall into clusters of"):
        UnrecognizableBank.from_clustering(torch.eye(5))
    with pytest.raises(ValueError, match="marks at least 2"):
        UnrecognizableBank.from_mask(x, torch.zeros(len(x), dtype=torch.bool))
    with pytest.raises(ValueError, match="finite"):
        UnrecognizableBank.from_degraded(x * torch.inf)
    for centers in (0, -1, 101):
        for make in (UnrecognizableBank.from_degraded, UnrecognizableBank.from_clustering):
            with pytest.raises(
                ValueError, match=f"100 images have 1 to 100 centers, not {centers}"
            ):
                make(x, centers=centers)
    with pytest.raises(ValueError, match="at most 16,384"):
        UnrecognizableBank.from_clustering(torch.ones(20_000, 2))


def test_what_has_no_index_is_refused(unchecked):
    x, y, w, u = problem(0)
    for wrong, words in (
        ((x, y + 5, w, u), "Labels run from 0 to 4"),
        ((x, y, w[:1], u), "at least 2 classes"),
        ((x[:, :3], y, w, u), "of one dimension"),
        ((x, y[:3], w, u), "as many whole labels"),
    ):
        with pytest.raises(ValueError, match=words):
            recognizability_distances(*wrong)
    x, mask = pool_of_images(bad=20, each=40, classes=2)
    for wrong in (torch.ones(3) > 0, mask.long(), torch.zeros(len(x)) > 0):
        with pytest.raises(ValueError, match="A mask of 100 embeddings marks at least 1"):
            UnrecognizableBank.from_clustering(x, recognizable=wrong)
    bank = UnrecognizableBank.from_degraded(x[mask])
    with pytest.raises(ValueError, match=r"nan% of 0 recognizable ones lie within"):
        bank.accept(x[mask], x[:0])
    with pytest.raises(ValueError, match=r"measures embeddings \(B, 16\), not \(3, 5\)"):
        bank.distances(torch.ones(3, 5))
    with pytest.raises(ValueError, match="9 embeddings fall into 1 clusters, not 3"):
        UnrecognizableBank.from_degraded(torch.ones(9, 4), centers=3)
    for settings in ({"eps": 0.0}, {"clamp": -1.0}):
        with pytest.raises(ValueError, match="eps and clamp are positive"):
            RecognizabilityIndex(w, bank, **settings)


def one_rank_is_wrong(group, rank, x, y, w, u):
    try:
        recognizability_distances(x, y + 9 * rank, w, u, first_class=5 * rank, group=group)
    except ValueError as error:
        return str(error)


@pytest.mark.xdist_group("ranks")
def test_a_wrong_label_of_one_rank_is_heard_by_all(pool):
    x, _, w, u = problem(0)
    first, second = pool.run(2, one_rank_is_wrong, x, torch.full((7,), 3), w, u)
    assert "Labels run from 0 to 9, but these hold 12 to 12" in first
    assert "Labels run from 0 to 9, but these hold 12 to 12" in second
