"""Means over ranks that do not depend on the layout of DistributedDataParallel's buckets.

    g = (g_0 + g_1 + ... + g_{N-1}) / N        for each number, added in the order of the ranks

DistributedDataParallel sums gradients by the bucket, and lays its buckets out anew after the first
step of each start. gloo's all-reduce adds the numbers of three or more ranks in an order that
depends on their place in the bucket. So the first step after a restart would round otherwise than
the same step of an undisturbed run. Two numbers have one sum in either order.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from marginlab.ranks.group import size


def data_parallel(
    module: nn.Module, device: torch.device, group: dist.ProcessGroup | None = None, **settings: Any
) -> DistributedDataParallel:
    """Wrap a module in DistributedDataParallel; on CPU, a restart does not change the rounding.

    On CUDA the means are NCCL's, with its own order of addition.

    Args:
        module: The module to wrap; its parameters are on `device`.
        device: The device of this rank.
        group: The process group; None is the default one.
        settings: Arguments for DistributedDataParallel, such as `bucket_cap_mb`.
    """
    cuda = device.type == "cuda"
    wrapped = DistributedDataParallel(
        module, device_ids=[device] if cuda else None, process_group=group, **settings
    )
    if not cuda and size(group) > 2:
        wrapped.register_comm_hook(group, _averaged)
    return wrapped


def ordered_mean(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Average a vector over the ranks, adding in the order of the ranks; without gradient.

    Every rank adds up one part of the vector and sends the result to all ranks, so that as much is
    sent as in an all-reduce by a ring.

    Example:
        >>> ordered_mean(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    ranks = size(group)
    if ranks == 1:
        return x
    sent = F.pad(x, (0, -len(x) % ranks))
    parts = torch.empty_like(sent)
    dist.all_to_all_single(parts, sent, group=group)
    mean, *others = parts.chunk(ranks)
    for part in others:  # not `sum`, whose order is torch's choice
        mean += part
    mean /= ranks
    dist.all_gather(list(sent.chunk(ranks)), mean, group=group)
    return sent[: len(x)]


def _averaged(
    group: dist.ProcessGroup | None,
    # torch's stubs lack it, and DDP wants it
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """Average a bucket at once, as a communication hook for DistributedDataParallel."""
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(ordered_mean(bucket.buffer(), group))
    return done
