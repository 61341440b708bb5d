"""The interface of a method for training, and the parts that all methods share.

    features   = backbone(images)      kept, measured and evaluated
    embeddings = projector(features)   seen by the loss

A method of your own subclasses `Method` and overrides `loss`.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from marginlab.data import ImageSet
from marginlab.encoding import check_range
from marginlab.kernels.function import readable
from marginlab.models import Backbone

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Method(nn.Module, ABC):
    """A backbone under a head, trained by a loss on views of images.

    A method of your own overrides `loss`.

    Calling the module also computes `loss`, so that DistributedDataParallel sees the forward pass.
    A method whose constructor has a parameter `num_classes` is given the number of classes of the
    data.
    """

    n_views: int = 2
    """Views of an image that training draws for one step.

    The two-view losses need two, classifiers one.
    """
    drawn_anew: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of parameters and buffers that a recipe's `start` need not have."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.classes: tuple[str, ...] = ()  # names, if the method was trained or loaded
        self.backbone, self.head = backbone, head

    def encode(
        self, images: Float[Tensor, "B 3 H W"] | UInt8[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B D"]:
        """Return backbone features (not normalised) of images in [0, 1], or uint8 images in 0..255.

        Raises:
            TypeError: The images are of another integer type, or booleans.
            ValueError: On a CPU, in evaluation mode, images go beyond [-0.5, 1.5], so they are not
                in [0, 1]. Floats in 0..255 pass elsewhere: on CUDA, in training mode, and in a
                graph or a transform of torch.func.

        Example:
            >>> from marginlab.methods import SimCLR
            >>> method = SimCLR(Backbone("resnet18", stem="strided", width=0.125)).eval()
            >>> images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
            >>> torch.equal(method.encode(images), method.encode(images / 255))
            True
        """
        features: Tensor = self.backbone(self.floating(images))
        return features

    def floating(
        self, images: Float[Tensor, "B 3 H W"] | UInt8[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B 3 H W"]:
        """Return images in [0, 1] as the backbone takes them; `encode` says what is refused."""
        if images.dtype == torch.uint8:
            return images.to(torch.get_default_dtype()) / 255
        if not images.is_floating_point():
            raise TypeError(
                f"Images are floating in [0, 1] or uint8 in 0..255, not {images.dtype}. Convert "
                "them by .to(torch.uint8), or divide by their largest value."
            )
        if not self.training and readable(images) and images.numel():
            check_range(images)
        return images

    def project(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        """Return embeddings under the head, which the loss sees."""
        embeddings: Tensor = self.head(features)
        return embeddings

    def embed(self, views: Float[Tensor, "B V 3 H W"]) -> Float[Tensor, "B V E"]:
        """Return embeddings of all views, passed through the network at once.

        Batch statistics are over images and views.
        """
        embeddings = self.project(self.encode(views.flatten(0, 1)))
        apart: Tensor = embeddings.unflatten(0, views.shape[:2])
        return apart

    @abstractmethod
    def loss(
        self, views: Float[Tensor, "B V 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return `loss` and, detached, the scalars worth recording.

        Training keeps the means of the scalars. Labels are there for methods that use them.
        """

    def forward(
        self, views: Float[Tensor, "B V 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the loss: see `loss`."""
        return self.loss(views, labels)

    def optimizers(self, make: MakeOptimizer) -> list[torch.optim.Optimizer]:
        """Make the optimizers of all parameters by the recipe's choice; a head may have its own."""
        return [make(self.parameters())]

    def class_weights(self) -> Float[Tensor, "C K D"] | None:
        """Return the weights of all classes, without gradient; None where there are none.

        On several ranks all call it.
        """
        return None

    @property
    def undivided(self) -> str:
        """Reason why the loss of a step cannot be taken in parts; empty if it can."""
        return ""

    def window(self, labels: Int[Tensor, " B"]) -> contextlib.AbstractContextManager[bool]:
        """Open a context in which the loss of one step is taken in parts.

        The context says whether the losses of the parts add up to that of the step, as they do for
        a loss that is one over all rows. Here they do not, and the loss of the step is their mean:
        each part has its own negatives or statistics.

        Args:
            labels: Labels of this rank's rows of all parts, in their order.
        """
        return contextlib.nullcontext(False)

    def begin_epoch(self, epoch: int, images: ImageSet) -> None:
        """Do what precedes the first step of an epoch, on every rank: nothing here.

        What it computes is kept in buffers, so that a checkpoint holds it.

        Args:
            epoch: Number of the epoch, from 0.
            images: All training images.
        """

    def after_step(self) -> None:
        """Do what follows a step of the optimizer: nothing here; a momentum encoder moves."""
