"""The rates of this machine, measured: matrix products, memory, and exchange between ranks.

Each is the best of five repetitions.

    matrix rate     flop/s of (G, D) x (D, 8192) products, with factors of the type of the head's
                    weights
    memory rate     bytes/s, read and written, of copying 128 MiB
    exchange rate   bytes/s that a rank sends in an all-reduce of 16 MiB, as a ring counts them:
                    2 (N - 1) / N of the payload

Seconds are wall-clock seconds, so the machine should be idle otherwise. Under torchrun the exchange
is that of its own ranks, over NCCL on GPUs and gloo on CPUs, as in training. Otherwise two gloo
processes are started on this machine for it. They share its cores and its memory, so this is no
figure for a network.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from marginlab import ranks
from marginlab.plan.setup import Setup

COLUMNS = 8192
PAYLOAD = 16 * 2**20
REPETITIONS = 5
PATIENCE = timedelta(seconds=60)


def calibrate(setup: Setup) -> Setup:
    """Return the setup with the rates of this machine.

    Every rank of a process group calls it, and all get rank 0's rates.

    Raises:
        RuntimeError: The setup is for CUDA and there is none.
    """
    if setup.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "The plan is for CUDA, and this machine has none to measure. Calibrate where you "
            "train, or plan with --device cpu."
        )
    device = torch.device(setup.device)
    measured: tuple[float, float, float] = ranks.broadcast(
        (matrix_rate(setup, device), memory_rate(device), exchange_rate(device))
    )
    return replace(
        setup, matrix_rate=measured[0], memory_rate=measured[1], exchange_rate=measured[2]
    )


def matrix_rate(setup: Setup, device: torch.device) -> float:
    """Measure the flop/s of products like the head's: its rows, dimension and weights' type."""
    kind = torch.bfloat16 if setup.weights == "bf16" else torch.float32
    a, b = (
        torch.randn(setup.rows, setup.dim, device=device, dtype=kind),
        torch.randn(COLUMNS, setup.dim, device=device, dtype=kind),
    )
    out = torch.empty(setup.rows, COLUMNS, device=device, dtype=kind)
    return 2 * setup.rows * setup.dim * COLUMNS / _best(lambda: torch.mm(a, b.T, out=out), device)


def memory_rate(device: torch.device, numbers: int = 2**25) -> float:
    """Measure the bytes/s read and written by a copy."""
    a = torch.ones(numbers, device=device)
    b = torch.empty_like(a)
    return 2 * 4 * numbers / _best(lambda: b.copy_(a), device)


def exchange_rate(device: torch.device) -> float:
    """Measure the bytes/s that a rank sends to another.

    The ranks are those of the present process group, or two processes started for it.
    """
    if dist.is_initialized() and ranks.size() > 1:
        return _exchange(device)
    from torch.multiprocessing.spawn import start_processes

    with tempfile.TemporaryDirectory() as folder:
        start_processes(_one_of_two, (folder,), nprocs=2, start_method="spawn")
        return float((Path(folder) / "rate").read_text())


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=PATIENCE
    )
    try:
        rate = _exchange(torch.device("cpu"))
        if rank == 0:
            (Path(folder) / "rate").write_text(repr(rate))
    finally:
        dist.destroy_process_group()


def _exchange(device: torch.device) -> float:
    payload = torch.zeros(PAYLOAD // 4, device=device)
    N = ranks.size()
    return 2 * (N - 1) / N * PAYLOAD / _best(lambda: dist.all_reduce(payload), device)


def _best(function: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of the fastest call, after one that is not timed."""
    times = []
    for _ in range(REPETITIONS + 1):
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def described(setup: Setup) -> str:
    """Describe the rates in a line.

    Example:
        >>> described(Setup(matrix_rate=2e13, memory_rate=1.5e12, exchange_rate=1e10))
        'matrix products 20,000.0 Gflop/s, memory 1,500.0 GB/s, exchange 10.0 GB/s'
    """
    matrix, memory, exchange = (
        rate / 1e9 for rate in (setup.matrix_rate, setup.memory_rate, setup.exchange_rate)
    )
    return (
        f"matrix products {matrix:,.1f} Gflop/s, memory {memory:,.1f} GB/s, exchange "
        f"{exchange:,.1f} GB/s"
    )


def place(setup: Setup) -> str:
    """Name the device where rates were measured, or the CPU's threads, and torch's version."""
    name = (
        torch.cuda.get_device_name()
        if setup.device == "cuda"
        else f"a CPU with {torch.get_num_threads()} threads"
    )
    return f"{name}, torch {torch.__version__}"
