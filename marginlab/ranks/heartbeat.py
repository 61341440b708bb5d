"""A sign of life of every rank, so that a stopped rank does not hold up the others for long.

    every S / 10 seconds, rank r:    store["beat r"] += 1,    read the beat of the next active rank

A rank that waits in a collective cannot see that another was stopped (SIGSTOP, a suspended machine,
a lost network). gloo waits out its patience of half an hour and then reports a socket. Here a
thread beats beside the work, even while the work measures or writes for long. After S seconds
without a beat of its neighbour, the thread ends the process with a sentence. In a ring every rank
is watched by one neighbour, and at least one of the stopped ranks has a neighbour that works.
Seconds are counted by a rank's own rounds, so if all ranks were stopped together, none is taken for
silent when they go on.
"""

import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta

from torch.distributed.distributed_c10d import Store

SILENCE = 300.0  # seconds
VARIABLE = "MARGINLAB_SILENCE"
ROUNDS = 10  # in which a beat is missed before its rank counts as silent


def silence() -> float:
    """Return the seconds of silence after which a rank is given up: MARGINLAB_SILENCE, 0 for never.

    Raises:
        ValueError: The variable is no such number.
    """
    given = os.environ.get(VARIABLE, str(SILENCE))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(
            f"{VARIABLE} is the number of seconds after which a silent rank ends the job, such as "
            f"{SILENCE:.0f}, or 0 for never, not {given!r}."
        )
    return seconds


def end(sentence: str) -> None:
    """Leave at once: the main thread waits in a collective, where no exception reaches it."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()
    os._exit(1)


class Heartbeat:
    """A thread that beats, and listens to the next rank, until `stop`.

    Args:
        store: A store of the ranks; the heartbeat makes a connection of its own to it.
        rank: The number of this rank.
        size: The number of ranks.
        seconds: The seconds of silence that are tolerated.
        ended: A function that is called with the sentence when a rank is silent.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        seconds: float,
        ended: Callable[[str], None] = end,
    ) -> None:
        self._store = store.clone()  # a lock of its own: the main thread may wait in the other
        self._store.set_timeout(timedelta(seconds=max(seconds, 1.0)))
        self._rank, self._size, self._seconds, self._ended = rank, size, seconds, ended
        self._stopped = threading.Event()
        self._rounds = 0  # of beating, which the guard looks at
        self._store.set(f"beat {rank}", "0")
        for work in (self._beat, self._guard):
            threading.Thread(target=work, name=f"marginlab {work.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Leave the ring in order: the others do not miss this rank from now on."""
        if not self._stopped.is_set():
            self._stopped.set()
            try:
                self._store.set(f"left {self._rank}", "1")
            except RuntimeError:  # who kept the store has left before
                return

    def _beat(self) -> None:
        heard, missed, watched = "", 0, (self._rank + 1) % self._size
        try:
            while not self._stopped.wait(self._seconds / ROUNDS):
                self._rounds += 1
                self._store.set(f"beat {self._rank}", str(self._rounds))
                if self._store.check(["silent"]):
                    self._ended(self._store.get("silent").decode())
                    return
                while watched != self._rank and self._store.check([f"left {watched}"]):
                    watched, heard, missed = (watched + 1) % self._size, "", 0
                if watched == self._rank:
                    continue  # the last one that works
                if self._store.check([f"beat {watched}"]):
                    now = self._store.get(f"beat {watched}").decode()
                    missed = missed + 1 if now == heard else 0
                    heard = now
                if missed >= ROUNDS:
                    sentence = self._sentence(f"Rank {watched} of {self._size}")
                    self._store.set("silent", sentence)
                    # Rank 0 may keep the store: it stays until the others have read this.
                    self._stopped.wait(2 * self._seconds / ROUNDS)
                    self._ended(sentence)
                    return
        except RuntimeError:
            # The store is gone, and with it its keeper, in order or not: torchrun, the launcher or
            # the next collective says so. Silence alone is what nothing else tells of.
            self._stopped.set()

    def _guard(self) -> None:
        """End this rank if the store itself is silent; without torchrun, rank 0 keeps the store."""
        seen, missed = -1, 0
        while not self._stopped.wait(self._seconds / ROUNDS):
            missed = missed + 1 if self._rounds == seen else 0
            seen = self._rounds
            if missed >= ROUNDS:
                self._ended(
                    self._sentence("The store of the ranks, which rank 0 or torchrun keeps,")
                )
                return

    def _sentence(self, who: str) -> str:
        return (
            f"{who} has given no sign of life for {self._seconds:g} seconds: it was stopped, or "
            f"its machine or network was. Rank {self._rank} ends, and the job with it; the same "
            f"command goes on from the last checkpoint. ({VARIABLE} sets the seconds; 0 waits for "
            "ever.)"
        )
