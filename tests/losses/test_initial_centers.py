import hypothesis.strategies as st
import pytest
import scipy.stats
import torch
from hypothesis import example, given, settings
from torch.utils._python_dispatch import TorchDispatchMode

from marginlab.losses.centers import BLOCK, draw_


def drawn(C, K=1, D=3, dtype=torch.float32, **arguments):
    return draw_(torch.full((C, K, D), torch.nan, dtype=dtype), **arguments)


@settings(max_examples=15)
@given(
    C=st.integers(0, 2 * BLOCK + 50),
    cut=st.floats(0, 1),
    K=st.integers(1, 2),
    first=st.integers(0, 3 * BLOCK),
)
@example(C=BLOCK, cut=1.0, K=1, first=0)
@example(C=2 * BLOCK, cut=0.5, K=1, first=BLOCK)
@example(C=2, cut=0.5, K=1, first=BLOCK - 1)
def test_two_shards_hold_what_the_whole_holds_bit_for_bit(C, cut, K, first):
    whole, at = drawn(C, K, 2, seed=5, first=first), round(cut * C)
    parts = [drawn(at, K, 2, seed=5, first=first), drawn(C - at, K, 2, seed=5, first=first + at)]
    # which also sees a number that was not drawn, for nan is not nan
    assert torch.equal(torch.cat(parts), whole)


def test_a_class_has_its_center_whatever_the_number_of_classes():
    assert torch.equal(drawn(1_500, seed=0)[:1_200], drawn(1_200, seed=0))
    assert torch.equal(drawn(1, seed=0, first=10**9)[0], drawn(3, seed=0, first=10**9 - 1)[1])


def test_the_numbers_are_normal_in_every_block_and_blocks_do_not_resemble():
    weight = drawn(4 * BLOCK, 2, 8, seed=0, std=0.02).double() / 0.02
    for block in weight.split(BLOCK):
        assert scipy.stats.kstest(block.flatten().numpy(), "norm").pvalue > 0.005
    n = weight.numel()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(weight.pow(power).mean() - moment) < 3 * (variance / n) ** 0.5
    correlation = torch.corrcoef(weight.view(4, -1))
    assert (correlation - torch.eye(4)).abs().max() < 4 * (4 / n) ** 0.5
    # features and sub-centers of a class
    assert abs(torch.corrcoef(weight.view(-1, 16).T) - torch.eye(16)).max() < 4.5 * (16 / n) ** 0.5


def test_every_dtype_holds_the_same_numbers():
    single = drawn(BLOCK + 7, 2, 5, seed=1)
    assert torch.equal(drawn(BLOCK + 7, 2, 5, torch.float64, seed=1), single.double())
    assert torch.equal(drawn(BLOCK + 7, 2, 5, torch.bfloat16, seed=1), single.bfloat16())
    turned = torch.empty(5, 2, BLOCK + 7).permute(2, 1, 0)
    assert torch.equal(draw_(turned, seed=1), single)


def test_the_place_is_kept_and_the_global_generator_left_alone():
    state, weight = torch.get_rng_state(), torch.nn.Parameter(torch.empty(10, 1, 2))
    assert draw_(weight, seed=0) is weight
    assert weight.is_leaf
    assert weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert (drawn(10, seed=0, std=0.0) == 0).all()


def test_seeds_and_blocks_differ():
    blocks = [drawn(1, seed=seed, first=BLOCK * block) for seed in range(3) for block in range(40)]
    assert len({tuple(block.flatten().tolist()) for block in blocks}) == len(blocks)


def test_no_two_blocks_have_one_seed(monkeypatch):
    """Ten million classes are 9,766 blocks; torch reads 32 bits of a seed, and independent ones
    meet in one run of 90.
    """
    seeds = []

    class Recorder:
        def manual_seed(self, seed):
            seeds.append(seed)
            return generator

    generator = torch.Generator()
    monkeypatch.setattr(torch, "Generator", Recorder)
    draw_(torch.empty(10**7, 1, 0), seed=0)
    assert len(seeds) == 9_766
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)


def test_nothing_longer_than_a_block_is_made():
    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() != held:
                longest.append(made.untyped_storage().nbytes())
            return made

    weight, longest = torch.empty(300 * BLOCK, 1, 512, dtype=torch.bfloat16), []
    held = weight.untyped_storage().data_ptr()
    with Made():
        draw_(weight, seed=0)
    # also above the tables of seeds, whatever the number of classes
    assert max(longest) == 4 * BLOCK * 512


def test_bad_centers_are_refused():
    for first in (-1, 2**32):
        with pytest.raises(ValueError, match=f"not from {first} to {first + 1}"):
            drawn(1, seed=0, first=first)
    with pytest.raises(ValueError, match=r"not negative, such as 0\.01, not -1"):
        drawn(1, seed=0, std=-1.0)
