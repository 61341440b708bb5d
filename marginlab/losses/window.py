"""The accumulation window of a sampled classifier.

It fixes some values for all parts of one batch before the first part is seen.

    sum over the parts of sum_i w_i loss_i / W,    W = sum of w_i over the rows of all parts

has the gradient of the one batch of all rows if all parts share W, the sample of classes, and the
statistics that the margin takes from the whole batch.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marginlab.margins import Margin, Targets
from marginlab.recomputation import recomputing

_Seen = tuple[Tensor, Tensor, Tensor]  # cosines, norms, which count


def check_divisible(margin: Margin, reduction: str, statistics: str | None) -> None:
    """Check that a batch under this margin may come in parts (ValueError)."""
    if reduction == "none":
        raise ValueError(
            "A window adds up one loss, so it needs reduction='mean' or 'sum', not 'none'."
        )
    if margin.undivided:
        raise ValueError(margin.undivided)
    if margin.averages and statistics != "previous":
        raise ValueError(
            f"{margin!r} moves its averages by a batch before it uses them, and the parts of a "
            "window come one by one. With statistics='previous' they use the averages of earlier "
            "steps."
        )


class Part(NamedTuple):
    """One pass's part of a step: the number and labels of its sample, and a window's settings.

    Attributes:
        step: Number of the step; None draws no sample.
        margin, total_weight: Margin and total weight, as a window fixes them.
    """

    step: int | None
    labels: Tensor
    valid: Tensor | None
    margin: Margin | None = None
    total_weight: Tensor | None = None


class Window:
    """The announced rows of all ranks, in rank order, and the count received from each rank."""

    def __init__(
        self,
        labels: Tensor,
        valid: Tensor | None,
        rows_per_rank: list[int],
        total_weight: Tensor,
        step: int | None,
        margin: Margin,
    ):
        self.labels, self.valid, self.rows_per_rank = labels, valid, rows_per_rank
        self.total_weight, self.step = total_weight, step
        self.used = [0] * len(rows_per_rank)
        counted = torch.ones_like(labels) if valid is None else valid.long()
        # a row's number among those that count; it addresses the row's draw
        self._numbers = counted.cumsum(0) - 1
        self.margin = margin
        self._seen: list[_Seen] = []

    def part(self, labels: Tensor, rows: list[int]) -> Part:
        """Return the part of the step that the next rows of every rank are.

        Args:
            labels: The rows' labels.
            rows: The number of rows of each rank.

        Raises:
            ValueError: The rows are not the announced ones.
        """
        margin = self._margin_of(labels, rows)
        return Part(self.step, self.labels, self.valid, margin, self.total_weight)

    def _margin_of(self, labels: Tensor, rows: list[int]) -> Margin:
        """Return the margin for the next rows of every rank, once they are the announced ones."""
        starts = [sum(self.rows_per_rank[:rank]) + used for rank, used in enumerate(self.used)]
        if any(
            used + more > announced
            for used, more, announced in zip(self.used, rows, self.rows_per_rank, strict=True)
        ):
            raise ValueError(
                f"The window was opened for {self.rows_per_rank} rows of each rank, not for {rows} "
                f"more after {self.used}. Announce all."
            )
        numbers = torch.cat(
            [
                torch.arange(start, start + more, device=labels.device)
                for start, more in zip(starts, rows, strict=True)
            ]
        )
        if not torch.equal(self.labels[numbers], labels):
            raise ValueError(
                "The labels of this part are not the next ones of the window. Give the parts in "
                "the order of its labels."
            )
        self.used = [used + more for used, more in zip(self.used, rows, strict=True)]
        if not self.margin.batchwise:
            return self.margin
        return _InParts(self.margin, self._numbers[numbers].clamp_min(0), self._seen)

    def close(self) -> None:
        """Update the margin's state by all rows; raise ValueError if some have not come."""
        if self.used != self.rows_per_rank:
            raise ValueError(
                f"The window was opened for {self.rows_per_rank} rows of each rank and closed "
                f"after {self.used}. Give all parts before it ends."
            )
        if self.margin.training and self._seen:  # in evaluation mode there is nothing to move
            self.margin.closed(*(torch.cat(each) for each in zip(*self._seen, strict=True)))


class _InParts(Margin):
    """A margin for a part of a batch, with the state from before the batch."""

    batchwise = True

    def __init__(self, margin: Margin, rows: Tensor, seen: list[_Seen]):
        super().__init__(gradient=margin.gradient)
        self.before, self.rows, self.hardens = margin.frozen(), rows, margin.hardens
        self._seen = seen

    def found(
        self,
        cosine: Float[Tensor, " B"],
        norm: Float[Tensor, " B"],
        valid: Bool[Tensor, " B"] | None = None,
    ) -> tuple[Targets, Margin]:
        """Return the targets of the part; a pass that is run again is not recorded twice."""
        if not recomputing():
            counted = torch.ones_like(cosine, dtype=torch.bool) if valid is None else valid
            self._seen.append((cosine.detach(), norm.detach(), counted))
        return self.before.part(cosine, norm, self.rows), self

    def compute(
        self, cosine: Float[Tensor, " B"], norm: Float[Tensor, " B"], valid: Bool[Tensor, " B"]
    ) -> Targets:
        """Apply the rule to the part, where derivatives of the slopes are needed."""
        return self.before.compute_part(cosine, norm, self.rows)
