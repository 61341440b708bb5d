"""Random resized crop and horizontal flip: operations (a) and (e) of Huang et al. (ICLR 2023).

    crop: out(i, j) = image(y, x), bilinear between pixels
          x = left + min(max((j + 1/2) width / W - 1/2, 0), width - 1),   y alike
    box:  area uniform in scale x H W, log(width / height) uniform in log ratio, rounded, its place
          uniform; as torchvision draws it

See section 5 of the paper.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from marginlab.augment.operation import (
    SLACK,
    can_fall,
    check_probability,
    check_range,
    near_coin,
    where_on,
)
from marginlab.rng import Key

ATTEMPTS = 10  # torchvision's: that many boxes are tried before the central one is taken


class Box(NamedTuple):
    """Boxes in pixels, within their images.

    Drawn boxes are whole numbers, but any floating box can be applied, with gradient.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


class Coin(NamedTuple):
    """The coin that decides whether an operation is done."""

    on: Tensor


class Tossed:
    """Search methods of an operation that only a coin of probability p decides."""

    p: float

    def near(self, parameters: Coin, key: Key, size: tuple[int, int], step: float | Tensor) -> Coin:
        """Turn coins."""
        return Coin(near_coin(parameters.on, key.named(type(self).__name__, "near"), self.p, step))

    def supports(self, parameters: Coin, size: tuple[int, int]) -> Bool[Tensor, "..."]:
        """Return whether coins can fall so."""
        return can_fall(parameters.on, self.p)

    def unchanged(self, shape: tuple[int, ...], size: tuple[int, int]) -> Coin:
        """Return coins of an operation that is not done; outside the support where p = 1."""
        return Coin(torch.zeros(shape, dtype=torch.bool))

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return no interval: a coin has no values between."""
        return {}


@dataclass(frozen=True)
class ResizedCrop:
    """Random resized crop to the image's own size, (a).

    A box of random area and aspect ratio is enlarged to the whole image.

    Args:
        scale: Lowest and highest area of the box, as a fraction of the image's.
        ratio: Lowest and highest width / height of the box.

    Example:
        >>> ResizedCrop(scale=(0.5, 0.5)).draw(Key(0).at(torch.arange(2)), (32, 32)).height.shape
        torch.Size([2])
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        check_range("scale", self.scale, 0.0, 1.0)
        check_range("ratio", self.ratio, 0.0, math.inf)

    def draw(self, key: Key, size: tuple[int, int]) -> Box:
        """Draw boxes of whole pixels, float32.

        A box is the first of ten attempts that fits into the image, else the largest central box
        within `ratio`.
        """
        H, W = size
        key = key.named("ResizedCrop")
        dimensions = max(
            (index.ndim for index in key.indices if isinstance(index, Tensor)), default=0
        )
        attempt = key.at(
            torch.arange(ATTEMPTS, device=_device(key)).view(ATTEMPTS, *[1] * dimensions)
        )
        # float64, for the sides are rounded to pixels, and the last bit of somebody's exp must not
        # decide to which
        area = attempt.named("area").uniform(*self.scale).double() * (H * W)
        aspect = (
            attempt.named("ratio")
            .uniform(math.log(self.ratio[0]), math.log(self.ratio[1]))
            .double()
            .exp()
        )
        width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (width > 0) & (width <= W) & (height > 0) & (height <= H)
        first = fits.to(torch.uint8).argmax(0, keepdim=True)  # of several largest the first
        width, height = width.gather(0, first)[0], height.gather(0, first)[0]
        top = (key.named("top").uniform() * (H - height + 1)).floor()
        left = (key.named("left").uniform() * (W - width + 1)).floor()
        drawn, found = (top, left, height, width), fits.any(0)
        return Box(
            *(
                torch.where(found, d, float(c)).float()
                for d, c in zip(drawn, self._central(H, W), strict=True)
            )
        )

    def _central(self, H: int, W: int) -> tuple[int, int, int, int]:
        low, high = self.ratio
        height, width = (
            (round(W / low), W) if low > W / H else (H, round(H * high)) if high < W / H else (H, W)
        )
        return (H - height) // 2, (W - width) // 2, height, width

    def apply(self, images: Float[Tensor, "B 3 H W"], parameters: Box) -> Float[Tensor, "B 3 H W"]:
        """Enlarge the boxes to the whole image; differentiable in the box.

        A box is never larger than its image, so nothing is shrunk and antialiasing has nothing to
        do: torchvision's antialiased filter is then the bilinear one. Coordinates are clamped to
        the box, as torchvision does. kornia's crops read the pixels beyond its edge.
        """
        H, W = images.shape[-2:]
        top, left, height, width = (side.to(images, non_blocking=True) for side in parameters)
        y, x = _coordinates(H, top, height), _coordinates(W, left, width)
        grid = torch.stack([x[:, None, :].expand(-1, H, -1), y[:, :, None].expand(-1, -1, W)], -1)
        # its four weights sum to 1 only up to rounding
        return F.grid_sample(
            images, grid, mode="bilinear", padding_mode="border", align_corners=False
        ).clamp(0, 1)

    def near(self, parameters: Box, key: Key, size: tuple[int, int], step: float | Tensor) -> Box:
        """Move boxes: other sides around other centers.

        Where no draw has the new sides, the box keeps its sides and moves. Where no draw has the
        old sides either, the box is a new draw.
        """
        drawn, key = self.draw(key, size), key.named("ResizedCrop", "near")
        height, width = (
            (old + key.named(name).normal() * (n * step)).round().clamp(1, n)
            for name, old, n in (
                ("height", parameters.height, size[0]),
                ("width", parameters.width, size[1]),
            )
        )
        fit = self._sides(height, width, size)
        height, width = (
            torch.where(fit, height, parameters.height),
            torch.where(fit, width, parameters.width),
        )
        top, left = (
            (old + (before - after) / 2 + key.named(name).normal() * (n * step))
            .round()
            .clamp(min=0)
            .minimum(n - after)
            for name, old, before, after, n in (
                ("top", parameters.top, parameters.height, height, size[0]),
                ("left", parameters.left, parameters.width, width, size[1]),
            )
        )
        fit = self._sides(height, width, size)
        return Box(
            *(
                torch.where(fit, new, other)
                for new, other in zip((top, left, height, width), drawn, strict=True)
            )
        )

    def supports(self, parameters: Box, size: tuple[int, int]) -> Bool[Tensor, "..."]:
        """Return whether draws can give these boxes.

        A draw gives boxes of whole pixels inside the image, with sides that area and aspect round
        to. Where draws can fail to fit, it also gives the central box.
        """
        (H, W), (top, left, height, width) = size, parameters
        inside = (top >= 0) & (left >= 0) & (top + height <= H) & (left + width <= W)
        whole = (
            (top == top.round())
            & (left == left.round())
            & (height == height.round())
            & (width == width.round())
        )
        found = inside & whole & self._sides(height, width, size)
        (u, v), _ = self._logarithms(size)
        if any(
            high > math.log(n + 0.5) - SLACK or low < math.log(0.5) + SLACK
            for (low, high), n in ((u, H), (v, W))
        ):
            central = self._central(H, W)
            found = found | (top == central[0]) & (left == central[1]) & (height == central[2]) & (
                width == central[3]
            )
        return found

    def unchanged(self, shape: tuple[int, ...], size: tuple[int, int]) -> Box:
        """Return the whole image as box; outside the support where scale or ratio exclude it."""
        H, W = (torch.full(shape, float(n)) for n in size)
        return Box(torch.zeros(shape), torch.zeros(shape), H, W)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return no interval: boxes are of whole pixels."""
        return {}

    def _sides(self, height: Tensor, width: Tensor, size: tuple[int, int]) -> Tensor:
        """Return whether area and aspect, each in its range, can round to sides of these lengths.

        In logarithms, the sides that round to these lengths are a rectangle, and the ranges of area
        and aspect are one turned by 45 degrees. Two convex polygons have a point in common unless
        one of their sides' directions separates them: so four intervals are compared.
        """
        (u, v), (area, aspect) = self._logarithms(size)
        low, high = (
            ((height.double() - 0.5).log(), (width.double() - 0.5).log()),
            ((height.double() + 0.5).log(), (width.double() + 0.5).log()),
        )
        met = (height >= 1) & (width >= 1) & (height <= size[0]) & (width <= size[1])
        for (first, last), (start, end) in (
            ((low[0], high[0]), u),
            ((low[1], high[1]), v),
            ((low[0] + low[1], high[0] + high[1]), area),
            ((low[1] - high[0], high[1] - low[0]), aspect),
        ):
            met = met & (first <= end + SLACK) & (last >= start - SLACK)
        return met

    def _logarithms(
        self, size: tuple[int, int]
    ) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
        """Return the lowest and highest logarithms of the unrounded sides, and of area and aspect.

        The sides are height and width; the aspect is width / height.
        """
        a, b = (math.log(scale * size[0] * size[1]) for scale in self.scale)
        c, d = (math.log(ratio) for ratio in self.ratio)
        return (((a - d) / 2, (b - c) / 2), ((a + c) / 2, (b + d) / 2)), ((a, b), (c, d))


def _device(key: Key) -> torch.device:
    return next(
        (index.device for index in key.indices if isinstance(index, Tensor)), torch.device("cpu")
    )


def _coordinates(
    n: int, start: Float[Tensor, " B"], length: Float[Tensor, " B"]
) -> Float[Tensor, "B n"]:
    """Return the places of n output pixels along one side of the boxes, in grid_sample's units.

    -1 and 1 are the outer edges of the image.
    """
    pixel = (torch.arange(n, device=start.device) + 0.5) * (length / n)[:, None] - 0.5
    pixel = torch.minimum(pixel.clamp(min=0), (length - 1)[:, None]) + start[:, None]
    return (2 * pixel + 1) / n - 1


@dataclass(frozen=True)
class HorizontalFlip(Tossed):
    """Mirror left and right with probability p, (e).

    Example:
        >>> image = torch.arange(6.0).view(1, 1, 2, 3).expand(1, 3, 2, 3) / 6
        >>> flipped = HorizontalFlip().apply(image, Coin(torch.tensor([True])))
        >>> bool((flipped[..., 0] == image[..., 2]).all())
        True
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)

    def draw(self, key: Key, size: tuple[int, int]) -> Coin:
        """Draw coins, true with probability p."""
        return Coin(key.named("HorizontalFlip", "on").bernoulli(self.p))

    def apply(self, images: Float[Tensor, "B 3 H W"], parameters: Coin) -> Float[Tensor, "B 3 H W"]:
        """Mirror the images whose coin is true."""
        return where_on(parameters.on, lambda chosen: chosen.flip(-1), images)
