"""Commands of Python in a process that is forked, with the library and what it needs imported.

    run([sys.executable, "-m", "marginlab.study", "list"], cwd=..., env=..., timeout=...)

It is `subprocess.run` with captured text, and `Child` is one that can be killed meanwhile, for
tests of what a command does and not of how a process starts. A start imports for some seconds and
renders the shapes; here one process does so, which the first call starts, and it forks for each
command, one after the other. torchrun's own agent runs in such a process, too, and it forks its
ranks: `--start-method fork --run-path` instead of a new Python for each of them.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import NoReturn

IMPORTED = (
    "marginlab.study.__main__",
    "marginlab.train.__main__",
    "kornia.augmentation",
    "plotly.graph_objects",
    "sklearn.linear_model",
    "torch.utils.tensorboard",
    "torch.distributed.run",
    "tyro",
)
RENDERED = (("shapes", 0), ("shapes", 16), ("shapes-5", 16))  # and their sides
TORCHRUN = "torch.distributed.run"
WITH_VALUES = ("--nproc-per-node", "--max-restarts")  # torchrun's options that tests give


def torchrun(ranks: int = 2) -> list[str]:
    """Return the words that start so many ranks here, before those of what they run."""
    return [sys.executable, "-m", TORCHRUN, "--standalone", "--nproc-per-node", str(ranks)]


class Child:
    """A command that runs, whose first word is this Python; what it says goes to files."""

    def __init__(self, words: list[str], *, cwd: Path, env: dict[str, str]) -> None:
        assert words[0] == sys.executable, words
        self.words, self._server = words, _server()
        self._place = tempfile.TemporaryDirectory()
        out, err = self._files = [Path(self._place.name) / name for name in ("out", "err")]
        asked = [_forking(words[1:]), str(cwd), env, str(out), str(err)]
        self._server.stdin.write(json.dumps(asked).encode() + b"\n")
        self._server.stdin.flush()
        self.pid = int(self._server.stdout.readline())

    def wait(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Wait until it has ended; TimeoutExpired, and an end of it, if it has not by then."""
        with self._place, selectors.DefaultSelector() as selector:
            selector.register(self._server.stdout, selectors.EVENT_READ)
            answered = selector.select(timeout)
            status = int(self._server.stdout.readline()) if answered else None
            said = [file.read_text() for file in self._files]
        if status is None:
            _end(self._server)
            _server.cache_clear()
            raise subprocess.TimeoutExpired(self.words, timeout, *said)
        return subprocess.CompletedProcess(self.words, status, *said)


def run(
    words: list[str], *, cwd: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return Child(words, cwd=cwd, env=env).wait(timeout)


def _forking(words: list[str]) -> list[str]:
    """The words after `python`; a torchrun among them forks its ranks, which this file becomes."""
    if words[:2] != ["-m", TORCHRUN]:
        return words
    at = 2
    while words[at].startswith("--"):
        at += 2 if words[at] in WITH_VALUES else 1
    return [*words[:at], "--start-method", "fork", "--run-path", __file__, *words[at:]]


@functools.cache
def _server() -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        bufsize=0,
        start_new_session=True,
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and what it has forked."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    server.stdin.close()
    server.stdout.close()


def serve() -> None:
    """Answer each line of stdin, a command, with its process and, later, what it ended with."""
    for name in IMPORTED:
        importlib.import_module(name)
        if name.endswith(("__main__", TORCHRUN)):  # a command executes it anew
            del sys.modules[name]
    from marginlab.data import load

    for spec, size in RENDERED:
        for split in ("train", "test"):
            load(spec, split, size=size)
    gc.freeze()  # so that no child walks through, and copies, what is here already
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    for line in iter(sys.stdin.buffer.readline, b""):
        asked = json.loads(line)
        if not (child := os.fork()):
            os.close(answers)
            _become(*asked)
        os.write(answers, b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(words: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> NoReturn:
    """Run the command in this process, and exit."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, place in enumerate((out, err), start=1):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell ignores it
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    _execute(words)
    sys.exit()


def _execute(words: list[str]) -> None:
    """Do what Python does with these words: `-m MODULE ...`, `-c CODE ...` or `FILE ...`."""
    if words[0] == "-m":
        sys.path[0] = str(Path.cwd())
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *words[2:]]
        sys.modules["__main__"] = ModuleType("__main__")
        exec(words[1], vars(sys.modules["__main__"]))
    else:
        sys.path[0] = str(Path(words[0]).parent)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _execute(sys.argv[1:]) if sys.argv[1:] else serve()
