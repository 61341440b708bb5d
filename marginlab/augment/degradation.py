"""Degradations as operations on views: low resolution, motion blur, noise and JPEG.

    low resolution   area means of r x r pixels, then bicubic back to the image's size
    motion blur      mean of the image along a straight path of some pixels
    noise            image + sigma g, g standard normal for each pixel and channel
    JPEG             encoded and decoded at a quality

Images keep their size. What was drawn, such as the rows r, tells how degraded a view truly is:
`Augmentation.parameters(...)["LowResolution"].rows`. In an augmentation they come after the five
operations of the paper, in the order given.
"""

import io
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from marginlab.augment.operation import check_probability, check_range, is_pair, per_image, where_on
from marginlab.rng import Key
from marginlab.settings import SettingsError


class Rows(NamedTuple):
    """Coins, and the number of rows of pixels that images are brought down to."""

    on: Tensor
    rows: Tensor


class Motion(NamedTuple):
    """Coins, lengths of the path in pixels, and its angles in radians."""

    on: Tensor
    length: Tensor
    angle: Tensor


class Grain(NamedTuple):
    """Coins, deviations of the noise, and numbers in [0, 1) that name the noise of an image."""

    on: Tensor
    sigma: Tensor
    name: Tensor


class Quality(NamedTuple):
    """Coins, and qualities of JPEG, 1 to 100."""

    on: Tensor
    quality: Tensor


@dataclass(frozen=True)
class LowResolution:
    """Low resolution with probability p: area means of few pixels, enlarged to the image's size.

    A view has r rows and about r W / H columns of pixels. r is uniform among the whole numbers of
    the range. An image with no more rows than r stays as it is.

    Args:
        rows: Lowest and highest r.
        p: The probability.

    Raises:
        SettingsError: The range or the probability is out of bounds.

    Example:
        >>> from marginlab.augment import Augmentation
        >>> degraded = Augmentation(("LowResolution(rows=(4, 16))",))
        >>> index, views = torch.arange(3), torch.arange(1)
        >>> drawn = degraded.parameters(index, views, size=(64, 64))
        >>> drawn["LowResolution"].rows.shape
        torch.Size([3, 1])
    """

    rows: tuple[int, int] = (8, 32)
    p: float = 1.0

    def __post_init__(self) -> None:
        check_probability(self.p)
        _check_whole("rows", self.rows, 1, 1 << 16)

    def draw(self, key: Key, size: tuple[int, int]) -> Rows:
        """Draw coins and numbers of rows."""
        key = key.named("LowResolution")
        return Rows(key.named("on").bernoulli(self.p), _whole(key.named("rows"), self.rows))

    def apply(self, images: Float[Tensor, "B 3 H W"], parameters: Rows) -> Float[Tensor, "B 3 H W"]:
        """Degrade the images whose coin is true; not differentiable in the rows."""
        H, W = images.shape[-2:]
        out = images
        for r in parameters.rows[parameters.on].unique().tolist():
            if r < H:
                chosen = parameters.on & (parameters.rows == r)
                small = (r, max(1, round(r * W / H)))
                out = where_on(chosen, lambda x, small=small: _down_and_up(x, small), out)
        return out


@dataclass(frozen=True)
class MotionBlur:
    """Motion blur with probability p, along a straight path in any direction.

    Args:
        length: Lowest and highest length of the path in pixels.
        p: The probability.

    Raises:
        SettingsError: The range or the probability is out of bounds.

    Example:
        >>> MotionBlur(length=(2.0, 8.0)).draw(Key(0).at(torch.arange(2)), (32, 32)).angle.shape
        torch.Size([2])
    """

    length: tuple[float, float] = (1.0, 5.0)
    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)
        check_range("length", self.length, 0.0, 1e3)

    def draw(self, key: Key, size: tuple[int, int]) -> Motion:
        """Draw coins, lengths and angles."""
        key = key.named("MotionBlur")
        return Motion(
            key.named("on").bernoulli(self.p),
            key.named("length").uniform(*self.length),
            key.named("angle").uniform(0.0, math.pi),
        )

    def apply(
        self, images: Float[Tensor, "B 3 H W"], parameters: Motion
    ) -> Float[Tensor, "B 3 H W"]:
        """Blur the images whose coin is true; differentiable in length and angle."""
        return where_on(parameters.on, self._blur, images, parameters.length, parameters.angle)

    def _blur(self, images: Tensor, length: Tensor, angle: Tensor) -> Tensor:
        """Return the mean over points of the path, a pixel apart or less; edges are repeated."""
        H, W = images.shape[-2:]
        points = math.ceil(self.length[1]) + 1
        across, down = (
            (length * part(angle)).to(images, non_blocking=True) for part in (torch.cos, torch.sin)
        )
        x, y = (_centers(n, images) for n in (W, H))
        total = torch.zeros_like(images)
        for step in range(points):
            share = step / (points - 1) - 0.5
            columns = x[None, :] + (2 * share / W) * across[:, None]
            rows = y[None, :] + (2 * share / H) * down[:, None]
            grid = torch.stack(
                [columns[:, None, :].expand(-1, H, -1), rows[:, :, None].expand(-1, -1, W)], -1
            )
            total = total + F.grid_sample(
                images, grid, mode="bilinear", padding_mode="border", align_corners=False
            )
        return (total / points).clamp(0, 1)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise with probability p, for each pixel and channel, clamped to [0, 1].

    Args:
        sigma: Lowest and highest deviation.
        p: The probability.

    Raises:
        SettingsError: The range or the probability is out of bounds.

    Example:
        >>> noise = Noise(sigma=(0.1, 0.1), p=1.0)
        >>> drawn = noise.draw(Key(0).at(torch.arange(1)), (64, 64))
        >>> made = noise.apply(torch.full((1, 3, 64, 64), 0.5), drawn)
        >>> round(float(made.std()), 2)
        0.1
    """

    sigma: tuple[float, float] = (0.01, 0.1)
    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)
        check_range("sigma", self.sigma, 0.0, 10.0)

    def draw(self, key: Key, size: tuple[int, int]) -> Grain:
        """Draw coins, deviations and names of noise."""
        key = key.named("Noise")
        return Grain(
            key.named("on").bernoulli(self.p),
            key.named("sigma").uniform(*self.sigma),
            key.named("name").uniform(),
        )

    def apply(
        self, images: Float[Tensor, "B 3 H W"], parameters: Grain
    ) -> Float[Tensor, "B 3 H W"]:
        """Add noise to the images whose coin is true; differentiable in sigma."""
        return where_on(parameters.on, self._add, images, parameters.sigma, parameters.name)

    def _add(self, images: Tensor, sigma: Tensor, name: Tensor) -> Tensor:
        # a name is a multiple of 2^-24, as `Key.uniform` draws it
        number = (name.double() * 2**24).long().to(images.device, non_blocking=True)
        pixel = torch.arange(images[0].numel(), device=images.device)
        grain = Key(0).named("grain").at(number[:, None], pixel[None, :]).normal()
        return (images + per_image(sigma, images) * grain.view_as(images).to(images)).clamp(0, 1)


@dataclass(frozen=True)
class Jpeg:
    """JPEG artefacts with probability p, by Pillow's encoder, on the CPU.

    Args:
        quality: Lowest and highest quality, 1 to 100, uniform among whole numbers.
        p: The probability.

    Raises:
        SettingsError: The range or the probability is out of bounds.

    Example:
        >>> Jpeg(quality=(10, 10)).draw(Key(0).at(torch.arange(2)), (32, 32)).quality
        tensor([10, 10])
    """

    quality: tuple[int, int] = (10, 75)
    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)
        _check_whole("quality", self.quality, 1, 100)

    def draw(self, key: Key, size: tuple[int, int]) -> Quality:
        """Draw coins and qualities."""
        key = key.named("Jpeg")
        return Quality(
            key.named("on").bernoulli(self.p), _whole(key.named("quality"), self.quality)
        )

    def apply(
        self, images: Float[Tensor, "B 3 H W"], parameters: Quality
    ) -> Float[Tensor, "B 3 H W"]:
        """Encode and decode the images whose coin is true; not differentiable."""
        return where_on(parameters.on, self._code, images, parameters.quality)

    def _code(self, images: Tensor, quality: Tensor) -> Tensor:
        pixels = (images.detach() * 255).round().clamp(0, 255).to("cpu", torch.uint8)
        made = [
            _coded(image.numpy(), q)
            for image, q in zip(pixels.movedim(1, 3), quality.tolist(), strict=True)
        ]
        return torch.from_numpy(np.stack(made)).movedim(3, 1).to(images) / 255


def _down_and_up(images: Tensor, small: tuple[int, int]) -> Tensor:
    size = (images.shape[2], images.shape[3])
    few = F.interpolate(images, size=small, mode="area")
    return F.interpolate(few, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def _coded(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Return an image (H, W, 3) of bytes, encoded as JPEG and decoded."""
    with io.BytesIO() as file:
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality)
        file.seek(0)
        with Image.open(file) as found:
            return np.array(found)


def _centers(n: int, images: Tensor) -> Tensor:
    """Return the centers of n pixels in the coordinates -1 to 1 of grid_sample."""
    places = torch.arange(n, device=images.device, dtype=images.dtype)
    return (2 * places + 1) / n - 1


def _whole(key: Key, bounds: tuple[int, int]) -> Tensor:
    return key.integers(bounds[1] - bounds[0] + 1) + bounds[0]


def _check_whole(name: str, pair: tuple[int, int], low: int, high: int) -> None:
    if not is_pair(pair, int) or not low <= pair[0] <= pair[1] <= high:
        raise SettingsError(
            f"{name} is a pair of whole numbers (lowest, highest) from {low} to {high}, not {pair}."
        )
