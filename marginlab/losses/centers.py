"""Initial class centers: normal numbers that depend on the class alone.

They do not depend on the tensor, rank or device that holds the class.

    w_ckd = std * g,
    g the number ((c mod 1024) K + k) D + d of the normal numbers of block c // 1024.

Each block of 1,024 classes has its own generator. A shard therefore draws only the blocks that it
touches. It gets exactly the rows that one rank with all classes has. This holds for any number of
ranks, also when a run resumes with another number.

Source: w ~ N(0, 0.01^2) is the initial value of Partial FC and of its descendants (An et al. 2021).
Only the direction of a center is used, and it is uniform on the sphere. Its length, about 0.01
sqrt(D), sets how far the first steps turn it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.rng import Key

BLOCK = 1_024  # classes; another number is another set of centers


@torch.no_grad()
def draw_(
    weight: Float[Tensor, "C K D"], *, seed: int, first: int = 0, std: float = 0.01
) -> Tensor:
    """Fill the centers of classes first .. first + C - 1 in place, and return them.

    The numbers are drawn as float32 on the CPU, a block at a time, and copied. They are therefore
    the same on every device. Another dtype holds the float32 numbers, rounded (bfloat16) or exact
    (float64). Besides `weight`, one block of 4096 K D bytes is held. torch's own CPU kernels differ
    in the last bit between instruction sets (AVX2 or none), so the ranks of one run need processors
    of one kind. Torch's global generator is neither read nor changed.

    Args:
        weight: (C, K, D), of any floating dtype, strides and device.
        seed: Seed of the numbers; other seeds give other centers.
        first: Number of the first class that `weight` holds, in a classifier sharded over ranks.
        std: Standard deviation of each number.

    Raises:
        ValueError: Classes outside [0, 2**32), or a negative std.

    Example:
        >>> every = draw_(torch.empty(3_000, 1, 4), seed=0)
        >>> shard = draw_(torch.empty(1_500, 1, 4), seed=0, first=1_500)
        >>> torch.equal(shard, every[1_500:])
        True
    """
    end = first + len(weight)
    if not 0 <= first <= end <= 1 << 32:
        raise ValueError(
            f"The classes of a shard lie in [0, 2**32), not from {first} to {end}. Give the number "
            "of its first class."
        )
    if not std >= 0:
        raise ValueError(f"A standard deviation is not negative, such as 0.01, not {std}.")
    if weight.is_meta:  # there is nothing to fill: `reset_parameters` draws once there is
        return weight
    last = -(-end // BLOCK) if len(weight) else first // BLOCK
    blocks = torch.arange(first // BLOCK, last, device="cpu")
    # torch's CPU generator keeps 32 bits of its seed. Of 9,766 independent ones (ten million
    # classes) two would be equal in one run of 90, and 1,024 classes begin on top of others; a
    # permutation of the 32-bit numbers gives no two blocks one seed.
    seeds = Key(seed).named("centers").shuffle(blocks, 1 << 32)
    numbers = torch.empty(BLOCK, *weight.shape[1:], dtype=torch.float32, device="cpu")
    for block, block_seed in zip(blocks.tolist(), seeds.tolist(), strict=True):
        # Always the whole block: torch draws the numbers of a shorter tensor, or of an odd end, in
        # another order
        numbers.normal_(0.0, std, generator=torch.Generator().manual_seed(block_seed))
        low, high = max(first, block * BLOCK), min(end, (block + 1) * BLOCK)
        weight[low - first : high - first].copy_(
            numbers[low - block * BLOCK : high - block * BLOCK]
        )
    return weight
