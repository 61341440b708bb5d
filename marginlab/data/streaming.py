"""Images that are read when they are asked for, and batches of them made ready ahead of time by
other processes.

    source[rows]       rows (M,) -> images (M, 3, H, W): the one thing that is asked of an array that is held and of files that are decoded
    streamed[index]    = source[rows[index]], where N x 3 x H x W bytes are more than a budget

    memory <= (2 w + 1) batches, and in each of the w workers one more and one whole decoded file; w = 0: one batch

What is decoded depends on its row alone, so the batches are those of a held set, bit for bit,
whatever w is. A worker begins as a copy of a server process that has no threads: one copied from a
process with threads, which collectives and OpenMP begin, may hang (torch's notes on
DistributedDataParallel with NCCL and InfiniBand).
"""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

_BLOCK = 64  # images decoded at once where a set is read into memory
_MANY = 1024  # images from which it pays to start workers for it
_MOST = 8  # workers of a rank, unless more are asked for


@runtime_checkable
class Source(Protocol):
    """Images that are given for their rows; a tensor (N, 3, H, W) is one.

    Workers get a copy by pickle, which shares its tensors' memory.
    """

    @property
    def shape(self) -> torch.Size:
        """(N, 3, H, W)."""

    def __getitem__(self, rows: Int64[Tensor, " M"], /) -> UInt8[Tensor, "M 3 H W"]:
        """The images at these rows.

        A ValueError or an OSError says which one cannot be read, and what to do.
        """


@dataclass(frozen=True, eq=False)
class Streamed:
    """Rows of a source, used where a tensor of images is: by index, or by `split`; only what is
    asked for is read.

    `rows` (N,) of the source, `budget` bytes that may be held, `workers` processes that read ahead
    (0: this one reads, when it is asked).

    >>> images = Streamed(torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8), torch.arange(0, 12, 2), 1000, 0)
    >>> images.shape, images[torch.tensor([5, 0])][:, 0, 0, 0].tolist()
    (torch.Size([6, 3, 8, 8]), [10, 0])
    >>> [len(part) for part in images.split(4)], type(images.at(torch.arange(6))).__name__, type(images.at(torch.arange(5))).__name__
    ([4, 2], 'Streamed', 'Tensor')
    """

    source: Source
    rows: Int64[Tensor, " N"]
    budget: int
    workers: int

    @property
    def shape(self) -> torch.Size:
        """(N, 3, H, W)."""
        return torch.Size((len(self.rows), *self.source.shape[1:]))

    @property
    def device(self) -> torch.device:
        """Where images are when they have been read: in the machine's memory."""
        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(
        self, index: Int64[Tensor, " M"] | Bool[Tensor, " N"]
    ) -> UInt8[Tensor, "M 3 H W"]:
        return self.source[self.rows[index]]

    def split(self, n: int) -> Iterator[UInt8[Tensor, "M 3 H W"]]:
        """All images in their order, n at a time."""
        return (images for _, images in batches(self, torch.arange(len(self)).split(n)))

    def at(self, index: Int64[Tensor, " M"]) -> "UInt8[Tensor, 'M 3 H W'] | Streamed":
        """The images at an index: read now where they fit the budget, otherwise when they are asked
        for.
        """
        some = replace(self, rows=self.rows[index])
        return some.held() if some.shape.numel() <= self.budget else some

    def held(self) -> UInt8[Tensor, "N 3 H W"]:
        """All of them, read into memory."""
        images, filled = torch.empty(self.shape, dtype=torch.uint8), 0
        for part in replace(self, workers=self.workers if len(self) >= _MANY else 0).split(_BLOCK):
            images[filled : filled + len(part)] = part
            filled += len(part)
        return images


def batches(
    images: Tensor | Streamed, parts: Iterable[Int64[Tensor, " _"]]
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """(index, images at it) for each index, in their order; of a streamed set workers read up to
    two parts each ahead of the caller.

    Close it (`contextlib.closing`) to end the workers before the last part. They do not outlive
    this process, however it ends; a signal to its group, as Ctrl-C and torchrun send it, is the
    caller's to answer and not theirs.

    Raises:
        ValueError, OSError: what a source says of an image, where its batch is due.
        ChildProcessError: a worker ended, as one that took too much memory does.
    """
    if isinstance(images, Tensor) or not images.workers:
        for part in parts:
            yield part, images[part.to(images.device)]
        return
    ours, theirs = itertools.tee(parts)
    loader = DataLoader(
        _Asked(images.source),
        batch_size=None,  # what the sampler gives is an index, what the set gives for it is a batch
        sampler=(images.rows[part].tolist() for part in theirs),
        num_workers=images.workers,
        multiprocessing_context=_context(images.source),
        worker_init_fn=_apart,
        # else the workers' seeds are drawn from the global one, and what the caller draws changes
        generator=torch.Generator(),
    )
    resource_tracker.ensure_running()  # which would take the mask off again
    # the server begins with this mask, and its copies begin with the server's
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        reading: Any = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        for part in ours:
            try:
                found = next(reading)
            except RuntimeError as error:
                raise ChildProcessError(
                    f"A process that reads images ended: {error}. If memory was short, "
                    f"take fewer workers or smaller batches; if a script of "
                    "yours started this, its work belongs under `if __name__ == "
                    "'__main__':`, since workers import it."
                ) from error
            if isinstance(found, Exception):
                raise found
            yield part, found
    finally:
        # when the last reference goes is too late: the traceback of an error keeps one
        reading._shutdown_workers()


def default_workers() -> int:
    """Workers of a rank: its share of the cores that this machine gives to it and its neighbours,
    at most 8.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1), _MOST)


class _Asked(Dataset[Any]):
    """A source as the loader's processes ask it; what it says of an image that cannot be read comes
    back as it is, without a worker's traceback.
    """

    def __init__(self, source: Source):
        self.source = source

    def __getitem__(self, rows: list[int]) -> Tensor | Exception:
        try:
            return self.source[torch.tensor(rows)]
        except (ValueError, OSError) as error:
            return error


def _context(source: Source) -> Any:
    """Processes copied from a server that has imported, once, what reading takes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [type(source).__module__, "torchvision.transforms.v2", "PIL.Image"]
    )
    return context


def _apart(worker: int) -> None:
    """A process group of its own, since on Ctrl-C or SIGTERM to the run's group the run finishes
    its step first and then ends its workers.

    Torch's workers look whether the process they were copied from is gone; but that is the server,
    which waits for them. So they watch the run.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # forgets one that came to the group before
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_until_the_run_ends, daemon=True).start()


def _until_the_run_ends() -> None:
    run = multiprocessing.parent_process()
    assert run is not None, "a worker is never the first process"
    run.join()
    os._exit(1)
