"""Resize images to S x S bytes, and refuse images that take too much memory.

size           = the shorter side resized to S (bilinear, antialiased), then the centre S x S
bytes of a set = N x 3 x H x W,     refused above a budget before anything is read
bytes of one   = 16 max(H W, S^2 longer / shorter) while it is decoded and resized,
                 refused above the budget, or above 256 MiB where that is more
"""

import torch
from jaxtyping import UInt8
from torch import Tensor

BUDGET = 2 * 2**30  # bytes of one split: small sets live whole on the training device
# bytes that may be held beside the images however small their budget: a photograph of 16 Mpixels
_BESIDE = 2**28
_PIXEL = 16  # bytes of a pixel being decoded: four in the decoder, four converted, some as a tensor


def afford(n: int, height: int, width: int, budget: int, name: str) -> None:
    """Refuse n images that would take more bytes than the budget."""
    if (needed := n * 3 * height * width) > budget:
        raise ValueError(
            f"{name}: {n:,} images of {height} x {width} take {needed:,} bytes in memory, above "
            f"the budget of {budget:,}. Make them smaller with size=... (image_size of a recipe), "
            "use fewer images, or raise budget=... (--budget-gib of a command)."
        )


def afford_one(height: int, width: int, size: int, budget: int, what: str) -> None:
    """Refuse an image that takes too many bytes to decode, or to resize before it is cut."""
    shorter, longer = sorted((height, width))
    decoded, enlarged = height * width, size * size * longer // max(shorter, 1)
    remedy = "Make it smaller" if decoded >= enlarged else "Cut its longer side"
    needed = _PIXEL * max(decoded, enlarged)
    told = f"{what} of {height:,} x {width:,} pixels"
    afford_beside(needed, budget, told, f"{remedy}, or remove it.")


def afford_beside(needed: int, budget: int, what: str, remedy: str) -> None:
    """Refuse a need above the larger of the budget and 256 MiB, for bytes beside the images."""
    if needed > (most := max(budget, _BESIDE)):
        raise ValueError(
            f"{what} would take {needed:,} bytes of memory, above the {most:,} there are for it. "
            f"{remedy}"
        )


def resized(images: UInt8[Tensor, "N 3 H W"], size: int) -> UInt8[Tensor, "N 3 h w"]:
    """Resize the shorter side of images to `size` and cut out the centre; 0 changes nothing."""
    if size in (0, images.shape[-1]) and size in (0, images.shape[-2]):
        return images
    from torchvision.transforms.v2 import functional  # takes seconds to import

    return torch.as_tensor(
        functional.center_crop(functional.resize(images, [size], antialias=True), [size, size])
    )
