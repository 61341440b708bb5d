"""Quality scores that are compared: of the first network, and of the second.

Heads on the first network are ridge regressions on its last feature map, fitted to training images
that are brought down to a drawn number of rows once. All have the same features, images and
strengths to choose from, by squared error on classes left out.
"""

from typing import Any

import torch
from torch import Tensor

from marginlab.augment import LowResolution
from marginlab.data import ImageSet
from marginlab.measures import UnrecognizableBank
from marginlab.measures.functional import recognizability_distances, recognizability_index
from marginlab.methods import Recognizability
from marginlab.quality import (
    BatchNormGradients,
    CrFiqa,
    EmbeddingRecognizability,
    FeatureNorm,
    FittedScore,
    HighestGalleryCosine,
    PredictedIndex,
    QualityScore,
    SddFiqa,
    SerFiq,
    TransFira,
    embeddings_of,
)
from marginlab.rng import Key


def of_first(
    chosen: Any, method: Any, bank: UnrecognizableBank, learnt: ImageSet, seed: int, *, alone: bool
) -> dict[str, QualityScore]:
    """Return scores of the first network; `alone` leaves all out but the index and ERS."""
    images, labels = _once_degraded(chosen, learnt, seed)
    maps = method.backbone.feature_map
    with torch.no_grad():
        v = embeddings_of(method, images)
        distances = recognizability_distances(
            v, labels, method.classifier.centers.detach(), bank.centers.to(v)
        )
        index = recognizability_index(*distances, clamp=chosen.clamp or None)[:, None]
    found: dict[str, QualityScore] = {
        "index_first": FittedScore(maps, images, index, labels),
        "ers_first": EmbeddingRecognizability(method, bank),
    }
    if alone:
        return found
    return found | {
        "cr_fiqa": CrFiqa(method, images, labels, method.classifier.centers, features=maps),
        "transfira": TransFira(method, images, labels, features=maps),
        "sdd_fiqa": SddFiqa(method, images, labels, features=maps, seed=seed),
        "ser_fiq": SerFiq(method, passes=chosen.protocol.passes, seed=seed),
        "grafiqs": BatchNormGradients(method),
    }


def of_second(
    method: Any, bank: UnrecognizableBank, gallery: Tensor, *, frozen: bool
) -> dict[str, QualityScore]:
    """Return scores of the network that matches, which is the first one if it is `frozen`."""
    found: dict[str, QualityScore] = {
        "norm": FeatureNorm(method),
        "gallery": HighestGalleryCosine(method, gallery),
    }
    if not frozen:
        found["ers_own"] = EmbeddingRecognizability(method, bank)
        assert isinstance(method, Recognizability)
        if method.regression > 0:
            found["index"] = PredictedIndex(method)
    return found


def _once_degraded(chosen: Any, learnt: ImageSet, seed: int) -> tuple[Tensor, Tensor]:
    """Return training images at a drawn number of rows, and their labels."""
    operation = LowResolution(rows=chosen.low)
    key = Key(seed).named("once degraded").at(torch.arange(len(learnt)))
    drawn = operation.draw(key, tuple(learnt.images.shape[2:]))
    return operation.apply(learnt.images / 255, drawn), learnt.labels
