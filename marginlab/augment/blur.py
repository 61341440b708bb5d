"""Gaussian blur, operation (b) of Huang et al. (ICLR 2023), section 5.

    out(i) = sum over |d| <= r of w(d) image(i + d)
    w(d) proportional to exp(-d^2 / (2 sigma^2)),   r = ceil(3 sigma's highest)

The Gaussian has `sigma` pixels along each side and is reflected at the edges. The paper's code
blurs with Pillow at radius 1, which is sigma = 1.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from marginlab.augment.operation import (
    can_fall,
    check_probability,
    check_range,
    near_coin,
    near_number,
    where_on,
    within,
)
from marginlab.rng import Key


class Blur(NamedTuple):
    """The coin that decides whether an image is blurred, and sigma in pixels."""

    on: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class GaussianBlur:
    """Gaussian blur with probability p, (b).

    Args:
        sigma: Lowest and highest sigma in pixels; draws are uniform between them.
        p: The probability.

    Example:
        >>> GaussianBlur().radius, GaussianBlur(sigma=(0.1, 2.0)).radius
        (3, 6)
    """

    sigma: tuple[float, float] = (1.0, 1.0)
    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)
        check_range("sigma", self.sigma, 0.0, 1e3)

    @property
    def radius(self) -> int:
        """Pixels with a weight on each side: three times the highest sigma.

        0.3 % of a Gaussian lie beyond.
        """
        return math.ceil(3 * self.sigma[1])

    def draw(self, key: Key, size: tuple[int, int]) -> Blur:
        """Draw coins, true with probability p, and sigmas.

        Raises:
            ValueError: Images too small to be reflected as far as the blur reaches.
        """
        if min(size) <= self.radius:
            raise ValueError(
                f"A blur of sigma up to {self.sigma[1]:g} reaches {self.radius} pixels and needs "
                f"images larger than that, not {size[0]} x {size[1]}. Take a smaller sigma, or "
                "leave the blur out."
            )
        key = key.named("GaussianBlur")
        return Blur(key.named("on").bernoulli(self.p), key.named("sigma").uniform(*self.sigma))

    def apply(self, images: Float[Tensor, "B 3 H W"], parameters: Blur) -> Float[Tensor, "B 3 H W"]:
        """Blur the images whose coin is true; differentiable in sigma."""
        return where_on(parameters.on, self._blur, images, parameters.sigma)

    def near(self, parameters: Blur, key: Key, size: tuple[int, int], step: float | Tensor) -> Blur:
        """Turn coins and move sigmas."""
        key = key.named("GaussianBlur", "near")
        on = near_coin(parameters.on, key.named("on"), self.p, step)
        return Blur(on, near_number(parameters.sigma, key.named("sigma"), self.sigma, step))

    def supports(self, parameters: Blur, size: tuple[int, int]) -> Bool[Tensor, "..."]:
        """Return whether coins can fall so and sigma is in its range."""
        return can_fall(parameters.on, self.p) & within(parameters.sigma, self.sigma)

    def unchanged(self, shape: tuple[int, ...], size: tuple[int, int]) -> Blur:
        """Return parameters of no blur; outside the support where p = 1."""
        return Blur(torch.zeros(shape, dtype=torch.bool), torch.full(shape, self.sigma[0]))

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the interval of sigma."""
        return {"sigma": self.sigma}

    def _blur(self, images: Tensor, sigma: Tensor) -> Tensor:
        distance = torch.arange(-self.radius, self.radius + 1, device=sigma.device)
        # float64, so that the rounded weights do not depend on how many rows softmax has; moved as
        # they are used
        weights = torch.softmax(-((distance / sigma.double()[:, None]) ** 2) / 2, dim=1).to(
            images, non_blocking=True
        )
        return _convolve(_convolve(images, weights, 2), weights, 3).clamp(0, 1)


def _convolve(
    images: Float[Tensor, "B 3 H W"], weights: Float[Tensor, "B k"], dim: int
) -> Float[Tensor, "B 3 H W"]:
    """Filter each image symmetrically, along its rows or columns, as a sum of shifted images.

    kornia's grouped convolution is not used for two reasons. It takes 1.5 times as long for the 43
    images of 32 x 32 that half a piece has (one thread; 7 times when two threads share it,
    benchmarks/augment.py). And a convolution may choose its algorithm, hence its rounding, by the
    batch's size.
    """
    r, n = weights.shape[1] // 2, images.shape[dim]
    padded = F.pad(images, (0, 0, r, r) if dim == 2 else (r, r, 0, 0), mode="reflect")
    w = weights[:, :, None, None, None].unbind(1)
    out = images * w[r]
    for d in range(1, r + 1):
        out = out + (padded.narrow(dim, r - d, n) + padded.narrow(dim, r + d, n)) * w[r + d]
    return out
