"""Forward and backward of the ArcFace loss over many classes, beside bare products and peers.

    python benchmarks/head.py [--rows 256] [--classes 100000] [--dim 512] [--threads 2]
        [--rounds 5] [--skip TEXT] [--out benchmarks/measured/head.json]
    python benchmarks/head.py --small
        # to try it: 64 rows, 5,000 classes, 64 features, and nothing is saved without --out
    python benchmarks/head.py --rows 1024 --classes 1000000
        # where there is a CUDA device, it is used

The bare products are its three matrix products. Printed for each task: median seconds of the clock
and of the processor, the ratio to the bare products in float32, the most memory held at any moment
beyond embeddings and centers, less the size of their two gradients, and the loss. Tasks take turns,
round by round, and the ratio is the median of those within a round: of processor seconds, on CUDA
of the clock's. On a machine that others use too, with --threads 1, so that no thread waits for
another, processor seconds hardly change and the clock's mean little. All outputs are allocated by
the task.

    bare products         x W^T, G W and G^T x, in float32 and in bfloat16: the products of any
                          implementation that keeps the logits
    margin_softmax        each of its three ways to hold little. With its default budget of 128 MiB
                          (CUDA: 512 MiB) 256 rows and 100,000 classes are "one buffer"; here the
                          budget says which. Row chunks are of half of the rows here. By default
                          they are taken where the budget holds 100 rows, on CUDA 1,000
                          (marginlab.kernels.margin_softmax.least_rows)
    naive autograd        normalise, product, margin on the target, cross_entropy; also compiled,
                          and under autocast to bfloat16
    ArcFaceLoss           of pytorch-metric-learning; the same loss while theta + m <= pi
    linear_cross_entropy  of torch: the plain softmax, without margin and without normalising, so
                          that its loss is another number. Plain, and in chunks of half of the
                          rows. Its automatic chunks (of 2 rows at these sizes) take minutes:
                          --automatic

Then the relative errors of loss and gradients against float64, for random embeddings (target angles
of 90 degrees) and for embeddings like a trained network's (45 degrees). Last, rows that need no
backward pass: with negligible=1e-3, as rows come nearer to their own centers (50, 40 and 30 degrees
in the mean, spread by 8), the time beside that without it, the share of the rows left out, and the
bound of the change of the gradients beside the gradient of the rows' directions.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _head_tasks import (
    MARGIN,
    SCALE,
    Maker,
    Task,
    at_angles,
    bare,
    inputs,
    linear_cross_entropy,
    metric_learning,
    naive,
    ours,
)
from _memory import extra_bytes
from _report import _wait, save, show_products

from marginlab.losses import MarginSoftmax
from marginlab.margins import ArcFace

ANGLES = (50.0, 40.0, 30.0)  # mean degrees between rows and their own centers
NEGLIGIBLE = 1e-3


def tasks(automatic: bool) -> dict[str, Maker]:
    """All that take turns, by name."""
    names = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
    made = {f"bare products, {name}": bare(dtype) for dtype, name in names.items()}
    for dtype, name in names.items():
        for way in ("one buffer", "row chunks", "class tiles"):
            made |= {
                f"margin_softmax, {way}, {name}{', compiled' if compiled else ''}": ours(
                    way, dtype, compiled=compiled
                )
                for compiled in (False, True)
            }
    made |= {
        "naive autograd": naive(),
        "naive autograd, compiled": naive(compiled=True),
        "naive autograd, autocast": naive(autocast=True),
    }
    made["pytorch-metric-learning ArcFaceLoss"] = metric_learning
    for chunks in ("none", "half", *(("automatic",) if automatic else ())):
        made[f"linear_cross_entropy (no margin), chunks: {chunks}"] = linear_cross_entropy(chunks)
    return made


def peak(task: Task) -> tuple[float | None, int | None]:
    """Return the loss, and the peak bytes beyond embeddings, centers and their gradients.

    The call that is measured is not the first.
    """
    loss, dx, dw = task()
    of_gradients = dx.nbytes + dw.nbytes
    del dx, dw
    extra = extra_bytes(task)
    return None if loss is None else float(loss), None if extra is None else extra - of_gradients


def seconds(task: Task) -> tuple[float, float]:
    """Seconds of the clock and of the processor of a call that is not the first."""
    _wait()
    start, worked = time.perf_counter(), time.process_time()
    task()
    _wait()
    return time.perf_counter() - start, time.process_time() - worked


def errors(B: int, C: int, D: int, skip: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Relative errors of loss and gradients against `margin_softmax` in float64."""
    rows = []
    for kind in ("random", "trained"):
        x, W, y = inputs(kind, B, C, D)
        exact = ours("class tiles", None)(x.double(), W.double(), y)()
        makers = {
            "margin_softmax, float32": ours("one buffer", torch.float32),
            "margin_softmax, bfloat16": ours("one buffer", torch.bfloat16),
            "naive autograd": naive(),
            "naive autograd, autocast": naive(autocast=True),
        }
        for name, maker in makers.items():
            if any(text in name for text in skip):
                continue
            value, *slopes = (
                float((a.double() - b).norm() / b.norm())
                for a, b in zip(maker(x, W, y)(), exact, strict=True)
            )
            row = {"error_of": name, "inputs": kind, "loss": float(exact[0]), "loss_error": value}
            row |= {"embeddings_gradient_error": slopes[0], "centers_gradient_error": slopes[1]}
            rows.append(row)
            print(
                f"{name:28} {kind:8} loss {row['loss']:9.5f}, error {value:.1e}, of gradients "
                f"{slopes[0]:.1e} {slopes[1]:.1e}",
                flush=True,
            )
    return rows


def left_out(B: int, C: int, D: int, rounds: int) -> list[dict[str, Any]]:
    """Rows that need no backward pass: their share, the time, and the bound of the change."""
    rows = []
    for degrees in ANGLES:
        x, W, y = at_angles(degrees, B, C, D)
        pair = [ours("one buffer", None), ours("one buffer", None, negligible=NEGLIGIBLE)]
        whole, fewer = (make(x, W, y) for make in pair)
        exact, changed = whole(), fewer()
        turns = [(seconds(whole), seconds(fewer)) for _ in range(rounds)]
        which = 0 if x.is_cuda else 1
        head = MarginSoftmax(C, D, margin=ArcFace(MARGIN), scale=SCALE, negligible=NEGLIGIBLE)
        head.centers = torch.nn.Parameter(W[:, None])
        head(x.clone().requires_grad_(), y)
        found = head.left_out
        assert found is not None
        rows.append(
            {
                "task": "rows left out of the backward pass",
                "degrees": degrees,
                "negligible": NEGLIGIBLE,
                "share": round(int(found.rows) / B, 4),
                "of_whole_pass": round(statistics.median(b[which] / a[which] for a, b in turns), 3),
                "bound": float(found.bound),
                "gradient": float(exact[1].norm()),
                "change": float((exact[1] - changed[1]).norm()),
            }
        )
        print("   ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    # many sizes and dtypes take turns here: one head compiles fewer times than the default allows
    torch._dynamo.config.recompile_limit = 64
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=256, help="B")
    parser.add_argument("--classes", type=int, default=100_000, help="C")
    parser.add_argument("--dim", type=int, default=512, help="D")
    parser.add_argument("--small", action="store_true", help="64 rows, 5,000 classes, 64 features")
    parser.add_argument("--threads", type=int, help="of torch; its own choice by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--automatic",
        action="store_true",
        help="linear_cross_entropy in chunks of its own choice too: minutes",
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="TEXT",
        help="leave out tasks with this in their names",
    )
    parser.add_argument("--out", help="benchmarks/measured/head.json; with --small nowhere")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    show_products()
    B, C, D = (64, 5000, 64) if chosen.small else (chosen.rows, chosen.classes, chosen.dim)
    x, W, y = inputs("random", B, C, D)
    makers = {
        name: maker
        for name, maker in tasks(chosen.automatic).items()
        if not any(text in name for text in chosen.skip)
    }
    ready = {name: maker(x, W, y) for name, maker in makers.items()}
    seen = {name: peak(task) for name, task in ready.items()}
    times = [{name: seconds(task) for name, task in ready.items()} for _ in range(chosen.rounds)]
    compared = 0 if x.is_cuda else 1
    rows: list[dict[str, Any]] = []
    for name, (loss, extra) in seen.items():
        clock, busy = (statistics.median(one[name][i] for one in times) for i in (0, 1))
        ratio = statistics.median(
            one[name][compared] / one["bare products, float32"][compared] for one in times
        )
        row = {
            "task": name,
            "rows": B,
            "classes": C,
            "dim": D,
            "seconds": round(clock, 5),
            "processor_seconds": round(busy, 5),
        }
        rows.append(
            row
            | {
                "of_bare_products": round(ratio, 3),
                "extra_mb": None if extra is None else round(extra / 1e6, 1),
                "loss": loss,
            }
        )
        memory, value = (
            "?" if extra is None else f"{extra / 1e6:.0f}",
            "" if loss is None else f"{loss:9.5f}",
        )
        print(
            f"{name:50} {clock:8.4f} s, processor {busy:8.4f} s, {ratio:6.2f} of the bare products "
            f"{memory:>6} MB  {value}",
            flush=True,
        )
    rows += errors(B, C, D, chosen.skip)
    rows += left_out(B, C, D, chosen.rounds)
    if chosen.out or not chosen.small:
        save("head", rows, chosen.out or Path(__file__).parent / "measured" / "head.json")


if __name__ == "__main__":
    main()
