"""A rank that stands still ends the others after seconds, with a sentence that names it; one that
is busy does not.
"""

import os
import subprocess
import sys
import threading
import time

import pytest
from torch.distributed import HashStore, Store

from marginlab.ranks.heartbeat import SILENCE, Heartbeat, silence

# Each rank adds up over the ranks until it is enough. They are forked after the import of torch, as
# a launcher without torchrun's agent starts them: rank 0 keeps the store.
WORK = """
import os, signal, socket, sys, time, torch
from pathlib import Path
from marginlab import ranks
place, still = Path(sys.argv[1]), sys.argv[2]
with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = str(found.getsockname()[1])
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="3", MARGINLAB_SILENCE="2")
pids = []
for rank in range(3):
    pids.append(os.fork())
    if not pids[-1]:
        os.environ["RANK"] = str(rank)
        ranks.join("gloo")
        (place / f"here{rank}").touch()
        while not ranks.broadcast((place / "enough").exists()):
            ranks.all_reduce(torch.ones(1))
            time.sleep(0.01)
        if rank == 0:
            time.sleep(3.0)  # works longer than it may be silent, and after the others have left
        ranks.leave()
        os._exit(0)
while not all((place / f"here{rank}").exists() for rank in range(3)):
    time.sleep(0.05)
stopped = [pids[int(still)]] if still != "all" else pids
for pid in stopped:
    os.kill(pid, signal.SIGSTOP)
if still == "all":
    time.sleep(4.0)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    time.sleep(1.0)
    (place / "enough").touch()
ended = [os.waitpid(pid, 0)[1] for pid in pids if still == "all" or pid not in stopped]
if still != "all":
    os.kill(stopped[0], signal.SIGKILL)
print([os.waitstatus_to_exitcode(status) for status in ended])
"""


def job(folder, still):
    """Exit statuses of the ranks that were not stopped for good, and all that was said."""
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(folder), still],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("still", ["0", "1"])
def test_a_stopped_rank_ends_the_others_with_a_sentence(tmp_path, still):
    """Rank 0 keeps the store as well, which then does not answer."""
    statuses, said = job(tmp_path, still)
    assert statuses == "[1, 1]"
    who = (
        "Rank 1 of 3" if still == "1" else "The store of the ranks, which rank 0 or torchrun keeps,"
    )
    assert f"{who} has given no sign of life for 2 seconds" in said
    assert "Traceback" not in said


def test_ranks_that_were_all_stopped_go_on_and_one_may_end_before_the_others(tmp_path):
    statuses, said = job(tmp_path, "all")
    assert statuses == "[0, 0, 0]", said


class Still(Store):
    """A store whose answers stop."""

    def __init__(self):
        super().__init__()
        self.kept, self.answers = HashStore(), threading.Event()
        self.answers.set()

    def clone(self):
        return self

    def set_timeout(self, timeout):
        """As it is."""

    def _call(self, name, *arguments):
        self.answers.wait()
        return getattr(self.kept, name)(*arguments)

    def set(self, *arguments):
        return self._call("set", *arguments)

    def get(self, *arguments):
        return self._call("get", *arguments)

    def check(self, *arguments):
        return self._call("check", *arguments)


def test_the_ring_skips_who_has_left_and_tells_of_who_is_silent():
    store, said = Still(), []
    hearts = [Heartbeat(store, rank, 3, 0.5, said.append) for rank in (0, 1)]
    store.kept.set("left 2", "1")
    time.sleep(1.5)
    assert said == []
    hearts[1]._stopped.set()  # it beats no more, but has not left
    until = time.monotonic() + 20
    while not said and time.monotonic() < until:
        time.sleep(0.02)
    assert said[0].startswith("Rank 1 of 3 has given no sign of life for 0.5 seconds")
    assert "Rank 0 ends" in said[0]
    hearts[0].stop()


def test_a_store_that_does_not_answer_is_told_of():
    store, said = Still(), []
    heart = Heartbeat(store, 0, 2, 0.3, said.append)
    store.answers.clear()
    until = time.monotonic() + 20
    while not said and time.monotonic() < until:
        time.sleep(0.02)
    store.answers.set()
    assert said[0].startswith("The store of the ranks")
    heart.stop()


def test_the_seconds_are_a_setting(monkeypatch):
    monkeypatch.delenv("MARGINLAB_SILENCE", raising=False)
    assert silence() == SILENCE == 300
    for text, seconds in (("0", 0), ("2.5", 2.5)):
        monkeypatch.setenv("MARGINLAB_SILENCE", text)
        assert silence() == seconds
    for text in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv("MARGINLAB_SILENCE", text)
        with pytest.raises(ValueError, match="MARGINLAB_SILENCE is the number of seconds"):
            silence()
