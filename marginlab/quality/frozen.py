"""Scores that need no training: of the length of an embedding v, and of its nearness to others.

    feature norm      |v|
    MagFace           |v|, of a network that MagFace has trained to make it a quality
    ERS               1 - cos(v, u), u the direction of unrecognizable images
    gallery           max over g of cos(v, v_g), over embeddings of a gallery
    predicted index   xi^ of the head that `marginlab.methods.Recognizability` has trained

Sources: Meng et al. 2021 (MagFace), whose published evaluation takes the length without the clip of
its training; Deng et al. 2021, "Harnessing Unrecognizable Faces" (ERS); Chai et al. 2023. ERS is to
be taken of the network before fine-tuning on low resolution, which dissolves the cluster that u is
the center of. The gallery score is the one to beat by whoever trains: a system that searches a
gallery has it for nothing.
"""

import functools
from typing import Any

from jaxtyping import Float
from torch import Tensor

from marginlab.encoding import Encoder, Images, encode
from marginlab.kernels import BUDGET, top_k
from marginlab.margins import MagFace
from marginlab.measures import UnrecognizableBank
from marginlab.methods import Method, Recognizability
from marginlab.quality.score import QualityScore, column, embeddings_of
from marginlab.statistics import unit_vectors


class FeatureNorm(QualityScore):
    """The length of the embedding, before it is normalised.

    Args:
        encoder: A method of marginlab, of which the embeddings under its head count, or any
            encoder, such as `method.encode`.

    Example:
        >>> import torch
        >>> FeatureNorm(torch.nn.Flatten()).quality(torch.ones(1, 3, 2, 2))
        tensor([3.4641])
    """

    def __init__(self, encoder: Encoder):
        self.encoder = encoder

    def quality(self, images: Images, *, batch: int = 512) -> Float[Tensor, " N"]:
        """Return the lengths."""
        found: Tensor = embeddings_of(self.encoder, images, batch=batch).norm(dim=1)
        return found


class MagFaceNorm(FeatureNorm):
    """The length of the embedding of a classifier that was trained with the margin MagFace.

    Args:
        model: The trained `MarginClassifier`.

    Raises:
        ValueError: The model's margin is another one.

    Example:
        >>> import torch
        >>> from marginlab.methods import MarginClassifier
        >>> from marginlab.models import Backbone
        >>> backbone = Backbone("resnet18", stem="strided", width=0.125)
        >>> model = MarginClassifier(backbone, 4, margin="MagFace(l_a=1.0, u_a=8.0)", dim=8)
        >>> MagFaceNorm(model.eval()).quality(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2])
    """

    def __init__(self, model: Method):
        classifier: Any = getattr(model, "classifier", None)
        margin = getattr(classifier, "margin", None)
        if not isinstance(margin, MagFace):
            raise ValueError(
                f"The quality of MagFace is the length that its margin has trained, and this "
                f"{type(model).__name__} has {margin!r}. Train with margin='MagFace(...)', or "
                "take FeatureNorm."
            )
        super().__init__(model)


class EmbeddingRecognizability(QualityScore):
    """The embedding recognizability score ERS: the distance to unrecognizable images.

    Args:
        encoder: The network from before any fine-tuning on low resolution: a method of marginlab,
            or any encoder.
        bank: The bank of unrecognizable images, made of embeddings of the same network.

    Example:
        >>> import torch
        >>> dark = UnrecognizableBank.from_degraded(torch.ones(3, 12))
        >>> score = EmbeddingRecognizability(torch.nn.Flatten(), dark)
        >>> score.quality(torch.eye(12).view(12, 3, 2, 2)[:2])  # 1 - 1 / sqrt(12)
        tensor([0.7113, 0.7113])
    """

    def __init__(self, encoder: Encoder, bank: UnrecognizableBank):
        self.encoder, self.bank = encoder, bank

    def quality(self, images: Images, *, batch: int = 512) -> Float[Tensor, " N"]:
        """Return 1 - cosine with the nearest center of the bank."""
        return self.bank.distances(embeddings_of(self.encoder, images, batch=batch))


class HighestGalleryCosine(QualityScore):
    """The highest cosine with any embedding of a gallery, whoever it is of.

    Args:
        encoder: A method of marginlab, or any encoder.
        gallery: (G, D) embeddings of the gallery by the same network, of any length.
        budget: Bytes of a block of cosines.

    Raises:
        ValueError: The gallery is no (G, D) finite numbers with G at least 1.

    Example:
        >>> import torch
        >>> score = HighestGalleryCosine(torch.nn.Flatten(), torch.eye(12))
        >>> score.quality(torch.ones(1, 3, 2, 2))  # 1 / sqrt(12)
        tensor([0.2887])
    """

    def __init__(self, encoder: Encoder, gallery: Float[Tensor, "G D"], *, budget: int = BUDGET):
        if gallery.ndim != 2 or not len(gallery) or not bool(gallery.isfinite().all()):
            raise ValueError(
                f"A gallery is (G, D) finite embeddings, G at least 1, not {tuple(gallery.shape)}. "
                "Encode its images by the same network."
            )
        self.encoder, self.gallery, self.budget = encoder, unit_vectors(gallery.detach()), budget

    def quality(self, images: Images, *, batch: int = 512) -> Float[Tensor, " N"]:
        """Return the highest cosines.

        Raises:
            ValueError: As in `QualityScore`, or embeddings and gallery differ in dimension.
        """
        rows = unit_vectors(embeddings_of(self.encoder, images, batch=batch))
        if rows.shape[1] != self.gallery.shape[1]:
            raise ValueError(
                f"Embeddings {tuple(rows.shape)} and a gallery {tuple(self.gallery.shape)} are of "
                "two dimensions. Encode both by one network."
            )
        return top_k(rows, self.gallery.to(rows), 1, budget=self.budget).values[:, 0]


class PredictedIndex(QualityScore):
    """The recognizability index that a trained head predicts, and its heat maps.

    Args:
        model: The trained method, a `Recognizability`.

    Raises:
        TypeError: Another method, which has no such head.
    """

    def __init__(self, model: Method):
        if not isinstance(model, Recognizability):
            raise TypeError(
                f"{type(model).__name__} predicts no recognizability index. Give a trained "
                "Recognizability, or take another score of marginlab.quality."
            )
        self.model = model

    def quality(self, images: Images, *, batch: int = 512) -> Float[Tensor, " N"]:
        """Return the predicted indices; their range is arbitrary."""
        return encode(functools.partial(column, self.model.quality), images, batch=batch)[:, 0]

    def heat_maps(self, images: Images, *, batch: int = 512) -> Float[Tensor, "N H W"]:
        """Return the spatial attention, between 0 and 1, at the images' size."""
        return encode(self.model.heat_map, images, batch=batch)
