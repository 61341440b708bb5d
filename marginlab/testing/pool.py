"""Long-lived gloo ranks for laws about ranks: processes that are started once, given functions by
name, and never waited for without end.
"""

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# Python's fork server imports once, has no threads, and its copies are ranks
_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class RanksFailed(AssertionError):  # noqa: N818
    """A rank raised an error, died, or gave no answer in time; the ranks have been started anew."""


def _serve(
    rank: int, size: int, patience: float, store: str, paths: list[str], pipe: Connection
) -> None:
    sys.path[:0] = [path for path in paths if path not in sys.path]
    import torch
    import torch.distributed as dist

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=patience),
    )
    groups = {n: dist.new_group(list(range(n))) for n in range(1, size + 1)}
    while True:
        try:
            task = pipe.recv()  # a function whose module is not found fails here: an answer, too
            if task is None:
                return
            function, n, arguments = task
            pipe.send((True, function(groups[n], rank, *arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


class Pool:
    """Gloo ranks in processes of their own, for many short pieces of work.

    `pool.run(n, function, *arguments)` calls `function(group, rank, *arguments)` on ranks 0..n-1
    and returns their results in order. The processes are no copies of this one, so a function
    travels by its name: it is a module-level one, its arguments and results are picklable (give
    tensors as they are). Draw random inputs in the parent. Starting takes some seconds, a call
    milliseconds. A script that starts a pool does so under `if __name__ == "__main__":`.

    Args:
        size: number of processes. The default group holds all of them.
        patience: seconds after which a collective fails; a rank that gives no answer in twice that
            time is taken to hang.
        preload: names of modules that Python's fork server imports once for all ranks, where no
            earlier pool of this process has started it. Each rank imports the others itself.

    Example:
        A fixture of the session, which `check_loss` and `check_measure` take::

            @pytest.fixture(scope="session")
            def pool():
                with Pool() as ranks:
                    yield ranks
    """

    def __init__(self, size: int = 4, patience: float = 60.0, preload: Sequence[str] = ()) -> None:
        self.size = size
        self.patience = patience
        self.preload = ["torch.distributed", *preload]
        self.pipes: list[Connection] = []
        self.ranks: list[Any] = []

    def __enter__(self) -> "Pool":
        self.folder = tempfile.TemporaryDirectory()
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        self._stop()
        self.folder.cleanup()

    def _start(self) -> None:
        context: Any = multiprocessing.get_context(_START)
        if _START == "forkserver":
            context.set_forkserver_preload(self.preload)
        store = str(Path(tempfile.mkdtemp(dir=self.folder.name)) / "store")
        self.pipes, self.ranks = [], []
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            arguments = (rank, self.size, self.patience, store, list(sys.path), theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()  # else a rank that died would be waited for
            self.pipes.append(ours)
            self.ranks.append(process)

    def _stop(self) -> None:
        for process in self.ranks:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self.pipes:
            pipe.close()

    def run(self, n: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a function on n ranks and return their answers in the order of ranks.

        Args:
            n: number of ranks, at most `size`; the group that the function is given holds them.
            function: called as `function(group, rank, *arguments)`.
            arguments: sent to every rank.

        Raises:
            RanksFailed: with the traceback of the first rank that failed.
            ValueError: more ranks than there are.
        """
        if not 1 <= n <= self.size:
            raise ValueError(f"This pool has {self.size} ranks, not {n}: make Pool({n}).")
        answers: list[Any] = [None] * n
        failure = ""
        for rank, pipe in enumerate(self.pipes[:n]):
            try:
                pipe.send((function, n, arguments))
            except OSError as error:
                failure = f"rank {rank} of {n} is dead: {error!r}"
                break
        waited = {pipe: rank for rank, pipe in enumerate(self.pipes[:n])}
        end = time.monotonic() + 2 * self.patience
        while waited and not failure:
            ready = wait(list(waited), max(end - time.monotonic(), 0))
            if not ready:
                hanging = ", ".join(map(str, waited.values()))
                seconds = f"{2 * self.patience:.0f} s"
                failure = f"rank {hanging} of {n} hangs: no answer within {seconds}"
            for pipe in [pipe for pipe in waited if pipe in ready]:
                rank = waited.pop(pipe)
                try:
                    good, answers[rank] = pipe.recv()
                except (OSError, EOFError) as error:
                    good, answers[rank] = False, f"it is dead: {error!r}"
                if not good:  # the first to fail: the others may wait for it in a collective
                    failure = failure or f"rank {rank} of {n} failed:\n{answers[rank]}"
        if failure:
            for process in self.ranks:
                process.kill()
            self._stop()
            self._start()
            raise RanksFailed(failure)
        return answers
