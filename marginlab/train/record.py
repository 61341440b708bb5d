"""The record of a run: its rows, measured or noted, for its table and for TensorBoard."""

from pathlib import Path
from typing import Any

import torch

from marginlab import ranks
from marginlab.augment import Augmentation
from marginlab.data import ImageSet
from marginlab.encoding import evaluating
from marginlab.losses import PartialFC
from marginlab.methods import Method
from marginlab.train.class_angles import class_angles
from marginlab.train.features import Labelled
from marginlab.train.monitor import Monitor
from marginlab.train.rows import Row, write
from marginlab.train.usage import subcenter_usage


class Record:
    """The rows of a run so far.

    Args:
        monitor: What is measured.
        method: The method that is measured.
        augmentation: The augmentation of the training.
        train: The training images.
        test: The test images.
        unseen: The images whose pairs are verified, or None.
    """

    def __init__(
        self,
        monitor: Monitor,
        method: Method,
        augmentation: Augmentation,
        train: ImageSet,
        test: ImageSet,
        unseen: ImageSet | None,
    ):
        self.monitor, self.method, self.augmentation = monitor, method, augmentation
        self.train, self.test, self.unseen = train, test, unseen
        self.rows = list[Row]()

    def measure(self, epoch: int, board: Any, *, last: bool) -> None:
        """Measure on rank 0; the other ranks wait for its rows.

        The use of sub-centers, which may be spread over the ranks, is counted by all of them.
        """
        head = getattr(self.method, "classifier", None)
        counts = isinstance(head, PartialFC) and head.subcenters > 1
        bank: list[Labelled] = []
        more = {"bank": bank} if counts else {}
        n = self.monitor.angles
        weights = self.method.class_weights() if n else None

        def rows() -> list[Row]:
            measured = self.monitor(
                self.method, self.augmentation, self.train, self.test, epoch, last=last, **more
            )
            if self.unseen is not None:
                measured += self.monitor.verify(self.method, self.unseen, epoch)
            if n:
                seed = self.monitor.seed
                train = self.train.subset(n, seed)
                unseen = None if self.unseen is None else self.unseen.subset(n, seed)
                with evaluating(self.method):
                    measured += class_angles(self.method, weights, train, unseen, epoch)
            return measured

        found = ranks.broadcast_from_first(rows)
        if isinstance(head, PartialFC) and counts:
            found = [*found, *self._usage(head, bank, epoch)]
        for row in found:
            self.note(row, board)

    def _usage(self, head: PartialFC, bank: list[Labelled], epoch: int) -> list[Row]:
        """Count the nearest sub-centers of the bank's images, which rank 0 has."""
        if bank:
            embeddings, labels = bank[0]
        else:
            embeddings = head.centers.new_empty(0, head.dim)
            labels = torch.empty(0, dtype=torch.int64, device=head.centers.device)
        return subcenter_usage(head, embeddings, labels, epoch)

    def note(self, row: Row, board: Any) -> None:
        """Add a row, and show it on TensorBoard where there is a writer of events."""
        self.rows.append(row)
        if board is not None:
            board.add_scalar(row.tag, row.value, row.epoch)

    def write(self, folder: Path) -> None:
        """Write all rows as the table beside the checkpoints."""
        ranks.broadcast_from_first(lambda: write(self.rows, folder / "monitor.csv"))
