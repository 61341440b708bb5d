"""Kill a rank of a two-process training at random moments, start it again until it ends, and compare with a run that nobody disturbed.

    python tests/train/kill_trials.py [TRIALS] [SEED]

A trial starts the same command under torchrun until the run is finished. Each start but the last is ended by SIGKILL to one of the ranks at a moment
drawn uniformly over the time a whole run takes, the writing of checkpoints included (a checkpoint at the end of each short epoch). Printed for
each trial: the moments, and whether the final weights and the table of measurements are those of the undisturbed run, to the last bit.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from marginlab import settings
from marginlab.train import Monitor, Recipe, load

RECIPE = Recipe(
    images=64, augmentation="Augmentation('ae')", backbone="Backbone('resnet18', stem='strided', width=0.125, norm='group')",
    method="MarginClassifier(margin='AdaFace(momentum=0.5)', scale=16.0, dim=16, sample_rate=0.5)", epochs=6, batch=16, optimizer="SGD(lr=0.05)",
)  # fmt: skip
WATCH = Monitor(images=20, views=2, bank=40)
KILLS = 2  # of a trial, before it is left to end


def start(folder: Path, recipe: Path) -> subprocess.Popen:
    """The command, in a process group of its own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "marginlab.train", str(recipe), "--folder", str(folder), "--measure", repr(WATCH)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True, **quiet)


def ranks_of(run: subprocess.Popen) -> list[int]:
    """The processes of the ranks: children of torchrun."""
    text = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def undisturbed(folder: Path, recipe: Path) -> float:
    """Train once without a disturbance; the seconds it took."""
    begun = time.monotonic()
    if start(folder, recipe).wait(timeout=600) != 0:
        raise RuntimeError("The undisturbed run failed.")
    return time.monotonic() - begun


def trial(folder: Path, recipe: Path, seconds: float, draw: random.Random) -> list[float]:
    """Kill, start again, and let it end; the moments of the kills."""
    moments = []
    for _ in range(KILLS):
        run, moment = start(folder, recipe), draw.uniform(0.3, 1.0) * seconds
        time.sleep(moment)
        if run.poll() is None and (pids := ranks_of(run)):
            os.kill(draw.choice(pids), signal.SIGKILL)
            moments.append(moment)
        run.wait(timeout=120)
    if start(folder, recipe).wait(timeout=600) != 0:
        raise RuntimeError(f"The run did not end after kills at {moments}.")
    return moments


def same(folder: Path, other: Path) -> bool:
    """Whether two finished runs hold the same weights and the same measurements."""
    one, two = (load(f).state_dict() for f in (folder, other))
    return all(torch.equal(one[name], two[name]) for name in one) and (folder / "monitor.csv").read_text() == (other / "monitor.csv").read_text()


def main(trials: int, seed: int) -> int:
    """Make the trials; returns how many did not end alike."""
    draw, failed = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as place:
        recipe = Path(place) / "recipe.toml"
        recipe.write_text(settings.to_toml(RECIPE))
        seconds = undisturbed(Path(place) / "whole", recipe)
        sys.stdout.write(f"undisturbed: {seconds:.1f} s\n")
        for number in range(trials):
            folder = Path(place) / f"trial-{number}"
            moments = trial(folder, recipe, seconds, draw)
            alike = same(folder, Path(place) / "whole")
            failed += not alike
            sys.stdout.write(f"trial {number}: killed after {', '.join(f'{m:.1f} s' for m in moments)}: {'the same' if alike else 'DIFFERENT'}\n")
            sys.stdout.flush()
    return failed


if __name__ == "__main__":
    trials, seed = [*sys.argv[1:], "20", "0"][:2] if len(sys.argv) != 2 else (sys.argv[1], "0")
    sys.exit(1 if main(int(trials), int(seed)) else 0)
