"""Where pixels come from: the random resized crop and the horizontal flip of Huang et al. (ICLR 2023), section 5, operations (a) and (e).

    crop: out(i, j) = image(y, x),   x = left + min(max((j + 1/2) width / W - 1/2, 0), width - 1),   y alike, bilinear between pixels
    box:  area uniform in scale x H W, log(width / height) uniform in log ratio, rounded, its place uniform; as torchvision draws it
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from marginlab.augment.operation import check_probability, check_range, where_on
from marginlab.rng import Key

ATTEMPTS = 10  # torchvision's: that many boxes are tried before the central one is taken


class Box(NamedTuple):
    """Boxes in pixels, within their images; drawn ones are whole numbers, but any floating box can be applied, with gradient."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


class Coin(NamedTuple):
    """Whether an operation is done."""

    on: Tensor


@dataclass(frozen=True)
class ResizedCrop:
    """Random resized crop to the image's own size, (a): a box of random area and aspect ratio, enlarged to the whole image.

    Parameters
    ----------
    scale: lowest and highest area of the box, as a fraction of the image's.
    ratio: lowest and highest width / height of the box.

    >>> ResizedCrop(scale=(0.5, 0.5)).draw(Key(0).at(torch.arange(2)), (32, 32)).height.shape
    torch.Size([2])

    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        check_range("scale", self.scale, 0.0, 1.0)
        check_range("ratio", self.ratio, 0.0, math.inf)

    def draw(self, key: Key, size: tuple[int, int]) -> Box:
        """Boxes of whole pixels, float32: the first of ten attempts that fits into the image, else the largest central box within `ratio`."""
        H, W = size
        key = key.named("ResizedCrop")
        dimensions = max((index.ndim for index in key.indices if isinstance(index, Tensor)), default=0)
        attempt = key.at(torch.arange(ATTEMPTS, device=_device(key)).view(ATTEMPTS, *[1] * dimensions))
        # float64, for the sides are rounded to pixels, and the last bit of somebody's exp must not decide to which
        area = attempt.named("area").uniform(*self.scale).double() * (H * W)
        aspect = attempt.named("ratio").uniform(math.log(self.ratio[0]), math.log(self.ratio[1])).double().exp()
        width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (width > 0) & (width <= W) & (height > 0) & (height <= H)
        first = fits.to(torch.uint8).argmax(0, keepdim=True)  # of several largest the first
        width, height = width.gather(0, first)[0], height.gather(0, first)[0]
        top = (key.named("top").uniform() * (H - height + 1)).floor()
        left = (key.named("left").uniform() * (W - width + 1)).floor()
        drawn, found = (top, left, height, width), fits.any(0)
        return Box(*(torch.where(found, d, float(c)).float() for d, c in zip(drawn, self._central(H, W), strict=True)))

    def _central(self, H: int, W: int) -> tuple[int, int, int, int]:
        low, high = self.ratio
        height, width = (round(W / low), W) if low > W / H else (H, round(H * high)) if high < W / H else (H, W)
        return (H - height) // 2, (W - width) // 2, height, width

    def apply(self, images: Float[Tensor, "B 3 H W"], parameters: Box) -> Float[Tensor, "B 3 H W"]:
        """The boxes, enlarged to the whole image; differentiable in the box.

        A box is never larger than its image, so nothing is shrunk and antialiasing has nothing to do: torchvision's antialiased filter is then
        the bilinear one. Coordinates are held inside the box, where kornia's crops read the pixels beyond its edge, and torchvision does not.
        """
        H, W = images.shape[-2:]
        top, left, height, width = (side.to(images, non_blocking=True) for side in parameters)
        y, x = _coordinates(H, top, height), _coordinates(W, left, width)
        grid = torch.stack([x[:, None, :].expand(-1, H, -1), y[:, :, None].expand(-1, -1, W)], -1)
        # its four weights sum to 1 only up to rounding
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp(0, 1)


def _device(key: Key) -> torch.device:
    return next((index.device for index in key.indices if isinstance(index, Tensor)), torch.device("cpu"))


def _coordinates(n: int, start: Float[Tensor, " B"], length: Float[Tensor, " B"]) -> Float[Tensor, "B n"]:
    """Where n output pixels lie along one side of the boxes, in grid_sample's units: -1 and 1 are the outer edges of the image."""
    pixel = (torch.arange(n, device=start.device) + 0.5) * (length / n)[:, None] - 0.5
    pixel = torch.minimum(pixel.clamp(min=0), (length - 1)[:, None]) + start[:, None]
    return (2 * pixel + 1) / n - 1


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right with probability p, (e).

    >>> image = torch.arange(6.0).view(1, 1, 2, 3).expand(1, 3, 2, 3) / 6
    >>> bool((HorizontalFlip().apply(image, Coin(torch.tensor([True])))[..., 0] == image[..., 2]).all())
    True
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)

    def draw(self, key: Key, size: tuple[int, int]) -> Coin:
        """Coins, true with probability p."""
        return Coin(key.named("HorizontalFlip", "on").bernoulli(self.p))

    def apply(self, images: Float[Tensor, "B 3 H W"], parameters: Coin) -> Float[Tensor, "B 3 H W"]:
        """The images, those whose coin is true mirrored."""
        return where_on(parameters.on, lambda chosen: chosen.flip(-1), images)
