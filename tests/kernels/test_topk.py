import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from marginlab.kernels import top_k


@given(
    st.integers(0, 2**20),
    st.integers(0, 8),
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(1, 2000),
    st.booleans(),
    st.data(),
)
def test_the_answer_is_that_of_a_stable_sort_whatever_the_budget(seed, B, M, D, budget, own, data):
    generator = torch.Generator().manual_seed(seed)
    own = own and M > 1 and B <= M
    k = data.draw(st.integers(1, M - own))
    # whole numbers: products are exact and ties are many
    y = torch.randint(-2, 3, (M, D), generator=generator).float()
    x = y[:B] if own else torch.randint(-2, 3, (B, D), generator=generator).float()
    products = x @ y.T
    if own:
        products.fill_diagonal_(-torch.inf)
    expected = products.sort(dim=1, descending=True, stable=True)
    found = top_k(x, y, k, exclude_self=own, budget=budget)
    assert torch.equal(found.values, expected.values[:, :k])
    assert torch.equal(found.indices, expected.indices[:, :k])


def test_real_numbers_agree_with_the_whole_matrix():
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(50, 16, generator=generator).double(),
        torch.randn(400, 16, generator=generator).double(),
    )
    expected = (x @ y.T).topk(20, dim=1)
    found = top_k(x, y, 20, budget=4000)
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-12)
    assert torch.equal(found.indices, expected.indices)


def test_half_precision_is_summed_in_float32():
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert top_k(x, x, 2).values.dtype == torch.float32
    assert torch.equal(top_k(x, x, 2).values, top_k(x.float(), x.float(), 2).values)


@pytest.mark.parametrize(("k", "own"), [(0, False), (6, False), (5, True)])
def test_too_many_neighbours_are_refused(k, own):
    with pytest.raises(ValueError, match=f"k = {k} neighbours cannot be found among {5 - own}"):
        top_k(torch.ones(2, 3), torch.ones(5, 3), k, exclude_self=own)


def test_a_query_that_is_not_of_the_bank_cannot_be_excluded():
    with pytest.raises(ValueError, match="x has 3 rows and y has 2"):
        top_k(torch.ones(3, 2), torch.ones(2, 2), 1, exclude_self=True)
