"""Print the cost of a head: `python -m marginlab.plan --classes 29e6 --dim 512 [--calibrate]`.

Further flags are --batch 128 --ranks 8 --memory 80 --sample-rate 0.1.

The plan is the memory of a rank by part, bytes exchanged and operations of a step, the largest
number of classes that fits, and the published figures. With --calibrate the rates of this machine
are measured first; under torchrun the exchange is that of its ranks.
"""

import argparse
import os
import sys

import torch
import torch.distributed as dist

from marginlab import ranks, settings
from marginlab.plan.display import plan_text
from marginlab.plan.machine import calibrate, place
from marginlab.plan.setup import Setup

PROG = "python -m marginlab.plan"


def main(arguments: list[str]) -> int:
    """Print the plan that the arguments ask for, and return the exit status."""
    front = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    front.add_argument(
        "--calibrate", action="store_true", help="measure this machine's rates first"
    )
    asked, flags = front.parse_known_args(arguments)
    if {"-h", "--help"} & set(flags):
        sys.stdout.write(f"{__doc__}\n")
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        setup = settings.read(Setup, None, flags, prog=PROG)
        if together:
            if setup.device == "cuda" and torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            ranks.join("nccl" if setup.device == "cuda" and torch.cuda.is_available() else "gloo")
        measured = ""
        if asked.calibrate:
            setup = calibrate(setup)
            measured = f"\n\nRates measured on {place(setup)}."
        if ranks.rank() == 0:
            sys.stdout.write(f"{plan_text(setup)}{measured}\n")
    except (ValueError, RuntimeError) as error:  # SettingsError is a ValueError
        if ranks.rank() == 0:
            sys.stderr.write(f"error: {error}\n")
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
