"""A batch of the margin softmax besides its embeddings, and the ranks that it is spread over."""

from dataclasses import dataclass
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Over:
    """Rows or classes spread over the ranks of a group (None: the default one, or one rank).

    Attributes:
        group: Process group.
        classes: False: each rank has rows of its own and all centers. True: each rank has all rows,
            and the centers of some of the classes. The target column is then negative where a row's
            class is another rank's, and the gradient of the rows is this rank's part, to be added
            to the others'.
        first: Number of the first class whose centers this rank has.
    """

    group: dist.ProcessGroup | None = None
    classes: bool = False
    first: int = 0


class Shares(NamedTuple):
    """Class weights where label smoothing gives every column its own.

    They are those of the rows' own classes (B,) and of the columns (n,).
    """

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True, eq=False)
class MarginBatch:
    """Rows of a batch and columns of its softmax.

    The embeddings (B, D) and the centers (C, K, D), which autograd differentiates, stand beside it.

    Attributes:
        target: (B,), each row's column: its class, or the place of its class in `classes`; any
            number where `valid` is False.
        valid: (B,), rows that count; other rows have a loss of 0 and enter no statistics of a
            margin. None: all.
        exclude: (B, E), columns that a row leaves out; a number outside the columns leaves out
            nothing.
        classes: (n,), the sampled classes, ascending; the gradient of the centers is then
            row-sparse, or dense with the setting `dense_grad`. None: all classes.
        lift: (n,), added to the logits of the columns, but not to the target's.
        share: (B,), weight of each row in the sum that is asked for; 1/B for the mean. None: the
            losses themselves are asked for.
        shares: Weights of the classes, where there is smoothing. They make the loss that of torch's
            cross_entropy; without smoothing a row's weight is a factor that `share` can hold.
    """

    target: Tensor
    valid: Tensor | None = None
    exclude: Tensor | None = None
    classes: Tensor | None = None
    lift: Tensor | None = None
    share: Tensor | None = None
    shares: Shares | None = None

    def reduced(self, loss: Tensor) -> Tensor:
        """Return the losses (B,), 0 where a row does not count, or their weighted sum."""
        loss = loss if self.valid is None else loss.masked_fill(~self.valid, 0.0)
        return loss if self.share is None else (loss * self.share).sum()
