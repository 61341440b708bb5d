"""Embeddings of every length that float32 and float16 hold: the losses of float64, in value and
gradient.
"""

import functools

import pytest
import torch

from marginlab.losses.functional import (
    align_uniform,
    cross_correlation,
    info_nce,
    sup_con,
    t_info_nce,
)

VIEWS = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LOSSES = {
    "InfoNCE": functools.partial(info_nce, temperature=0.1),
    "AlignUniform": align_uniform,
    "SupCon": lambda a, b: sup_con(torch.cat((a, b)), torch.arange(6).repeat(2)),
    "CrossCorrelation": cross_correlation,
    "CrossCorrelation in blocks": functools.partial(cross_correlation, budget=64),
    "TInfoNCE": t_info_nce,
}


@pytest.mark.parametrize("length", [1e-8, 1.0, 1e19, 1e25, 5e37])
@pytest.mark.parametrize("loss", LOSSES)
def test_in_float32_they_are_those_of_float64(loss, length):
    function = LOSSES[loss]
    got = [(z * length).float().requires_grad_() for z in VIEWS]
    exact = [z.detach().double().requires_grad_() for z in got]
    value, expected = function(*got), function(*exact)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    slopes = torch.autograd.grad(value, got), torch.autograd.grad(expected, exact)
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a.double() * length, b * length, rtol=1e-4, atol=1e-5)


def test_features_far_below_the_others_are_standardised_as_in_float64():
    power = torch.tensor([1e-30, 1e-12, 1.0, 1e12, 1e30], dtype=torch.float64)
    got = cross_correlation(*(VIEWS * power).float())
    torch.testing.assert_close(got.double(), cross_correlation(*VIEWS), rtol=1e-5, atol=1e-5)


def by_differences(z1, z2):
    z = torch.cat((z1, z2)).double()
    share = 1 / (1 + (z[:, None] - z).square().sum(2)) * (1 - torch.eye(len(z)))
    positive = share[torch.arange(len(z)), torch.arange(len(z)).roll(len(z1))]
    return -(positive / share.sum(1)).log().mean()


@pytest.mark.parametrize("far", [1, 3])
def test_in_float16_long_rows_leave_the_distances_of_the_others(far):
    z1 = torch.randn(8, 10, generator=torch.Generator().manual_seed(1)).half()
    z2 = (z1 + 0.1 * torch.randn(8, 10, generator=torch.Generator().manual_seed(2))).half()
    z1[:far] += 1e4
    z2[:far] += 1e4
    got = float(t_info_nce(z1, z2))
    torch.testing.assert_close(got, float(by_differences(z1, z2)), rtol=1e-5, atol=0)


@pytest.mark.xdist_group("ranks")
def test_on_ranks_the_scale_of_a_feature_is_that_of_all(pool):
    z = (VIEWS * torch.tensor([1e30, 1.0, 1e19, 1e-30, 1.0], dtype=torch.float64)).float()
    z[:, :3] *= 1e-6
    expected = cross_correlation(*z)
    for got in pool.run(3, on_a_rank, [z[:, :3], z[:, :0], z[:, 3:]]):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def on_a_rank(group, rank, parts):
    return cross_correlation(*parts[rank], group=group)
