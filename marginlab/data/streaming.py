"""Images that are read when asked for, and batches that other processes prepare ahead of time.

    source[rows]       rows (M,) -> images (M, 3, H, W): the whole interface of a source, which may
                       be an array in memory or files that are decoded
    streamed[index]    = source[rows[index]], where N x 3 x H x W bytes are more than a budget

    memory <= (2 w + 1) batches, and in each of the w workers one more batch and one whole
              decoded file; w = 0: one batch

The decoded image depends on its row alone, so the batches are those of a held set, bit for bit,
whatever w is. A worker begins as a copy of a server process that has no threads. A copy of a
process with threads may hang, and collectives and OpenMP begin threads (torch's notes on
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
    """A source of images by row; a tensor (N, 3, H, W) is one.

    Workers get a copy by pickle, which shares its tensors' memory.
    """

    @property
    def shape(self) -> torch.Size:
        """(N, 3, H, W)."""

    def __getitem__(self, rows: Int64[Tensor, " M"], /) -> UInt8[Tensor, "M 3 H W"]:
        """Return the images at these rows.

        A ValueError or an OSError says which image cannot be read, and what to do.
        """


@dataclass(frozen=True, eq=False)
class Streamed:
    """Rows of a source, used in place of a tensor of images: by index, or by `split`.

    Only images that are asked for are read.

    Args:
        source: The source of the images.
        rows: (N,) rows of the source.
        budget: Bytes that may be held.
        workers: Processes that read ahead; with 0 this process reads, when it is asked.

    Example:
        >>> source = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
        >>> images = Streamed(source, torch.arange(0, 12, 2), 1000, 0)
        >>> images.shape, images[torch.tensor([5, 0])][:, 0, 0, 0].tolist()
        (torch.Size([6, 3, 8, 8]), [10, 0])
        >>> all_of_them, five = images.at(torch.arange(6)), images.at(torch.arange(5))
        >>> [len(part) for part in images.split(4)], type(all_of_them).__name__, type(five).__name__
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
        """The device of images that have been read: the machine's memory."""
        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(
        self, index: Int64[Tensor, " M"] | Bool[Tensor, " N"]
    ) -> UInt8[Tensor, "M 3 H W"]:
        return self.source[self.rows[index]]

    def split(self, n: int) -> Iterator[UInt8[Tensor, "M 3 H W"]]:
        """Yield all images in their order, n at a time."""
        return (images for _, images in batches(self, torch.arange(len(self)).split(n)))

    def at(self, index: Int64[Tensor, " M"]) -> "UInt8[Tensor, 'M 3 H W'] | Streamed":
        """Select images by index: read now if they fit the budget, otherwise when asked for."""
        some = replace(self, rows=self.rows[index])
        return some.held() if some.shape.numel() <= self.budget else some

    def held(self) -> UInt8[Tensor, "N 3 H W"]:
        """Read all images into memory."""
        images, filled = torch.empty(self.shape, dtype=torch.uint8), 0
        for part in replace(self, workers=self.workers if len(self) >= _MANY else 0).split(_BLOCK):
            images[filled : filled + len(part)] = part
            filled += len(part)
        return images


def batches(
    images: Tensor | Streamed, parts: Iterable[Int64[Tensor, " _"]]
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield (index, images at it) for each index, in their order.

    Workers of a streamed set read up to two parts each ahead of the caller. Close the generator
    (`contextlib.closing`) to end the workers before the last part. They do not outlive this
    process, however it ends. A signal to its process group, as Ctrl-C and torchrun send it, reaches
    the caller and not the workers.

    Args:
        images: A tensor of images, or a streamed set.
        parts: The indices, one (M,) tensor for each batch.

    Raises:
        ValueError, OSError: The error of a source that cannot read an image, raised where its batch
            is due.
        ChildProcessError: A worker ended, as one that took too much memory does.
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
                    f"A process that reads images ended: {error}. If memory was short, take fewer "
                    "workers or smaller batches; if a script of yours started this, its work "
                    "belongs under `if __name__ == '__main__':`, since workers import it."
                ) from error
            if isinstance(found, Exception):
                raise found
            yield part, found
    finally:
        # when the last reference goes is too late: the traceback of an error keeps one
        reading._shutdown_workers()


def default_workers() -> int:
    """Return the number of workers of a rank: its share of this machine's cores, at most 8.

    The cores are those that this process may use, divided by the number of ranks on the machine.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1), _MOST)


class _Asked(Dataset[Any]):
    """A source as the loader's processes read it.

    An error of an image that cannot be read comes back as it is, without a worker's traceback.
    """

    def __init__(self, source: Source):
        self.source = source

    def __getitem__(self, rows: list[int]) -> Tensor | Exception:
        try:
            return self.source[torch.tensor(rows)]
        except (ValueError, OSError) as error:
            return error


def _context(source: Source) -> Any:
    """Return a context of processes; their server has imported the modules that reading needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [type(source).__module__, "torchvision.transforms.v2", "PIL.Image"]
    )
    return context


def _apart(worker: int) -> None:
    """Move a worker into a process group of its own, and end it with the run.

    On Ctrl-C or SIGTERM to the run's group, the run finishes its step first and then ends its
    workers. Torch's workers check whether the process they were copied from is gone. Here that
    process is the server, which waits for the workers, so they watch the run instead.
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
