"""The interface of a quality score, and the embeddings that scores look at.

    quality(images (N, 3, H, W)) -> scores (N,), of which a higher one is better

A score is of one image by a frozen network. It does not depend on the other images of a batch, and
it leaves the network as it was: the mode of each part, its buffers and its gradients.
"""

import functools
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.encoding import Encoder, Images, encode
from marginlab.methods import Method


class QualityScore(ABC):
    """Base class of all scores. A score of your own overrides `quality`.

    Example:
        >>> class Brightness(QualityScore):
        ...     def quality(self, images, *, batch=512):
        ...         return encode(lambda x: x.mean((1, 2, 3))[:, None], images, batch=batch)[:, 0]
        >>> Brightness().quality(torch.ones(2, 3, 8, 8))
        tensor([1., 1.])
    """

    @abstractmethod
    def quality(self, images: Images, *, batch: int = 512) -> Float[Tensor, " N"]:
        """Return the scores of images; higher is better.

        Args:
            images: Bytes in [0, 255], numbers in [0, 1], or streamed.
            batch: Number of images that are encoded at a time.

        Raises:
            ValueError: Images that `marginlab.encoding.encode` refuses.
        """


def embedder(model: Encoder) -> Encoder:
    """Return the encoder whose features are compared: of a method, the embeddings under its head.

    Anything else is an encoder already: a module, a function, or `method.encode` for the features
    of the backbone.
    """
    return functools.partial(_embed, model) if isinstance(model, Method) else model


def embeddings_of(
    model: Encoder, images: Images, *, batch: int = 512, flat: bool = False
) -> Float[Tensor, "N D"]:
    """Return the embeddings of images, not normalised.

    Args:
        model: A method of marginlab, or any encoder.
        images: As `QualityScore.quality` takes them.
        batch: Number of images that are encoded at a time.
        flat: Flatten feature maps into rows.

    Raises:
        ValueError: The encoder gives no rows (B, D).
    """
    found = encode(embedder(model), images, batch=batch)
    if flat:
        return found.flatten(1)
    if found.ndim != 2:
        raise ValueError(
            f"Embeddings of images are rows (N, D), not {tuple(found.shape)}. Pool or flatten the "
            "maps in the encoder."
        )
    return found


def _embed(model: Any, images: Tensor) -> Tensor:
    embeddings: Tensor = model.project(model.encode(images))
    return embeddings


def column(function: Any, images: Tensor) -> Tensor:
    """Return numbers (B,) of a function as rows (B, 1), which encoding takes."""
    found: Tensor = function(images)
    return torch.unsqueeze(found, 1)
