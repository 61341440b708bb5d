"""The number format of a training: named by the recipe, or chosen by a probe that times both.

Bfloat16 is faster than float32 on a processor with matrix units for it, and several times slower on
one that emulates it. With `precision = "auto"` the first start of a run times the backbone in both
and writes its choice to `precision.json`. Every later start, and every rank, reads that file, so a
run keeps one format on whatever machine it resumes. Cells of a study share one file.
"""

import copy
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from marginlab import files, machine, ranks
from marginlab.settings import SettingsError

AUTO = "auto"
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
RECORD = "precision.json"
WORTH = 1.15  # bfloat16 rounds to 8 bits, so it has to be faster than float32 by this factor
HOPELESS = 4.0  # a first pass this many times slower than float32 ends the probe
IMAGES, ROUNDS = 32, 5
_LONGEST = 2**16  # bytes of a record


def chosen(
    precision: str, backbone: torch.nn.Module, views: torch.Size, folder: Path
) -> tuple[str, str]:
    """Return the precision that a run trains in, and a sentence about it if a probe decided.

    All ranks call it. The first reads the record or probes.

    Args:
        precision: The recipe's precision: float32, bfloat16 or auto.
        backbone: The module to train. A probe leaves its weights, statistics and gradients as they
            were.
        views: The shape of the views of one micro-batch, (n, channels, height, width).
        folder: The folder of `precision.json`, which is read or written there.

    Returns:
        One of `PRECISIONS`, and a sentence, which is empty if the recipe names the precision.

    Raises:
        SettingsError: `precision.json` holds something else than a record.
    """
    if precision != AUTO:
        return precision, ""

    def decide() -> tuple[str, str]:
        file = folder / RECORD
        if not file.exists():
            _write_once(file, probe(backbone, views))
        return _read(file)

    found: tuple[str, str] = ranks.broadcast_from_first(decide)
    return found


def probe(backbone: torch.nn.Module, views: torch.Size) -> dict[str, Any]:
    """Time forward and backward passes in both precisions, in turn.

    The backbone is copied. At most 32 views are passed, five times in each precision after one pass
    that is not counted.

    Returns:
        The precision to train in, the median seconds of each, and the device. If the first pass of
        bfloat16 alone was four times slower, its seconds are those of that pass.
    """
    parameter = next(backbone.parameters())
    device, shape = parameter.device, (min(views[0], IMAGES), *views[1:])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        images = torch.rand(shape, device=device).to(memory_format=torch.channels_last)
        copied = _copy(backbone)
        for precision in PRECISIONS:
            first = _seconds(copied, images, precision)
            if precision == "float32":
                first = _seconds(copied, images, precision)  # the first pass made its plans
                limit = HOPELESS * max(first, 0.25)
            elif first > limit:
                return _record("float32", limit / HOPELESS, first)
        rounds = [[_seconds(copied, images, p) for p in PRECISIONS] for _ in range(ROUNDS)]
    single, half = (statistics.median(each) for each in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    return _record("bfloat16" if ratio >= WORTH else "float32", single, half)


def _record(precision: str, single: float, half: float) -> dict[str, Any]:
    seconds = {"float32": float(f"{single:.3g}"), "bfloat16": float(f"{half:.3g}")}
    return {"precision": precision, "seconds": seconds, "device": machine.device()}


def _copy(backbone: torch.nn.Module) -> torch.nn.Module:
    """Copy a backbone, so that the probe moves no running statistic of the one that is trained."""
    return copy.deepcopy(backbone).train().requires_grad_(True)


def _seconds(backbone: torch.nn.Module, images: torch.Tensor, precision: str) -> float:
    """Return the seconds of one forward and backward pass."""
    dtype, device = PRECISIONS[precision], images.device
    backbone.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        loss = backbone(images).float().square().mean()
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _write_once(file: Path, record: dict[str, Any]) -> None:
    """Write a record unless another process was first, whose record then stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{RECORD}.", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(json.dumps(record, indent=1) + "\n")
        Path(name).chmod(0o644)
        try:
            os.link(name, file)
        except FileExistsError:
            return
    finally:
        Path(name).unlink(missing_ok=True)


def _read(file: Path) -> tuple[str, str]:
    """Read a record as data."""
    try:
        record = json.loads(files.content_of(file, _LONGEST))
        precision, device = record["precision"], record["device"]
        single, half = (float(record["seconds"][name]) for name in PRECISIONS)
        if precision not in PRECISIONS or not isinstance(device, str) or not (single > 0 < half):
            raise ValueError("it names no precision")
    except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
        raise SettingsError(
            f"{file} is no record of a probe ({type(error).__name__}: {error}). Remove it, and the "
            "next start probes again, or name the precision in the recipe: float32 or bfloat16."
        ) from error
    told = (
        f"trains in {precision}: a pass took {single:.3g} s in float32 and {half:.3g} s in "
        f"bfloat16 on {device}"
    )
    return precision, told
