"""Means over ranks that do not depend on where a gradient lies in a bucket of
DistributedDataParallel.

    g = (g_0 + g_1 + ... + g_{N-1}) / N        for each number, added in the order of the ranks

DistributedDataParallel sums gradients by the bucket, and lays its buckets out anew after the first
step of each start. gloo's all-reduce adds the numbers of three or more ranks in an order that
depends on their place in the bucket, so the first step after a restart would round otherwise than
the same step of a run that was not disturbed. Two numbers have one sum in either order.
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
    """DistributedDataParallel of a module; on CPU, a restart does not change how its means round.

    On CUDA the means are NCCL's, whose order of addition is its own.

    Args:
        module: what to wrap; its parameters are on `device`.
        device: of this rank.
        group: process group; None is the default one.
        settings: for DistributedDataParallel, such as `bucket_cap_mb`.
    """
    cuda = device.type == "cuda"
    wrapped = DistributedDataParallel(
        module, device_ids=[device] if cuda else None, process_group=group, **settings
    )
    if not cuda and size(group) > 2:
        wrapped.register_comm_hook(group, _averaged)
    return wrapped


def ordered_mean(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Mean over the ranks of a vector, each number added in the order of the ranks; without
    gradient.

    Every rank adds up one part of the vector and sends the result to all, so that as much is sent
    as in an all-reduce by a ring.

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
    """A communication hook for DistributedDataParallel: the bucket's mean, at once."""
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(ordered_mean(bucket.buffer(), group))
    return done
