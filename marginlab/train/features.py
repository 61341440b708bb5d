"""Features that the monitor measures: of images and of their views, L2-normalised, by space.

    backbone     f(x) / ||f(x)||
    projector    g(f(x)) / ||g(f(x))||, where the loss sees what a projector g makes of features

Images are encoded without gradients, `batch` at a time.
"""

from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from marginlab import encoding
from marginlab.augment import Augmentation
from marginlab.data import ImageSet
from marginlab.data.streaming import Streamed
from marginlab.encoding import encode

Labelled: TypeAlias = tuple[Tensor, Tensor]  # features (N, D) and labels (N,)


@runtime_checkable
class Encoder(Protocol):
    """Interface of a network to be measured: features of images, and the projector's embeddings.

    The loss sees the embeddings. Where it sees the features themselves, `project` is None.
    """

    @property
    def project(self) -> Any:
        """Function from features (B, D) to what the loss sees, or None."""

    def encode(self, images: Tensor) -> Tensor:
        """Return features (B, D) of images (B, 3, H, W) in [0, 1]."""

    def modules(self) -> Iterator[nn.Module]:
        """Iterate over the modules, as a torch module does."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters, as a torch module does."""


def with_images(
    clean: Float[Tensor, "N D"], views: Float[Tensor, "N V D"], labels: Int[Tensor, " N"]
) -> tuple[Tensor, Tensor]:
    """Put the features of the image itself before those of its views; return them and the labels.

    The theory counts the image among its views.
    """
    return torch.cat((clean[:, None], views), dim=1), labels


@torch.no_grad()
def encode_images(
    method: Encoder,
    images: UInt8[Tensor, "N 3 H W"] | Streamed,
    device: torch.device,
    batch: int = 512,
) -> dict[str, Float[Tensor, "N D"]]:
    """Return L2-normalised features of clean images, by space (backbone, projector), in float32."""
    return _spaces(method, encode(method.encode, images, batch=batch, device=device), batch)


@torch.no_grad()
def encode_views(
    method: Encoder,
    augmentation: Augmentation,
    images: ImageSet,
    n_views: int,
    *,
    seed: int,
    device: torch.device,
    split: str,
    batch: int = 512,
) -> dict[str, Float[Tensor, "N V D"]]:
    """Return L2-normalised features (N, V, D) of views of images, by space.

    The views are drawn apart from those of training. The clean image is not among them.
    """
    # the offset gives the splits different draws, since both number their images alike
    offset = 0 if split == "train" else 1 << 31

    def draw(held: Tensor, *, index: Tensor, n_views: int) -> Tensor:
        place = index + offset
        return augmentation.views(held, index=place, n_views=n_views, seed=seed, first_view=1 << 31)

    features = encoding.encode_views(
        method.encode, images.images, draw, n_views, batch=batch, device=device
    )
    return _spaces(method, features, batch)


def _spaces(method: Encoder, features: Float[Tensor, "N *V D"], batch: int) -> dict[str, Tensor]:
    """Normalise features, and what the projector makes of `batch` of them at a time."""
    spaces = {"backbone": F.normalize(features, dim=-1)}
    if method.project is not None:
        rows = features.flatten(0, -2).split(batch)
        embeddings = torch.cat([F.normalize(method.project(part), dim=-1) for part in rows])
        spaces["projector"] = embeddings.unflatten(0, features.shape[:-1])
    return spaces


def device_of(method: Encoder) -> torch.device:
    """Return the device of the first parameter, or the CPU if there is none."""
    return next((p.device for p in method.parameters()), torch.device("cpu"))
