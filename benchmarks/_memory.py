"""The most memory that a call holds beyond what is there when it begins, in bytes.

On a CPU it is the kernel's own high-water mark of the resident set (VmHWM of /proc/self/status, set
back by writing 5 to /proc/self/clear_refs), which misses nothing, as a thread that samples would,
and sees what no allocator of torch reports, such as a library's repacked matrices. What the C
library had kept for reuse is given back before (malloc_trim), as it would hide an allocation. Linux
only. On CUDA: the allocator's peak.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def extra_bytes(function: Callable[[], object]) -> int | None:
    """Return the peak memory during a call, its result included, beyond the memory before it.

    None where the system does not tell.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not _CLEAR.exists():
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    _CLEAR.write_text("5")
    before = _kibibytes("VmRSS")
    function()
    return (_kibibytes("VmHWM") - before) * 1024


def _kibibytes(name: str) -> int:
    return next(
        int(line.split()[1])
        for line in _STATUS.read_text().splitlines()
        if line.startswith(f"{name}:")
    )
