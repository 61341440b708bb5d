import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.utils.checkpoint import checkpoint

from marginlab import ranks
from marginlab.models.batch_norm import GlobalBatchNorm1d


def steps(layer, x, weights):
    """Two training passes with a loss that couples all numbers, and the running statistics after
    them.
    """
    x = x.clone().requires_grad_()
    out = layer(x)
    (out.square() * weights + out * weights.square()).sum().backward()
    layer(x.detach() * 2)
    return (
        out.detach(),
        x.grad,
        layer.running_mean.clone(),
        layer.running_var.clone(),
        layer.eval()(x).detach(),
    )


def on_a_rank(group, rank, parts, weights):
    return steps(
        GlobalBatchNorm1d(parts[0].shape[1], group=group).double(), parts[rank], weights[rank]
    )


@pytest.mark.xdist_group("ranks")
@settings(max_examples=8)
@given(data=st.data())
def test_rows_of_all_ranks_are_one_batch(pool, data):
    rows = data.draw(
        st.lists(st.integers(0, 5), min_size=2, max_size=4).filter(lambda r: sum(r) > 1)
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x, weights = torch.randn(2, sum(rows), 3, dtype=torch.float64, generator=generator)
    x = 5 * x + 100
    expected = steps(nn.BatchNorm1d(3, affine=False).double(), x, weights)
    answers = pool.run(len(rows), on_a_rank, x.split(rows), weights.split(rows))
    for which in (0, 1, 4):
        torch.testing.assert_close(
            torch.cat([a[which] for a in answers]), expected[which], rtol=1e-9, atol=1e-9
        )
    for answer in answers:
        torch.testing.assert_close(answer[2:4], expected[2:4], rtol=1e-9, atol=1e-9)


def run_again(x, reentrant, group=None):
    layers = [GlobalBatchNorm1d(3, group=group).double() for _ in range(2)]
    checkpoint(layers[0], x.requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    layers[1](x.detach())
    return [[layer.running_mean, layer.running_var, layer.num_batches_tracked] for layer in layers]


def run_again_on_a_rank(group, rank, x, reentrant):
    return run_again(x[rank : rank + 2], reentrant, group)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_pass_that_is_run_again_moves_no_statistics(pool, reentrant):
    x = torch.rand(5, 3, dtype=torch.float64)
    for got, expected in (run_again(x, reentrant), *pool.run(2, run_again_on_a_rank, x, reentrant)):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def refusal(group, rank, x):
    try:
        GlobalBatchNorm1d(2, group=group)(x[rank:1])
    except ValueError as error:
        return str(error)


@pytest.mark.xdist_group("ranks")
def test_one_row_on_all_ranks_is_refused(pool):
    assert all("not of 1 on 3 ranks" in answer for answer in pool.run(3, refusal, torch.rand(1, 2)))


def test_on_one_rank_it_is_torchs():
    x = torch.rand(6, 3)
    assert torch.equal(GlobalBatchNorm1d(3)(x), nn.BatchNorm1d(3, affine=False)(x))
    assert ranks.size() == 1
