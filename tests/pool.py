"""Four long-lived gloo ranks for distributed laws: started once, given functions by name, never
waited for without end.
"""

import contextlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

RANKS = 4
PATIENCE = 60.0  # seconds; a rank that needs more is taken to hang


def _serve(rank: int, store: str, paths: list[str], pipe: Any) -> None:
    sys.path[:0] = [path for path in paths if path not in sys.path]
    import torch
    import torch.distributed as dist

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=PATIENCE),
    )
    groups = {n: dist.new_group(list(range(n))) for n in range(1, RANKS + 1)}
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
    """`pool.run(n, function, *arguments)` calls `function(group, rank, *arguments)` on ranks 0..n-1
    and returns their results in order.

    The function is a module-level one, its arguments and results are picklable (give tensors as
    they are). Draw random inputs in the parent.
    """

    def __enter__(self) -> Self:
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
        context = multiprocessing.get_context("spawn")
        store = str(Path(tempfile.mkdtemp(dir=self.folder.name)) / "store")
        self.pipes, self.ranks = [], []
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, store, list(sys.path), theirs), daemon=True
            )
            process.start()
            self.pipes.append(ours)
            self.ranks.append(process)

    def _stop(self) -> None:
        for process in self.ranks:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()

    def run(self, n: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        answers: list[Any] = []
        failure = ""
        for rank, pipe in enumerate(self.pipes[:n]):
            try:
                pipe.send((function, n, arguments))
            except OSError as error:
                failure = f"rank {rank} of {n} is dead: {error!r}"
                break
        for rank, pipe in enumerate(self.pipes[:n]):
            if failure:
                break
            try:
                if not pipe.poll(2 * PATIENCE):
                    raise TimeoutError(f"no answer within {2 * PATIENCE:.0f} s")
                good, answer = pipe.recv()
            except (OSError, EOFError) as error:
                good, answer = False, f"it is dead or hangs: {error!r}"
            if not good:
                failure = f"rank {rank} of {n} failed:\n{answer}"
            answers.append(answer)
        if failure:  # the others may wait in a collective: begin anew
            for process in self.ranks:
                process.kill()
            self._stop()
            self._start()
            raise AssertionError(failure)
        return answers
