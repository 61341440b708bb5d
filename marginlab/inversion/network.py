"""The network that is inverted: its embeddings of images in normalised units, frozen meanwhile."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from marginlab.encoding import evaluating
from marginlab.methods import Method


class Network:
    """A trained model as inversion sees it.

    Images I in normalised units are pixels = mean + deviation I. A backbone of marginlab has its
    own mean and deviation; for any other module they are 1/2, so that I is in [-1, 1].

    Args:
        model: A method of marginlab, whose embeddings are those under its head; or a module that
            takes images in [0, 1].
    """

    def __init__(self, model: nn.Module):
        self.model = model
        first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        self.device, self.dtype = first.device, first.dtype
        own = model.backbone if isinstance(model, Method) else model
        half = torch.full((3, 1, 1), 0.5)
        mean, deviation = getattr(own, "mean", half), getattr(own, "std", half)
        known = isinstance(mean, Tensor) and isinstance(deviation, Tensor)
        self.mean, self.deviation = (
            (part.detach().view(3, 1, 1).to(self.device, self.dtype))
            for part in ((mean, deviation) if known else (half, half))
        )

    def pixels(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Return images in [0, 1] of images in normalised units; they may leave the range."""
        return self.mean + self.deviation * images

    def within_range(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Return images in normalised units whose pixels are cut to [0, 1]."""
        return (self.pixels(images).clamp(0, 1) - self.mean) / self.deviation

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return embeddings of images in normalised units, with their graph."""
        return self.embed_pixels(self.pixels(images))

    def embed_pixels(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return embeddings of images in [0, 1], with their graph."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if isinstance(self.model, Method):
            # `encode` refuses pixels that lie far outside [0, 1], as those of the first images do
            return self.model.project(self.model.backbone(pixels))
        embeddings: Tensor = self.model(pixels)
        return embeddings

    def classifier(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Return the classifier of a method that owns class centers, or None."""
        found: Any = getattr(self.model, "classifier", None)
        return found if isinstance(self.model, Method) and callable(found) else None

    def digest(self) -> str:
        """Return 16 hexadecimal digits of all parameters and buffers."""
        found = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            if isinstance(value, Tensor):
                found.update(name.encode())
                held = value.detach().cpu().contiguous().flatten().view(torch.uint8)
                found.update(held.numpy().data)
        return found.hexdigest()[:16]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Put the model into evaluation mode without gradients, and restore it in any case."""
        before = [(p, p.requires_grad) for p in self.model.parameters()]
        with evaluating(self.model):
            try:
                for parameter, _ in before:
                    parameter.requires_grad_(False)
                yield
            finally:
                for parameter, asked in before:
                    parameter.requires_grad_(asked)
