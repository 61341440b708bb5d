"""Embeddings of earlier steps, kept as further negatives or as the other side of a loss.

    one step:   loss(z, bank), with the rows that the bank holds;
                then this step's rows of all ranks replace the bank's oldest.

Embeddings drift slowly once training has warmed up. Those of some steps ago therefore still serve
as negatives and positives, in numbers that no batch has. They get no gradient. The bank keeps rows,
never an encoder: a momentum encoder (MoCo) or the trained encoder itself may have made them.

Sources: Wang et al. 2020 (cross-batch memory for embedding learning), algorithm 1; Wu et al. 2018
(memory bank); He et al. 2020 (MoCo). With `negatives="extra_only"` the bank is MoCo's queue.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from marginlab import ranks
from marginlab.losses.faults import check_labels, check_tensor
from marginlab.losses.pair import widened
from marginlab.losses.sup_con import References
from marginlab.recomputation import Calls, recomputing, transformed
from marginlab.settings import describe

OUTSIDE = "outside of torch.utils.checkpoint, torch.func and hooks"


class EmbeddingBank(nn.Module):
    """The latest `size` embeddings (and labels) of all ranks; each rank reads its own part.

    Losses take `rows` and `references`, each rank its own part. A loss brings the parts together,
    so N ranks have the negatives of one. A tensor that was read never changes: a push makes a new
    buffer, which no graph and no recomputation sees.

    The state dict holds the buffers `embeddings` (size, dim) and `labels` (size,), the place of the
    next row, and the number of rows filled. It is the same on any number of ranks. Embeddings are
    float32, or float64 after `.double()`. Half precision would round directions, so the bank
    ignores a cast to it.

    Args:
        size: Number of rows to keep; a push of more keeps its newest.
        dim: D, the width of the embeddings.
        labels: Whether each row has a label, which `references` requires.
        group: Process group; None means the default group, or one rank.

    Raises:
        ValueError: A size or width below 1.

    Example:
        >>> from marginlab.losses import InfoNCE
        >>> bank, loss = EmbeddingBank(3, 2), InfoNCE(0.5, negatives="extra_only")
        >>> for _ in range(2):
        ...     z = torch.eye(2)
        ...     value = loss(z, z, bank.rows())
        ...     bank.push(z)
        >>> value, bank.rows()  # the first step met an empty bank: a loss of 0
        (tensor(0.7586), tensor([[0., 1.],
                [0., 1.],
                [1., 0.]]))
    """

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        labels: bool = False,
        group: dist.ProcessGroup | None = None,
    ):
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(
                f"A bank holds at least 1 row of at least 1 feature, not {size} of {dim}."
            )
        self.size, self.dim, self.group = size, dim, group
        self.embeddings: Tensor
        self.labels: Tensor | None
        self.place: Tensor
        self.register_buffer("embeddings", torch.zeros(size, dim, dtype=torch.float32))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.long) if labels else None)
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self.filled = 0  # the host knows it, so reading waits for no device
        self._calls: Calls[None] = Calls()

    def rows(self) -> Float[Tensor, "M D"]:
        """This rank's part of the filled rows, in no order of time.

        The parts of all ranks together are the bank.

        Raises:
            RuntimeError: In a forward pass that is run again: the bank may have moved on since.
        """
        self._refuse("read")
        return self.embeddings[ranks.rank_slice(self.filled, self.group)]

    def references(self) -> References:
        """This rank's part with its labels, as references for `sup_con`.

        Raises:
            ValueError: The bank keeps no labels.
            RuntimeError: As `rows`.
        """
        rows = self.rows()
        if self.labels is None:
            raise ValueError(
                f"{self!r} keeps no labels. Make it with labels=True and push (embeddings, labels)."
            )
        return References(rows, self.labels[ranks.rank_slice(self.filled, self.group)])

    @torch.no_grad()
    def push(
        self, embeddings: Float[Tensor, "B D"], labels: Int[Tensor, " B"] | None = None
    ) -> None:
        """Replace the oldest rows by this step's rows of all ranks, in rank order.

        Push once a step, after the loss. A forward pass that is run again pushes nothing. A row
        with NaN or inf would spoil every later loss, so it becomes zero, which has no direction.

        Args:
            embeddings: This rank's rows, also none (0, D); detached here.
            labels: Their classes, whole numbers, if the bank keeps labels.

        Raises:
            ValueError: Another width, or labels where there are none or the reverse.
            TypeError: Embeddings that are not floating point, or labels that are not integers.
            RuntimeError: Inside a transform of torch.func, or a backward pass that reruns nothing.
        """
        if transformed():
            self._refuse("pushed to")
        if recomputing():
            self._calls.recall((embeddings,))
            return
        (rows, named), rows_per_rank = ranks.validate_together(
            lambda: self._checked(embeddings, labels),
            embeddings,
            self.group,
            what="EmbeddingBank",
            size=self.size,
            dim=self.dim,
        )
        self._calls.note((embeddings,), None)
        rows = ranks.all_gather(rows, self.group, rows=rows_per_rank)[-self.size :]
        finite = rows.isfinite().all(1, keepdim=True)
        at = (self.place + torch.arange(len(rows), device=rows.device)) % self.size
        # Out of place: what was read of the bank before may be needed by a backward pass
        self.embeddings = self.embeddings.index_copy(0, at, torch.where(finite, rows, 0.0))
        if self.labels is not None and named is not None:
            named = ranks.all_gather(named, self.group, rows=rows_per_rank)[-self.size :]
            self.labels = self.labels.index_copy(0, at, named)
        self.place = (self.place + len(rows)) % self.size
        self.filled = min(self.filled + len(rows), self.size)

    def _checked(self, embeddings: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return this rank's rows as the bank keeps them; raise for invalid rows or labels."""
        check_tensor("Embeddings", embeddings, f"(B, {self.dim}) of floating point")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ValueError(
                f"Embeddings are a matrix (B, {self.dim}), as wide as the bank, not "
                f"{tuple(embeddings.shape)}."
            )
        if (labels is None) != (self.labels is None):
            what = "labels=True" if labels is not None else "labels=False"
            raise ValueError(
                f"{self!r} is pushed {'no ' if labels is None else ''}labels. Make it with {what}, "
                f"or push {'(embeddings, labels)' if labels is None else 'embeddings alone'}."
            )
        if labels is not None:
            check_labels(labels, embeddings.device)
            if labels.shape != embeddings.shape[:1]:
                raise ValueError(
                    f"Labels are ({len(embeddings)},), one class for each embedding, not "
                    f"{tuple(labels.shape)}."
                )
        rows = widened(embeddings, self.embeddings.dtype).to(self.embeddings.device)
        return rows, None if labels is None else labels.to(self.embeddings.device, torch.long)

    def _refuse(self, what: str) -> None:
        if recomputing() or transformed():
            raise RuntimeError(
                f"The bank is {what} {OUTSIDE}: there the bank of the first pass may be gone. Read "
                "it before, and give the rows to the function as an argument."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EmbeddingBank":
        """Cast or move the bank; a cast to half precision is ignored."""
        before = self.embeddings
        super()._apply(fn, recurse)
        if torch.finfo(self.embeddings.dtype).bits < 32:
            self.embeddings = before.to(self.embeddings.device)
        return self

    def get_extra_state(self) -> Tensor:
        """Return the number of rows filled."""
        return torch.tensor(self.filled)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of rows filled."""
        self.filled = int(ranks.to_local(state))

    def __repr__(self) -> str:
        return describe(
            "EmbeddingBank", size=self.size, dim=self.dim, labels=self.labels is not None
        )
