"""The pairs of one fold of LFW's View 2, judged by a training on the people of no pair in it.

    accept: cos(x, y) >= t,   x = f(image) + f(mirror of image)
    t       the threshold with the most right answers on the pairs of the nine other folds

Published trainings choose the threshold on the other folds, too. Here people of these folds are
trained on, so genuine pairs look nearer there than they do among new people: the threshold may be
too strict, and the accuracy is a lower one. The equal error rate needs no threshold.
"""

from pathlib import Path

import torch
from torch import Tensor

from marginlab.data.lfw import fold_pairs, lfw_protocol
from marginlab.encoding import encode
from marginlab.evaluation.protocols import pair_scores, roc
from marginlab.train import load


def judged(run: Path, fold: int, size: int) -> list[tuple[str, float, int]]:
    """Return accuracy and equal error rate on a fold, each with the number of its pairs.

    Args:
        run: The run folder of the training.
        fold: The fold, counted from 1.
        size: Side of the images in pixels.
    """
    lfw, model = lfw_protocol(size=size), load(run).eval()

    def embed(images: Tensor) -> Tensor:
        return model.project(model.backbone(images))

    used = torch.cat([lfw.pairs.first, lfw.pairs.second]).unique()
    features = encode(embed, lfw.images.images[used], flip=True)
    row = torch.zeros(len(lfw.images), dtype=torch.long)
    row[used] = torch.arange(len(used))
    scores = pair_scores(features, row[lfw.pairs.first], row[lfw.pairs.second])
    own = torch.zeros(len(scores), dtype=torch.bool)
    pairs = fold_pairs(lfw, fold)
    own[(fold - 1) * len(pairs.same) : fold * len(pairs.same)] = True
    threshold = best_threshold(scores[~own], lfw.pairs.same[~own])
    right = (scores[own] >= threshold) == pairs.same
    n = len(right)
    error = roc(scores[own], pairs.same).eer
    return [("fold_accuracy", float(right.double().mean()), n), ("fold_eer", error, n)]


def best_threshold(scores: Tensor, same: Tensor) -> float:
    """Return the threshold with the most right answers; the largest of equally good ones."""
    curve = roc(scores, same)
    right = curve.tar * curve.genuine - curve.far * curve.impostors
    return float(curve.thresholds[int(right.argmax())])
