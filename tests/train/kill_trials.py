"""Kill a rank of a training with -9, start it again, and compare with an undisturbed run.

    python tests/train/kill_trials.py [--trials 20] [--kills 2] [--ranks 1 2 3] [--seed 0]
        [--start torchrun elastic] [--record tests/train/measured/kill_trials.json]

The training has one to three processes. Kills come at random moments, and while a checkpoint is
written. A trial kills one of the ranks so many times and then lets the run end. Every other kill is
aimed at a checkpoint drawn at random of those that are left: it comes as soon as its folder, or one
of the files in it, appears, and up to 3 ms later. The others come at a moment drawn uniformly over
one of the epochs that are left. Three ways to start the ranks take turns:

    torchrun   the command is given again after each kill
    elastic    the command is given once; torchrun's own agent starts the ranks again
    forked     ranks forked from this process, which has loaded all modules, and stopped as
               torchrun stops them: the same `fit` in a part of the time

The backbone is the default one, with batch normalisation, whose running statistics each rank has of
its own images. Numbers of ranks take turns, too, and each has its own undisturbed run.

Before a start every process of the last one has to be gone. Printed for each trial, and recorded:
the moments, what each kill left (the checkpoint that was kept, and whether another was half
written), and whether weights, optimizer state and the table of measurements at the end are those of
the undisturbed run, to the last bit. The status is 1 if one is not, or if a checkpoint was lost.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import marginlab
from marginlab import settings
from marginlab.train import Monitor, Recipe, checkpoint, fit

# of images that `main` makes: to draw shapes anew in each start would take most of its time
RECIPE = Recipe(
    augmentation="Augmentation('ae')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="MarginClassifier(margin='AdaFace(momentum=0.5)', scale=16.0, dim=16, sample_rate=0.5)",
    epochs=8,
    batch=12,
    optimizer="SGD(lr=0.05)",
)
WATCH = Monitor(images=20, views=2, bank=40)
IMAGES = 36  # batches of 12, which one to three ranks share evenly
EPOCH = IMAGES // RECIPE.batch  # steps, and a checkpoint at the end
STEPS = RECIPE.epochs * EPOCH
PATIENCE = 300.0  # seconds that a run may take
GRACE = 30.0  # seconds from the signal to end to the one that does not ask
# of a checkpoint, beside each rank's tensors
PARTS = ("", ".metadata.tmp", ".metadata", "recipe.toml", "progress.json", "checksums.sha256")
WAYS = ("torchrun", "elastic", "forked")


def until(true: Callable[[], bool], otherwise: str, patience: float = PATIENCE) -> None:
    """Wait for something; TimeoutError if it does not come."""
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"After {patience:.0f} s {otherwise}.")
        time.sleep(0.001)


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Kill(NamedTuple):
    """A rank killed so many seconds after the first sign of work, when what it was aimed at
    appeared (None: any moment); what it left.
    """

    aim: str | None
    after: float
    rank: int
    before: int  # the step of the last whole checkpoint when the ranks were started, and now
    kept: int
    half_written: list[str]

    def __str__(self) -> str:
        return (
            f"{self.aim or 'anywhere'}, {self.after:.2f} s, kept {self.kept}, half written "
            f"{', '.join(self.half_written) or 'none'}"
        )


class Start:
    """A start of the ranks: their processes, and a child of this one that watches over them."""

    def __init__(self, folder: Path, way: str, ranks: int, restarts: int) -> None:
        self.said = folder.with_suffix(".log")
        self._status: int | None = None
        if way == "forked":
            self.leader = _forked(folder, ranks, self.said)
        else:
            self.leader = _command(folder, ranks, restarts, self.said)

    def ranks(self) -> list[int]:
        """The processes of the ranks, children of the leader."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return [
                int(pid)
                for pid in Path(f"/proc/{self.leader}/task/{self.leader}/children")
                .read_text()
                .split()
            ]
        return []

    def ended(self) -> bool:
        """Return whether the leader has ended."""
        if self._status is None and (ended := os.waitpid(self.leader, os.WNOHANG))[0]:
            self._status = os.waitstatus_to_exitcode(ended[1])
        return self._status is not None

    def finish(self) -> None:
        """Wait until it has ended well."""
        until(self.ended, "the run goes on")
        if self._status != 0:
            raise RuntimeError(f"The run failed:\n{self.said.read_text()[-4000:]}")


def _command(folder: Path, ranks: int, restarts: int, said: Path) -> int:
    """Start a run by the command that a user types."""
    recipe = folder.with_name("recipe.toml")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        "--max-restarts",
        str(restarts),
    ]
    command = [
        *torchrun,
        "-m",
        "marginlab.train",
        str(recipe),
        "--folder",
        str(folder),
        "--measure",
        repr(WATCH),
    ]
    opened = (os.POSIX_SPAWN_OPEN, 1, str(said), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return os.posix_spawn(
        sys.executable, command, environment, file_actions=[opened, (os.POSIX_SPAWN_DUP2, 1, 2)]
    )


def _forked(folder: Path, ranks: int, said: Path) -> int:
    """A leader that forks the ranks and watches them as torchrun does: when one has failed the
    others are told to end, and in the end made to.
    """
    store = Path(tempfile.mkdtemp(dir=folder.parent)) / "store"  # a new one for each start
    if leader := os.fork():
        return leader
    left, deadline = set[int](), float("inf")
    for rank in range(ranks):
        if not (pid := os.fork()):
            _train(folder, rank, ranks, store, said)
        left.add(pid)
    failed = False
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG)
        left.discard(pid)
        if pid and status and not failed:
            failed, deadline = True, time.monotonic() + GRACE
            for other in left:
                os.kill(other, signal.SIGTERM)
        if time.monotonic() > deadline:
            for other in left:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.005)
    os._exit(failed)


def _train(folder: Path, rank: int, ranks: int, store: Path, said: Path) -> None:
    """Train as a forked rank, and exit."""
    with said.open("a") as out:
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks
            )
            fit(
                settings.read(Recipe, folder.with_name("recipe.toml")),
                folder,
                WATCH,
                say=lambda line: None,
            )
            dist.destroy_process_group()
        except BaseException:
            out.write(traceback.format_exc())
            out.flush()
            os._exit(1)
    os._exit(0)


def half_written(folder: Path) -> list[str]:
    """Checkpoints of a run folder that have not got their name yet, or have it no more."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(
            entry.name
            for entry in os.scandir(folder / "checkpoints")
            if entry.name.endswith(".partial")
        )
    return []


def kept(folder: Path) -> int:
    """The step from which a run would go on; 0 before the first checkpoint."""
    last = checkpoint.latest(folder)
    return 0 if last is None else int(last.name.removeprefix("step-"))


def stamp(folder: Path) -> int:
    """A number that changes when ranks begin to work in a folder."""
    lock = folder / ".lock"
    return lock.stat().st_mtime_ns if lock.exists() else 0


def undisturbed(folder: Path, way: str, ranks: int) -> float:
    """Train without a disturbance; the seconds from its first sign of work."""
    run = Start(folder, way, ranks, 0)
    until(lambda: bool(stamp(folder)) or run.ended(), "no rank has begun")
    begun = time.monotonic()
    run.finish()
    return time.monotonic() - begun


def kill(
    run: Start,
    folder: Path,
    number: int,
    before: int,
    aimed: bool,
    seconds: float,
    draw: random.Random,
) -> Kill | None:
    """Kill a rank when it is time, and wait until all ranks of that start are gone; None if the run
    has ended before.
    """
    until(lambda: stamp(folder) != before or run.ended(), "no rank has begun")
    begun, at, ranks = time.monotonic(), kept(folder), run.ranks()
    parts = (*PARTS, *(f"__{rank}_0.distcp" for rank in range(number)))
    epoch, part, share, rank = (
        draw.choice(range(at, STEPS, EPOCH) or [at]),
        draw.choice(parts),
        draw.random(),
        draw.randrange(number),
    )
    if aimed and at < STEPS:
        place, step = (
            folder / "checkpoints" / f"step-{epoch + EPOCH:08d}.partial" / part,
            epoch + EPOCH,
        )
        until(
            lambda: place.exists() or kept(folder) >= step or run.ended(),
            f"{place} has not appeared",
        )
        aim, wait = str(place.relative_to(folder / "checkpoints")), 0.003 * share
    else:
        until(lambda: kept(folder) >= epoch or run.ended(), f"step {epoch} has not been kept")
        aim, wait = None, seconds * EPOCH / STEPS * share
    time.sleep(wait)
    if run.ended() or len(ranks) != number:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(ranks[rank], signal.SIGKILL)
    after = time.monotonic() - begun
    until(lambda: not any(map(alive, ranks)), "a rank lives on", GRACE + 30)
    return Kill(aim, round(after, 3), rank, at, kept(folder), half_written(folder))


def trial(
    folder: Path, way: str, ranks: int, aimed: list[bool], seconds: float, draw: random.Random
) -> list[Kill]:
    """Kill, start again, and let it end; what each kill left."""
    seen, before, run = (
        list[Kill](),
        0,
        Start(folder, way, ranks, len(aimed) if way == "elastic" else 0),
    )
    for one in aimed:
        killed = kill(run, folder, ranks, before, one, seconds, draw)
        seen += [] if killed is None else [killed]
        before = stamp(folder)
        if way != "elastic":
            until(run.ended, "the run goes on with a rank that is dead")
            run = Start(folder, way, ranks, 0)
    run.finish()
    return seen


def numbers(folder: Path) -> dict[str, object]:
    """All that the last checkpoint of a run holds, by place."""
    last = checkpoint.latest(folder)
    assert last is not None
    with tempfile.NamedTemporaryFile() as file:
        dcp_to_torch_save(last, file.name)
        found, open_ = {}, [("", torch.load(file.name, weights_only=False))]
    while open_:
        name, value = open_.pop()
        if isinstance(value, dict | list | tuple):
            open_ += [
                (f"{name}/{key}", item)
                for key, item in (value.items() if isinstance(value, dict) else enumerate(value))
            ]
        else:
            found[name] = value
    return found


def alike(folder: Path, other: Path) -> bool:
    """Return whether two finished runs hold the same numbers, bit for bit, and measurements."""
    one, two = numbers(folder), numbers(other)
    if (
        one.keys() != two.keys()
        or (folder / "monitor.csv").read_bytes() != (other / "monitor.csv").read_bytes()
    ):
        return False
    pairs = [(value, two[name]) for name, value in one.items()]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def main(options: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    """Make the trials; what came of each."""
    images: dict[str, np.ndarray] = {}
    draw, pixels, labels = (
        random.Random(options.seed),
        np.random.default_rng(0),
        np.arange(IMAGES) % 4,
    )
    for split in ("train", "test"):
        images[f"{split}_images"], images[f"{split}_labels"] = (
            pixels.integers(0, 256, (IMAGES, 16, 16, 3), dtype=np.uint8),
            labels,
        )
    np.savez(place / "images.npz", **images)
    (place / "recipe.toml").write_text(
        settings.to_toml(replace(RECIPE, data=f"npz:{place / 'images.npz'}"))
    )
    ways = [(way, ranks) for ranks in options.ranks for way in options.start]
    times = {
        (way, ranks): undisturbed(place / f"{way}-{ranks}", way, ranks)
        for way, ranks in dict.fromkeys(ways)
    }
    for (way, ranks), seconds in times.items():
        print(f"undisturbed, {way}, {ranks} ranks: {seconds:.1f} s of work", flush=True)
        if not alike(place / f"{way}-{ranks}", place / f"{options.start[0]}-{ranks}"):
            raise RuntimeError("The undisturbed runs differ.")
    found = list[dict[str, Any]]()
    for number in range(options.trials):
        way, ranks = ways[number % len(ways)]
        folder, whole = place / f"trial-{number}", place / f"{options.start[0]}-{ranks}"
        aimed = [
            count % 2 == 0 for count in range(number * options.kills, (number + 1) * options.kills)
        ]
        seen = trial(folder, way, ranks, aimed, times[way, ranks], draw)
        one = {
            "start": way,
            "ranks": ranks,
            "kills": [killed._asdict() for killed in seen],
            "same": alike(folder, whole),
        }
        found.append(one | {"lost": any(killed.kept < killed.before for killed in seen)})
        ended = ("the same" if one["same"] else "DIFFERENT") + ", LOST" * found[-1]["lost"]
        print(
            f"trial {number}, {way}, {ranks} ranks: {ended}\n    " + "\n    ".join(map(str, seen)),
            flush=True,
        )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", nargs="+", choices=WAYS, default=["torchrun", "elastic"])
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "forked" in options.start:  # loads what training needs, so that the ranks find it loaded
        for name in ("sklearn.linear_model", "torch.utils.tensorboard"):
            importlib.import_module(name)
        RECIPE.make_method(10)
        RECIPE.make_augmentation()
    with tempfile.TemporaryDirectory() as folder:
        trials = main(options, Path(folder))
    if options.record:
        versions = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "marginlab": marginlab.__version__,
        }
        command = " ".join(["python", "tests/train/kill_trials.py", *sys.argv[1:]])
        record = {
            "command": command,
            "device": f"CPU, {os.cpu_count()} cores",
            "date": str(date.today()),
            **versions,
            "trials": trials,
        }
        options.record.parent.mkdir(exist_ok=True)
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(0 if all(one["same"] and not one["lost"] for one in trials) else 1)
