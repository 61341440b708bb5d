"""Commands of Python in a process that is forked, with the library and what it needs imported.

    run([sys.executable, "-m", "marginlab.study", "list"], cwd=..., env=..., timeout=...)

It is `subprocess.run` with captured text, for tests of what a command does and not of how a process
starts. A start imports for some seconds and renders the shapes; here one process does so, which the
first call starts, and it forks for each command. torchrun starts processes itself, so that its
command is started as anywhere.
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
from typing import NoReturn

IMPORTED = (
    "marginlab.study.__main__",
    "marginlab.train.__main__",
    "kornia.augmentation",
    "plotly.graph_objects",
    "sklearn.linear_model",
    "torch.utils.tensorboard",
    "tyro",
)
RENDERED = ("shapes", "shapes-5")
TORCHRUN = "torch.distributed.run"


def run(
    words: list[str], *, cwd: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a command whose first word is this Python."""
    assert words[0] == sys.executable, words
    if TORCHRUN in words:
        return subprocess.run(
            words, cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True, check=False
        )
    server = _server()
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        asked = [words[1:], str(cwd), env, str(out), str(err)]
        server.stdin.write(json.dumps(asked).encode() + b"\n")
        server.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(server.stdout, selectors.EVENT_READ)
            answered = selector.select(timeout)
        if not answered:
            _end(server)
            _server.cache_clear()
            raise subprocess.TimeoutExpired(words, timeout, out.read_text(), err.read_text())
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, status, out.read_text(), err.read_text())


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
    """Answer each line of stdin, a command, with the status that it ends with."""
    for name in IMPORTED:
        importlib.import_module(name)
        if name.endswith("__main__"):  # a command executes it anew
            del sys.modules[name]
    from marginlab.data import load

    for spec in RENDERED:
        for split in ("train", "test"):
            load(spec, split)
    gc.freeze()  # so that no child walks through, and copies, what is here already
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    for line in iter(sys.stdin.buffer.readline, b""):
        asked = json.loads(line)
        if not (child := os.fork()):
            os.close(answers)
            _become(*asked)
        _, status = os.waitpid(child, 0)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(words: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> NoReturn:
    """Run the command in this process, and exit."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, place in enumerate((out, err), start=1):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    _execute(words)
    sys.exit()


def _execute(words: list[str]) -> None:
    """Do what Python does with these words: `-m MODULE ...` or `FILE ...`."""
    if words[0] == "-m":
        sys.path[0] = str(Path.cwd())
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(words[0]).parent)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve()
