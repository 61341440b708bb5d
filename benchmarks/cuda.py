"""Correctness, speed and memory on a CUDA device by one command, in parts in the order of worth.

    python benchmarks/cuda.py --minutes 10 [--out benchmarks/measured/cuda] [--parts tests head]
    python benchmarks/cuda.py --small --out /tmp/tried          # to try it, also on a CPU

    tests        losses, margins, measures, augmentations and training against float64 on the CPU
    head         ArcFace over 1,000,000 classes, and over 256,000 of 2,304 features, beside peers
    contrastive  NT-Xent of 2 x 65,536 rows, two towers of 65,536 rows, beside bare products
    partial_fc   steps at 10, 30 and 100 million classes on one card, beside the planner's bytes
    training     SimCLR with a ResNet-18, images a second, with and without torch.compile
    views        views a second of the augmentations, and d_A of one class
    profile      the kernels that a head and a two-tower loss spend their time in

Each part runs in a process of its own under its own time limit, and writes its JSON file before
the next part begins: a machine that is lost in the middle loses one part. A part that fails or
runs out of time is named at the end, and the command then ends with code 1. No network is needed.
`benchmarks/README.md` says which wheels to bring.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SECONDS = {  # the longest that a part may take
    "tests": 150,
    "head": 110,
    "contrastive": 90,
    "partial_fc": 110,
    "training": 150,
    "views": 60,
    "profile": 60,
}
NEEDED = (
    "pytest",
    "hypothesis",
    "beartype",
    "jaxtyping",
    "torchmetrics",
    "timm",
    "sklearn",
    "tyro",
    "rich",
)
PEERS = ("cut_cross_entropy", "memeff")


def command(part: str, out: Path, small: bool) -> list[str]:
    """The process of a part."""
    file = ["_cuda_tests.py"] if part == "tests" else ["_cuda_parts.py", part]
    size = ["--small"] if small else []
    return [sys.executable, str(HERE / file[0]), *file[1:], "--out", str(out), *size]


def fault(words: list[str], limit: float) -> str:
    """Run a process; return how it failed within the limit of seconds, or nothing."""
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    try:
        code = subprocess.run(words, cwd=HERE.parent, timeout=limit, env=environment).returncode
    except subprocess.TimeoutExpired:
        return f"not done within {limit:.0f} s"
    return f"ended with code {code}" if code else ""


def installed() -> None:
    """Say what is there and what is not; end where the parts cannot run at all."""
    import torch

    found = {
        name: importlib.util.find_spec(name) is not None for name in (*NEEDED, *PEERS, "triton")
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device: CPU"
    print(f"{device}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    if not found["triton"]:
        print("Triton is not installed: the head runs with torch's own operations.", flush=True)
    if lacking := [name for name in PEERS if not found[name]]:
        print(f"Not installed, so these rows are left out: {', '.join(lacking)}.", flush=True)
    if lacking := [name for name in NEEDED if not found[name]]:
        sys.exit(f"Install {', '.join(lacking)} first; benchmarks/README.md lists the wheels.")


def main() -> None:
    """Run the parts one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=list(SECONDS), default=list(SECONDS))
    parser.add_argument("--small", action="store_true", help="small sizes, to try the command")
    parser.add_argument("--out", type=Path, default=HERE / "measured" / "cuda")
    chosen = parser.parse_args()
    if chosen.small and chosen.out == HERE / "measured" / "cuda":
        parser.error("--small measures nothing worth keeping: name another folder with --out.")
    if not 0 < chosen.minutes < float("inf"):
        parser.error(f"--minutes is a positive number, not {chosen.minutes}.")
    installed()
    out = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * chosen.minutes
    faults = []
    for part in chosen.parts:
        limit = min(SECONDS[part], end - time.monotonic())
        if limit < 5:
            faults.append(f"{part}: no time was left")
            continue
        print(f"\n== {part} (at most {limit:.0f} s)", flush=True)
        start = time.monotonic()
        if said := fault(command(part, out / f"{part}.json", chosen.small), limit):
            faults.append(f"{part}: {said}")
        print(f"== {part}: {time.monotonic() - start:.0f} s", flush=True)
    for each in faults:
        print(each, flush=True)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
