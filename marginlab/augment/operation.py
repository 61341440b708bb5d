"""The interface of an operation: parameters drawn from a key, and pixels made from parameters.

    view = apply(image, parameters),   parameters = draw(key of (seed, image, view), size)

The stream of a draw is named by the operation, so an operation draws the same whatever others stand
beside it. `apply` treats each image by itself and keeps to elementwise arithmetic and reductions
within an image. A matrix product or a convolution may round differently in batches of different
size, and a view made alone would then differ in the last bit from the same view made in a batch.
"""

from collections.abc import Callable
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marginlab.rng import Key
from marginlab.settings import SettingsError

# relative tolerance at the ends of a range: 16 units in the last place of float32, which is drawn
SLACK = 1e-6


@runtime_checkable
class Operation(Protocol):
    """An operation with `draw` and `apply`.

    `draw` returns a NamedTuple of tensors, each of the key's index shape. `apply` takes one whose
    tensors have the shape (B,) of the images. Parameters of discrete kind (coins, orders) are of an
    integer or bool dtype. The others are floating, and differentiable where the operation is.
    """

    def draw(self, key: Key, size: tuple[int, int]) -> Any:
        """Draw parameters for images of `size` (height, width)."""
        ...

    def apply(self, images: Float[Tensor, "B 3 H W"], parameters: Any) -> Float[Tensor, "B 3 H W"]:
        """Make images in [0, 1] from images in [0, 1]; unchanged ones stay bit for bit the same."""
        ...


@runtime_checkable
class Searchable(Protocol):
    """The methods beside draw and apply by which an operation's parameters can be searched.

    The support is the set of parameters that `draw` draws from. Parameters have any shapes that
    broadcast against each other and against the key's indices.
    """

    def near(self, parameters: Any, key: Key, size: tuple[int, int], step: float | Tensor) -> Any:
        """Draw other parameters in the support, near these.

        Numbers move by `step` of their range; coins and orders change with probability `step`. The
        given parameters may lie outside the support; the new ones never do.
        """
        ...

    def supports(self, parameters: Any, size: tuple[int, int]) -> Bool[Tensor, "..."]:
        """Return which parameters `draw` can give, to the rounding of its float32 numbers."""
        ...

    def unchanged(self, shape: tuple[int, ...], size: tuple[int, int]) -> Any:
        """Return parameters that leave images as they are, up to rounding.

        They lie outside the support if no parameters in it do so: the theory counts an image among
        its own views in any case.
        """
        ...

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the lowest and highest value of each field in which pixels are differentiable.

        Such a field takes all values between, whatever the others are.
        """
        ...


def near_coin(on: Tensor, key: Key, p: float, step: float | Tensor) -> Tensor:
    """Turn coins with probability `step`; set a coin of probability 0 or 1 to its only value."""
    turned = on ^ (key.uniform() < step)
    return turned if 0 < p < 1 else torch.full_like(turned, p == 1)


def near_number(
    number: Tensor, key: Key, interval: tuple[float, float], step: float | Tensor
) -> Tensor:
    """Move numbers by a normal deviate, `step` of the interval wide, and clamp them to it.

    Numbers are clamped because the nearest pair often lies at an end.
    """
    low, high = interval
    return (number + key.normal() * ((high - low) * step)).clamp(low, high)


def can_fall(on: Tensor, p: float) -> Tensor:
    """Return whether each coin is a possible draw: none is true at p = 0, none false at p = 1."""
    return torch.where(on, p > 0, p < 1)


def within(number: Tensor, interval: tuple[float, float]) -> Tensor:
    """Return whether numbers lie in the interval, to the rounding of `Key.uniform`."""
    low, high = interval
    slack = SLACK * max(1.0, abs(low), abs(high))
    return (number >= low - slack) & (number <= high + slack)


def check_probability(p: float) -> None:
    """Refuse a number that is no probability."""
    if not 0 <= p <= 1:
        raise SettingsError(f"p is the probability of an operation, in [0, 1], not {p}.")


def check_range(name: str, pair: tuple[float, float], low: float, high: float) -> None:
    """Refuse a pair that does not increase, or does not lie above `low` and up to `high`."""
    if not is_pair(pair, Real) or not low < pair[0] <= pair[1] <= high:
        raise SettingsError(
            f"{name} is a pair (lowest, highest) above {low:g} and at most {high:g}, not {pair}."
        )


def is_pair(value: object, kind: type) -> bool:
    """Return whether a setting, as a user may have written it, is two values of a kind."""
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(each, kind) and not isinstance(each, bool) for each in value)
    )


def per_image(
    factor: Float[Tensor, " B"], images: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, "B 1 1 1"]:
    """Return a factor for each image, shaped to broadcast against the pixels.

    Small copies from the host are queued, not waited for.
    """
    return factor.to(images, non_blocking=True)[:, None, None, None]


def where_on(
    on: Bool[Tensor, " B"],
    function: Callable[..., Tensor],
    images: Float[Tensor, "B 3 H W"],
    *factors: Tensor,
) -> Float[Tensor, "B 3 H W"]:
    """Apply `function(images, *factors)` to the images whose coin is true, computed only for those.

    Coins on the CPU cost a device no wait.
    """
    chosen = on.nonzero()[:, 0]

    def to(places: Tensor) -> Tensor:
        return places.to(images.device, non_blocking=True)

    if len(chosen) == 0:
        return images
    if len(chosen) == len(on):
        return function(images, *factors)
    made = function(images.index_select(0, to(chosen)), *(factor[chosen] for factor in factors))
    # put back by selecting rows of [images, made]: index_copy is no copy of rows and takes 3 times
    # as long
    source = torch.arange(len(on), device=on.device).index_copy(
        0, chosen, torch.arange(len(on), len(on) + len(chosen), device=on.device)
    )
    return torch.cat([images, made]).index_select(0, to(source))
