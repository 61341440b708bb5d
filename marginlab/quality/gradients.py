"""GraFIQs: an image is good if the network's batch normalisation hardly wants it otherwise.

    L(x) = mean over layers l of  mean_c (mu_lc(x) - m_lc)^2 + mean_c (s_lc(x) - v_lc)^2
    q(x) = - sum of | dL / da |

mu and s are the mean and the biased variance over the places of the image's map that enters layer
l, m and v the running statistics of that layer, and a is the image or the output of a layer. An
image that is far from what the network was trained on has a large gradient, hence the sign.

The sum needs the statistics of one image, so scores do not depend on the batch. It needs two or
more places: the layers are those of maps, BatchNorm2d.

Source: Kolf, Damer and Boutros 2024 (CVPR Workshops), and its code, which takes the image or the
outputs of the four stages (its second stage is the usual one). Its image is in units of (pixel -
1/2) / (1/2), ours is in [0, 1], which is a factor for all images.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from marginlab.data.streaming import batches
from marginlab.encoding import Images, check_range, encode, evaluating
from marginlab.methods import Method
from marginlab.quality.score import QualityScore


class BatchNormGradients(QualityScore):
    """GraFIQs: minus the absolute gradient of the distance to stored statistics.

    Args:
        model: A method of marginlab, or a module that takes images in [0, 1].
        at: The layer by whose output the distance is differentiated, by its name in
            `model.named_modules()`, such as "backbone.net.layer2"; "" is the image. Layers of
            batch normalisation before it have no part in the gradient.

    Raises:
        ValueError: The model has no BatchNorm2d with running statistics, or no layer of that name.

    Example:
        >>> from marginlab.models import Backbone
        >>> backbone = Backbone("resnet18", stem="strided", width=0.125).eval()
        >>> score = BatchNormGradients(backbone, at="net.layer2")
        >>> bool((score.quality(torch.rand(2, 3, 32, 32)) < 0).all())
        True
    """

    def __init__(self, model: nn.Module, *, at: str = ""):
        layers = {name: layer for name, layer in model.named_modules() if _stores(layer)}
        if not layers:
            raise ValueError(
                f"{type(model).__name__} has no BatchNorm2d with running statistics. Take a "
                "backbone with batch normalisation, or another score of marginlab.quality."
            )
        known = dict(model.named_modules())
        if at not in known:
            near = [name for name in known if name.count(".") <= 2 and name]
            raise ValueError(f"{type(model).__name__} has no layer {at!r}. There are: {near}.")
        self.model, self.at, self.layers = model, at, list(layers.values())
        self.place = known[at] if at else None

    def quality(self, images: Images, *, batch: int = 64) -> Float[Tensor, " N"]:
        """Return the scores, which are at most 0.

        Raises:
            ValueError: Images that `encode` refuses, or the distance does not depend on the layer.
        """
        encode(_nothing, images[torch.arange(min(1, len(images)))], batch=batch)  # its checks
        first = next(p for p in self.model.parameters() if p.is_floating_point())
        parts = []
        asked = torch.arange(len(images)).split(batch)
        with evaluating(self.model), contextlib.closing(batches(images, asked)) as read:
            for _, held in read:
                x = held.to(first.device)
                if x.dtype == torch.uint8:
                    x = x.to(first.dtype) / 255
                check_range(x)
                parts.append(self._scores(x.to(first.dtype)))
        return torch.cat(parts)

    def _scores(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        distances: list[Tensor] = []
        places: list[Tensor] = []

        def compare(layer: Any, given: tuple[Tensor, ...]) -> None:
            maps = given[0]
            mean, variance = maps.mean((2, 3)), maps.var((2, 3), unbiased=False)
            apart = (mean - layer.running_mean).square().mean(1)
            distances.append(apart + (variance - layer.running_var).square().mean(1))

        def mark(_: Any, __: Any, output: Tensor) -> Tensor:
            places.append(output)
            return output.clone()  # what follows may write into it

        function: Callable[[Tensor], Any] = (
            self.model.backbone if isinstance(self.model, Method) else self.model
        )
        with torch.enable_grad(), _hooked(self.layers, compare, self.place, mark):
            x = x.detach().requires_grad_(True)
            function(x)
            total = torch.stack(distances).mean(0).sum()
            by = places[-1:] if self.place is not None else [x]
            if not by or not total.requires_grad:
                raise ValueError(f"The images of {self.model!r} do not pass {self.at!r}.")
            (slope,) = torch.autograd.grad(total, by, allow_unused=True)
        if slope is None:
            raise ValueError(
                f"No batch normalisation comes after {self.at!r}, so the distance has no gradient "
                "there. Name an earlier layer."
            )
        return -slope.abs().flatten(1).sum(1)


@contextlib.contextmanager
def _hooked(
    layers: list[nn.Module], compare: Any, place: nn.Module | None, mark: Any
) -> Iterator[None]:
    """Look at what enters the layers and what leaves the place, and stop looking in any case."""
    hooks = [layer.register_forward_pre_hook(compare) for layer in layers]
    if place is not None:
        hooks.append(place.register_forward_hook(mark))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _stores(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None


def _nothing(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :1]
