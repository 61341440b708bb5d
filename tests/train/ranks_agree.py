"""Train the Omniglot recipe on one process and on two, with the same global batches, and compare
what they say.

    python tests/train/ranks_agree.py [--presets omniglot omniglot-r01] [--seeds 0] [--steps 20]
    [--steps64 200] [--timed 40] [--record FILE.json]

Printed, of each preset: the largest difference of the losses of the first steps in float32, and of
more of them in float64 (network, centers and all between; the views are drawn in float32); the
median seconds of a step, in the preset's own precision, on one process with one thread and two, and
on two processes with one each; and the bytes that a rank gives into the collectives of a step, with
those that the planner foresees for the head among them, and beside them the gradients that DDP
exchanges. All that is printed is recorded. The status is 1 if losses differ by more than 1e-4 or
1e-8.

A process of the comparison is this file again, with `--worker`. It trains by `fit` itself, whose
step is only watched.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "plan"))

from measured_step import payloads

from marginlab import data, ranks, settings, study
from marginlab.losses import PartialFC
from marginlab.plan.setup import Setup
from marginlab.plan.traffic import traffic
from marginlab.settings.notation import parse
from marginlab.train import Monitor, Recipe, fit

LOOP = sys.modules["marginlab.train.fit"]  # the module: its package has a function of that name


class Said(NamedTuple):
    """Record of a run: losses, median seconds of a step, payloads and bytes of gradients."""

    losses: list[float]
    seconds: float
    payloads: list[tuple[str, int]]
    gradients: int


class Enough(Exception):
    """The steps that were asked for are done."""


class Unwatched(Monitor):
    """Measures nothing: only steps are compared."""

    def __call__(self, *arguments, **named):
        return []


def watched(recipe: Recipe, steps: int, dtype: torch.dtype, folder: Path) -> Said:
    """Train so many steps on the ranks there are, all in one dtype."""
    losses, seconds, given = [], [], []
    step, made = LOOP._Loop.one_step, Recipe.make_method
    gradients = [0]

    def make(self, num_classes=2):
        method = made(self, num_classes).to(dtype)
        method.backbone.register_forward_pre_hook(
            lambda module, arguments: tuple(x.to(dtype) for x in arguments)
        )
        return method

    def one(self, forward, rows, epoch):
        begun = time.perf_counter()
        with payloads() as seen:
            said = step(self, forward, rows, epoch)
        seconds.append(time.perf_counter() - begun)
        losses.append(float(said["loss"]))
        given[:] = seen
        outside = {
            id(p)
            for part in self.method.modules()
            if isinstance(part, PartialFC)
            for p in part.parameters()
        }
        gradients[0] = (
            sum(p.nbytes for p in self.method.parameters() if id(p) not in outside)
            if ranks.size() > 1
            else 0
        )
        if len(losses) == steps:
            raise Enough
        return said

    LOOP._Loop.one_step, Recipe.make_method = one, make
    try:
        fit(recipe, folder, Unwatched(), say=lambda line: None)
    except Enough:
        pass
    finally:
        LOOP._Loop.one_step, Recipe.make_method = step, made
    return Said(losses, statistics.median(seconds), list(given), gradients[0])


def worker(recipe: Path, steps: int, dtype: str, folder: Path, result: Path) -> None:
    """Train on the ranks that torchrun has started, or alone; the first writes what was said."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    try:
        said = watched(settings.read(Recipe, recipe), steps, getattr(torch, dtype), folder)
        if ranks.rank() == 0:
            result.write_text(json.dumps(said))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def trained(recipe: Recipe, steps: int, dtype: str, processes: int, threads: int = 1) -> Said:
    """Return the record of a run on so many processes, with so many threads each."""
    with tempfile.TemporaryDirectory() as place:
        own, result = Path(place) / "recipe.toml", Path(place) / "said.json"
        own.write_text(settings.to_toml(recipe))
        start = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            if processes > 1
            else []
        )
        words = [
            __file__,
            "--worker",
            str(own),
            str(steps),
            dtype,
            str(Path(place) / "run"),
            str(result),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [sys.executable, *start, *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{processes} process(es) failed:\n{done.stderr[-3000:]}")
        return Said(*json.loads(result.read_text()))


def apart(one: Said, two: Said) -> float:
    """The largest difference of two runs' losses at the same step."""
    return max(abs(a - b) for a, b in zip(one.losses, two.losses, strict=True))


def exchanged(said: Said, recipe: Recipe, rate: float, classes: int, dim: int, margin: str) -> str:
    """Describe what a rank of two gives into the collectives of a step.

    The payloads that the planner foresees for the head must be among them.
    """
    rest = [tuple(pair) for pair in said.payloads]
    words = f"{sum(n for _, n in rest):,} bytes of a rank in {len(rest)} collectives of a step"
    planned = traffic(
        Setup(
            classes=classes,
            dim=dim,
            batch=recipe.batch // 2,
            ranks=2,
            sample_rate=rate,
            margin=margin,
            device="cpu",
        )
    )
    for exchange in planned:
        rest.remove((exchange.collective, exchange.payload))  # a ValueError: the planner is wrong
    words += (
        f", of which the head's {sum(exchange.payload for exchange in planned):,} are as planned"
    )
    return f"{words}; and {said.gradients:,} bytes of gradients by DDP"


def main(arguments: list[str]) -> int:
    """Compare, and print; 1 where the losses differ by more than they may."""
    if arguments[:1] == ["--worker"]:
        recipe, steps, dtype, folder, result = arguments[1:]
        worker(Path(recipe), int(steps), dtype, Path(folder), Path(result))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--presets", nargs="+", default=["omniglot", "omniglot-r01"], help="of the study partial_fc"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=20, help="in float32")
    parser.add_argument("--steps64", type=int, default=200, help="in float64")
    parser.add_argument(
        "--timed", type=int, default=40, help="steps of which the seconds are taken"
    )
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    failed, of = False, study.load("partial_fc")
    for preset in options.presets:
        chosen = of.settings(preset)
        own = of.module.recipe_of(of.grid(chosen)[0], chosen)
        for seed in options.seeds:
            recipe = replace(own, precision="float32", seed=seed)
            for dtype, steps, most in (
                ("float32", options.steps, 1e-4),
                ("float64", options.steps64, 1e-8),
            ):
                if steps:
                    worst = apart(
                        trained(recipe, steps, dtype, 1), trained(recipe, steps, dtype, 2)
                    )
                    say(
                        f"{preset}, seed {seed}, {dtype}: {steps} losses on 1 and 2 processes "
                        f"differ by at most {worst:.1e}; allowed is {most:.0e}"
                    )
                    failed |= not worst <= most
        for processes, threads in ((1, 1), (1, 2), (2, 1)) if options.timed else ():
            said = trained(own, options.timed, "float32", processes, threads)
            how = f"{processes} process(es), {threads} thread(s) each"
            say(
                f"{preset}: {how}: {said.seconds:.3f} s a step of {own.batch} images, "
                f"{own.batch / said.seconds:,.0f} images/s"
            )
            if processes == 2:
                classes = len(data.load(own.data, "train", size=own.image_size).classes)
                head = parse(own.method)[2]
                words = exchanged(
                    said, own, head["sample_rate"], classes, head["dim"], head["margin"]
                )
                say(f"{preset}: {words}")
    if options.record:
        command = f"python tests/train/ranks_agree.py {' '.join(arguments)}"
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        record = {
            "command": command,
            "device": f"CPU, {os.cpu_count()} cores",
            "date": str(date.today()),
            **versions,
            "said": lines,
        }
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
