"""Arguments of one call of the margin softmax besides embeddings and centers."""

from dataclasses import dataclass
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from marginlab.kernels.tiles import Terms
from marginlab.margins import Margin


@dataclass(frozen=True)
class Over:
    """Rows or classes spread over the ranks of a group (None: the default one, or one rank).

    Attributes:
        group: Process group.
        classes: False: each rank has rows of its own and all centers. True: each rank has all rows,
            and the centers of some of the classes. `target` is then negative where a row's class is
            another rank's, and the gradient of the rows is this rank's part, to be added to the
            others'.
    """

    group: dist.ProcessGroup | None
    classes: bool = False


class Shares(NamedTuple):
    """Class weights where label smoothing gives every column its own.

    They are those of the rows' own classes (B,) and of the columns (n,).
    """

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """Settings of `margin_cross_entropy` besides embeddings and centers; see there."""

    target: Tensor
    margin: Margin
    terms: Terms
    over: Over
    classes: Tensor | None = None
    lift: Tensor | None = None
    exclude: Tensor | None = None
    valid: Tensor | None = None
    share: Tensor | None = None
    shares: Shares | None = None
    dense_grad: bool = False

    def reduced(self, loss: Tensor) -> Tensor:
        """Return the losses (B,), 0 where a row does not count, or their weighted sum."""
        loss = loss if self.valid is None else loss.masked_fill(~self.valid, 0.0)
        return loss if self.share is None else (loss * self.share).sum()
