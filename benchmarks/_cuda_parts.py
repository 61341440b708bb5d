"""The measured parts of `cuda.py`: each prints rows and keeps them in a JSON file as they come.

    python benchmarks/_cuda_parts.py head --out FILE [--small]

Every part begins with this device's bare products. A row is written when it is measured, and a task
that fails leaves its error as its row.
"""

import argparse
import functools
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _head_tasks import bare, cut_cross_entropy, inputs, linear_cross_entropy, low, naive, ours
from _memory import extra_bytes
from _report import median_seconds, save, show_products
from contrastive import bare_nt_xent, bare_towers
from head import errors
from torch import Tensor

from marginlab import plan
from marginlab.augment import Augmentation
from marginlab.kernels import minimum
from marginlab.losses import PartialFC
from marginlab.losses.functional import info_nce, two_towers
from marginlab.margins import ArcFace
from marginlab.optim import LazySGD
from marginlab.train import Monitor, Recipe, fit

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = 5


class Table:
    """Rows that are printed and saved as they come."""

    def __init__(self, part: str, out: Path):
        self.part = part
        self.out = out
        self.rows: list[dict[str, Any]] = []

    def add(self, **row: Any) -> None:
        """Print and keep a row."""
        self.rows.append(row)
        print("   ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        save(f"cuda {self.part}", self.rows, self.out)

    def measure(
        self, task: str, call: Callable[[], Any], bare_seconds: float = 0, **row: Any
    ) -> float:
        """Time and watch a call.

        A call that fails is a row with its error, and takes infinitely long.
        """
        try:
            seconds = median_seconds(call, ROUNDS)
            extra = extra_bytes(call)
        except Exception as error:  # out of memory, or what a peer does not take
            first = str(error).strip().split("\n")[0][:200]
            self.add(task=task, **row, error=f"{type(error).__name__}: {first}")
            clear()
            return float("inf")
        found = {"milliseconds": round(seconds * 1e3, 3)}
        if extra is not None:
            found["extra_mb"] = round(extra / 1e6, 1)
        if bare_seconds:
            found["of_bare_products"] = round(seconds / bare_seconds, 3)
        self.add(task=task, **row, **found)
        clear()
        return seconds


def clear() -> None:
    """Give memory back between tasks."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def head(table: Table, small: bool) -> None:
    """ArcFace over many classes, forward and backward."""
    torch._dynamo.config.recompile_limit = 64
    low_precision = torch.bfloat16
    makers: dict[str, Any] = {
        "margin_softmax, class tiles": ours("class tiles", low_precision),
        "margin_softmax, one buffer": ours("one buffer", low_precision),
        "margin_softmax, class tiles, bfloat16 centers": low(ours("class tiles", low_precision)),
        "naive autograd, autocast": naive(autocast=True),
    }
    if hasattr(F, "linear_cross_entropy"):
        makers["torch linear_cross_entropy (no margin)"] = low(linear_cross_entropy("none"))
    try:
        makers["cut-cross-entropy (no margin)"] = cut_cross_entropy("high")
        makers["cut-cross-entropy (no margin), no filter"] = cut_cross_entropy(None)
    except ImportError:
        print("cut-cross-entropy is not installed, and is left out.", flush=True)
    sizes = [(1024, 1_000_000, 512), (8192, 256_000, 2304)]
    for B, C, D in [(32, 2000, 64)] if small else sizes:
        size = {"rows": B, "classes": C, "dim": D}
        x, W, y = inputs("trained", B, C, D)
        table.measure("bare products, float32", bare(torch.float32)(x, W, y), **size)
        of = table.measure("bare products, bfloat16", bare(low_precision)(x, W, y), **size)
        for name, maker in makers.items():
            table.measure(name, maker(x, W, y), of, **size)
        del x, W, y
        clear()
    for row in errors(*((32, 2000, 64) if small else (1024, 100_000, 512))):
        table.add(**row)


def contrastive(table: Table, small: bool) -> None:
    """InfoNCE of two views and of two towers, forward and backward."""

    def call(loss: Any, *z: Tensor) -> Callable[[], Any]:
        def run() -> None:
            leaves = [t.detach().requires_grad_() for t in z]
            loss(*leaves).backward()

        return run

    def pair(n: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(DEVICE).manual_seed(0)
        made = torch.empty(2, n, dim, device=DEVICE).normal_(generator=generator)
        made[1] = 0.5 * made[0] + made[1]
        return F.normalize(made[0]).to(dtype), F.normalize(made[1]).to(dtype)

    def towers(z1: Tensor, z2: Tensor) -> Tensor:
        return info_nce(z1, z2, temperature=0.07, negatives="other_view")

    n, dim = (128, 64) if small else (65_536, 512)
    for dtype in (torch.bfloat16, torch.float32):
        size = {"rows": n, "dim": dim, "dtype": str(dtype).removeprefix("torch.")}
        z1, z2 = pair(n, dim, dtype)
        of = table.measure("two towers: bare products", bare_towers(z1, z2), **size)
        table.measure("two towers: info_nce", call(towers, z1, z2), of, **size)
        for widths in ((dim,), (dim // 8, dim // 4, dim // 2, dim)):
            nested = functools.partial(two_towers, temperature=0.07, widths=widths)
            task = f"two towers: two_towers, {len(widths)} widths"
            table.measure(task, call(nested, z1, z2), of, **size)
        try:
            from memeff import MemoryEfficientCLIPLoss
        except ImportError:
            print("memeff is not installed, and is left out.", flush=True)
        else:
            peer = MemoryEfficientCLIPLoss(temperature=0.07)
            table.measure("two towers: memeff", call(peer, z1, z2), of, **size)
    n, dim = (64, 32) if small else (65_536, 128)
    z1, z2 = pair(n, dim, torch.float32)
    size = {"rows": 2 * n, "dim": dim, "dtype": "float32"}
    of = table.measure("NT-Xent: bare products", bare_nt_xent(z1, z2), **size)
    nt_xent = call(lambda a, b: info_nce(a, b, temperature=0.1), z1, z2)
    table.measure("NT-Xent: info_nce", nt_xent, of, **size)


def partial_fc(table: Table, small: bool) -> None:
    """A step of Partial FC with bfloat16 centers and momentum on one card."""
    large = [(10_000_000, 512), (30_000_000, 512), (100_000_000, 128)]
    B, rate = (16, 0.1) if small else (1024, 0.1)
    for C, D in [(2000, 32)] if small else large:
        row = {"classes": C, "dim": D, "rows": B, "sample_rate": rate}
        try:
            clear()
            if DEVICE.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            found = _steps(B, C, D, rate)
        except Exception as error:
            first = str(error).strip().split("\n")[0][:300]
            table.add(**row, error=f"{type(error).__name__}: {first}")
            continue
        setup = plan.Setup(
            classes=C,
            dim=D,
            batch=B,
            ranks=1,
            sample_rate=rate,
            weights="bf16",
            device=DEVICE.type,
        )
        planned = plan.peak(setup)
        table.add(**row, **found, planned_mb=round(planned / 1e6, 1))


def _steps(B: int, C: int, D: int, rate: float) -> dict[str, float]:
    """Median seconds of a step, and the most bytes that were allocated in it."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    start = time.perf_counter()
    block = PartialFC(min(C, 100_000), D, device=DEVICE, dtype=torch.bfloat16)
    drawing = (time.perf_counter() - start) * C / block.num_classes
    del block
    with torch.device("meta"):  # its own centers are drawn on the CPU, class by class
        head = PartialFC(C, D, margin=ArcFace(0.5), sample_rate=rate, dtype=torch.bfloat16)
    head.to_empty(device=DEVICE)
    with torch.no_grad():
        head.centers.normal_(0.0, 0.01, generator=generator)
    optimizer = LazySGD(head.parameters(), lr=0.1, momentum=0.9, momentum_dtype=torch.bfloat16)

    def step() -> None:
        x = torch.empty(B, D, device=DEVICE).normal_(generator=generator).requires_grad_()
        labels = torch.randint(C, (B,), generator=generator, device=DEVICE)
        head(x, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the momentum
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(step, ROUNDS)
    found = {"milliseconds": round(seconds * 1e3, 2), "seconds_to_draw_all": round(drawing, 1)}
    if DEVICE.type == "cuda":
        found["allocated_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return found


def profile(table: Table, small: bool) -> None:
    """Milliseconds by kernel of a head and of a two-tower loss: what a slow row spends."""
    B, C, D = (32, 2000, 64) if small else (1024, 1_000_000, 512)
    x, W, y = inputs("trained", B, C, D)
    n, dim = (128, 64) if small else (32_768, 512)
    towers = torch.randn(2, n, dim, device=DEVICE).bfloat16()

    def two_towers_loss() -> None:
        leaves = [t.detach().requires_grad_() for t in towers]
        info_nce(*leaves, temperature=0.07, negatives="other_view").backward()

    tasks = {
        "margin_softmax, class tiles": ours("class tiles", torch.bfloat16)(x, W, y),
        "margin_softmax, one buffer": ours("one buffer", torch.bfloat16)(x, W, y),
        "two towers: info_nce": two_towers_loss,
    }
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for task, call in tasks.items():
        call()
        with torch.profiler.profile(activities=activities) as seen:
            call()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
        on_device = DEVICE.type == "cuda"
        spent = {
            event.key: (event.self_device_time_total if on_device else event.self_cpu_time_total)
            for event in seen.key_averages()
        }
        calls = {event.key: event.count for event in seen.key_averages()}
        total = sum(spent.values())
        for name, microseconds in sorted(spent.items(), key=lambda each: -each[1])[:14]:
            table.add(
                task=task,
                kernel=name[:110],
                calls=calls[name],
                milliseconds=round(microseconds / 1e3, 3),
                share=round(microseconds / max(total, 1e-9), 3),
            )
        clear()


def training(table: Table, small: bool) -> None:
    """Images a second of SimCLR with a ResNet-18, the whole loop, and the network alone."""
    recipe = Recipe(
        images=32 if small else 5000,
        image_size=16 if small else 0,
        backbone="Backbone('resnet18', stem='strided', width=0.25)"
        if small
        else "Backbone('resnet18', stem='cifar')",
        batch=16 if small else 512,
        precision="float32" if small else "bfloat16",
        epochs=1 if small else 12,
    )
    monitor = Monitor(images=20, views=2, bank=20, probe_classes=0)
    for compiled in (False, True) if DEVICE.type == "cuda" else (False,):
        tried = replace(recipe, compile=compiled)
        with tempfile.TemporaryDirectory() as folder:
            run = fit(tried, Path(folder) / "run", monitor, say=lambda _: None)
        table.add(
            task="fit, whole loop",
            compile=compiled,
            batch=recipe.batch,
            epochs=recipe.epochs,
            images_per_second=round(run.images_per_second),
        )
        clear()
    from training import measure  # torch's own import of the network alone

    repeats = 2 if small else ROUNDS
    for row in measure(replace(recipe, epochs=1 if small else 4), repeats):
        table.add(**row)


def views(table: Table, small: bool) -> None:
    """Views a second, and the smallest distances of one class."""
    for size, number in [(16, 8)] if small else [(32, 4096), (96, 512), (224, 128)]:
        images = torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, device=DEVICE)
        for letters in ("a", "d", "e", "abcde"):
            augmentation = Augmentation(letters)

            def draw(augmentation: Augmentation = augmentation, images: Tensor = images) -> Any:
                return augmentation.views(images, n_views=2)

            seconds = median_seconds(draw, ROUNDS)
            table.add(
                task=f"views of {letters}",
                size=size,
                images=number,
                views_per_second=round(2 * number / seconds),
            )
    N, V, P = (6, 4, 48) if small else (150, 32, 3072)
    x = torch.rand(N, V, P, device=DEVICE)
    flat = x.flatten(0, 1)
    full = statistics.median(median_seconds(lambda: flat @ flat.T, 1) for _ in range(ROUNDS))
    size = {"images": N, "views": V, "numbers": P}
    table.add(task="full product of all views", **size, milliseconds=round(full * 1e3, 3))
    table.measure("minimum: d_A of one class", lambda: minimum(x), full, **size)


PARTS = {
    "head": head,
    "contrastive": contrastive,
    "partial_fc": partial_fc,
    "training": training,
    "views": views,
    "profile": profile,
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    chosen = parser.parse_args()
    show_products()
    PARTS[chosen.part](Table(chosen.part, chosen.out), chosen.small)


if __name__ == "__main__":
    main()
