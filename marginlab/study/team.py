"""The ranks that compute a cell together: one without torchrun, under it all that it started.

Rank 0 decides and writes, the others follow. torch is loaded only when there is more than one rank,
so the engine alone starts in no time.
"""

import functools
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from marginlab.settings import SettingsError

# for the others, once this rank has failed: they may hang in a collective that it does not join
PATIENCE = timedelta(seconds=60)


class Team:
    """Ranks in step: `broadcast` a value of rank 0, `agree` on whether all went well."""

    def __init__(self, size: int = 1, rank: int = 0, store: Any = None) -> None:
        self.size, self.rank, self.leads = size, rank, rank == 0
        self._store, self._turn = store, 0

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value, on every rank."""
        if self.size == 1:
            return value
        from marginlab import ranks

        return ranks.broadcast(value)

    def first(self, function: Callable[[], Any]) -> Any:
        """Call a function on rank 0 and give its result, or its error, to all."""
        if self.size == 1:
            return function()
        from marginlab import ranks

        return ranks.broadcast_from_first(function)

    def agree(self, good: bool) -> bool:
        """Return True if all ranks say so.

        They speak through the store of torchrun, not by a collective: a rank may hang in one. A
        rank that failed alone, while others wait for it in a collective, cannot be joined again: it
        ends itself, and torchrun ends the others.
        """
        if self.size == 1:
            return good
        self._turn += 1
        keys = [f"study/{self._turn}/{rank}" for rank in range(self.size)]
        self._store.set(keys[self.rank], str(int(good)))
        try:
            self._store.wait(keys, timedelta(days=7) if good else PATIENCE)
        except RuntimeError:
            print(
                f"Rank {self.rank} failed alone; it ends, and the run with it. The same command "
                "tries again.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)
        return all(self._store.get(key) == b"1" for key in keys)


@functools.cache
def join() -> Team:
    """Join the team of this process, from the environment that torchrun sets.

    The default process group is made (gloo, with nccl on GPUs).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Team()
    import torch

    from marginlab import ranks

    one_gpu_each = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if one_gpu_each:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        store = ranks.join("cpu:gloo,cuda:nccl" if one_gpu_each else "gloo")
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return Team(ranks.size(), ranks.rank(), store)


def leave() -> None:
    """Destroy the process group, if `join` made one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from marginlab import ranks

        ranks.leave()
