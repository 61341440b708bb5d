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
        margin, whole: Margin and total weight, as a window fixes them.
    """

    step: int | None
    labels: Tensor
    valid: Tensor | None
    margin: Margin | None = None
    whole: Tensor | None = None


class Window:
    """The announced rows of all ranks, in rank order, and the count received from each rank."""

    def __init__(
        self,
        labels: Tensor,
        valid: Tensor | None,
        held: list[int],
        whole: Tensor,
        step: int | None,
        margin: Margin,
    ):
        self.labels, self.valid, self.held, self.whole, self.step = labels, valid, held, whole, step
        self.used = [0] * len(held)
        counted = torch.ones_like(labels) if valid is None else valid.long()
        # a row's number among those that count; it addresses the row's draw
        self._numbers = counted.cumsum(0) - 1
        self.margin = margin
        self._seen: list[_Seen] = []

    def part(self, labels: Tensor, valid: Tensor | None, held: list[int]) -> Part:
        """Return the part of the step that the next rows of every rank are; raises as `take`."""
        margin = self.take(labels, valid, held)
        return Part(self.step, self.labels, self.valid, margin, self.whole)

    def take(self, labels: Tensor, valid: Tensor | None, held: list[int]) -> Margin:
        """Return the margin for the next rows of every rank.

        Raises:
            ValueError: The rows are not the announced ones.
        """
        starts = [sum(self.held[:rank]) + used for rank, used in enumerate(self.used)]
        if any(
            used + more > all_ for used, more, all_ in zip(self.used, held, self.held, strict=True)
        ):
            raise ValueError(
                f"The window was opened for {self.held} rows of each rank, not for {held} more "
                f"after {self.used}. Announce all."
            )
        rows = torch.cat(
            [
                torch.arange(start, start + more, device=labels.device)
                for start, more in zip(starts, held, strict=True)
            ]
        )
        if not torch.equal(self.labels[rows], labels):
            raise ValueError(
                "The labels of this part are not the next ones of the window. Give the parts in "
                "the order of its labels."
            )
        self.used = [used + more for used, more in zip(self.used, held, strict=True)]
        if not self.margin.batchwise:
            return self.margin
        return _InParts(self.margin, self._numbers[rows].clamp_min(0), self._seen)

    def close(self) -> None:
        """Update the margin's state by all rows; raise ValueError if some have not come."""
        if self.used != self.held:
            raise ValueError(
                f"The window was opened for {self.held} rows of each rank and closed after "
                f"{self.used}. Give all parts before it ends."
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
