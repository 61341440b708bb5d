"""`fit`: one plain loop, for one process or a group of them.

    step t of epoch e:   rows  = the t-th batch of the e-th permutation
                         views = augmentation.views(images[rows], index=rows,
                                                    n_views=V, first_view=V e)
                         loss  = method(views, labels)["loss"]
                         backward
                         step of every optimizer at lr * schedule(t)

Where the images exceed a budget of memory, workers read the rows ahead.

Everything random is drawn from (seed, epoch, image, view), so the position in the run is one
number. A checkpoint with the weights, the optimizer state and that number is complete: on one kind
of CPU, with one number of threads and of ranks, a run that was killed and started again ends bit
for bit like one that was not.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from marginlab import machine, ranks
from marginlab.data import ImageSet
from marginlab.data.pixels import BUDGET
from marginlab.losses import outside_ddp
from marginlab.methods import Method
from marginlab.rng import Key
from marginlab.train import keeping, watch
from marginlab.train.angles import Angles
from marginlab.train.batches import Batches
from marginlab.train.board import board_of
from marginlab.train.claim import claimed, record_machines, still_there
from marginlab.train.clipping import clip
from marginlab.train.monitor import Monitor
from marginlab.train.preparation import Prepared, dtype_of, own_device, prepared
from marginlab.train.progress import Progress
from marginlab.train.recipe import AT_HAND, Recipe
from marginlab.train.record import Record
from marginlab.train.rows import Row
from marginlab.train.sums import Sums

# steps between checkpoints inside a long epoch; one is written at the end of every epoch anyway
SAVE_EVERY = 1000


class Fitted(NamedTuple):
    """The result of `fit`: the trained method, its rows, its folder and its speed.

    Attributes:
        method: The trained method, in evaluation mode.
        rows: The measured rows.
        folder: Where everything is kept.
        images_per_second: How fast this call trained.
    """

    method: Method
    rows: list[Row]
    folder: Path
    images_per_second: float


def fit(
    recipe: Recipe,
    folder: Path | str,
    monitor: Monitor | None = None,
    *,
    data: tuple[ImageSet, ImageSet] | None = None,
    root: Path | str | None = None,
    device: torch.device | str | None = None,
    say: Callable[[str], None] | None = None,
    budget: int = BUDGET,
    workers: int | None = None,
    precision_in: Path | None = None,
) -> Fitted:
    """Train a recipe in a folder. Resume if the folder holds part of this run.

    A finished run is read and not trained again.

    Args:
        recipe: What to train.
        folder: Where checkpoints, `monitor.csv` and TensorBoard's events are kept. Ranks share it.
        monitor: What to measure during training. None means the default `Monitor()`.
        data: The training and the test images, where they are at hand, in place of `recipe.data`,
            which the run folder then records as "at hand". Give them again to resume.
        root: The folder of the data sets. By default MARGINLAB_DATA.
        device: By default this rank's GPU, or the CPU.
        say: Is called with the progress as a line of text. None shows a progress bar on a terminal.
        budget: Bytes of memory that the images of a split may take on each rank. A larger folder is
            streamed: workers decode the batches of their rank ahead of its steps. Neither budget
            nor workers change a number, and a run may resume with other values.
        workers: Processes of each rank that decode. By default its share of the cores, at most 8. 0
            decodes in the loop itself. The memory they take is that of 2 workers + 1 batches. A
            script that streams calls `fit` under `if __name__ == "__main__":`: workers import it.
        precision_in: The folder whose `precision.json` says in which precision a recipe with
            `precision = "auto"` trains. By default the run folder. Runs that are compared share
            one.

    Returns:
        The trained method, its measured rows, its folder and its speed.

    Raises:
        SettingsError: The folder holds a run of another recipe or monitor (the first difference is
            named) or on other images, another process trains in it, or it is not the same for all
            ranks. Or the batch exceeds the images or splits unevenly. Or the method cannot be
            trained on so many ranks or by this optimizer.
        FloatingPointError: A loss or gradient is not finite on some rank. The message names step,
            rank, layer and images. The last checkpoint stays.
        Stopped: SIGTERM came. The step that was under way is kept in a checkpoint.
        ValueError: An image of a streamed folder cannot be read or a worker ended. If this happens
            on one rank, every rank raises. The last checkpoint stays.
        OSError: As for ValueError.

    `fit` also raises whatever `data.load` refuses. FloatingPointError, Stopped and the errors of a
    streamed folder come during the work; all others come before it starts.

    On several ranks, each rank normalises its batch by its own statistics (layers such as GroupNorm
    use none), and the first rank takes kNN and the other measures. A loss is that of the batch of
    all ranks. So apart from such layers and from rounding, a run does not depend on how many ranks
    train it.

    Example:
        >>> import tempfile
        >>> backbone = "Backbone('resnet18', stem='strided', width=0.25)"
        >>> recipe = Recipe(images=64, backbone=backbone, epochs=1, batch=32)
        >>> monitor = Monitor(images=20, bank=40)
        >>> run = fit(recipe, tempfile.mkdtemp(), monitor, say=lambda line: None)
        >>> run.method.encode(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 128])
    """
    folder, monitor = Path(folder), monitor or Monitor()
    device = torch.device(device) if device is not None else own_device()
    if data is not None:
        recipe = replace(recipe, data=AT_HAND)
    reading = {"root": root, "budget": budget, "workers": workers, "data": data}
    # refuses what it cannot do before the folder is claimed
    ready = prepared(recipe, monitor, folder, device, reading)
    with contextlib.ExitStack() as stack:
        ranks.broadcast_from_first(
            lambda: stack.enter_context(claimed(recipe, monitor, ready.digests(), folder))
        )
        dtype = dtype_of(recipe, ready, precision_in or folder, say)
        loop = _Loop(recipe, folder, monitor, ready, dtype, say)
        stack.enter_context(
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        )
        try:
            return loop.run()
        except OSError:
            still_there(folder)  # raises the reason if the folder was removed
            raise


class _Loop:
    """State of one run: what a checkpoint holds, and what is made anew from the recipe."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        monitor: Monitor,
        ready: Prepared,
        dtype: torch.dtype | None,
        say: Callable[[str], None] | None,
    ):
        self.recipe, self.folder, self.monitor, self.say = recipe, folder, monitor, say
        self.method, self.optimizers, self.device = ready.method, ready.optimizers, ready.device
        self.train, test = ready.train.to(self.device), ready.test.to(self.device)
        self.dtype = dtype  # of autocast; None for none
        augmentation = recipe.make_augmentation()
        self.schedule = recipe.make_schedule()
        self.rates = [
            [group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers
        ]
        self.batches = Batches(recipe, self.train, augmentation, self.method.n_views, self.device)
        self.step, self.steps = 0, self.batches.steps
        self.per_epoch = self.batches.per_epoch
        self.sums = Sums(self.device)
        self.record = Record(monitor, self.method, augmentation, self.train, test, ready.unseen)
        self.signal, self.stopping = watch.Signal(), False
        self.keeper = keeping.Keeper(
            recipe, folder, self.method, self.optimizers, self.train.classes, self.device
        )
        self.angles = Angles(recipe.epochs, self.schedule, self.per_epoch)

    def run(self) -> Fitted:
        progress = self.keeper.resume()
        if progress is not None:
            self.step = progress["step"]
            self.record.rows = progress["rows"]
            self.sums.resume(progress)
        elif self.recipe.start:
            # the other run may go on before this one's first checkpoint, so its present weights
            # are saved as this run's
            self.save()
        if self.step < self.steps:
            devices = ranks.all_gather_object(machine.device())
            ranks.broadcast_from_first(lambda: record_machines(self.folder, self.step, devices))
        forward: Any = self.method
        if ranks.size() > 1:
            outside_ddp(self.method)
            forward = ranks.data_parallel(self.method, self.device)
        if self.recipe.compile:
            forward = torch.compile(forward)
        with contextlib.ExitStack() as stack:
            # events of this epoch and later ones belong to steps that no checkpoint holds
            first = self.step // self.per_epoch + 1 if self.step else 0
            board = (
                stack.enter_context(board_of(self.folder, first))
                if self.step < self.steps
                else None
            )
            progress_bar = stack.enter_context(
                Progress(self.steps, self.step, self.per_epoch, self.recipe.batch, self.say)
            )
            if self.step == 0 and self.monitor.due(0, self.recipe.epochs):
                self.record.measure(0, board, last=self.recipe.epochs == 0)
            parts = stack.enter_context(self.batches.opened(self.step))
            stack.enter_context(self.signal.watched())
            while self.step < self.steps:
                epoch = self.step // self.per_epoch
                if self.step % self.per_epoch == 0:
                    self.method.begin_epoch(epoch, self.train)
                self.sums.add(self.one_step(forward, parts, epoch))
                self.step += 1
                self.keeper.proven()
                progress_bar.advance()
                ended = self.step % self.per_epoch == 0
                if ended or self.step % SAVE_EVERY == 0:
                    self.sums.gather()
                    self.end(epoch + 1, board, ended=ended)
                if self.stopping:
                    raise watch.Stopped(
                        f"Stopped after step {self.step} of {self.steps}, which is kept in "
                        f"{self.save()}."
                    )
            rate = progress_bar.rate()
        self.keeper.proven()
        self.record.write(self.folder)
        # the signal may have come since the last step
        if bool(ranks.all_reduce(torch.tensor(float(self.signal.came), device=self.device))):
            raise watch.Stopped(f"Stopped after the last step, which is kept in {self.folder}.")
        self.method.eval()
        self.method.classes = tuple(self.train.classes)
        return Fitted(self.method, self.record.rows, self.folder, rate)

    def window(self) -> contextlib.AbstractContextManager[bool]:
        """Open the part of a step that its micro-batches share.

        The context says whether the losses of the micro-batches add up to that of the step.
        Otherwise the loss of the step is their mean.
        """
        if self.recipe.accumulate == 1:
            return contextlib.nullcontext(False)
        return self.method.window(
            self.train.labels[torch.cat(self.batches.rows_of(self.step)).to(self.device)]
        )

    def one_step(
        self, forward: Any, parts: Iterator[tuple[Tensor, Tensor]], epoch: int
    ) -> dict[str, Tensor]:
        """Step the optimizers on the next images; return the loss and the method's other values.

        They are means over the micro-batches, in float64.
        """
        recipe, dtype = self.recipe, self.dtype
        factor = self.schedule(self.step, self.steps)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        # for stochastic layers
        torch.manual_seed(Key(recipe.seed).named("layers").at(self.step, ranks.rank()).word())
        said, losses = dict[str, Tensor](), list[tuple[Tensor, Tensor]]()
        with self.window() as adds_up:
            for number in range(recipe.accumulate):
                own, images = self.batches.read(parts)
                labels = self.train.labels[own.to(self.device)]
                views = self.batches.views(images, own, epoch)
                wait = number < recipe.accumulate - 1 and isinstance(
                    forward, DistributedDataParallel
                )
                with forward.no_sync() if wait else contextlib.nullcontext():
                    with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                        out = forward(views, labels)
                        out = {
                            name: value if adds_up and name == "loss" else value / recipe.accumulate
                            for name, value in out.items()
                        }
                    out["loss"].backward()
                losses.append((own, out["loss"].detach()))
                for name, value in out.items():
                    said[name] = value.detach().double() + said.get(name, 0.0)
        self.agree(losses, epoch)
        if recipe.clip:
            clip(self.method, recipe.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.method.after_step()
        return said

    def agree(self, losses: list[tuple[Tensor, Tensor]], epoch: int) -> None:
        """Stop every rank if a number on any rank is not finite, or if any rank was told to end.

        The optimizers have not moved at that point.

        Args:
            losses: For each micro-batch, its rows and its part of the loss.
            epoch: The epoch of this step.
        """
        total = torch.stack([loss.float() for _, loss in losses]).sum()
        faulty, stop = watch.agreed(
            total, [p.grad for p in self.method.parameters() if p.grad is not None], self.signal
        )
        if any(faulty):
            number, cause = watch.cause(
                faulty, self.method, losses, lambda rows: self.batches.views_again(rows, epoch)
            )
            raise FloatingPointError(
                f"Step {self.step} of {self.steps}, rank {number}: {cause}. A smaller learning "
                f"rate may help, or recipe.clip; {keeping.remaining(self.folder)}"
            )
        self.stopping = stop

    def end(self, epoch: int, board: Any, *, ended: bool) -> None:
        """Close an epoch, or a long stretch of one: check the loss, record, measure, save.

        The network of rank 0 is measured and saved, and all ranks get its buffers.
        """
        ranks.broadcast_buffers(self.method)
        if ended:
            self.keeper.check(self.step)
            self.angles.see(epoch, self.sums.of_all.get("target_angle", 0.0) / self.per_epoch)
            for name, value in self.sums.of_all.items():
                n = self.per_epoch * self.recipe.batch
                self.record.note(Row(epoch, "", name, "", value / self.per_epoch, n=n), board)
            self.sums.of_all = {}
            if self.monitor.due(epoch, self.recipe.epochs):
                self.record.measure(epoch, board, last=epoch == self.recipe.epochs)
        self.save(checked=ended)

    def save(self, *, checked: bool = False) -> Path:
        """Save all that the run needs to resume from this step."""
        progress = {**self.sums.progress(), "rows": [row._asdict() for row in self.record.rows]}
        return self.keeper.save(self.step, progress, checked=checked)
