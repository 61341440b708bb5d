"""The common part of all benchmarks: the place of a measurement, its time, and its JSON file.

A time is the median of several repeats after one that is not counted. A number has a source: `save`
writes it beside its command, device and versions. Every benchmark first prints the rate of this
machine's bare matrix products in float32 and in bfloat16, and the faster of them. A ratio to bare
products means nothing without their rate.
"""

import datetime
import functools
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import marginlab


def environment() -> dict[str, Any]:
    """Where this process measures: device, cores, threads, versions, command line, date (UTC)."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        # well above `threads`: others measured here too, and only ratios within one run mean
        # anything
        "load": round(os.getloadavg()[0], 1),
        "gigaflops": _rates(torch.get_num_threads()),  # of bare products
        "torch": torch.__version__,
        "marginlab": marginlab.__version__,
        "python": platform.python_version(),
        "command": shlex.join(
            [Path(sys.executable).name, *(_relative(argument) for argument in sys.argv)]
        ),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


WORTH = 1.15  # bfloat16 keeps 8 bits, so it has to be faster than float32 by this factor
SIDES = {"cpu": (256, 512, 2048), "cuda": (4096, 4096, 8192)}  # of a product's two factors


def show_products() -> None:
    """Print the rate of this machine's bare products, and the precision that they prefer."""
    rates = _rates(torch.get_num_threads())
    faster = rates["bfloat16"] / rates["float32"]
    preferred = "bfloat16" if faster >= WORTH else "float32"
    threads = "" if torch.cuda.is_available() else f", {torch.get_num_threads()} threads"
    print(
        f"{environment()['device']}{threads}: bare products of {rates['float32']:,.0f} GFLOP/s in "
        f"float32 and {rates['bfloat16']:,.0f} in bfloat16 ({faster:.2f} times as many). They "
        f"prefer {preferred}.",
        flush=True,
    )


@functools.cache
def _rates(threads: int) -> dict[str, float]:
    """Return the GFLOP/s of a matrix product in both precisions: the best of five, in turns.

    Args:
        threads: Those of torch, so that another number is measured anew.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    m, k, n = SIDES[device.type]
    a, b = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
    pairs = {
        str(dtype).removeprefix("torch."): (a.to(dtype), b.to(dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds = {name: float("inf") for name in pairs}
    for _ in range(5):
        for name, (left, right) in pairs.items():
            taken = median_seconds(lambda left=left, right=right: left @ right.T, 1)
            seconds[name] = min(seconds[name], taken)
    return {name: round(2e-9 * m * k * n / each, 1) for name, each in seconds.items()}


def _relative(argument: str) -> str:
    """An argument as one types it in the repository: no folder of the machine it ran on."""
    root = Path(__file__).resolve().parents[1]
    path = Path(argument).resolve()
    return (
        str(path.relative_to(root))
        if Path(argument).is_absolute() and path.is_relative_to(root)
        else argument
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )


def median_seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of a call; one call before is not counted.

    On CUDA each call is waited for.
    """
    if repeats < 1:
        raise ValueError(f"A median needs at least one repeat, not {repeats}.")
    function()
    _wait()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        _wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def save(name: str, rows: Sequence[dict[str, Any]], out: Path | str) -> None:
    """Write `rows` and where they were measured to the JSON file `out`; its folder is made.

    An interrupted write leaves the old file.
    """
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(
        json.dumps({"name": name, "environment": environment(), "rows": list(rows)}, indent=1)
        + "\n",
        encoding="utf-8",
    )
    draft.replace(path)
