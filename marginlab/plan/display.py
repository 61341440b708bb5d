"""A plan as text: the tables that `python -m marginlab.plan` prints."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from marginlab.plan.machine import described
from marginlab.plan.memory import GIB, fits, largest, memory, peak
from marginlab.plan.published import Published, published
from marginlab.plan.setup import Setup
from marginlab.plan.traffic import traffic
from marginlab.plan.work import seconds, work


def plan_text(setup: Setup) -> str:
    r"""Write the whole plan as text.

    Example:
        >>> print(plan_text(Setup(classes=29e6)).split("\n")[1])
        Each rank: 3,625,000 classes, of which 364,638 at most in a step; logits in tiles, of 1,024
        rows.
    """
    return "\n\n".join((_head(setup), _memory(setup), _traffic(setup), _work(setup), beside(setup)))


def _head(s: Setup) -> str:
    centers = "" if s.subcenters == 1 else f", {s.subcenters} centers each,"
    held = {
        "one buffer": "in one buffer",
        "row chunks": f"in chunks of {s.part:,} rows",
        "tiles": "in tiles",
    }[s.regime]
    part = "all of them in every step" if s.whole else f"of which {s.sampled:,} at most in a step"
    return (
        f"Partial FC of {s.C:,} classes{centers} in {s.dim} dimensions, {s.weights}, "
        f"{s.ranks} ranks ({s.device}) with {s.batch:,} rows each, "
        f"sample rate {s.sample_rate:g}, {s.optimizer}\n"
        f"Each rank: {s.held_classes:,} classes, {part}; logits {held}, of {s.rows:,} rows."
    )


def _memory(s: Setup) -> str:
    moments = memory(s)
    parts = list(dict.fromkeys(part for moment in moments.values() for part in moment))
    rows = [
        [part, *(_gib(moment[part]) if part in moment else "" for moment in moments.values())]
        for part in parts
    ]
    total = ["together", *(_gib(sum(moment.values())) for moment in moments.values())]
    most = largest(s, lambda classes: replace(s, classes=classes))
    verdict = (
        f"It {'fits' if fits(s) else 'does not fit'}: a peak of {_gib(peak(s))} and {s.reserve:g} "
        f"in reserve, of {s.memory:g} GiB."
    )
    best = (
        f"The largest number of classes that fits is {most:,}."
        if most
        else "No number of classes fits."
    )
    return "\n".join((table(["memory of a rank, GiB", *moments], [*rows, total]), verdict, best))


def _traffic(s: Setup) -> str:
    exchanges = traffic(s)
    if not exchanges:
        return "One rank exchanges nothing."
    rows = [[e.what, e.collective, f"{e.payload:,}", f"{e.wire(s.ranks):,}"] for e in exchanges]
    total = [
        "together",
        "",
        f"{sum(e.payload for e in exchanges):,}",
        f"{sum(e.wire(s.ranks) for e in exchanges):,}",
    ]
    return table(
        ["exchange of a step, bytes of a rank", "", "payload", "sent in a ring"], [*rows, total]
    )


def _work(s: Setup) -> str:
    done, times = work(s), seconds(s)
    lines = [
        f"Head, a step of a rank: {done.flop / 1e9:,.1f} Gflop in {done.products} products, "
        f"{done.moved / 1e9:,.2f} GB to and from memory, {done.sent / 1e6:,.2f} MB sent."
    ]
    if done.backbone:
        lines.append(f"Backbone: {done.backbone / 1e9:,.1f} Gflop.")
    if times.total is None:
        lines.append(
            "Seconds: the rates are not all known. Measure them with --calibrate, or give "
            "--matrix-rate, --memory-rate, --exchange-rate."
        )
    else:
        parts = ", ".join(
            f"{name} {value:.4g}"
            for name, value in zip(times._fields, times, strict=True)
            if name != "total"
        )
        lines.append(
            f"Seconds of a step of the head: {times.total:.4g} ({parts}), at {described(s)}; "
            f"{s.rows / times.total:,.0f} rows/s."
        )
        if done.backbone and s.matrix_rate:
            lines.append(
                "The backbone at the same rate of matrix products, at least: "
                f"{done.backbone / s.matrix_rate:.4g} s."
            )
    return "\n".join(lines)


def beside(setup: Setup) -> str:
    """Tabulate the published figures, and beside each this model's figure for the head alone.

    The model's figure is for the same size. Where a row does not say its batch, or holds all
    classes on each GPU, there is no figure of ours.
    """
    rows = []
    for row in published():
        ours = _ours(setup, row)
        figures = [
            f"{row.samples_per_second:,}",
            f"{row.memory_mb:,}",
            f"{peak(ours) / 1e6:,.0f}" if ours else "",
        ]
        rows.append(
            [row.table, f"{row.ids:,}", str(row.gpus), str(row.batch or ""), row.head, *figures]
        )
    head = [
        "published (others' code and measurements)",
        "ids",
        "GPUs",
        "batch",
        "head",
        "samples/s",
        "MB a GPU",
        "model: head alone, MB",
    ]
    sources = "\n".join(dict.fromkeys(f"{row.table}: {row.source}" for row in published()))
    return f"{table(head, rows)}\n{sources}"


def _ours(setup: Setup, row: Published) -> Setup | None:
    if row.head == "data parallel" or not row.batch:
        return None
    size: dict[str, Any] = {
        "classes": float(row.ids),
        "ranks": row.gpus,
        "batch": row.batch,
        "sample_rate": row.sample_rate,
        "dim": 512,
        "subcenters": 1,
    }
    return replace(setup, **size, backbone="", weights="float32", device="cuda")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Set columns side by side: text to the left, numbers to the right.

    Example:
        >>> print(table(["part", "GiB"], [["centers", "6.91"], ["buffer", "0.5"]]))
        part      GiB
        centers  6.91
        buffer    0.5
    """
    numbers = [
        all(row[column][:1].isdigit() or not row[column] for row in rows)
        for column in range(len(head))
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            f"{cell:>{w}}" if n else f"{cell:<{w}}"
            for cell, w, n in zip(row, widths, numbers, strict=True)
        ).rstrip()

    return "\n".join(map(line, (head, *rows)))


def _gib(count: int) -> str:
    return f"{count / GIB:.3f}"
