"""Gradients averaged over ranks: each number alike wherever it lies in a bucket, and added in the
order of the ranks.
"""

from itertools import pairwise

import pytest
import torch
from torch import nn

from marginlab import ranks

WIDTHS = (40, 300, 7, 3)


def _net():
    return nn.Sequential(*(nn.Linear(wide, narrow) for wide, narrow in pairwise(WIDTHS)))


def _gradients(group, rank, weights, images, megabytes):
    """The gradients of two steps with equal weights; the buckets are laid out anew before the
    second.
    """
    net = _net()
    net.load_state_dict(weights)
    wrapped = ranks.data_parallel(net, torch.device("cpu"), group, bucket_cap_mb=megabytes)
    steps = []
    for _ in range(2):
        net.zero_grad()
        wrapped(images[rank]).tanh().sum().backward()
        steps.append([p.grad.clone() for p in net.parameters()])
    return steps


@pytest.mark.xdist_group("ranks")
def test_gradients_do_not_depend_on_how_they_lie_in_buckets(pool):
    """On three ranks an all-reduce of gloo adds in an order that depends on the place in the
    bucket.
    """
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.randn(p.shape, generator=generator) / 20
        for name, p in _net().named_parameters()
    }
    images = torch.randn(3, 6, WIDTHS[0], generator=generator)
    first, *others = (
        step
        for megabytes in (25.0, 0.001)
        for step in pool.run(3, _gradients, weights, images, megabytes)[0]
    )
    for step in others:
        assert all(bool(gradient.all()) for gradient in step)  # numbers to add, no zeros
        assert all(map(torch.equal, first, step))


def _mean(group, rank, parts):
    return ranks.ordered_mean(parts[rank], group)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_mean_is_added_in_the_order_of_the_ranks(pool, n):
    """Of lengths that split evenly among the ranks and not, and of none."""
    for length in (0, 1, 5, 24):
        generator = torch.Generator().manual_seed(length)
        parts = torch.randn(n, length, generator=generator) * torch.logspace(-3, 3, n)[:, None]
        expected = parts[0].clone()
        for part in parts[1:]:
            expected += part
        for mean in pool.run(n, _mean, parts):
            assert torch.equal(mean, expected / n)
