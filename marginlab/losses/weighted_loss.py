"""The loss of a batch under class weights, over the rows of all ranks.

    loss = sum_i w_i loss_i / sum_i w_i

w_i is the weight of row i's class (1 without class weights), and 0 where the label says to ignore
the row.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from marginlab import ranks
from marginlab.kernels.margin_call import Over, Shares
from marginlab.kernels.margin_softmax import margin_cross_entropy
from marginlab.margins import Margin

Reduction = Literal["mean", "sum", "none"]


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


def wide_of(embeddings: Tensor, centers: Tensor) -> torch.dtype:
    """Return the dtype of the sums: float32, or float64 where an operand is."""
    return torch.promote_types(torch.promote_types(embeddings.dtype, centers.dtype), torch.float32)


def weighted_loss(
    embeddings: Float[Tensor, "B D"],
    centers: Float[Tensor, "C K D"],
    labels: Int[Tensor, " B"],
    column: Int[Tensor, " B"],
    valid: Bool[Tensor, " B"] | None,
    margin: Margin,
    *,
    scale: float,
    classes: Int[Tensor, " n"] | None,
    lift: Float[Tensor, " n"] | None,
    exclude: Int[Tensor, "B E"] | None,
    class_weights: Float[Tensor, " C"] | None,
    label_smoothing: float,
    interclass_filter: float | None,
    interclass_masks: bool,
    reduction: Reduction,
    operands: torch.dtype | None,
    budget: int | None,
    compiled: bool,
    dense_grad: bool,
    over: Over,
    grads: ranks.Gradients,
    whole: Tensor | None = None,
    first: int = 0,
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, " B"]]:
    """Return the reduced loss and the target cosines, given each row's own column.

    Nothing is checked. `first` is the first class of `centers`.
    """
    wide = wide_of(embeddings, centers)
    weights = row_weights(labels, valid, class_weights, wide)
    shares = None
    factor = weights
    # every column has its weight: the kernel takes them in
    if class_weights is not None and label_smoothing > 0:
        columns = class_weights.to(weights)[first : first + len(centers)]
        shares = Shares(weights, columns if classes is None else columns[classes])
        factor = row_weights(labels, valid, None, wide)
    share = None if reduction == "none" else factor
    if reduction == "mean":  # a batch in which no row counts has a loss of 0, not 0/0
        if whole is None:
            whole = weights.sum() if over.classes else ranks.all_reduce(weights.sum(), over.group)
        share = factor / whole.to(wide).clamp_min(torch.finfo(wide).tiny)
    loss, cosine = margin_cross_entropy(
        embeddings,
        centers,
        column,
        margin,
        scale=scale,
        classes=classes,
        lift=lift,
        exclude=exclude,
        valid=valid,
        share=share,
        shares=shares,
        smoothing=label_smoothing,
        interclass=interclass_filter,
        masks=interclass_masks,
        operands=operands,
        budget=budget,
        compiled=compiled,
        dense_grad=dense_grad,
        over=over,
    )
    if share is None:
        return loss * factor, cosine
    return loss if over.classes else ranks.all_reduce(loss, over.group, grads), cosine
