"""Views per second: ours beside torchvision v2 and kornia's augmentation modules.

    python benchmarks/augment.py --out benchmarks/measured/augment.json

Each operation and all of them are timed in one run. torchvision runs image by image in a DataLoader
with one worker a core, as it is used for training (its images stay uint8 until the end, as its
documentation advises). It also runs once on a whole batch: the same parameters for all images,
which is no set of views, but shows how fast its kernels are. kornia draws for each image, as we do.
The last rows of a size set our functions beside those of kornia that they replace, without any
draws. Times are medians of repeats; a ratio above 1 means that ours is faster by that factor.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import kornia
import kornia.augmentation as K
import torch
import torchvision
from _report import environment, median_seconds, save, show_products
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from marginlab.augment import Augmentation, GaussianBlur
from marginlab.augment.blur import Blur
from marginlab.augment.color import adjust_hue

ROWS = ("a", "b", "c", "d", "e", "ad", "abcde")


def of_torchvision(letters: str, size: int) -> v2.Transform:
    """The same operations of torchvision v2, in the same order."""
    made = {
        "a": v2.RandomResizedCrop(size, antialias=True),
        "e": v2.RandomHorizontalFlip(0.5),
        "d": v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
        "c": v2.RandomGrayscale(0.2),
        "b": v2.RandomApply([v2.GaussianBlur(7, (1.0, 1.0))], 0.5),
    }
    return v2.Compose(
        [
            *(made[letter] for letter in "aedcb" if letter in letters),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def of_kornia(letters: str, size: int) -> nn.Sequential:
    """The same operations of kornia, in the same order.

    Its crop by "resample" is the faster of its two.
    """
    made = {
        "a": K.RandomResizedCrop(
            (size, size), scale=(0.08, 1.0), cropping_mode="resample", align_corners=False
        ),
        "e": K.RandomHorizontalFlip(0.5),
        "d": K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        "c": K.RandomGrayscale(p=0.2),
        "b": K.RandomGaussianBlur((7, 7), (1.0, 1.0), p=0.5),
    }
    return nn.Sequential(*(made[letter] for letter in "aedcb" if letter in letters))


class Views(Dataset[Tensor]):
    """Views made one by one: item i is a view of image i // V."""

    def __init__(self, images: Tensor, V: int, transform: v2.Transform) -> None:
        self.images, self.V, self.transform = images, V, transform

    def __len__(self) -> int:
        return len(self.images) * self.V

    def __getitem__(self, i: int) -> Tensor:
        return self.transform(self.images[i // self.V])


def contestants(
    letters: str, images: Tensor, V: int, workers: int
) -> dict[str, Callable[[], object]]:
    """By name, a function that makes V views of all images."""
    size = images.shape[-1]
    ours, of_tv, of_k = (
        Augmentation(letters),
        of_torchvision(letters, size),
        of_kornia(letters, size),
    )
    loader = DataLoader(
        Views(images.cpu(), V, of_tv),
        batch_size=256,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return {
        "marginlab": lambda: ours.views(images, n_views=V),
        "torchvision, DataLoader": lambda: [batch.to(images.device) for batch in loader],
        "torchvision, one draw a batch": lambda: [of_tv(images) for _ in range(V)],
        "kornia": lambda: [of_k(images.float() / 255) for _ in range(V)],
    }


def functions(size: int, device: str) -> dict[str, dict[str, Callable[[], object]]]:
    """Time kornia's functions that we do not use, on as many images as our pieces have on a CPU."""
    number = max(1, 2**18 // (3 * size**2))
    images, ones, turns = (
        torch.rand(number, 3, size, size, device=device),
        torch.ones(number, device=device),
        torch.rand(number, device=device) / 5,
    )
    blur, drawn = GaussianBlur(), Blur(torch.ones(number, dtype=torch.bool), ones)
    return {
        "hue": {
            "marginlab": lambda: adjust_hue(images, turns),
            "kornia": lambda: kornia.enhance.adjust_hue(images, turns * (2 * math.pi)),
        },
        "blur": {
            "marginlab": lambda: blur.apply(images, drawn),
            "kornia": lambda: kornia.filters.gaussian_blur2d(
                images, 7, ones[:, None].expand(-1, 2)
            ),
        },
    }


def main() -> None:
    """Measure, print a table, and keep it on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[32, 96], help="height and width of the images"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=512,
        help="images of 32 x 32; of larger ones so many fewer that the pixels are as many",
    )
    parser.add_argument("--views", type=int, default=2, help="views of each image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "measured" / "augment.json"
    )
    options = parser.parse_args()
    show_products()
    here = environment()
    print(
        f"{here['device']}, {options.device}, {here['cores']} cores, torch {here['torch']}, "
        f"torchvision {torchvision.__version__}"
    )
    rows: list[dict[str, object]] = []

    def race(name: str, size: int, runners: dict[str, Callable[[], object]], made: int) -> None:
        seconds = {by: median_seconds(run, options.repeats) for by, run in runners.items()}
        mine = seconds["marginlab"]
        for by, taken in seconds.items():
            row = {
                "operations": name,
                "size": size,
                "by": by,
                "views_per_second": round(made / taken),
                "ours_faster_by": round(taken / mine, 2),
            }
            rows.append(row | {"views": made, "device": options.device})
        shown = "   ".join(
            f"{by} {made / taken:,.0f}/s (x {taken / mine:.2f})" for by, taken in seconds.items()
        )
        print(f"{size:3d} px  {name:6s}  {shown}", flush=True)

    for size in options.sizes:
        number = max(1, options.images * 32**2 // size**2)
        images = torch.randint(
            0,
            256,
            (number, 3, size, size),
            generator=torch.Generator().manual_seed(0),
            dtype=torch.uint8,
        ).to(options.device)
        for letters in ROWS:
            race(
                letters,
                size,
                contestants(letters, images, options.views, here["cores"]),
                number * options.views,
            )
        for name, runners in functions(size, options.device).items():
            race(name, size, runners, max(1, 2**18 // (3 * size**2)))
    save(
        "augmentation throughput",
        [{"torchvision": torchvision.__version__, "kornia": kornia.__version__}, *rows],
        options.out,
    )


if __name__ == "__main__":
    main()
