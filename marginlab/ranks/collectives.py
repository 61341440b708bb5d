"""Collectives with gradient; without a process group every one of them does nothing.

`group=None` means the default group when torch.distributed has been initialised, and one rank
otherwise, so the same call serves a notebook and a cluster. The collectives that carry gradient
follow one contract (the first law of the house): a loss that all ranks compute is L = sum over
ranks of l_r, and after `backward` on every rank the gradient of L with respect to each rank's
tensors is exact. Derivatives of gradients (`create_graph=True`) are exact as well. They are
derivatives of the sum over the ranks of each rank's function of its own gradients. Every backward
pass is itself made of these collectives, so all ranks take it.
"""

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from marginlab.ranks.exchange import raise_together
from marginlab.ranks.group import rank, size

Gradients = Literal["mean", "sum"]


def all_reduce(
    x: Tensor, group: dist.ProcessGroup | None = None, grads: Gradients = "sum"
) -> Tensor:
    """Sum x over the ranks (all-reduce); the result is the same on each.

    The gradient is that of one shared sum. All ranks compute alike from it, so the upstream
    gradient is passed on as it is. (An all-reduce of it would count it once a rank.) With
    grads="mean" it is multiplied by the number of ranks, for DDP and FSDP, which average. The
    factor enters every derivative, so use it only where the sum is the loss itself; elsewhere use
    `with_gradients`.

    Example:
        >>> all_reduce(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    return (
        x
        if size(group) == 1
        else _Total.apply(x, group, float(size(group)) if grads == "mean" else 1.0)
    )


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None, factor: float) -> Tensor:
        ctx.group, ctx.factor = group, factor
        out = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Shared.apply(grad, ctx.group, ctx.factor), None, None


class _Shared(torch.autograd.Function):
    """A factor times x: computed alike on every rank, and used by each in its own way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None, factor: float) -> Tensor:
        ctx.group, ctx.factor = group, factor
        return x * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return all_reduce(grad * ctx.factor, ctx.group), None, None


def with_gradients(
    loss: Tensor, group: dist.ProcessGroup | None = None, grads: Gradients = "mean"
) -> Tensor:
    """Return a loss that all ranks computed alike; "mean" multiplies its gradients by the ranks.

    The factor is the number of ranks. It stands at the end and not at a sum within the loss, where
    a second derivative would meet it twice.

    Example:
        >>> with_gradients(torch.tensor(1.0))
        tensor(1.)
    """
    if size(group) == 1 or grads == "sum":
        return loss
    scaled: Tensor = _WithGradients.apply(loss, float(size(group)))
    return scaled


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def all_reduce_statistic(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum x over the ranks, for use by each in its own way; the gradients are added, too.

    An example is a mean that every rank subtracts from its rows.

    Example:
        >>> all_reduce_statistic(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    return x if size(group) == 1 else _Statistic.apply(x, group)


class _Statistic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        out = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce_statistic(grad, ctx.group), None


def rows_per_rank(
    n: int, group: dist.ProcessGroup | None = None, device: torch.device | str = "cpu"
) -> list[int]:
    """Return the number of rows that each rank holds, in the order of the ranks."""
    if size(group) == 1:
        return [n]
    counts = torch.zeros(size(group), dtype=torch.int64, device=device)
    counts[rank(group)] = n
    dist.all_reduce(counts, group=group)
    return counts.tolist()


def all_gather(
    x: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    rows: list[int] | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Gather the rows of all ranks, in their order, on every rank: (B_r, ...) -> (B, ...).

    Ranks may hold different numbers of rows, also none. The backward pass sums over the ranks their
    gradients with respect to this rank's rows, in one reduce-scatter. A loss that uses gathered
    rows is therefore exact.

    Args:
        x: (B_r, ...) rows of this rank.
        group: The process group; None is the default one, or one rank.
        rows: The ranks' `rows_per_rank`, where they are known already.
        factor: A factor on the summed gradient; other than 1 it allows no second derivative.

    Example:
        >>> all_gather(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    return x if size(group) == 1 else _Gather.apply(x, group, rows, factor)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: dist.ProcessGroup | None, rows: list[int] | None, factor: float
    ) -> Tensor:
        ctx.group, ctx.factor = group, factor
        if rows is None:
            width = tuple(x.shape[1:])
            rows = raise_together(
                len(x), None, group, x.device, what="gather", dtype=x.dtype, width=width
            )
        ctx.rows = rows
        sent = _padded(x, max(ctx.rows))
        out = [torch.empty_like(sent) for _ in ctx.rows]
        dist.all_gather(out, sent, group=group)
        return torch.cat([part[:n] for part, n in zip(out, ctx.rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Scatter.apply(grad, ctx.group, ctx.rows, ctx.factor), None, None, None


class _Scatter(torch.autograd.Function):
    """A factor times this rank's rows of the sum over the ranks: the transpose of `all_gather`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: dist.ProcessGroup | None, rows: list[int], factor: float
    ) -> Tensor:
        ctx.group, ctx.rows, ctx.factor = group, rows, factor
        parts = [_padded(part, max(rows)) for part in x.split(rows)]
        local = torch.empty_like(parts[0])
        dist.reduce_scatter(local, parts, group=group)
        return local[: rows[rank(group)]] * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.factor != 1:
            raise RuntimeError(
                "Over several ranks a loss that multiplies the gradients of its rows by their "
                "number (grads='mean') has no second derivative: take grads='sum'."
            )
        return all_gather(grad, ctx.group, rows=ctx.rows), None, None, None


def _padded(x: Tensor, rows: int) -> Tensor:
    """Pad x to `rows` rows, with zeros at the end.

    gloo exchanges only parts of one size, so every rank sends the size of the largest.
    """
    if len(x) == rows:
        return x.contiguous()
    out = x.new_zeros(rows, *x.shape[1:])
    out[: len(x)] = x
    return out


def local_rows(x: Tensor, rows: list[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """Return this rank's rows of a tensor (B, ...) that every rank has computed alike.

    The backward pass gathers the gradients of all ranks' rows.

    Example:
        >>> local_rows(torch.ones(2), [2])
        tensor([1., 1.])
    """
    return x if size(group) == 1 else _LocalRows.apply(x, rows, group)


class _LocalRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: list[int], group: dist.ProcessGroup | None) -> Tensor:
        ctx.rows, ctx.group = rows, group
        start = sum(rows[: rank(group)])
        return x[start : start + rows[rank(group)]].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _GatheredRows.apply(grad, ctx.rows, ctx.group), None, None


class _GatheredRows(torch.autograd.Function):
    """The rows of all ranks, from which all then compute alike: the transpose of `local_rows`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: list[int], group: dist.ProcessGroup | None) -> Tensor:
        ctx.rows, ctx.group = rows, group
        return all_gather(x, group, rows=rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return local_rows(grad, ctx.rows, ctx.group), None, None


def all_gather_stack(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Stack the tensors of all ranks in their order: (...) -> (N, ...). Without gradient.

    The tensors have one shape on all ranks. A function of the stack is the same on every rank, to
    the last bit.

    Example:
        >>> all_gather_stack(torch.ones(3)).shape
        torch.Size([1, 3])
    """
    if size(group) == 1:
        return x[None]
    out = [torch.empty_like(x) for _ in range(size(group))]
    dist.all_gather(out, x.contiguous(), group=group)
    return torch.stack(out)


def shard(x: Tensor, rows: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Wrap this rank's part of a matrix of `rows` rows as a DTensor, cut as torch.chunk cuts.

    Checkpoints can save a DTensor on N ranks and load it on M.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    default = dist.distributed_c10d._get_default_group() if group is None else group
    mesh = DeviceMesh.from_group(default, x.device.type)
    shape = torch.Size((rows, *x.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(x, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def shard_like(x: Any, like: Tensor) -> Any:
    """Cut a tensor as a DTensor, if it has a row for each row of this rank's part; else return it.

    `like` is the DTensor. Anything but such a tensor is returned as it is.
    """
    part = to_local(like)
    if part is like or not isinstance(x, Tensor) or x.shape[:1] != part.shape[:1]:
        return x
    from torch.distributed.tensor import DTensor

    shape = torch.Size((like.shape[0], *x.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    assert isinstance(like, DTensor)
    return DTensor.from_local(
        x, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride
    )


def to_local(x: Tensor) -> Tensor:
    """Return the part of a DTensor that this rank holds; any other tensor as it is."""
    to_local = getattr(x, "to_local", None)  # without importing DTensor where there is none
    return x if to_local is None else to_local()


def full_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict with its DTensors gathered, on every rank."""
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in state.items()
    }


@torch.no_grad()
def broadcast_buffers(module: torch.nn.Module) -> None:
    """Give all ranks the buffers of rank 0, such as the running statistics of batch normalisation.

    In training each rank has the buffers of its own images until its next forward pass, before
    which DistributedDataParallel broadcasts those of rank 0, too. All ranks call it.
    """
    if size() > 1:
        for buffer in module.buffers():
            sent = buffer.contiguous()
            dist.broadcast(sent, 0)
            buffer.copy_(sent)


def rank_slice(n: int, group: dist.ProcessGroup | None = None) -> slice:
    """Return this rank's part of n rows: consecutive, sizes differing by at most one."""
    ranks, here = size(group), rank(group)
    return slice(n * here // ranks, n * (here + 1) // ranks)
