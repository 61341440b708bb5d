"""One training step of Partial FC on 10,000 sampled centers: of 100,000 classes, and of 10,000,000.

    python benchmarks/partial_fc.py [--rows 256] [--dim 256] [--sampled 10000]
        [--classes 100000 10000000] [--threads 2] [--rounds 9]
        [--out benchmarks/measured/partial_fc.json]
    python benchmarks/partial_fc.py --rows 1024 --classes 1000000 100000000
        # where there is a CUDA device, it is used
    python benchmarks/partial_fc.py --hundred-million
        # 100,000,000 x 512 in bfloat16: 102.4 GB

Centers are bfloat16, the optimizer is LazySGD with momentum 0.9 kept in bfloat16. Printed for each
number of classes: seconds to draw the centers, of the first step, which also makes the momentum,
and of a later one: as a whole and in its parts (the sampling, the forward pass with it, the
backward pass, the optimizer); and the most memory of a later step beyond centers and momentum. The
demand: the step costs at most 1.5 times as much with 100 times the classes.

The two take turns, round by round, and figures are medians over rounds, of processor seconds and of
their ratio within a round (on CUDA, of the clock's): on a machine that others use too, with
--threads 1, they hardly change, and the clock's mean little. With --hundred-million there is no
momentum, and one later step.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from _memory import extra_bytes
from _report import _wait, save, show_products

from marginlab.losses import PartialFC
from marginlab.losses.sampling import sample
from marginlab.margins import ArcFace
from marginlab.optim import LazySGD


class Training:
    """A Partial FC head with its optimizer, and batches of embeddings (B, D) for it."""

    def __init__(self, B: int, C: int, D: int, sampled: int, momentum: float):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.sampled, self.generator = sampled, torch.Generator(self.device).manual_seed(0)
        self.B, self.D = B, D
        start = self._now()
        rate = (sampled + 0.5) / C  # the half keeps the floor of the product from falling below
        self.head = PartialFC(
            C, D, margin=ArcFace(0.5), sample_rate=rate, device=self.device, dtype=torch.bfloat16
        )
        self.seconds_to_draw = self._now() - start
        self.optimizer = LazySGD(
            self.head.parameters(), lr=0.1, momentum=momentum, momentum_dtype=torch.bfloat16
        )

    def step(self) -> dict[str, float]:
        """Take a step on a new batch, and return the seconds of its parts and of the whole.

        Seconds are the processor's, on CUDA the clock's.
        """
        x = (
            torch.empty(self.B, self.D, device=self.device)
            .normal_(generator=self.generator)
            .requires_grad_()
        )
        y = torch.randint(
            self.head.num_classes, (self.B,), generator=self.generator, device=self.device
        )
        times = [self._now()]
        # once more, and not part of the step
        sample(y, self.head.num_classes, self.sampled, seed=self.head.seed, step=self.head.step)
        times.append(self._now())
        loss = self.head(x, y)
        times.append(self._now())
        loss.backward()
        times.append(self._now())
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(self._now())
        sampling, forward, backward, optimizer = (b - a for a, b in itertools.pairwise(times))
        return {
            "step": times[-1] - times[1],
            "sampling": sampling,
            "forward": forward,
            "backward": backward,
            "optimizer": optimizer,
        }

    def _now(self) -> float:
        _wait()
        return time.perf_counter() if self.device.type == "cuda" else time.process_time()

    def held_bytes(self) -> int:
        """Bytes of the centers and of what the optimizer keeps."""
        kept = [t for state in self.optimizer.state.values() for t in state.values()]
        return sum(t.nbytes for t in (self.head.centers, *kept))


def measure(
    B: int, D: int, sampled: int, classes: list[int], rounds: int, momentum: float
) -> list[dict[str, Any]]:
    """Time and memory of the step for each number of classes; ratios are to the first."""
    heads = []
    for C in classes:
        head = Training(B, C, D, sampled, momentum)
        print(f"{C:12,} classes: centers drawn in {head.seconds_to_draw:.1f} s", flush=True)
        # the second step has the momentum already
        heads.append((head, head.step()["step"], extra_bytes(head.step)))
    times = [[head.step() for head, *_ in heads] for _ in range(rounds)]
    rows: list[dict[str, Any]] = []
    for i, (head, first, extra) in enumerate(heads):
        C = head.head.num_classes
        row = {
            "classes": C,
            "dim": D,
            "rows": B,
            "sampled": sampled,
            "momentum": momentum,
            "seconds_to_draw": round(head.seconds_to_draw, 2),
        }
        row |= {"first_step": round(first, 4)} | {
            part: round(statistics.median(one[i][part] for one in times), 5) for part in times[0][i]
        }
        row |= {
            f"{part}_of_first": round(
                statistics.median(one[i][part] / one[0][part] for one in times), 3
            )
            for part in times[0][i]
        }
        row |= {
            "held_mb": round(head.held_bytes() / 1e6, 1),
            "extra_mb": None if extra is None else round(extra / 1e6, 1),
        }
        rows.append(row)
        print(
            f"{C:12,} classes: step {row['step'] * 1e3:8.2f} ms (sampling "
            f"{row['sampling'] * 1e3:.2f}, forward with it {row['forward'] * 1e3:.2f}, backward "
            f"{row['backward'] * 1e3:.2f}, optimizer {row['optimizer'] * 1e3:.2f}), "
            f"{row['step_of_first']:.2f} of the first; first step {first:.2f} s; held "
            f"{row['held_mb']:,} MB, beyond it {row['extra_mb']} MB",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=256, help="B")
    parser.add_argument("--dim", type=int, default=256, help="D")
    parser.add_argument("--sampled", type=int, default=10_000, help="centers of a step")
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[100_000, 10_000_000], help="C, of each head"
    )
    parser.add_argument("--threads", type=int, help="of torch; its own choice by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--hundred-million",
        action="store_true",
        help="one step of 100,000,000 classes of 512 features, without momentum",
    )
    parser.add_argument(
        "--out",
        help="benchmarks/measured/partial_fc.json; with --hundred-million partial_fc_100m.json",
    )
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    show_products()
    folder = Path(__file__).parent / "measured"
    if chosen.hundred_million:
        rows = measure(chosen.rows, 512, chosen.sampled, [100_000_000], 1, momentum=0.0)
        save("partial_fc_100m", rows, chosen.out or folder / "partial_fc_100m.json")
    else:
        rows = measure(
            chosen.rows, chosen.dim, chosen.sampled, chosen.classes, chosen.rounds, momentum=0.9
        )
        save("partial_fc", rows, chosen.out or folder / "partial_fc.json")


if __name__ == "__main__":
    main()
