"""Smallest distances between the views of all pairs of images, beside one full product and peers.

    python benchmarks/distance.py [--images 150] [--views 32] [--rounds 7]
        [--out benchmarks/measured/distance.json]
    python benchmarks/distance.py --filter [--images 100] [--rounds 3]
        [--out benchmarks/measured/distance_filter.json]

The full product is of all views with all views. The demand: `minimum` takes at most 0.75 of the
time of the full product, which is what a plain implementation starts from. The product is timed in
one piece, into memory that is there already, and in blocks; the fastest counts. Tasks take turns,
round by round, so that a slow machine slows them alike. The figures are medians over rounds, of
seconds and of the ratio within a round. Peers do the whole task: torch.cdist and scikit-learn's
euclidean_distances on all views, reduced by amin.

With --filter: `minimum` with and without kernels/filter.py, which gives the same distances from
rows of 128 numbers. The data are smooth views of 64 and 128 views, white noise, where it must not
be slower, and, where MARGINLAB_DATA names a folder with cifar10.npz, augmented images of one class
of CIFAR-10. Ratios are to the full product of all views with all views and its amin, which is done
in blocks of 600 rows.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import median_seconds, save, show_products

from marginlab.augment import Augmentation
from marginlab.kernels import filter, minimum


def smooth_views(images: int, views: int, side: int = 32) -> torch.Tensor:
    """Draw random smooth colour images and random crops of them, (N, V, P) in [0, 1].

    The crops have random brightness.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(images, 3, 8, 8, generator=generator)
    canvas = torch.nn.functional.interpolate(
        coarse, size=side + 16, mode="bicubic", align_corners=False
    ).clamp(0, 1)
    top, left = torch.randint(0, 17, (2, images, views), generator=generator)
    light = 0.6 + 0.4 * torch.rand(images, views, generator=generator)
    crops = [
        torch.stack(
            [
                canvas[i, :, top[i, v] : top[i, v] + side, left[i, v] : left[i, v] + side]
                * light[i, v]
                for v in range(views)
            ]
        )
        for i in range(images)
    ]
    return torch.stack(crops).flatten(2)


def filter_cases(images: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Views (N, V, P) by what they are, made when asked."""
    cases: dict[str, Callable[[], torch.Tensor]] = {}
    for V in (32, 64, 128):
        cases[f"smooth views, V={V}"] = lambda V=V: smooth_views(images, V)
        cases[f"white noise, V={V}"] = lambda V=V: torch.rand(
            images, V, 3072, generator=torch.Generator().manual_seed(0)
        )
    folder = os.environ.get("MARGINLAB_DATA")
    if folder:
        with np.load(Path(folder) / "cifar10.npz") as file:
            of_class = file["train_images"][file["train_labels"] == 3][:images]
        pixels = torch.from_numpy(of_class).movedim(3, 1).float() / 255
        for letters in ("ad", "ac", "ab", "ae", "bc", "abcde"):
            for V in (32, 64, 128):
                augmentation = Augmentation(letters)
                cases[f"CIFAR-10 {letters}, V={V}"] = lambda V=V, A=augmentation: A.views(
                    pixels, n_views=V, seed=1000003, identity=True
                ).flatten(2)
    return cases


def with_and_without_filter(images: int, rounds: int, out: Path | str) -> None:
    """Seconds and ratios of one and three levels, with the filter and without."""
    rows, most = [], filter._LEAST
    for name, make in filter_cases(images).items():
        x = make()
        N, V, P = x.shape
        flat = x.flatten(0, 1)

        def plain(flat: torch.Tensor = flat, N: int = N, V: int = V) -> None:
            for left in flat.split(max(600 // V, 1) * V):
                (left @ flat.T).view(-1, V, N, V).amin(3).amin(1)

        def ours(levels: tuple[int, ...], least: float, x: torch.Tensor = x) -> Any:
            # a view of fewer times d + 1 numbers is not filtered: infinity means never
            filter._LEAST = least
            try:
                return minimum(x, levels=levels)
            finally:
                filter._LEAST = most

        for levels in ((V,), (V // 4, V // 2, V)):
            before, after = ours(levels, float("inf")), ours(levels, most)
            assert torch.equal(before.distance, after.distance)
            assert torch.equal(before.views, after.views)
            times = []
            for _ in range(rounds):
                full = median_seconds(plain, 1)
                times.append(
                    (
                        full,
                        *(
                            median_seconds(lambda least=least: ours(levels, least), 1)  # noqa: B023
                            for least in (float("inf"), most)
                        ),
                    )
                )
            row = {"views_of": name, "images": N, "views": V, "numbers": P, "levels": len(levels)}
            row |= {
                key: round(statistics.median(one), 4)
                for key, one in zip(
                    ("full", "without", "with"), zip(*times, strict=True), strict=True
                )
            }
            row["without_of_full_product"] = round(statistics.median(b / a for a, b, _ in times), 3)
            row["with_of_full_product"] = round(statistics.median(c / a for a, _, c in times), 3)
            row["with_of_without"] = round(statistics.median(c / b for _, b, c in times), 3)
            rows.append(row)
            print(
                f"{name:24} {len(levels)} level{'s' if len(levels) > 1 else ' '}  without the "
                f"filter {row['without_of_full_product']:5.2f}, with it "
                f"{row['with_of_full_product']:5.2f} of the full product; with of without "
                f"{row['with_of_without']:.2f}",
                flush=True,
            )
    save("distance_filter", rows, out)


def beside_peers(N: int, V: int, rounds: int, out: Path | str) -> None:
    """Seconds, and ratios to the full product, of `minimum` and of its peers on smooth views."""
    from sklearn.metrics import euclidean_distances  # the peer is imported where it is run

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
        "sklearn euclidean_distances and amin": lambda: reduced(
            torch.from_numpy(euclidean_distances(flat.numpy()))
        ),
    }
    times = [{name: median_seconds(task, 1) for name, task in tasks.items()} for _ in range(rounds)]
    full = [min(time for name, time in one.items() if name.startswith("full")) for one in times]
    exact = minimum(x).distance[0]
    errors = {name: tasks[name]() for name in tasks if name.endswith("amin")}
    rows = [
        {
            "task": name,
            "images": N,
            "views": V,
            "numbers": x.shape[2],
            "seconds": round(statistics.median(one[name] for one in times), 4),
            "of_full_product": round(
                statistics.median(one[name] / best for one, best in zip(times, full, strict=True)),
                3,
            ),
        }
        | (
            {"largest_error": float((errors[name].double() - exact).fill_diagonal_(0).abs().max())}
            if name in errors
            else {}
        )
        for name in tasks
    ]
    for row in rows:
        print(
            f"{row['task']:40} {row['seconds']:8.3f} s   {row['of_full_product']:6.2f} of the full "
            "product"
        )
    save("distance", rows, out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--filter", action="store_true", help="with and without the filter, on real images too"
    )
    parser.add_argument("--images", type=int, help="150; with --filter 100")
    parser.add_argument("--views", type=int, default=32)
    parser.add_argument("--rounds", type=int, help="7; with --filter 3")
    parser.add_argument("--out")
    chosen = parser.parse_args()
    show_products()
    images, rounds = (
        chosen.images or (100 if chosen.filter else 150),
        chosen.rounds or (3 if chosen.filter else 7),
    )
    out = chosen.out or Path(__file__).parent / "measured" / (
        "distance_filter.json" if chosen.filter else "distance.json"
    )
    if chosen.filter:
        with_and_without_filter(images, rounds, out)
    else:
        beside_peers(images, chosen.views, rounds, out)


if __name__ == "__main__":
    main()
