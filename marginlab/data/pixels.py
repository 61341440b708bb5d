"""Pixels of any source made into bytes of one size: shorter side to S (bilinear, antialiased), then the centre S x S.

    bytes of a set = N x 3 x H x W,     refused above a budget before anything is read
"""

import torch
from jaxtyping import UInt8
from torch import Tensor

BUDGET = 2 * 2**30  # bytes of one split: small sets live whole on the training device


def afford(n: int, height: int, width: int, budget: int, name: str) -> None:
    """Refuse n images that would take more bytes than the budget."""
    if (needed := n * 3 * height * width) > budget:
        raise ValueError(
            f"{name}: {n:,} images of {height} x {width} take {needed:,} bytes in memory, above the budget of {budget:,}. "
            "Make them smaller with size=... (image_size of a recipe), use fewer images, or raise budget=... (--budget-gib of a command)."
        )


def resized(images: UInt8[Tensor, "N 3 H W"], size: int) -> UInt8[Tensor, "N 3 h w"]:
    """The images with the shorter side resized to `size` and the centre cut out; `size` 0 keeps them as they are."""
    if size in (0, images.shape[-1]) and size in (0, images.shape[-2]):
        return images
    from torchvision.transforms.v2 import functional  # takes seconds to import

    return torch.as_tensor(functional.center_crop(functional.resize(images, [size], antialias=True), [size, size]))
