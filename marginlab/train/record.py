"""The record of a run: its rows, measured or noted, for its table and for TensorBoard."""

from pathlib import Path
from typing import Any

from marginlab import ranks
from marginlab.augment import Augmentation
from marginlab.data import ImageSet
from marginlab.encoding import evaluating
from marginlab.methods import Method
from marginlab.train.class_angles import class_angles
from marginlab.train.monitor import Monitor
from marginlab.train.rows import Row, write


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
        """Measure on rank 0; the other ranks wait for its rows."""
        n = self.monitor.angles
        weights = self.method.class_weights() if n else None

        def rows() -> list[Row]:
            measured = self.monitor(
                self.method, self.augmentation, self.train, self.test, epoch, last=last
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

        for row in ranks.broadcast_from_first(rows):
            self.note(row, board)

    def note(self, row: Row, board: Any) -> None:
        """Add a row, and show it on TensorBoard where there is a writer of events."""
        self.rows.append(row)
        if board is not None:
            board.add_scalar(row.tag, row.value, row.epoch)

    def write(self, folder: Path) -> None:
        """Write all rows as the table beside the checkpoints."""
        ranks.broadcast_from_first(lambda: write(self.rows, folder / "monitor.csv"))
