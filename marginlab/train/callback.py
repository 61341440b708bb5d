"""The monitor in a training loop of your own, with no recipe and no `fit`.

A callback measures the network as it is at the end of an epoch.
"""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from marginlab.augment import Augmentation
from marginlab.data import ImageSet
from marginlab.methods import Method
from marginlab.train.monitor import Monitor
from marginlab.train.rows import Row, write


class Callback:
    """Measure a network at the end of each epoch for which the monitor's schedule asks.

    Call it with the number of the epoch that has ended. Where a process group exists, call it on
    one rank only.

    Args:
        model: A module from images (B, 3, H, W) in [0, 1] to features (B, D), or a method of
            `marginlab.methods`, whose projector is measured too. It is put into evaluation mode
            while it is measured, and back.
        train: The training images, as `marginlab.data.load` gives them (or an `ImageSet` of your
            own).
        test: The test images, of the same classes.
        augmentation: The augmentation of the training. Its views are those of which alignment and
            concentration speak.
        epochs: Number of epochs of the training. Epoch 0 (before any training) and the last one are
            always measured.
        monitor: What to measure, and how often. By default every epoch.
        project: A module from features to what the loss sees, measured as `projector` beside the
            `backbone`.
        csv: A file that holds all rows so far, written anew after each measurement.

    Raises:
        ValueError: Training and test images are of different classes, or an epoch is beyond the
            last.
        FileNotFoundError: The folder of `csv` does not exist.

    Example:
        >>> from marginlab.data import load
        >>> train, test = (load("digits", s, size=16).subset(60) for s in ("train", "test"))
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8))
        >>> monitor = Monitor(every=1, images=20, views=2, measures=("Alignment()",))
        >>> callback = Callback(model, train, test, Augmentation("a"), epochs=2, monitor=monitor)
        >>> for epoch in range(3):
        ...     _ = callback(epoch)  # after your own loop over the batches
        >>> sorted({row.epoch for row in callback.rows})
        [0, 1, 2]
    """

    def __init__(
        self,
        model: nn.Module | Method,
        train: ImageSet,
        test: ImageSet,
        augmentation: Augmentation,
        *,
        epochs: int,
        monitor: Monitor | None = None,
        project: nn.Module | None = None,
        csv: Path | str | None = None,
    ):
        if train.classes != test.classes:
            raise ValueError(
                f"Training and test images have the same classes, not {train.classes} and "
                f"{test.classes}."
            )
        if epochs < 0:
            raise ValueError(f"A training has 0 epochs or more, not {epochs}.")
        if csv is not None and not Path(csv).absolute().parent.is_dir():
            raise FileNotFoundError(
                f"There is no folder {Path(csv).absolute().parent} to write {Path(csv).name} into. "
                "Make it first."
            )
        self.model = model if isinstance(model, Method) else _Bare(model, project)
        self.train, self.test, self.augmentation, self.epochs = train, test, augmentation, epochs
        self.monitor, self.csv = monitor or Monitor(every=1), None if csv is None else Path(csv)
        self.rows: list[Row] = []

    def __call__(self, epoch: int) -> list[Row]:
        """Measure after this epoch if the schedule says so, and return the new rows, or none."""
        if not 0 <= epoch <= self.epochs:
            raise ValueError(
                f"The training has epochs 0 (before it begins) to {self.epochs}, not {epoch}."
            )
        if not self.monitor.due(epoch, self.epochs):
            return []
        rows = self.monitor(
            self.model, self.augmentation, self.train, self.test, epoch, last=epoch == self.epochs
        )
        self.rows += rows
        if self.csv is not None:
            write(self.rows, self.csv)
        return rows


class _Bare(nn.Module):
    """A plain module with the attributes that the monitor needs of a method."""

    def __init__(self, model: nn.Module, project: nn.Module | None):
        super().__init__()
        self.model = model
        self.project = project

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        features: Tensor = self.model(images)
        if features.ndim != 2:
            raise ValueError(
                f"A model to be monitored gives features (B, D), not {tuple(features.shape)}. Pool "
                "and flatten them."
            )
        return features
