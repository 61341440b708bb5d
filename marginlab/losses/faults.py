"""Input checks of a classifier.

Shapes and types are checked before anything is read. Values are checked at once, or one step later
where reading them would stop a GPU.

    "now"       the tensors are read before work starts, and the loss after it
    "deferred"  three flags are made on the device and sent to the host;
                the next call finds them there and raises
    "never"     nothing is read

There are no values to read under torch.compile, torch.export and the transforms of torch.func, and
on the device "meta".
"""

from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from marginlab.recomputation import transformed

Validate = Literal["now", "deferred", "never"]


def check_shapes(embeddings: Tensor, labels: Tensor | None, centers: Tensor) -> None:
    """Check shapes, devices and types without reading the tensors.

    Raises:
        ValueError: A shape or device does not fit.
        TypeError: A type does not fit.
    """
    check_tensor("Embeddings", embeddings, "(B, D) of floating point")
    if not embeddings.is_floating_point():
        raise TypeError(
            f"Embeddings are floating point, not {embeddings.dtype}. A classifier takes "
            "(embeddings, labels), in this order."
        )
    if embeddings.ndim != 2 or embeddings.shape[1] != centers.shape[-1]:
        raise ValueError(
            f"Embeddings are a matrix (B, {centers.shape[-1]}), as wide as the class centers, not "
            f"{tuple(embeddings.shape)}."
        )
    if embeddings.device != centers.device:
        raise ValueError(
            f"Embeddings are on {embeddings.device}, the class centers on {centers.device}. Move "
            "one of them: head.to(...)."
        )
    if labels is None:
        return
    check_labels(labels, embeddings.device)
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"Labels are ({len(embeddings)},), one class for each embedding, not "
            f"{tuple(labels.shape)}."
        )


def check_labels(labels: Tensor, device: torch.device) -> None:
    """Check that labels are a tensor of integers.

    A fraction would be cut off and NaN would become a number, so float labels are not converted.

    Raises:
        TypeError: The labels are anything but a tensor of integers.
        ValueError: The labels are on another device.
    """
    check_tensor("Labels", labels, "of integers")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"Labels are integers, not {labels.dtype}. Convert whole numbers with .long()."
        )
    if labels.device != device:
        raise ValueError(
            f"Labels are on {labels.device}, the embeddings on {device}. Move one of them: "
            "labels.to(...)."
        )


def check_tensor(name: str, value: Any, wanted: str) -> None:
    """Raise TypeError for a value that is not a tensor, with its type and shape."""
    if isinstance(value, Tensor):
        return
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    shape = getattr(value, "shape", None)
    size = "" if shape is None else f" of shape {tuple(shape)}"
    length = (
        f" of length {len(value)}" if shape is None and isinstance(value, list | tuple) else size
    )
    raise TypeError(
        f"{name} are a tensor {wanted}, not {kind}{length}. Make one: torch.as_tensor(...), on the "
        "device of the embeddings."
    )


def excluded(exclude: Int[Tensor, "B E"] | None, rows: int) -> Int[Tensor, "B E"] | None:
    """Check the class numbers that each row leaves out, and return them in int64."""
    if exclude is None:
        return None
    check_tensor("Excluded classes", exclude, f"({rows}, E) integers")
    if (
        exclude.ndim != 2
        or len(exclude) != rows
        or exclude.is_floating_point()
        or exclude.is_complex()
        or exclude.dtype == torch.bool
    ):
        raise ValueError(
            f"Excluded classes are ({rows}, E) integers, one row for each embedding, not "
            f"{tuple(exclude.shape)} of {exclude.dtype}."
        )
    return exclude.long()


class Faults:
    """Value checks of a classifier, and when they are reported.

    `validate=None` means "deferred" on CUDA and "now" elsewhere.
    """

    def __init__(self, num_classes: int, ignore_index: int | None, validate: Validate | None):
        self.num_classes, self.ignore_index, self.validate = num_classes, ignore_index, validate
        self._waiting: tuple[Tensor, torch.cuda.Event | None] | None = None

    def when(self, device: torch.device) -> Validate:
        """Return when values on this device are read."""
        if device.type == "meta" or torch.compiler.is_compiling() or transformed():
            return "never"
        return self.validate or ("deferred" if device.type == "cuda" else "now")

    def before(self, embeddings: Tensor, labels: Tensor, valid: Tensor | None) -> None:
        """With "now", raise ValueError for NaN, inf, and labels that are not classes."""
        if self.when(embeddings.device) == "now":
            self._raise(self._seen(embeddings, labels, valid, None), "")

    def after(self, embeddings: Tensor, labels: Tensor, valid: Tensor | None, loss: Tensor) -> None:
        """Check the batch together with its loss, or keep the flags for the next call.

        NaN or inf in any center shows in the loss.
        """
        when = self.when(embeddings.device)
        if when == "never":
            return
        seen = self._seen(embeddings, labels, valid, loss)
        if when == "now":
            self._raise(seen, "")
        elif seen.device.type == "cuda":
            host = torch.empty(3, dtype=torch.bool, pin_memory=True)
            host.copy_(seen, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._waiting = host, event
        else:
            self._waiting = seen, None

    def raise_deferred(self) -> None:
        """Raise ValueError for a fault of the batch before."""
        if self._waiting is None or torch.compiler.is_compiling() or transformed():
            return
        (seen, event), self._waiting = self._waiting, None
        if event is not None:
            # the event is of the step before, so this waits only if the host is a whole step ahead
            event.synchronize()
        self._raise(
            seen, " This is said of the batch before this one; validate='now' says it at once."
        )

    def _seen(
        self, embeddings: Tensor, labels: Tensor, valid: Tensor | None, loss: Tensor | None
    ) -> Tensor:
        outside = (labels < 0) | (labels >= self.num_classes)
        outside = outside if valid is None else outside & valid
        finite = embeddings.detach().isfinite().all()
        lost = (
            torch.zeros_like(finite) if loss is None else finite & ~loss.detach().isfinite().all()
        )
        return torch.stack((outside.any(), ~finite, lost))

    def _raise(self, seen: Tensor, when: str) -> None:
        labels, embeddings, loss = seen.tolist()
        others = (
            ""
            if self.ignore_index is None
            else f" that are not the ignore_index {self.ignore_index}"
        )
        long = (
            "class centers with NaN, inf or lengths beyond them (the embeddings are finite, the "
            "loss is not; was the learning rate too large?)"
        )
        said = [
            *([f"labels outside 0..{self.num_classes - 1}{others}"] if labels else ()),
            *(["embeddings with NaN or inf"] if embeddings else ()),
            *([long] if loss else ()),
        ]
        if said:
            raise ValueError(f"The classifier was given {' and '.join(said)}.{when}")
