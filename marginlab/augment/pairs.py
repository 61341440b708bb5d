"""Pairs of images with the nearest views found so far, and the parameters of these views."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.augment.augmentation import Augmentation
from marginlab.augment.pieces import map_fields

Parameters = Mapping[str, tuple[Tensor, ...]]


class Pairs:
    """Pairs of images with the nearest views found so far.

    A pair has parameters (M, 1), views (M, 1, 3, H, W), their squared distance, and the damping of
    its next step, which `marginlab.augment.search` adapts.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        images: tuple[Tensor, Tensor],
        parameters: list[dict[str, Any]],
    ) -> None:
        self.augmentation, self.images, self.parameters = augmentation, images, parameters
        self.views = [
            augmentation.apply(own, drawn) for own, drawn in zip(images, parameters, strict=True)
        ]
        self.square = total((self.views[0].double() - self.views[1].double()).square()).cpu()[:, 0]
        self.damping = torch.full_like(self.square, 1e-2)

    def take(
        self, parameters: list[dict[str, Any]], views: list[Tensor], chosen: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Replace the views of the pairs that come nearer; return which pairs those are, (M,).

        Args:
            parameters: Parameters (M, P) of P new views of each image, for either side.
            views: These views, (M, P, 3, H, W).
            chosen: The one view of each image that is tried, (M,).
        """
        rows = torch.arange(len(self.square))
        there = [(rows.to(v.device), u.to(v.device)) for u, v in zip(chosen, views, strict=True)]
        new = [v[at][:, None] for v, at in zip(views, there, strict=True)]
        square = total((new[0].double() - new[1].double()).square()).cpu()[:, 0]
        nearer = square < self.square
        self.square = torch.where(nearer, square, self.square)
        for side, u in enumerate(chosen):
            self.views[side] = torch.where(
                nearer.to(new[side].device)[:, None, None, None, None], new[side], self.views[side]
            )
            self.parameters[side] = select(
                nearer[:, None], at_places(rows, u, parameters[side]), self.parameters[side]
            )
        return nearer


def total(pixels: Float[Tensor, "M P 3 H W"]) -> Float[Tensor, "M P"]:
    """Sum the numbers of each view, one axis at a time.

    A single sum over a large image may be split among threads, and would then round differently.
    """
    return pixels.sum(-1).sum(-1).sum(-1)


def each(function: Callable[[Tensor], Tensor], parameters: Parameters) -> dict[str, Any]:
    """Return the parameters with a function applied to each field."""
    return {name: map_fields(function, fields) for name, fields in parameters.items()}


def at_places(rows: Tensor, chosen: Tensor, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters (M, 1) of one view of each row."""
    return each(lambda f: f[rows, chosen][:, None], parameters)


def where(condition: Tensor, first: Any, second: Any) -> Any:
    """Return the same NamedTuple, with each field of the first where the condition holds."""
    return type(second)(*(torch.where(condition, a, b) for a, b in zip(first, second, strict=True)))


def select(condition: Tensor, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of the first where the condition holds, else of the second."""
    return {name: where(condition, first[name], fields) for name, fields in second.items()}
