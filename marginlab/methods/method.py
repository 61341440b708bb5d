"""What training asks of a method, and what all methods share.

features = backbone(images)      what is kept, measured and evaluated
embeddings = projector(features) what the loss sees
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from marginlab.encoding import check_range
from marginlab.kernels.function import readable
from marginlab.models import Backbone

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Method(nn.Module, ABC):
    """A backbone under a head, trained by a loss on views of images.

    A method of one's own overrides `loss`.

    `loss` is also what calling the module does, so that DistributedDataParallel sees the forward
    pass. A method whose constructor has a parameter `num_classes` is given the number of classes of
    the data.
    """

    n_views: ClassVar[int] = 2
    """Views of an image that training draws for one step; the two-view losses need two, classifiers
    one.
    """

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.classes: tuple[str, ...] = ()  # names, of a method that was trained or loaded
        self.backbone, self.head = backbone, head

    def encode(
        self, images: Float[Tensor, "B 3 H W"] | UInt8[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B D"]:
        """Backbone features (not normalised) of images in [0, 1], or of uint8 images in 0..255.

        Raises:
            TypeError: images of another integer type, or of booleans.
            ValueError: on a CPU, in evaluation mode, images beyond [-0.5, 1.5], which is not [0,
                1]. Elsewhere floats in 0..255 pass: on CUDA, in training mode, and in a graph or a
                transform of torch.func.

        Example:
            >>> from marginlab.methods import SimCLR
            >>> method = SimCLR(Backbone("resnet18", stem="strided", width=0.125)).eval()
            >>> images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
            >>> torch.equal(method.encode(images), method.encode(images / 255))
            True
        """
        if images.dtype == torch.uint8:
            images = images.to(torch.get_default_dtype()) / 255
        elif not images.is_floating_point():
            raise TypeError(
                f"Images are floating in [0, 1] or uint8 in 0..255, not {images.dtype}. Convert "
                "them by .to(torch.uint8), or divide by their largest value."
            )
        elif not self.training and readable(images) and images.numel():
            check_range(images)
        features: Tensor = self.backbone(images)
        return features

    def project(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        """Embeddings under the head: what the loss sees."""
        embeddings: Tensor = self.head(features)
        return embeddings

    def embed(self, views: Float[Tensor, "B V 3 H W"]) -> Float[Tensor, "B V E"]:
        """Embeddings of all views, through the network in one pass (batch statistics are over
        images and views).
        """
        embeddings = self.project(self.encode(views.flatten(0, 1)))
        apart: Tensor = embeddings.unflatten(0, views.shape[:2])
        return apart

    @abstractmethod
    def loss(
        self, views: Float[Tensor, "B V 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Give `loss` and, detached, the scalars worth recording (training keeps their means);
        labels are there for methods that use them.
        """

    def forward(
        self, views: Float[Tensor, "B V 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Give the loss: see `loss`."""
        return self.loss(views, labels)

    def optimizers(self, make: MakeOptimizer) -> list[torch.optim.Optimizer]:
        """Optimizers of all parameters, made by the recipe's choice; a head may have its own."""
        return [make(self.parameters())]

    @property
    def undivided(self) -> str:
        """Why the loss of a step cannot be taken in parts; empty if it can."""
        return ""

    def window(self, labels: Int[Tensor, " B"]) -> contextlib.AbstractContextManager[bool]:
        """Take the loss of one step in parts, whose rows of this rank have these labels, in their
        order.

        The context says whether the losses of the parts add up to that of the step (a loss that is
        one over all rows); here they do not, and the loss of the step is their mean: each part has
        its own negatives or statistics.
        """
        return contextlib.nullcontext(False)

    def after_step(self) -> None:
        """Do what follows a step of the optimizer: nothing here; a momentum encoder moves on."""
