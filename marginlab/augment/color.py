"""Colour jitter and greyscale: operations (d) and (c) of Huang et al. (ICLR 2023), section 5.

    grey(x)       = 0.2989 r + 0.587 g + 0.114 b
    brightness_f  = [f x]                                       [.] clamped to [0, 1]
    saturation_f  = [f x + (1 - f) grey(x)]
    contrast_f    = [f x + (1 - f) mean of grey(x)]
    hue_f         = max - (max - min) [2 - 6 |u - round(u)|] per channel
                    u = hue(x) + f + 1/2, 1/6, -1/6 for r, g, b, in whole turns

The formulas are torchvision's. The last one is the round trip by HSV written in one: a channel is a
trapezoid in the hue, high over two sixths of a turn around its own colour.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from kornia.enhance import adjust_brightness_accumulative
from torch import Tensor

from marginlab.augment.geometry import Coin, Tossed
from marginlab.augment.operation import (
    can_fall,
    check_probability,
    near_coin,
    near_number,
    per_image,
    where_on,
    within,
)
from marginlab.rng import Key
from marginlab.settings import SettingsError


class Jitter(NamedTuple):
    """The coin that decides whether colours change, the order (a row of `ORDERS`), and the factors.

    The hue is in turns, and there are 24 orders.
    """

    on: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor


def grey(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Return the luma with torchvision's weights.

    Kornia's default 0.299 differs by up to 1e-4. Weights given to kornia are copied to the device
    every time.
    """
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return red * 0.2989 + green * 0.587 + blue * 0.114


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    f = per_image(factor, images)
    return (images * f + other * (1 - f)).clamp(0, 1)


def adjust_contrast(
    images: Float[Tensor, "B 3 H W"], factor: Float[Tensor, " B"]
) -> Float[Tensor, "B 3 H W"]:
    """Move images away from, or towards, the mean of their grey.

    kornia's function is not used because its weights of grey are not torchvision's.
    """
    # two means, each along whole rows: a sum over all of one large image alone is split among
    # threads, and rounds differently in a batch
    return _blend(images, grey(images).mean(-1, keepdim=True).mean(-2, keepdim=True), factor)


def adjust_saturation(
    images: Float[Tensor, "B 3 H W"], factor: Float[Tensor, " B"]
) -> Float[Tensor, "B 3 H W"]:
    """Move images away from, or towards, their grey.

    kornia's function is not used because its weights of grey are not torchvision's.
    """
    return _blend(images, grey(images), factor)


def adjust_hue(
    images: Float[Tensor, "B 3 H W"], factor: Float[Tensor, " B"]
) -> Float[Tensor, "B 3 H W"]:
    """Turn the hue by `factor` turns.

    kornia's function is not used because it goes through HSV: equal to 2e-6, in 4.5 times the time
    (one thread; benchmarks/augment.py).

    Comparisons and `torch.where` are not vectorised on CPUs and would take most of the time.
    Differences rounded up to 0 or 1 stand for them.
    """
    red, green, blue = images.unbind(1)
    top = torch.maximum(torch.maximum(red, green), blue)
    chroma = top - torch.minimum(torch.minimum(red, green), blue)
    # 0 where that channel is the highest, else 1
    not_red, not_green = (top - red).ceil(), (top - green).ceil()
    difference = torch.lerp(green - blue, torch.lerp(blue - red, red - green, not_green), not_red)
    # grey has no hue: any will do, but no NaN, in the gradient neither
    turns = (
        difference / (chroma.clamp(min=1e-12) * 6)
        + not_red * (1 + not_green) / 3
        + factor.to(images, non_blocking=True)[:, None, None]
    )
    # made on the device: a tensor from the host would be waited for
    shift = 1 / 2 - torch.arange(3, device=images.device) / 3
    u = turns[:, None] + shift[:, None, None]
    return top[:, None] - chroma[:, None] * (2 - (u - u.round()).abs() * 6).clamp(0, 1)


ADJUSTMENTS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    adjust_brightness_accumulative,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
)
# (24, 4): row `order`, which adjustment comes first, second, ...
ORDERS = torch.tensor(list(permutations(range(len(ADJUSTMENTS)))))


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue by random factors, with probability p, (d).

    The order of the four is random for each image. The first three factors are drawn from [max(0, 1
    - amount), 1 + amount], the hue from [-hue, hue] turns. The paper's strength s stands for
    amounts of 0.8 s and a hue of 0.2 s.

    Example:
        >>> ColorJitter(hue=0.1).draw(Key(0).at(torch.arange(3)), (32, 32)).hue.abs().max() <= 0.1
        tensor(True)
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 0.8

    def __post_init__(self) -> None:
        check_probability(self.p)
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= (amount := getattr(self, name)) < float("inf"):
                raise SettingsError(
                    f"{name} is how far the factor goes from 1, finite and at least 0, not "
                    f"{amount}."
                )
        if not 0 <= self.hue <= 0.5:
            raise SettingsError(
                f"hue is in turns of the colour circle, in [0, 0.5], not {self.hue}."
            )

    def draw(self, key: Key, size: tuple[int, int]) -> Jitter:
        """Draw coins, orders in 0..23, factors around 1 and turns around 0."""
        key = key.named("ColorJitter")
        factors = {
            name: key.named(name).uniform(*interval) for name, interval in self.intervals().items()
        }
        return Jitter(
            key.named("on").bernoulli(self.p), key.named("order").integers(len(ORDERS)), **factors
        )

    def apply(
        self, images: Float[Tensor, "B 3 H W"], parameters: Jitter
    ) -> Float[Tensor, "B 3 H W"]:
        """Adjust the images whose coin is true four times; differentiable in factors and hue."""
        return where_on(parameters.on, _in_order, images, *parameters[1:])

    def near(
        self, parameters: Jitter, key: Key, size: tuple[int, int], step: float | Tensor
    ) -> Jitter:
        """Turn coins, draw orders again, and move factors and hues."""
        key = key.named("ColorJitter", "near")
        factors = {
            name: near_number(getattr(parameters, name), key.named(name), interval, step)
            for name, interval in self.intervals().items()
        }
        other = key.named("order").integers(len(ORDERS))
        order = torch.where(key.named("reordered").uniform() < step, other, parameters.order)
        return Jitter(near_coin(parameters.on, key.named("on"), self.p, step), order, **factors)

    def supports(self, parameters: Jitter, size: tuple[int, int]) -> Bool[Tensor, "..."]:
        """Return whether coins can fall so, orders are in 0..23, and numbers in their ranges."""
        known = (parameters.order >= 0) & (parameters.order < len(ORDERS))
        for name, interval in self.intervals().items():
            known = known & within(getattr(parameters, name), interval)
        return known & can_fall(parameters.on, self.p)

    def unchanged(self, shape: tuple[int, ...], size: tuple[int, int]) -> Jitter:
        """Return factors of 1 and a hue of 0, always in the support; not done where p allows it."""
        order, one = torch.zeros(shape, dtype=torch.int64), torch.ones(shape)
        return Jitter(torch.full(shape, self.p == 1), order, one, one, one, torch.zeros(shape))

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the intervals of the three factors and the hue."""
        amounts = {
            "brightness": self.brightness,
            "contrast": self.contrast,
            "saturation": self.saturation,
        }
        return {
            **{name: (max(0.0, 1 - amount), 1 + amount) for name, amount in amounts.items()},
            "hue": (-self.hue, self.hue),
        }


def _in_order(images: Tensor, order: Tensor, *factors: Tensor) -> Tensor:
    steps = ORDERS.to(order.device)[order]
    there = [factor.to(images, non_blocking=True) for factor in factors]
    for step in steps.unbind(1):
        images = _each(images, step, there)
    return images


def _each(
    images: Float[Tensor, "B 3 H W"], step: Int[Tensor, " B"], factors: list[Tensor]
) -> Float[Tensor, "B 3 H W"]:
    """Do one adjustment to each image.

    Images with the same adjustment are gathered, adjusted together, and put back.
    """
    groups = {kind: (step == kind).nonzero()[:, 0] for kind in range(len(ADJUSTMENTS))}
    groups = {kind: group for kind, group in groups.items() if len(group)}
    if len(groups) == 1:
        return next(ADJUSTMENTS[kind](images, factors[kind]) for kind in groups)
    back = torch.cat(list(groups.values())).argsort().to(images.device, non_blocking=True)
    made = []
    for kind, group in groups.items():
        there = group.to(images.device, non_blocking=True)
        made.append(
            ADJUSTMENTS[kind](images.index_select(0, there), factors[kind].index_select(0, there))
        )
    return torch.cat(made).index_select(0, back)


@dataclass(frozen=True)
class Grayscale(Tossed):
    """Grey in all three channels with probability p, (c).

    Example:
        >>> Grayscale().apply(torch.rand(1, 3, 2, 2), Coin(torch.tensor([True]))).std(dim=1).max()
        tensor(0.)
    """

    p: float = 0.2

    def __post_init__(self) -> None:
        check_probability(self.p)

    def draw(self, key: Key, size: tuple[int, int]) -> Coin:
        """Draw coins, true with probability p."""
        return Coin(key.named("Grayscale", "on").bernoulli(self.p))

    def apply(self, images: Float[Tensor, "B 3 H W"], parameters: Coin) -> Float[Tensor, "B 3 H W"]:
        """Turn the images whose coin is true to grey."""
        return where_on(parameters.on, lambda chosen: grey(chosen).expand_as(chosen), images)
