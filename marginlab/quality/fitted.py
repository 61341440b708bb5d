"""Scores that a linear head predicts from an image alone, fitted to qualities of labelled images.

    CR-FIQA    head -> CCS / (NNCCS + 1)
    TransFIRA  two heads -> CCS, CCAS
    SDD-FIQA   head -> similarity distribution distance

`marginlab.quality.targets` has the formulas of the targets. As published, the head is trained with
the whole network: with its recognition loss (CR-FIQA, a smooth-L1 loss with a knee at 0.5 and a
weight of 10), after it (TransFIRA, squared error), or as a network of its own (SDD-FIQA, smooth
L1). Here the network stays frozen, and the heads are fitted by ridge regression. So these are the
published targets, and not the published networks.

The head sees embeddings, as CR-FIQA's and TransFIRA's do, or other features of the frozen network,
such as its last feature map (`features=backbone.feature_map`), as the head of the recognizability
index does.
"""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from marginlab.encoding import Encoder, Images
from marginlab.quality.ridge import STRENGTHS, RidgeHead, fit_ridge
from marginlab.quality.score import QualityScore, embeddings_of
from marginlab.quality.targets import (
    center_cosines,
    class_means,
    cr_fiqa_target,
    sdd_fiqa_target,
    transfira_targets,
)


class FittedScore(QualityScore):
    """A score that a ridge head predicts from frozen features.

    Args:
        features: The encoder of what the head sees; feature maps are flattened.
        images: N images of known quality.
        targets: (N, k) their qualities; `quality` is the first.
        labels: (N,) their classes, which choose the strength.
        strengths: Strengths of the ridge to try.
        batch: Number of images that are encoded at a time.

    Raises:
        ValueError: As in `fit_ridge`.

    Example:
        >>> import torch
        >>> images = torch.rand(30, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        >>> bright = images.mean((1, 2, 3))
        >>> score = FittedScore(torch.nn.Flatten(), images, bright[:, None], torch.arange(30) % 3)
        >>> bool((score.quality(images) - bright).abs().max() < 0.01)
        True
    """

    def __init__(
        self,
        features: Encoder,
        images: Images,
        targets: Float[Tensor, "N k"],
        labels: Int[Tensor, " N"],
        *,
        strengths: Sequence[float] = STRENGTHS,
        batch: int = 512,
    ):
        self.features = features
        seen = embeddings_of(features, images, batch=batch, flat=True)
        self.head: RidgeHead = fit_ridge(seen, targets, labels, strengths=strengths)

    def predict(self, images: Images, *, batch: int = 512) -> Float[Tensor, "N k"]:
        """Return all targets of images, as predicted."""
        return self.head(embeddings_of(self.features, images, batch=batch, flat=True))

    def quality(self, images: Images, *, batch: int = 512) -> Float[Tensor, " N"]:
        """Return the first target of images, as predicted."""
        return self.predict(images, batch=batch)[:, 0]


class CrFiqa(FittedScore):
    """CR-FIQA: the predicted ratio of the cosines with the own and the nearest other class center.

    Args:
        encoder: A method of marginlab, or any encoder of embeddings.
        images: N images of the classes.
        labels: (N,) their classes, in 0..C-1.
        centers: (C, D), or (C, K, D), centers of the classifier.
        features: The encoder of what the head sees; None is the embedding.
        strengths: Strengths of the ridge to try.

    Raises:
        ValueError: As in `center_cosines` and `fit_ridge`.

    Example:
        >>> import torch
        >>> images = torch.rand(30, 3, 2, 2)
        >>> score = CrFiqa(torch.nn.Flatten(), images, torch.arange(30) % 3, torch.rand(3, 12))
        >>> score.quality(images).shape
        torch.Size([30])
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Images,
        labels: Int[Tensor, " N"],
        centers: Float[Tensor, "C *K D"],
        *,
        features: Encoder | None = None,
        strengths: Sequence[float] = STRENGTHS,
    ):
        v = embeddings_of(encoder, images)
        cosines = center_cosines(v, labels.to(v.device), centers.detach().to(v.device))
        seen = encoder if features is None else features
        target = cr_fiqa_target(cosines)[:, None]
        super().__init__(seen, images, target, labels, strengths=strengths)


class TransFira(FittedScore):
    """TransFIRA: predicted similarity with the own class (CCS), and separation from others (CCAS).

    `predict` returns both, (N, 2). A template leaves out images with CCAS of 0 or less, and weighs
    the others by CCS: `marginlab.evaluation.pool_by_quality`.

    Args:
        encoder: A method of marginlab, or any encoder of embeddings.
        images: N images.
        labels: (N,) their classes; in 0..C-1 where centers are given.
        centers: (C, D) mean embeddings of a gallery; None takes the mean of these images, each its
            own part of the mean, as published.
        score: `quality` returns the predicted "ccs" or "ccas".
        features: The encoder of what the heads see; None is the embedding.
        strengths: Strengths of the ridge to try.

    Raises:
        ValueError: As in `class_means`, `center_cosines` and `fit_ridge`, or `score` is another.

    Example:
        >>> import torch
        >>> images = torch.rand(30, 3, 2, 2)
        >>> score = TransFira(torch.nn.Flatten(), images, torch.arange(30) % 3)
        >>> score.predict(images).shape
        torch.Size([30, 2])
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Images,
        labels: Int[Tensor, " N"],
        *,
        centers: Float[Tensor, "C D"] | None = None,
        score: Literal["ccs", "ccas"] = "ccs",
        features: Encoder | None = None,
        strengths: Sequence[float] = STRENGTHS,
    ):
        if score not in ("ccs", "ccas"):
            raise ValueError(f"score is 'ccs' or 'ccas', not {score!r}.")
        v = embeddings_of(encoder, images)
        own = labels.to(v.device)
        means, number = class_means(v, own) if centers is None else (centers.to(v.device), own)
        targets = transfira_targets(center_cosines(v, number, means))
        seen = encoder if features is None else features
        super().__init__(seen, images, targets, labels, strengths=strengths)
        self.score = score

    def quality(self, images: Images, *, batch: int = 512) -> Float[Tensor, " N"]:
        """Return the predicted CCS or CCAS."""
        return self.predict(images, batch=batch)[:, 0 if self.score == "ccs" else 1]


class SddFiqa(FittedScore):
    """SDD-FIQA: the predicted distance between similarities within the class and with others.

    Args:
        encoder: A method of marginlab, or any encoder of embeddings.
        images: N images, two or more of each class.
        labels: (N,) their classes.
        features: The encoder of what the head sees; None is the embedding.
        pairs, draws, seed: As in `sdd_fiqa_target`.
        strengths: Strengths of the ridge to try.

    Raises:
        ValueError: As in `sdd_fiqa_target` and `fit_ridge`.

    Example:
        >>> import torch
        >>> images = torch.rand(30, 3, 2, 2)
        >>> SddFiqa(torch.nn.Flatten(), images, torch.arange(30) % 3, draws=2).quality(images).shape
        torch.Size([30])
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Images,
        labels: Int[Tensor, " N"],
        *,
        features: Encoder | None = None,
        pairs: int = 24,
        draws: int = 12,
        seed: int = 0,
        strengths: Sequence[float] = STRENGTHS,
    ):
        v = embeddings_of(encoder, images)
        target = sdd_fiqa_target(v, labels.to(v.device), pairs=pairs, draws=draws, seed=seed)
        seen = encoder if features is None else features
        super().__init__(seen, images, target[:, None], labels, strengths=strengths)
