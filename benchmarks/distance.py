"""Smallest distances between the views of all pairs of images, beside one full product of all views with all views, and beside peers.

    python benchmarks/distance.py [--images 150] [--views 32] [--rounds 7] [--out benchmarks/measured/distance.json]

The demand: `minimum` takes at most 0.75 of the time of the full product, which is what a plain implementation starts from. The product is timed
in one piece, into memory that is there already, and in blocks; the fastest counts. Tasks take turns, round by round, so that what slows the
machine slows them alike; the figures are medians over rounds, of seconds and of the ratio within a round. Peers do the whole task: torch.cdist
and scikit-learn's euclidean_distances on all views, reduced by amin.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _report import median_seconds, save

from marginlab.kernels import minimum


def smooth_views(images: int, views: int, side: int = 32) -> torch.Tensor:
    """Random smooth colour images and random crops of them with random brightness, (N, V, P) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(images, 3, 8, 8, generator=generator)
    canvas = torch.nn.functional.interpolate(coarse, size=side + 16, mode="bicubic", align_corners=False).clamp(0, 1)
    top, left = torch.randint(0, 17, (2, images, views), generator=generator)
    light = 0.6 + 0.4 * torch.rand(images, views, generator=generator)
    crops = [
        torch.stack([canvas[i, :, top[i, v] : top[i, v] + side, left[i, v] : left[i, v] + side] * light[i, v] for v in range(views)])
        for i in range(images)
    ]
    return torch.stack(crops).flatten(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--views", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default=Path(__file__).parent / "measured" / "distance.json")
    chosen = parser.parse_args()
    from sklearn.metrics import euclidean_distances  # the peer is imported where it is run

    N, V = chosen.images, chosen.views
    x = smooth_views(N, V)
    flat = x.flatten(0, 1)
    product = torch.empty(N * V, N * V)

    def in_blocks(rows: int) -> None:
        for left in flat.split(rows):
            for right in flat.split(rows):
                left @ right.T

    def reduced(distances: torch.Tensor) -> torch.Tensor:
        return distances.view(N, V, N, V).amin(3).amin(1)

    tasks: dict[str, Callable[[], Any]] = {
        "full product, in one piece": lambda: torch.mm(flat, flat.T, out=product),
        "full product, blocks of 600 rows": lambda: in_blocks(600),
        "full product, blocks of 1200 rows": lambda: in_blocks(1200),
        "marginlab.kernels.minimum": lambda: minimum(x),
        "marginlab.kernels.minimum, 3 levels": lambda: minimum(x, levels=(V // 4, V // 2, V)),
        "torch.cdist and amin": lambda: reduced(torch.cdist(flat, flat)),
        "sklearn euclidean_distances and amin": lambda: reduced(torch.from_numpy(euclidean_distances(flat.numpy()))),
    }
    rounds = [{name: median_seconds(task, 1) for name, task in tasks.items()} for _ in range(chosen.rounds)]
    full = [min(time for name, time in one.items() if name.startswith("full")) for one in rounds]
    exact = minimum(x).distance[0]
    errors = {name: tasks[name]() for name in tasks if name.endswith("amin")}
    rows = [
        {
            "task": name,
            "images": N,
            "views": V,
            "numbers": x.shape[2],
            "seconds": round(statistics.median(one[name] for one in rounds), 4),
            "of_full_product": round(statistics.median(one[name] / best for one, best in zip(rounds, full, strict=True)), 3),
        }
        | ({"largest_error": float((errors[name].double() - exact).fill_diagonal_(0).abs().max())} if name in errors else {})
        for name in tasks
    ]
    for row in rows:
        print(f"{row['task']:40} {row['seconds']:8.3f} s   {row['of_full_product']:6.2f} of the full product")
    save("distance", rows, chosen.out)


if __name__ == "__main__":
    main()
