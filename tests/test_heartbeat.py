"""A rank that stands still ends the others after seconds, with a sentence that names it; one that is busy does not."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from torch.distributed import HashStore

from marginlab.ranks.heartbeat import SILENCE, Heartbeat, silence

# Each rank adds up over the ranks until a file says that it is enough; the file is of every rank alike.
WORK = """
import os, sys, time, torch
from pathlib import Path
from marginlab import ranks
ranks.join("gloo")
here, place = ranks.rank(), Path(sys.argv[1])
(place / f"here{here}").touch()
while not ranks.broadcast((place / "enough").exists()):
    ranks.total(torch.ones(1))
    time.sleep(0.01)
if here == 0:
    time.sleep(3.0)  # works on for longer than it may be silent, and after the others have left
ranks.leave()
print("left", flush=True)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def started(tmp_path):
    """Three ranks that may be silent for two seconds, as a launcher without torchrun's agent starts them."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "3"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, str(tmp_path)],
            env=os.environ | place | {"RANK": str(rank), "MARGINLAB_SILENCE": "2", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    until = time.monotonic() + 90
    while not all((tmp_path / f"here{rank}").exists() for rank in range(3)):
        assert time.monotonic() < until, "the ranks did not meet"
        time.sleep(0.05)
    yield ranks
    for process in ranks:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("still", [0, 1])
def test_a_stopped_rank_ends_the_others_with_a_sentence(started, still):
    """Rank 0 keeps the store as well, which then does not answer."""
    started[still].send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    others = [process for rank, process in enumerate(started) if rank != still]
    said = [process.communicate(timeout=60)[1] for process in others]
    assert time.monotonic() - begun < 30
    assert all(process.returncode == 1 for process in others)
    who = "Rank 1 of 3" if still else "The store of the ranks, which rank 0 or torchrun keeps,"
    assert any(f"{who} has given no sign of life for 2 seconds" in text for text in said)
    assert not any("Traceback" in text for text in said), said


def test_ranks_that_were_all_stopped_go_on_and_one_may_end_before_the_others(started, tmp_path):
    for process in started:
        process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    for process in started:
        process.send_signal(signal.SIGCONT)
    time.sleep(1)
    (tmp_path / "enough").touch()
    said = [process.communicate(timeout=60) for process in started]
    assert [(process.returncode, out) for process, (out, _) in zip(started, said, strict=True)] == [(0, "left\n")] * 3, said


class Still:
    """A store whose answers stop."""

    def __init__(self):
        self.kept, self.answers = HashStore(), threading.Event()
        self.answers.set()

    def clone(self):
        return self

    def set_timeout(self, timeout):
        pass

    def __getattr__(self, name):
        def call(*arguments):
            self.answers.wait()
            return getattr(self.kept, name)(*arguments)

        return call


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
