"""Checks that stop a training before it does harm: numbers that are not finite, or a signal to end.

All ranks agree at every step. Every rank sends two flags: a number is not finite, and the signal to
stop has come. One rank's flag stops all of them at the same step, before the optimizers move. The
weights are then still those of the last good step. So a checkpoint of them is complete, and the
layer that failed can be found by passing the batch through the network once more.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from marginlab import ranks
from marginlab.methods import Method
from marginlab.signals import Terminated, on_termination

LOSS = "the loss, of finite embeddings"


class Stopped(Terminated):
    """Raised when the signal to end came, after the state of the run was saved."""


class Signal:
    """Record of whether SIGTERM has come since `watched` began."""

    def __init__(self) -> None:
        self.came = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Note SIGTERM instead of ending by it; see `on_termination`."""
        with on_termination(self._note):
            yield

    def _note(self) -> None:
        self.came = True


def agreed(loss: Tensor, gradients: list[Tensor], stop: Signal) -> tuple[list[bool], bool]:
    """Return which ranks have a non-finite loss or gradient, and whether any was told to stop.

    The result is the same on every rank.
    """
    sums = [_values(g).sum() for g in gradients]
    finite = (
        torch.stack([loss.detach().float(), *(s.float().to(loss.device) for s in sums)])
        .isfinite()
        .all()
    )
    said = ranks.all_gather_stack(
        torch.stack((~finite, torch.tensor(stop.came, device=loss.device))).to(torch.uint8)
    )
    return said[:, 0].bool().tolist(), bool(said[:, 1].any())


def cause(
    faulty: list[bool],
    method: Method,
    losses: list[tuple[Tensor, Tensor]],
    views_of: Callable[[Tensor], Tensor],
) -> tuple[int, str]:
    """Find the rank that has the cause of numbers that are not finite; all ranks call it.

    A faulty rank takes the `diagnosis` of its first micro-batch whose loss is not finite. If only
    gradients are not finite, which are those of all micro-batches, the last one is taken.

    Args:
        faulty: Which ranks have such numbers, as `agreed` returns it.
        method: The method that is trained.
        losses: For each micro-batch of this rank, its rows and its part of the loss.
        views_of: Draws the views of rows once more.

    Returns:
        The rank, and the sentence of its `diagnosis`.
    """
    own = (0, "")
    if faulty[ranks.rank()]:
        rows, loss = next((part for part in losses if not bool(part[1].isfinite())), losses[-1])
        own = diagnosis(method, views_of(rows), rows, loss)
    found = [
        (*ranks.broadcast(own, source=number), number) for number, bad in enumerate(faulty) if bad
    ]
    # the rank that finds it earliest in the pass has the cause
    _, sentence, number = min(found, key=lambda each: (each[0], each[2]))
    return number, sentence


def diagnosis(method: Method, views: Tensor, rows: Tensor, loss: Tensor) -> tuple[int, str]:
    """Find where the first number that is not finite comes from, on this rank.

    Returns:
        How early in the forward pass it is, and a sentence. The sentence names a layer's output,
        the loss or a parameter's gradient, and the images. The number counts because values that
        one rank's rows break are seen later by other ranks, in what they share.
    """
    place, found = _first_layer(method, views)
    if found is None:
        bad = next(
            (
                name
                for name, p in method.named_parameters()
                if p.grad is not None and not _finite(p.grad)
            ),
            None,
        )
        found = f"the gradient of {bad}" if bad is not None and bool(loss.isfinite()) else LOSS
    images = ", ".join(str(int(row)) for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
    return place, f"the first number that is not finite is in {found}; the batch is images {images}"


def _values(x: Tensor) -> Tensor:
    """Return the stored numbers of a tensor.

    A row-sparse tensor is not coalesced, since that takes a sort and a copy.
    """
    return x._values() if x.is_sparse else x


def _finite(x: Tensor) -> bool:
    return bool(_values(x).isfinite().all())


@torch.no_grad()
def _first_layer(method: Method, views: Tensor) -> tuple[int, str | None]:
    """Return the place and name of the first module whose output is not finite.

    The order is that of the forward pass.
    """
    if not _finite(views):
        return -1, "the views themselves"
    found: list[str] = []
    passed = [0]

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            passed[0] += not found
            if isinstance(output, Tensor) and not found and not _finite(output):
                found.append(f"the output of layer {name} ({type(module).__name__})")

        return hook

    training = method.training
    method.eval()  # in training mode layers may exchange statistics with ranks that are not here
    handles = [
        module.register_forward_hook(look(name))
        for name, module in method.named_modules()
        if not list(module.children())
    ]
    try:
        method.embed(views)
    finally:
        for handle in handles:
            handle.remove()
        method.train(training)
    return (passed[0], found[0]) if found else (passed[0] + 1, None)
