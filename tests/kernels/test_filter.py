import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from marginlab.kernels import filter as filtered
from marginlab.kernels.filter import Filter, copies, prepare


@pytest.fixture(autouse=True, scope="module")
def few_directions():
    """The filter for views of few numbers, and of few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filtered, "_DIRECTIONS", 5)
        patch.setattr(filtered, "_LEAST", 1)
        patch.setattr(filtered, "_GAIN", 0)
        patch.setattr(filtered, "_SHARE", -1.0)
        yield


def distances(x):
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


@given(
    st.integers(0, 2**20),
    st.integers(6, 60),
    st.sampled_from([0, 1, 3, 5, 8, 60]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_short_rows_bound_distances_from_both_sides(seed, P, rank, dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 4, rank, generator=generator, dtype=dtype) @ torch.randn(
        rank, P, generator=generator, dtype=dtype
    )
    x = x * torch.rand(6, 4, 1, generator=generator, dtype=dtype) ** 3
    filter = prepare(x, None, x.mean((0, 1)), 2.0 ** (-24 if dtype == torch.float32 else -53))
    flat = (x - x.mean((0, 1))).flatten(0, 1)
    true, short = distances(flat.double()), filter.short(flat).double()
    slack = filter.error * flat.double().norm(dim=1)
    slack = slack[:, None] + slack
    assert bool((distances(short) <= true + slack).all())
    rest = short[:, None, -1] + short[:, -1]
    above = (distances(short[:, :-1]).square() + rest.square()).sqrt()
    assert bool((true <= above + 2 * slack).all())
    if rank <= 5:  # nothing is lost
        assert bool((distances(short) >= true - 3 * slack).all())


@given(st.integers(0, 2**20), st.floats(-0.3, 0.3))
def test_a_basis_that_is_not_orthonormal_stretches_by_its_deviation(seed, gap):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(20, 5, generator=generator, dtype=torch.float64)).Q
    basis += gap * torch.randn(20, 5, generator=generator, dtype=torch.float64) / 10
    stretch = float(torch.linalg.matrix_norm(basis.T @ basis - torch.eye(5)))
    x = torch.cat([torch.randn(10, 20, generator=generator, dtype=torch.float64), 3 * basis.T])
    assert bool(
        (distances(Filter(basis, 0.0).short(x)) <= (1 + stretch) * distances(x) + 1e-12).all()
    )


def test_the_first_directions_are_found_and_always_the_same():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([9.0, 7.0, 5.0, 4.0, 3.0] + [0.1] * 35)
    x = torch.randn(50, 8, 40, generator=generator) * scale
    found = prepare(x, None, x.mean((0, 1)), 2.0**-24)
    assert float(found.basis[:5].square().sum()) > 4.99
    assert torch.equal(found.basis, prepare(x, None, x.mean((0, 1)), 2.0**-24).basis)
    # directions of both groups compete
    both = prepare(x[:20], x[20:].flip(2), x.mean((0, 1)), 2.0**-24)
    assert float(both.basis[[0, 1, 39, 38]].square().sum()) > 3.9


def test_it_is_not_tried_where_it_cannot_pay(monkeypatch):
    x = torch.rand(30, 8, 40)
    center = x.mean((0, 1))
    assert prepare(x, None, center, 2.0**-24) is not None
    assert prepare(x[..., :5], None, center[:5], 2.0**-24) is None  # no fewer numbers than P
    assert prepare(x, None, center, 2.0**-7) is None  # products of so few bits bound nothing
    assert prepare(x * torch.nan, None, center, 2.0**-24) is None
    monkeypatch.setattr(filtered, "_SHARE", 0.5)
    assert prepare(x, None, center, 2.0**-24) is None  # white noise
    x = x + 5 * torch.rand(30, 8, 1)
    center = x.mean((0, 1))
    assert prepare(x, None, center, 2.0**-24) is not None
    monkeypatch.setattr(filtered, "_GAIN", 3.5)
    assert prepare(x, None, center, 2.0**-24) is None  # few views
    assert prepare(x.repeat(60, 1, 1), None, center, 2.0**-24) is not None
    assert prepare(x, x.repeat(60, 1, 1), center, 2.0**-24) is not None


@given(st.integers(0, 2**20), st.integers(1, 5), st.integers(1, 7))
def test_copies_are_views_that_equal_an_earlier_one_of_their_image(seed, N, V):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (N, V, 2), generator=generator).float()
    # near an earlier one, and not equal
    almost = torch.where(torch.rand(N, V, 1, generator=generator) < 0.3, x + 1e-7, x)
    for views in (x, almost):
        short = torch.cat([views, torch.zeros(N, V, 1)], 2)
        found = copies(views, short, short.square().sum(2), torch.full((N,), 1e-3))
        equal = (views[:, :, None] == views[:, None]).all(3).tril(-1).any(2)
        assert bool((equal | ~found).all())
        if views is x:
            assert torch.equal(found, equal)
