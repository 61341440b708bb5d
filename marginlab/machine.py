"""The hardware of a measurement: the processor or GPU of this process, and its threads.

A sum of floats depends on the order in which it is taken. The order depends on the number of
threads and on the vector instructions of the processor. So numbers are the same, bit for bit, only
on processors of one kind with the same number of threads. A training amplifies the last bit of a
sum as far as another seed would.
"""

import contextlib
import os
import platform
import sys
from pathlib import Path


def processor() -> str:
    """Return the name of the processor, as the system knows it."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    return name


def device() -> str:
    """Name the GPU that torch has, or else the processor.

    A processor is followed by the number of cores that may be used and, if torch is loaded, by its
    threads.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    said = f"CPU {processor()}, {cores} {'core' if cores == 1 else 'cores'}"
    if torch is None:
        return said
    threads = torch.get_num_threads()
    return f"{said}, {threads} {'thread' if threads == 1 else 'threads'}"


def check_device(device: str) -> None:
    """Check that torch knows the device of a command's flag `--device`, and that it is there.

    Raises:
        ValueError: It cannot be used.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
        told = str(error).splitlines()[0]
        raise ValueError(f"--device {device} cannot be used: {told}. Give cpu.") from error
