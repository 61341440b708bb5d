"""Forward and backward of contrastive losses at growing batches, beside peers and bare products.

    python benchmarks/contrastive.py [--rows 256 512 2048 8192 32768] [--dims 2048 8192]
        [--threads 2] [--out benchmarks/measured/contrastive.json]
    python benchmarks/contrastive.py --threads 1 --rows 32768 --dims
        --out benchmarks/measured/contrastive_largest.json      # one size alone
    python benchmarks/contrastive.py --small
        # to try it: 2 x 64 and 2 x 128 rows, 256 features, nothing saved without --out

NT-Xent of 2 x N rows of 128 features at a temperature of 0.5; cross-correlation of 2 x 1,024 rows
of D features with a weight of 0.005. Printed for each task: median seconds of the clock and of the
processor, the ratio to the bare products within a round, the most memory beyond embeddings and
their gradients, and the loss. The ratio is one of processor seconds, on CUDA of the clock's. On a
machine that others use too, with --threads 1, so that no thread waits for another, processor
seconds hardly change and the clock's mean little.

    bare products             the products that any implementation computes, into buffers of its
                              own: the product and two of its gradient, for NT-Xent in blocks of
                              1,024 rows. (info_nce goes below them: its similarities are
                              symmetric, and it computes half)
    info_nce, cross_correlation   ours, with their default budgets
    lightly                   NTXentLoss, to 2 x 8,192 rows, and BarlowTwinsLoss; of the extra
                              `bench`, left out where it is not installed
    pytorch-metric-learning   NTXentLoss, to 2 x 512 rows: it holds every positive against every
                              negative pair, 17 GB there. Left out, and said so, where the machine
                              has not got them free
    naive                     NT-Xent: product, -inf on the diagonal, cross_entropy, to 2 x 8,192
                              rows; cross-correlation as it is written down

Tasks take turns, round by round: five rounds to 512 rows, three to 2,048, two for
cross-correlation, one beyond, where the call whose memory is watched is also the one that is timed.
Before that each has run once on fewer rows or on these. The file is written anew after every size:
of a run that was ended early it holds the sizes that were done.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _memory import extra_bytes
from _report import _wait, save, show_products
from torch import Tensor

from marginlab.losses.functional import cross_correlation, info_nce

TEMPERATURE, WEIGHT, DIM, BATCH = 0.5, 5e-3, 128, 1024
Loss = Callable[[Tensor, Tensor], Tensor]
# a loss and its gradients; only the loss is given back, None of bare products
Task = Callable[[], float | None]
Maker = Callable[[Tensor, Tensor], Task]


def inputs(rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Two views (rows, dim) that resemble each other."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(0)
    z = torch.empty(rows, dim, device=device).normal_(generator=generator)
    return z, z + torch.empty_like(z).normal_(0, 0.5, generator=generator)


def of(loss: Loss) -> Maker:
    """The task of a loss: value and gradients of both views."""

    def make(z1: Tensor, z2: Tensor) -> Task:
        def run() -> float:
            z = [z1.detach().requires_grad_(), z2.detach().requires_grad_()]
            value = loss(*z)
            value.backward()
            return value.item()

        return run

    return make


def bare_nt_xent(z1: Tensor, z2: Tensor) -> Task:
    z = torch.cat((z1, z2))
    block, near, far = (
        z.new_empty(min(1024, len(z)), len(z)),
        torch.empty_like(z),
        torch.zeros_like(z),
    )

    def run() -> None:
        for start in range(0, len(z), len(block)):
            part = slice(start, start + len(block))
            product = torch.mm(z[part], z.T, out=block[: len(z[part])])
            torch.mm(product, z, out=near[part])
            far.addmm_(product.T, z[part])

    return run


def bare_towers(z1: Tensor, z2: Tensor) -> Task:
    """The bare products of a two-tower loss: similarities in blocks, and two products of each."""
    block = z1.new_empty(min(4096, len(z1)), len(z2))
    near, far = torch.empty_like(z1), torch.zeros_like(z2)

    def run() -> None:
        for start in range(0, len(z1), len(block)):
            part = slice(start, start + len(block))
            product = torch.mm(z1[part], z2.T, out=block[: len(z1[part])])
            torch.mm(product, z2, out=near[part])
            far.addmm_(product.T, z1[part])

    return run


def bare_correlation(z1: Tensor, z2: Tensor) -> Task:
    c, one, two = z1.new_empty(z1.shape[1], z1.shape[1]), torch.empty_like(z1), torch.empty_like(z2)

    def run() -> None:
        torch.mm(z1.T, z2, out=c)
        torch.mm(z2, c.T, out=one)
        torch.mm(z1, c, out=two)

    return run


def naive_nt_xent(z1: Tensor, z2: Tensor) -> Tensor:
    z, n = F.normalize(torch.cat((z1, z2))), len(z1)
    logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * n, device=z.device).roll(n))


def naive_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    one, two = ((z - z.mean(0)) / z.std(0, correction=0) for z in (z1, z2))
    c = one.T @ two / len(z1)
    squares = (c - torch.eye(len(c), device=c.device)).square()
    return squares.diagonal().sum() + WEIGHT * (squares.sum() - squares.diagonal().sum())


def peers() -> tuple[dict[str, Loss], dict[str, Loss]]:
    """Losses of other libraries that are installed: NT-Xent, and cross-correlation."""
    of_rows: dict[str, Loss] = {}
    of_features: dict[str, Loss] = {}
    try:
        from lightly.loss import BarlowTwinsLoss, NTXentLoss

        of_rows["lightly NTXentLoss"] = NTXentLoss(temperature=TEMPERATURE)
        of_features["lightly BarlowTwinsLoss"] = BarlowTwinsLoss(lambda_param=WEIGHT)
    except ImportError:
        print("lightly is not installed, and is left out.")
    try:
        from pytorch_metric_learning.losses import NTXentLoss as PairLoss

        pairs = PairLoss(temperature=TEMPERATURE)
        of_rows["pytorch-metric-learning NTXentLoss"] = lambda z1, z2: pairs(
            torch.cat((z1, z2)), torch.arange(len(z1), device=z1.device).repeat(2)
        )
    except ImportError:
        print("pytorch-metric-learning is not installed, and is left out.")
    return of_rows, of_features


def free_bytes() -> int:
    """Memory that can be had without swapping."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def fits(name: str, rows: int) -> bool:
    """Return whether a task is run at 2 x so many rows."""
    if name.startswith("pytorch-metric-learning"):
        # four arrays of positives x negatives in float32, and some
        needed = 4.5 * 4 * (2 * rows) ** 3
        free = rows <= 512 and free_bytes() > needed + 2e9
        if rows <= 512 and not free:
            print(
                f"{name}: {needed / 1e9:.0f} GB are not free for 2 x {rows} rows, and it is left "
                "out."
            )
        return free
    return rows <= 8192 or name in ("info_nce", "bare products")


def measure(
    what: str, makers: dict[str, Maker], rows: int, dim: int, rounds: int
) -> list[dict[str, Any]]:
    """A row of figures for each task; the tasks take turns."""
    z1, z2 = inputs(rows, dim)
    tasks = {name: make(z1, z2) for name, make in makers.items()}
    seconds, busy = ({name: list[float]() for name in tasks} for _ in range(2))
    extra, values = dict[str, int | None](), dict[str, float | None]()

    def timed(name: str) -> None:
        _wait()
        start, worked = time.perf_counter(), time.process_time()
        values[name] = tasks[name]()
        _wait()
        seconds[name].append(time.perf_counter() - start)
        busy[name].append(time.process_time() - worked)

    for number in range(rounds):
        for name in tasks:
            once = name.startswith("pytorch-metric-learning") and rows > 256  # a minute a call
            if number == 0:
                watched = extra_bytes(lambda name=name: timed(name))  # type: ignore[misc]
                held = 0 if name == "bare products" else z1.nbytes + z2.nbytes
                extra[name] = None if watched is None else max(watched - held, 0)
                if rounds > 1 and not once:
                    seconds[name].clear()
                    busy[name].clear()
            if not once and rounds > 1:
                timed(name)
    found = []
    compared = seconds if z1.is_cuda else busy
    for name in tasks:
        ratio = statistics.median(
            t / b for t, b in zip(compared[name], compared["bare products"], strict=False)
        )
        row = {
            "loss_of": what,
            "task": name,
            "rows": rows,
            "dim": dim,
            "calls": len(seconds[name]),
            "extra_bytes": extra[name],
            "loss": values[name],
        }
        row |= {
            "seconds": round(statistics.median(seconds[name]), 5),
            "processor_seconds": round(statistics.median(busy[name]), 5),
        }
        row["of_bare_products"] = round(ratio, 2)
        found.append(row)
        memory = "?" if extra[name] is None else f"{extra[name] / 1e6:8.1f}"
        value = "" if values[name] is None else f"   loss {values[name]:.6f}"
        times = f"{row['seconds']:9.4f} s, processor {row['processor_seconds']:9.4f} s"
        print(
            f"{what} 2 x {rows:6} x {dim:5}   {name:36} {times} {ratio:8.2f} x {memory} MB{value}",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[256, 512, 2048, 8192, 32768], help="N of NT-Xent"
    )
    parser.add_argument(
        "--dims", type=int, nargs="*", default=[2048, 8192], help="D of cross-correlation"
    )
    parser.add_argument(
        "--small", action="store_true", help="2 x 64 and 2 x 128 rows, 256 features"
    )
    parser.add_argument("--threads", type=int, help="of torch; its own choice by default")
    parser.add_argument("--out")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    show_products()
    if chosen.small:
        chosen.rows, chosen.dims = [64, 128], [256]
    of_rows, of_features = peers()
    nt_xent = {
        "bare products": bare_nt_xent,
        "info_nce": of(lambda a, b: info_nce(a, b, temperature=TEMPERATURE)),
    }
    nt_xent |= {name: of(loss) for name, loss in of_rows.items()} | {"naive": of(naive_nt_xent)}
    correlation = {
        "bare products": bare_correlation,
        "cross_correlation": of(lambda a, b: cross_correlation(a, b, off_diagonal_weight=WEIGHT)),
    }
    correlation |= {name: of(loss) for name, loss in of_features.items()} | {
        "naive": of(naive_correlation)
    }
    for make in nt_xent.values():
        make(*inputs(64, DIM))()
    rows: list[dict[str, Any]] = []
    out = chosen.out or (
        None if chosen.small else Path(__file__).parent / "measured" / "contrastive.json"
    )
    for dim in chosen.dims:
        rows += measure("cross-correlation", correlation, BATCH, dim, 2)
    for n in sorted(chosen.rows):
        rounds = 5 if n <= 512 else 3 if n <= 2048 else 1
        rows += measure(
            "NT-Xent",
            {name: make for name, make in nt_xent.items() if fits(name, n)},
            n,
            DIM,
            rounds,
        )
        if out:
            save("contrastive", rows, out)  # after every size: the largest takes minutes
    if out and not chosen.rows:
        save("contrastive", rows, out)


if __name__ == "__main__":
    main()
