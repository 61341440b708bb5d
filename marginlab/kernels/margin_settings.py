"""Settings of a margin softmax: one frozen object, built where a classifier is built."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from marginlab.margins import Margin
from marginlab.ranks import Gradients

Reduction = Literal["mean", "sum", "none"]

BUDGET_CPU = 128 * 2**20
BUDGET_CUDA = 512 * 2**20


@dataclass(frozen=True)
class MarginSettings:
    """Settings of a margin softmax; `marginlab.losses.MarginSoftmax` documents them for users.

    Attributes:
        margin: Margin on the target cosine.
        scale: s, 1/temperature.
        label_smoothing: epsilon. The target distribution is 1 - epsilon on the class, and epsilon
            spread evenly over all columns that the row has.
        interclass_filter: Non-target cosines above it are filtered; None filters nothing.
        interclass_masks: A filtered class leaves the sum; otherwise its cosine counts as 0, as
            published. Either way it gets no gradient.
        dispersion: Weight of the mean cosine between the sub-centers of each row's class.
        ignore_index: Rows with this label count nowhere; None: every row counts.
        reduction: The reduction over the rows, which `marginlab.losses.weighted_loss` does.
        grads: The factor of the gradients over several ranks, as in `ranks.all_reduce`.
        operands: Dtype of the factors of the large products; None: that of the centers.
        budget: Bytes held between the passes or in one tile; None: 128 MiB, on CUDA 512 MiB.
        compiled: Compile the pointwise part with torch.compile.
        negligible: Rows that leave less than this of their softmax to other classes take no part
            in the backward pass (`marginlab.kernels.negligible`); 0: every row does.
        dense_grad: Make the gradient of the centers dense, also of sampled classes.
    """

    margin: Margin
    scale: float = 64.0
    label_smoothing: float = 0.0
    interclass_filter: float | None = None
    interclass_masks: bool = False
    dispersion: float = 0.0
    ignore_index: int | None = -100
    reduction: Reduction = "mean"
    grads: Gradients = "mean"
    operands: torch.dtype | None = None
    budget: int | None = None
    compiled: bool = False
    negligible: float = 0.0
    dense_grad: bool = False

    def valid(self, labels: Tensor) -> Tensor | None:
        """Return a mask (B,) of the labels that are not ignored, or None where all count."""
        return None if self.ignore_index is None else labels != self.ignore_index

    def operands_for(self, centers: torch.dtype, wide: torch.dtype) -> torch.dtype:
        """Return the dtype of the factors, for centers and sums of these dtypes.

        Sums in float64 take factors in float64, whatever the settings say.
        """
        if wide == torch.float64:
            return wide
        return centers if self.operands is None else self.operands

    def budget_on(self, device: torch.device) -> int:
        """Return the bytes that may be held on a device."""
        if self.budget is not None:
            return self.budget
        return BUDGET_CUDA if device.type == "cuda" else BUDGET_CPU


def wide_dtype(embeddings: Tensor, centers: Tensor) -> torch.dtype:
    """Return the dtype of the sums: float32, or float64 where an operand is."""
    return torch.promote_types(torch.promote_types(embeddings.dtype, centers.dtype), torch.float32)
