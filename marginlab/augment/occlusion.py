"""Occlusion as an operation on views: a rectangle of one grey.

    out = grey within the rectangle, the image elsewhere

The rectangle is part of the draw, so `visible` tells which pixels of a view are left.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.augment.operation import check_probability, check_range, per_image
from marginlab.rng import Key


class Rectangle(NamedTuple):
    """Coins, rectangles of whole pixels within the images, and their grey in [0, 1]."""

    on: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    grey: Tensor


@dataclass(frozen=True)
class Occlusion:
    """A rectangle of one grey with probability p.

    Args:
        area: Lowest and highest area, as a fraction of the image's.
        ratio: Lowest and highest width / height, uniform in the logarithm.
        p: The probability.

    Raises:
        SettingsError: A range or the probability is out of bounds.

    Example:
        >>> half = Occlusion(area=(0.5, 0.5), ratio=(1.0, 1.0), p=1.0)
        >>> drawn = half.draw(Key(0).at(torch.arange(1)), (32, 32))
        >>> drawn.height, drawn.width
        (tensor([23]), tensor([23]))
    """

    area: tuple[float, float] = (0.1, 0.4)
    ratio: tuple[float, float] = (0.5, 2.0)
    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)
        check_range("area", self.area, 0.0, 1.0)
        check_range("ratio", self.ratio, 0.0, math.inf)

    def draw(self, key: Key, size: tuple[int, int]) -> Rectangle:
        """Draw coins, rectangles and greys; a side longer than the image's is cut to it."""
        H, W = size
        key = key.named("Occlusion")
        # float64, so that the last bit of an exp does not decide to which pixel a side is rounded
        area = key.named("area").uniform(*self.area).double() * (H * W)
        low, high = (math.log(bound) for bound in self.ratio)
        aspect = key.named("ratio").uniform(low, high).double().exp()
        height, width = (
            side.sqrt().round().long().clamp(1, n)
            for side, n in ((area / aspect, H), (area * aspect, W))
        )
        top, left = (
            (key.named(name).uniform().double() * (n - side + 1)).long()
            for name, n, side in (("top", H, height), ("left", W, width))
        )
        coin, grey = key.named("on").bernoulli(self.p), key.named("grey").uniform()
        return Rectangle(coin, top, left, height, width, grey)

    def apply(
        self, images: Float[Tensor, "B 3 H W"], parameters: Rectangle
    ) -> Float[Tensor, "B 3 H W"]:
        """Cover the rectangles of the images whose coin is true; differentiable in the grey."""
        hidden = ~visible(parameters, (images.shape[2], images.shape[3])).to(images.device)
        return torch.where(hidden[:, None], per_image(parameters.grey, images), images)


def visible(parameters: Rectangle, size: tuple[int, int]) -> Tensor:
    """Return which pixels (..., H, W) of images are not behind their rectangles.

    Example:
        >>> one = torch.ones(1, dtype=torch.int64)
        >>> drawn = Rectangle(one > 0, 0 * one, one, 2 * one, one, one.float())
        >>> visible(drawn, (2, 3)).int()
        tensor([[[1, 0, 1],
                 [1, 0, 1]]], dtype=torch.int32)
    """
    y, x = (torch.arange(n, device=parameters.on.device) for n in size)
    top, left, height, width = (side[..., None] for side in parameters[1:5])
    rows = (y >= top) & (y < top + height)
    columns = (x >= left) & (x < left + width)
    return ~(rows[..., :, None] & columns[..., None, :] & parameters.on[..., None, None])
