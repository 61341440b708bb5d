"""Images as augmentations take them: bytes, or floating in [0, 1]."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Images = UInt8[Tensor, "N 3 H W"] | Float[Tensor, "N 3 H W"]


def floating(images: Tensor) -> Tensor:
    """Return images as float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def check_images(images: Any) -> None:
    """Refuse images of a wrong shape, type or range; on a device the range is not looked at.

    Raises:
        ValueError: A wrong shape, or floating images outside [0, 1].
        TypeError: Images that are neither uint8 nor floating.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images have the shape (N, 3, H, W), not {tuple(images.shape)}. Repeat the channel of "
            "grey images three times."
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images are uint8 in 0..255 or floating in [0, 1], not {images.dtype}.")
    # on a device the look would wait for it
    if images.is_floating_point() and images.device.type == "cpu" and images.numel():
        low, high = (float(bound) for bound in images.detach().aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"Floating images lie in [0, 1], not in [{low:g}, {high:g}]. Divide by 255, or "
                "give uint8; normalise in the backbone."
            )
