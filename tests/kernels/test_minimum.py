import contextlib
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from marginlab.kernels import between, minimum
from marginlab.kernels import filter as filtered

module = sys.modules["marginlab.kernels.minimum"]  # whose name in the package is the function's


def brute(x, y):
    """All distances (N, M, V, V) by differences in float64."""
    return (x.double()[:, None, :, None] - y.double()[None, :, None, :]).norm(dim=-1)


def check(found, x, y, levels, tolerance=1e-6, *, own=False):
    every = brute(x, y)
    for at, level in enumerate(levels):
        least = every[:, :, :level, :level].flatten(2).amin(2)
        if own:
            least.fill_diagonal_(0)
        assert (found.distance[at] - least).abs().max() <= tolerance
        # exact zeros are found, and only these
        assert torch.equal(found.distance[at] == 0, least == 0)
        u, v = found.views[at].long().unbind(-1)
        i, j = torch.arange(len(x))[:, None], torch.arange(len(y))
        assert int(found.views[at].max()) < level
        assert (every[i, j, u, v] - least).abs().max() <= tolerance  # and the views realise it


@st.composite
def groups(draw):
    """Views of images with exact and near duplicates among them, anywhere in space."""
    seed, n, m, V, P = (
        draw(st.integers(low, high)) for low, high in ((0, 2**20), (1, 9), (1, 7), (1, 5), (1, 40))
    )
    generator = torch.Generator().manual_seed(seed)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    x = torch.rand(n + m, V, P, generator=generator, dtype=dtype) * draw(
        st.sampled_from([1.0, 1e-3, 30.0])
    )
    x += draw(st.sampled_from([0.0, 0.5, 1000.0]))
    for gap in (0.0, 1e-6, 1e-3):
        for _ in range(draw(st.integers(0, 3))):
            a, b, u, v = (
                int(torch.randint(high, (), generator=generator)) for high in (n + m, n + m, V, V)
            )
            x[a, u] = x[b, v]
            x[a, u, 0] += gap
    levels = draw(
        st.none() | st.sets(st.integers(1, V), min_size=1).map(lambda s: tuple(sorted(s)))
    )
    return x, n, levels, draw(st.integers(1, 5000))


@given(groups())
def test_the_minimum_is_that_of_brute_force_in_float64(case):
    x, n, levels, budget = case
    check(minimum(x, levels=levels, budget=budget), x, x, levels or (x.shape[1],), own=True)
    check(
        between(x[:n], x[n:], levels=levels, budget=budget), x[:n], x[n:], levels or (x.shape[1],)
    )


@given(groups())
def test_the_matrix_is_symmetric_and_never_grows_with_the_level(case):
    x, _, _, budget = case
    found = minimum(x, levels=range(1, x.shape[1] + 1), budget=budget)
    assert torch.equal(found.distance, found.distance.mT)
    assert torch.equal(found.views, found.views.transpose(1, 2).flip(-1))
    assert bool((found.distance.diff(dim=0) <= 0).all())
    assert bool((found.distance.diagonal(dim1=1, dim2=2) == 0).all())


def test_equal_distances_give_the_first_pair_of_views_whatever_the_budget():
    x = torch.zeros(5, 4, 3)
    x[:, :2] = torch.arange(5.0)[:, None, None]
    for budget in (1, 300, 2**20):
        found = minimum(x, budget=budget)
        assert bool((found.distance == 0).all())
        assert torch.equal(found.views[0].triu(), minimum(x, budget=2**25).views[0].triu())
        assert found.views[0, 1, 3].tolist() == [2, 2]  # the first views that are flat in both
        assert found.views[0, 0, 1].tolist() == [0, 2]


def test_cancellation_is_survived_and_named_levels_come_from_one_product():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 8, 3072, generator=generator)
    x[3, 5], x[7, 2], x[11, 7] = x[9, 1], x[9, 1], x[12, 0]
    x[7, 2, 100] += 1e-4
    x[11, 7, 5] += 1e-6
    found = minimum(x, levels=(2, 4, 8))
    check(found, x, x, (2, 4, 8), own=True)
    assert found.views[2, 3, 9].tolist() == [5, 1]
    assert float(found.distance[2, 7, 9]) == pytest.approx(1e-4, rel=1e-2)
    gram = x.flatten(0, 1) @ x.flatten(0, 1).T  # what the product alone would say
    squares = gram.diagonal()
    naive = (
        (squares[7 * 8 + 2] + squares[9 * 8 + 1] - 2 * gram[7 * 8 + 2, 9 * 8 + 1])
        .clamp(min=0)
        .sqrt()
    )
    assert float(naive) != pytest.approx(1e-4, rel=0.5)


def round_products(monkeypatch):
    """Let products have the factors of bf16, and the bound know of it."""
    addmm = torch.addmm
    monkeypatch.setattr(
        torch,
        "addmm",
        lambda b, x, y, alpha: addmm(b, x.bfloat16().float(), y.bfloat16().float(), alpha=alpha),
    )
    monkeypatch.setattr(module, "_roundoff", lambda x: 2.0**-8)


def test_a_product_of_fewer_bits_changes_nothing(monkeypatch):
    """With tf32 or bf16 products the bound grows with their roundoff; here it is the bound alone
    that can be tested.
    """
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(8, 4, 50, generator=generator)
    exact = minimum(x)
    round_products(monkeypatch)
    assert torch.equal(minimum(x).distance, exact.distance)
    assert torch.equal(minimum(x).views, exact.views)


@contextlib.contextmanager
def filtering(directions=3, worth=1 / 32, share=-1.0):
    """The filter for however small groups; yields what became of the blocks: (short rows, whether
    they were enough).
    """
    blocks, block = [], module._write_minima

    def spy(*arguments):
        done = block(*arguments)
        blocks.append((arguments[-1] == worth, done))
        return done

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "_DIRECTIONS": directions,
            "_LEAST": 1,
            "_GAIN": 0,
            "_SHARE": share,
        }.items():
            patch.setattr(filtered, name, value)
        patch.setattr(module, "_WORTH", worth)
        patch.setattr(module, "_SMALL", 1)
        patch.setattr(module, "_write_minima", spy)
        yield blocks


@given(groups(), st.sampled_from([1 / 32, 1.0]), st.integers(1, 4))
def test_the_filter_changes_nothing(case, worth, directions):
    x, n, levels, budget = case
    whole = (
        minimum(x, levels=levels, budget=budget),
        between(x[:n], x[n:], levels=levels, budget=budget),
    )
    with filtering(directions, worth) as blocks:
        found = (
            minimum(x, levels=levels, budget=budget),
            between(x[:n], x[n:], levels=levels, budget=budget),
        )
    assert all(
        torch.equal(a, b)
        for one, other in zip(found, whole, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    check(found[0], x, x, levels or (x.shape[1],), own=True)
    check(found[1], x[:n], x[n:], levels or (x.shape[1],))
    if x.shape[2] > directions:
        assert any(short for short, _ in blocks)
    if worth == 1.0:
        assert all(done for _, done in blocks)


@given(st.integers(0, 2**20), st.integers(0, 5), st.booleans(), st.integers(2000, 30000))
def test_the_filter_on_views_of_few_directions_with_copies_and_flat_ones(seed, rank, noise, budget):
    """Tied distances, whole images at distance zero, nothing left outside the basis: the first pair
    of views is named all the same.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 6, rank, generator=generator) @ torch.randn(rank, 30, generator=generator)
    x += 1e-3 * noise * torch.randn(8, 6, 30, generator=generator)
    # a coin left the view as it was
    x = torch.where(torch.rand(8, 6, 1, generator=generator) < 0.3, x[:, :1], x)
    # flat
    x = torch.where(
        torch.rand(8, 6, 1, generator=generator) < 0.2,
        torch.randint(0, 3, (8, 6, 1), generator=generator).float(),
        x,
    )
    levels = (1, 2, 5)
    whole = minimum(x, levels=levels, budget=budget)
    with filtering(4, 1.0):
        found = minimum(x, levels=levels, budget=budget)
    assert torch.equal(found.distance, whole.distance)
    assert torch.equal(found.views, whole.views)
    check(found, x, x, levels, own=True)
    every = brute(x, x)[:, :, :5, :5].flatten(2)
    for i, j in zip(*(torch.triu(found.distance[2] == 0, 1)).nonzero(as_tuple=True), strict=True):
        u, v = found.views[2, i, j].tolist()
        firsts = (every[i, j] == 0).nonzero()[:, 0].tolist()
        level = min(next(top for top in levels if max(divmod(k, 5)) < top) for k in firsts)
        assert u * 5 + v == min(k for k in firsts if max(divmod(k, 5)) < level)


def test_the_filter_ends_at_many_candidates_does_not_begin_on_noise_and_stays_on_smooth_views():
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(24, 12, 64, generator=generator)
    smooth = (
        torch.randn(24, 12, 4, generator=generator) @ torch.randn(4, 64, generator=generator)
        + 1e-3 * noise
    )
    # each of the 12 brightnesses of an image meets its like in any other
    many = noise + 5 * torch.arange(12.0)[:, None]
    for x in (noise, smooth, many):
        for levels in ((12,), (2, 12)):
            whole = minimum(x, levels=levels)
            with filtering(6, share=0.5) as blocks:
                found = minimum(x, levels=levels)
            assert torch.equal(found.distance, whole.distance)
            assert torch.equal(found.views, whole.views)
            tried = [done for short, done in blocks if short]
            assert len(blocks) > 30
            if x is many:
                assert 2 <= tried.count(False) <= 3  # enough to see it
                # some on the diagonal have no pair of images, or one, and few candidates
                assert len(tried) <= 6
            else:
                assert len(tried) == (0 if x is noise else len(blocks))


def test_the_filter_with_a_product_of_fewer_bits(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(8, 6, 12, generator=generator) * torch.tensor([1.0] * 3 + [0.01] * 9)
    exact = minimum(x)
    round_products(monkeypatch)
    with filtering(3, 1.0) as blocks:
        assert torch.equal(minimum(x).distance, exact.distance)
    assert all(short for short, _ in blocks)


def test_candidates_in_parts_are_the_same(monkeypatch):
    # ties everywhere
    x = torch.randint(0, 2, (9, 6, 3), generator=torch.Generator().manual_seed(5)).float()
    whole = minimum(x, levels=(2, 6))
    monkeypatch.setattr(module, "_PARTS", 10**6)
    found = minimum(x, levels=(2, 6))
    assert torch.equal(found.distance, whole.distance)
    assert torch.equal(found.views, whole.views)


def test_half_precision_is_computed_in_float32():
    x = torch.rand(6, 3, 20, generator=torch.Generator().manual_seed(2)).half()
    assert torch.equal(minimum(x).distance, minimum(x.float()).distance)


def test_small_and_empty_groups():
    assert minimum(torch.rand(1, 3, 4)).distance.tolist() == [[[0.0]]]
    assert minimum(torch.rand(0, 3, 4)).distance.shape == (1, 0, 0)
    assert between(torch.rand(2, 3, 4), torch.rand(0, 3, 4), levels=(1, 3)).views.shape == (
        2,
        2,
        0,
        2,
    )


def test_on_real_images(real_images):
    with np.load(real_images / "cifar10.npz") as file:
        images = torch.from_numpy(file["train_images"][:12]).flatten(1).float() / 255
    shifts = torch.stack([images.roll(s, 1) for s in (0, 3, 6, 96)], 1)
    shifts[5] = shifts[5].mean()  # a flat image, all views alike
    check(minimum(shifts, levels=(1, 4)), shifts, shifts, (1, 4), own=True)


@pytest.mark.parametrize("levels", [(0,), (2, 2), (3, 1), (9,), ()])
def test_bad_levels_are_refused(levels):
    with pytest.raises(ValueError, match="increase from 1 to at most V = 4"):
        minimum(torch.rand(3, 4, 5), levels=levels)


def test_values_that_are_not_finite_are_refused():
    x = torch.rand(3, 4, 5)
    x[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        minimum(x)
