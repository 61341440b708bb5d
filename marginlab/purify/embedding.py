"""The embeddings that a classifier's centers are compared with, and who they are from.

    embedding(x) = method.project(method.encode(x))

Two digests tell a kept state of another model apart: one of the network, and one of the centers
that is the same on any number of ranks,

    sum over c, k, d of  word(W_ckd) (2 ((c K + k) D + d) + 1)   mod 2^64,

where word is the bits of the float32 number.
"""

import functools
import hashlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from marginlab import ranks
from marginlab.data import ImageSet
from marginlab.losses import MarginSoftmax, PartialFC

Head = MarginSoftmax | PartialFC
_BLOCK = 2**20  # numbers of centers that are digested at a time


@runtime_checkable
class Embeds(Protocol):
    """A method of marginlab: features of images, and embeddings of features."""

    def encode(self, images: Tensor, /) -> Tensor:
        """Return features of images."""

    def project(self, features: Tensor, /) -> Tensor:
        """Return embeddings of features."""


class Embedder(NamedTuple):
    """A function of images (B, 3, H, W) to embeddings (B, D), and the classifier behind it."""

    function: Any
    head: Head

    @property
    def module(self) -> nn.Module:
        """The network."""
        found: nn.Module = self.function.args[0]
        return found


def embedder(model: nn.Module, head: Head | None = None) -> Embedder:
    """Return the embeddings of a model, and its classifier.

    Args:
        model: A trained `MarginClassifier`, or a module of your own from images to embeddings.
        head: The classifier of a module of your own.

    Raises:
        ValueError: A model without a classifier, and none given.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"A model is a module, not of type {type(model).__name__}.")
    own = getattr(model, "classifier", None) if head is None else head
    if not isinstance(own, MarginSoftmax | PartialFC):
        raise ValueError(
            f"{type(model).__name__} has no class centers to compare images with. Give a trained "
            "MarginClassifier, or head=... of your own model."
        )
    call = _projected if isinstance(model, Embeds) else _called
    return Embedder(functools.partial(call, model), own)


def check_classes(images: ImageSet, model: nn.Module, head: Head) -> None:
    """Refuse images of other classes than the model was trained on.

    Raises:
        ValueError: Another number of classes, or other names.
    """
    C = len(images.classes)
    if head.num_classes != C:
        raise ValueError(
            f"{images.name} has {C} classes, and the classifier was trained on {head.num_classes}. "
            "Give the images that it was trained on."
        )
    names = tuple(getattr(model, "classes", ()) or ())
    if names and names != images.classes:
        c = next(c for c in range(C) if names[c] != images.classes[c])
        raise ValueError(
            f"Class {c} of {images.name} is {images.classes[c]!r}, and the model was trained with "
            f"{names[c]!r} in its place. Give the images that it was trained on."
        )


def digest(found: Embedder) -> str:
    """Return 32 hexadecimal digits of the network and the centers, on any number of ranks."""
    own = {id(part) for part in (*found.head.parameters(), *found.head.buffers())}
    text = hashlib.sha256()
    parts = (*found.module.named_parameters(), *found.module.named_buffers())
    for name, tensor in sorted(parts, key=lambda part: part[0]):
        if id(tensor) not in own:
            text.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            held = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            text.update(held.numpy().data)
    return f"{text.hexdigest()[:16]}{_of_centers(found.head):016x}"


def _of_centers(head: Head) -> int:
    centers = head.centers.detach().float().contiguous()
    first = head.part.start * centers[0].numel() if len(centers) else 0
    total = torch.zeros((), dtype=torch.int64, device=centers.device)
    for number, part in enumerate(centers.view(-1).split(_BLOCK)):
        begin = first + number * _BLOCK
        place = torch.arange(begin, begin + len(part), device=centers.device)
        total += (part.view(torch.int32).long() * (2 * place + 1)).sum()
    if head.sharded:
        total = ranks.all_reduce(total, head.group)
    return int(total) % 2**64


def _projected(model: Any, images: Tensor) -> Tensor:
    embeddings: Tensor = model.project(model.encode(images))
    return embeddings


def _called(model: nn.Module, images: Tensor) -> Tensor:
    embeddings: Tensor = model(images)
    return embeddings
