"""Collectives with gradient; without a process group every one of them does nothing.

`group=None` means the default group when torch.distributed has been initialised, and one rank otherwise, so the same call serves a notebook
and a cluster. The two that carry gradient follow one contract (the first law of the house): a loss that all ranks compute is L = sum over
ranks of l_r, and after `backward` on every rank the gradient of L with respect to what a rank holds is exact.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

Gradients = Literal["mean", "sum"]


def size(group: dist.ProcessGroup | None = None) -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size(group) if _active() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """Number of this rank, from 0; 0 without a process group."""
    return dist.get_rank(group) if _active() else 0


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def total(x: Tensor, group: dist.ProcessGroup | None = None, grads: Gradients = "sum") -> Tensor:
    """Sum of x over the ranks, the same on each.

    The gradient is that of the one shared sum: what follows it is computed alike on every rank, so the upstream gradient is passed on as it is
    (an all-reduce of it would count it once a rank). With grads="mean" it is multiplied by the number of ranks, for DDP and FSDP, which average.

    >>> total(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    return x if size(group) == 1 else _Total.apply(x, group, float(size(group)) if grads == "mean" else 1.0)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None, factor: float) -> Tensor:
        ctx.factor = factor
        out = x.clone()
        dist.all_reduce(out, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.factor, None, None


def counts(n: int, group: dist.ProcessGroup | None = None, device: torch.device | str = "cpu") -> list[int]:
    """The number of rows that each rank holds, in the order of the ranks."""
    if size(group) == 1:
        return [n]
    held = torch.zeros(size(group), dtype=torch.int64, device=device)
    held[rank(group)] = n
    dist.all_reduce(held, group=group)
    return held.tolist()


def gather(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows of all ranks, in their order, on every rank: (B_r, ...) -> (B, ...). Ranks may hold different numbers of rows, also none.

    The backward pass sums over the ranks the gradients that each has for this rank's rows, so a loss that uses gathered rows is exact.

    >>> gather(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """
    return x if size(group) == 1 else _Gather.apply(x, group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group, ctx.rows = group, counts(len(x), group, x.device)
        widest = max(ctx.rows)  # gloo refuses unequal sizes: every rank sends the widest
        sent = x.new_zeros(widest, *x.shape[1:])
        sent[: len(x)] = x
        out = [torch.empty_like(sent) for _ in ctx.rows]
        dist.all_gather(out, sent, group=group)
        return torch.cat([part[:n] for part, n in zip(out, ctx.rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        start = sum(ctx.rows[: rank(ctx.group)])
        return grad[start : start + ctx.rows[rank(ctx.group)]], None


def broadcast(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """Rank 0's value (any picklable object) on every rank."""
    if size(group) == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0 if group is None else dist.get_global_rank(group, 0), group=group)
    return box[0]


def first(function: Callable[[], Any], group: dist.ProcessGroup | None = None) -> Any:
    """Call a function on rank 0 and give its result to all; an error there is raised on every rank, so none waits for ever."""
    if size(group) == 1:
        return function()
    result, error = None, None
    if rank(group) == 0:
        try:
            result = function()
        except Exception as raised:
            error = raised
    result, error = broadcast((result, error), group)
    if error is not None:
        raise error
    return result


def share(n: int, group: dist.ProcessGroup | None = None) -> slice:
    """This rank's part of n rows: consecutive, sizes differing by at most one."""
    ranks, here = size(group), rank(group)
    return slice(n * here // ranks, n * (here + 1) // ranks)
