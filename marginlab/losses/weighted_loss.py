"""The loss of a batch under class weights, over the rows of all ranks.

    loss = sum_i w_i loss_i / sum_i w_i

w_i is the weight of row i's class (1 without class weights), and 0 where the label says to ignore
the row. loss_i includes the dispersion of the sub-centers of its class, if one is asked for.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab import ranks
from marginlab.kernels.margin_batch import MarginBatch, Over, Shares
from marginlab.kernels.margin_settings import MarginSettings, wide_dtype
from marginlab.kernels.margin_softmax import margin_cross_entropy
from marginlab.kernels.negligible import LeftOut
from marginlab.losses.dispersion import dispersion


def row_weights(
    labels: Tensor, valid: Tensor | None, class_weights: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return the weight of each row: that of its class, or 0 where the row is ignored."""
    weights = (
        torch.ones(len(labels), dtype=dtype, device=labels.device)
        if valid is None
        else valid.to(dtype)
    )
    return (
        weights
        if class_weights is None
        else weights * class_weights.to(weights)[labels.clamp(0, len(class_weights) - 1)]
    )


def weighted_loss(
    embeddings: Float[Tensor, "B D"],
    centers: Float[Tensor, "C K D"],
    labels: Int[Tensor, " B"],
    batch: MarginBatch,
    settings: MarginSettings,
    over: Over,
    class_weights: Float[Tensor, " num_classes"] | None,
    total_weight: Float[Tensor, ""] | None = None,
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, " B"], LeftOut | None]:
    """Return the reduced loss, the target cosines, and what the backward pass leaves out.

    Nothing is checked.

    Args:
        embeddings, centers: Rows, and the centers of this rank's classes.
        labels: The class of each row, which has its weight.
        batch: The rows' columns; `share` and `shares` are set here.
        settings: The settings of the classifier.
        over: The ranks that share the batch.
        class_weights: Weights of all classes; None: 1.
        total_weight: The sum that the mean divides by, where the batch is a part of a larger one.
    """
    wide = wide_dtype(embeddings, centers)
    weights = row_weights(labels, batch.valid, class_weights, wide)
    shares = None
    factor = weights
    # every column has its weight: the kernel takes them in
    if class_weights is not None and settings.label_smoothing > 0:
        columns = class_weights.to(weights)[over.first : over.first + len(centers)]
        shares = Shares(weights, columns if batch.classes is None else columns[batch.classes])
        factor = row_weights(labels, batch.valid, None, wide)
    share = None if settings.reduction == "none" else factor
    if settings.reduction == "mean":  # a batch in which no row counts has a loss of 0, not 0/0
        if total_weight is None:
            total = weights.sum()
            total_weight = total if over.classes else ranks.all_reduce(total, over.group)
        share = factor / total_weight.to(wide).clamp_min(torch.finfo(wide).tiny)
    batch = replace(batch, share=share, shares=shares)
    loss, cosine, left = margin_cross_entropy(embeddings, centers, batch, settings, over)
    if settings.dispersion and centers.shape[1] > 1:
        sparse = batch.classes is not None and not settings.dense_grad
        rows = dispersion(centers, labels - over.first, sparse=sparse)
        if over.classes:  # of the rows whose class is here: each rank differentiates its own
            rows = rows + (ranks.all_reduce(rows.detach(), over.group) - rows.detach())
        loss = loss + settings.dispersion * (rows if share is None else (rows * share).sum())
    if share is None:
        return loss * factor, cosine, left
    if not over.classes:
        loss = ranks.all_reduce(loss, over.group, settings.grads)
    return loss, cosine, left
