"""The parts that published backbones of face recognition share: normalisation and an embedding.

    features = net((images - 1/2) / (1/2))     images (B, 3, S, S) in [0, 1] -> features (B, D)

Unlike a model of timm, such a network does not pool its last map. It flattens the map, so that one
linear layer sees every place of the aligned face, and batch normalisation ends it. The number of
its parameters depends on the side S of the images, which is 112 in all that is published.

Source: Deng et al. 2022 (ArcFace), section 4.1; insightface's `recognition/arcface_torch`.
"""

import contextlib
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from marginlab.models.backbone import Backbone
from marginlab.models.convolution import Convolution


class FaceNet(nn.Module, ABC):
    """A network in two parts: the last feature map, and the embedding that is made of it.

    Its parameters and buffers have the names of the published files.
    """

    @abstractmethod
    def maps(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C h w"]:
        """Return the last feature map of normalised images."""

    @abstractmethod
    def embed(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D"]:
        """Return the embedding of a map, computed in float32 also inside autocast."""

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        return self.embed(self.maps(images))


class FaceBackbone(Backbone):
    """A backbone around a `FaceNet`, for images of one size in [0, 1]; `dim` is D."""

    net: FaceNet

    def __init__(self, net: FaceNet, *, dim: int, image_size: int):
        nn.Module.__init__(self)
        Convolution.within(net)
        self.net, self.dim, self.image_size = net, dim, image_size

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return embeddings, which are not of length 1.

        Raises:
            ValueError: The images have another size than the backbone is made for.
        """
        features: Tensor = self.net(self._normalised(images))
        return features

    def feature_map(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Return the last feature map, which the embedding is made of.

        For a transformer these are the normalised tokens, where their patches are.

        Raises:
            ValueError: The images have another size than the backbone is made for.
        """
        return self.net.maps(self._normalised(images))

    def map_and_features(
        self, images: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B D"]]:
        """Return `feature_map` and embeddings of images, from one pass through the network."""
        found = self.net.maps(self._normalised(images))
        return found, self.net.embed(found)

    def _normalised(self, images: Tensor) -> Tensor:
        """Move images from [0, 1] to [-1, 1], after a look at their size."""
        side = self.image_size
        if images.shape[-2:] != (side, side):
            height, width = images.shape[-2:]
            raise ValueError(
                f"{type(self).__name__} is made for images of {side} x {side}, not of {height} x "
                f"{width}. Resize them, or give it image_size."
            )
        return images * 2 - 1


def check_sizes(kind: str, image_size: int, least: int, dim: int) -> None:
    """Refuse sizes that make no backbone.

    Raises:
        ValueError: The image size is below the least, or the number of features below 1.
    """
    if image_size < least:
        raise ValueError(f"{kind} takes images of at least {least} pixels, not {image_size}.")
    if dim < 1:
        raise ValueError(f"{kind} gives at least 1 feature, not {dim}.")


def in_float32(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off where it is on, for layers that compute in their own precision."""
    kind = tensor.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
