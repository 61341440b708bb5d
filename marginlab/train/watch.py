"""What stops a training before it does harm: numbers that are not finite, on any rank, and the
signal to end; agreed by all ranks at every step.

Every rank sends two flags (a number is not finite; the signal to stop has come). One rank's flag
stops all of them at the same step, before the optimizers move: the weights are still those of the
last good step, so a checkpoint of them is whole, and the layer that failed can be found by passing
the batch through the network once more.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from marginlab import ranks
from marginlab.methods import Method
from marginlab.signals import Terminated

LOSS = "the loss, of finite embeddings"


class Stopped(Terminated):
    """The signal to end came; what is to be kept has been kept."""


class Signal:
    """Whether SIGTERM has come since `watched` began."""

    def __init__(self) -> None:
        self.came = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Note SIGTERM instead of ending by it; outside the main thread, which alone may do so,
        nothing changes.
        """
        try:
            before = signal.signal(signal.SIGTERM, self._note)
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True


def agreed(loss: Tensor, gradients: list[Tensor], stop: Signal) -> tuple[list[bool], bool]:
    """Which ranks have a loss or gradient that is not finite, and whether any was told to stop; the
    same on every rank.
    """
    sums = [_values(g).sum() for g in gradients]
    finite = (
        torch.stack([loss.detach().float(), *(s.float().to(loss.device) for s in sums)])
        .isfinite()
        .all()
    )
    said = ranks.all_equal(
        torch.stack((~finite, torch.tensor(stop.came, device=loss.device))).to(torch.uint8)
    )
    return said[:, 0].bool().tolist(), bool(said[:, 1].any())


def diagnosis(method: Method, views: Tensor, rows: Tensor, loss: Tensor) -> tuple[int, str]:
    """Where the first number that is not finite comes from, on this rank: a layer's output, the
    loss, or a parameter's gradient; and the images.

    The number before it says how early in the forward pass that is: what one rank's rows break,
    others see later, in what they share.
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
    """The stored numbers of a tensor; of a row-sparse one as they are, since to coalesce them takes
    a sort and a copy.
    """
    return x._values() if x.is_sparse else x


def _finite(x: Tensor) -> bool:
    return bool(_values(x).isfinite().all())


@torch.no_grad()
def _first_layer(method: Method, views: Tensor) -> tuple[int, str | None]:
    """The place and name of the first module, in the order of the forward pass, whose output is not
    finite.
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
