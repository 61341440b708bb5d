"""Progress of a run: a bar on the terminal, or a line of text for another display.

Both show images per second and the time left.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from marginlab import ranks


class Progress(AbstractContextManager["Progress"]):
    """Counter of the steps of this process.

    `rate()` is its images per second without the first step, which warms caches and compiles.
    """

    def __init__(
        self, steps: int, done: int, per_epoch: int, batch: int, say: Callable[[str], None] | None
    ):
        self.steps, self.start, self.step, self.per_epoch, self.batch, self.say = (
            steps,
            done,
            done,
            per_epoch,
            batch,
            say,
        )
        self.told = self.first = self.now = 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, disable=say is not None or ranks.rank() > 0)
        self.task = self.bar.add_task("training", total=steps, completed=done, rate="")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self) -> None:
        """Count one step, and show it at most twice a second."""
        self.step += 1
        self.now = time.perf_counter()
        self.first = self.first or self.now
        if self.now - self.told < 0.5 and self.step < self.steps:
            return
        self.told = self.now
        rate = f"{self.rate():,.0f} images/s"
        self.bar.update(self.task, completed=self.step, rate=rate)
        if self.say is not None and ranks.rank() == 0:
            left = (self.steps - self.step) * self.batch / self.rate() if self.rate() else 0.0
            epoch = min(self.step // self.per_epoch + 1, self.steps // self.per_epoch)
            self.say(f"epoch {epoch}/{self.steps // self.per_epoch}, {rate}, {left:.0f} s left")

    def rate(self) -> float:
        """Return images per second since this process's first step; 0 before the second step."""
        timed = self.step - self.start - 1
        return timed * self.batch / (self.now - self.first) if timed > 0 else 0.0
