"""The sample S of a step's classes, with the amounts that raise their logits.

    lift_j = log((C - |P|) / (|S| - |P|)) for j in S - P,    lift_j = 0 for j in P

P are the distinct labels of the batch. With `log_q` the logits of the negatives in S are raised by
their lift. Their sum is then an unbiased estimate of the sum over all classes outside P. Without
it, as published, the sum is smaller by about that factor, which acts like a smaller margin.

`marginlab.losses.sampling` draws S.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.losses.sampling import columns, sample


class Draw(NamedTuple):
    """The sampled classes of a step, ascending, and the amounts that raise their logits."""

    classes: Int[Tensor, " n"]
    lift: Float[Tensor, " n"] | None


def masked_labels(labels: Tensor, valid: Tensor | None, num_classes: int) -> Tensor:
    """Return the labels, with -1 for ignored rows.

    With validate="deferred" a wrong label gets this far, so labels are clamped.
    """
    labels = labels.clamp(-1, num_classes - 1)
    return labels if valid is None else labels.masked_fill(~valid, -1)


def draw_classes(
    labels: Tensor, num_classes: int, size: int, *, seed: int, step: int, log_q: bool
) -> Draw:
    """Draw the sample of a step, alike on every rank, given the `masked_labels` of all its rows."""
    classes, positives = sample(labels, num_classes, size, seed=seed, step=step)
    drawn, others = len(classes) - positives, num_classes - positives
    if not log_q or drawn <= 0:
        return Draw(classes, None)
    lift = torch.full(
        (len(classes),), math.log(others / drawn), dtype=torch.float64, device=classes.device
    )
    lift[columns(classes, labels[labels >= 0])] = 0.0
    return Draw(classes, lift)
