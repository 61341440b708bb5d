"""Look at an image set, or convert it.

    python -m marginlab.data inspect SPEC [--size SIZE] [--sheet FILE]
    python -m marginlab.data convert SPEC OUT [--size SIZE] [--quality QUALITY] [--landmarks FILE]

`inspect` tells the images, their size and the class histogram of each split; the word may be left
out. `convert` writes OUT, which is folder:PATH, npz:PATH or record:PATH. A published set that is
absent is downloaded first.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from marginlab.data.conversion import convert
from marginlab.data.images import ImageSet
from marginlab.data.inspection import check_sheet, histogram, write_sheet
from marginlab.data.loading import load, splits
from marginlab.data.published import TORCHVISION, root_folder, torchvision_set
from marginlab.data.streaming import default_workers
from marginlab.terminal import printable, run_command, say

_SPEC = (
    "shapes, shapes-5, digits, cifar10, cifar100, stl10, omniglot, omniglot-upright, lfw, "
    "npz:PATH, folder:PATH, index:PATH or record:PATH; behind it ?min_per_class=A and "
    "?max_per_class=B choose classes"
)
_WORDS = ("inspect", "convert")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, download an absent published set, and inspect or convert."""
    parser = argparse.ArgumentParser(
        prog="python -m marginlab.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = parser.add_subparsers(dest="word", required=True)
    inspected = words.add_parser("inspect", help="tell what is in a set", description="Inspect.")
    converted = words.add_parser("convert", help="write a set anew", description="Convert.")
    for part in (inspected, converted):
        part.add_argument("spec", help=_SPEC)
        part.add_argument(
            "--root", help="folder of the published sets (default: MARGINLAB_DATA, else data)"
        )
        part.add_argument("--size", type=int, default=0, help="resize to this many pixels")
    inspected.add_argument("--sheet", type=Path, help="write a contact sheet, a PNG or a JPEG")
    converted.add_argument("out", help="folder:PATH, npz:PATH or record:PATH")
    converted.add_argument(
        "--quality", type=int, default=0, help="JPEG of this quality, 1 to 100 (default: PNG)"
    )
    converted.add_argument(
        "--landmarks", type=Path, help="csv of five points of each image: faces are aligned"
    )
    converted.add_argument(
        "--workers", type=int, help="processes that decode (default: one a core, at most 8)"
    )
    asked = parser.parse_args(_with_word(arguments))
    root = root_folder(asked.root)
    try:
        _there(asked.spec, root)
        (_inspect if asked.word == "inspect" else _convert)(asked, root)
    except (ValueError, TypeError, OSError) as error:
        parser.exit(2, f"{printable(error)}\n")


def _with_word(arguments: Sequence[str] | None) -> list[str]:
    """Return the arguments with `inspect` before a spec that stands alone."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    plain = given and given[0] not in (*_WORDS, "-h", "--help")
    return ["inspect", *given] if plain else given


def _inspect(asked: argparse.Namespace, root: Path) -> None:
    if asked.sheet:
        check_sheet(asked.sheet)
    there = splits(asked.spec)
    for number, split in enumerate(there):
        images = load(asked.spec, split, root, size=asked.size, workers=0)
        say(describe(images, split))
        for line in histogram(images):
            say(line)
        if asked.sheet and number == 0:
            write_sheet(images, asked.sheet)
    if asked.sheet:
        say(f"Contact sheet of the {there[0]} images: {asked.sheet}")


def _convert(asked: argparse.Namespace, root: Path) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=None)
        parts = convert(
            asked.spec,
            asked.out,
            size=asked.size,
            quality=asked.quality,
            landmarks=asked.landmarks,
            root=root,
            workers=default_workers() if asked.workers is None else asked.workers,
            report=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for part in parts:
        N, _, height, width = part.shape
        told = f"{N:,} images of {height} x {width}, {len(part.classes)} classes"
        say(f"{asked.out} {part.split}: {told}")


def describe(images: ImageSet, split: str) -> str:
    """Describe a split in one line: its name, number and size of images, and classes."""
    height, width = images.images.shape[-2:]
    first = ", ".join(images.classes[:10]) + (", ..." if len(images.classes) > 10 else "")
    return (
        f"{images.name} {split}: {len(images):,} images of {height} x {width}, "
        f"{len(images.classes)} classes: {first}"
    )


def _there(spec: str, root: Path) -> None:
    """Download a published set that is absent."""
    name = spec.partition("?")[0].removesuffix("-upright")  # one file for both
    if name not in TORCHVISION or (root / f"{name}.npz").exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    try:
        for split in splits(name):
            # what is already there and whole is not fetched again
            torchvision_set(name, split, root, download=True)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{name} could not be downloaded into {root}: {error}. Run the command again, or put "
            f"{name}.npz there."
        ) from error


if __name__ == "__main__":
    run_command(main, resumes=True)
