"""Describe a data spec: `python -m marginlab.data SPEC [--root ROOT] [--size SIZE]`.

A published set that is absent is downloaded first.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from marginlab.data.images import ImageSet
from marginlab.data.loading import load, splits
from marginlab.data.published import TORCHVISION, root_folder, torchvision_set
from marginlab.terminal import printable, say

_SPEC = (
    "shapes, shapes-5, digits, cifar10, cifar100, stl10, omniglot, omniglot-upright, lfw, "
    "npz:PATH, folder:PATH, index:PATH or record:PATH; behind it ?min_per_class=A and "
    "?max_per_class=B choose classes"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, download an absent published set, and describe every split."""
    parser = argparse.ArgumentParser(prog="python -m marginlab.data", description=__doc__)
    parser.add_argument("spec", help=_SPEC)
    parser.add_argument(
        "--root", help="folder of the published sets (default: MARGINLAB_DATA, else data)"
    )
    parser.add_argument("--size", type=int, default=0, help="resize to this many pixels")
    asked = parser.parse_args(arguments)
    root = root_folder(asked.root)
    try:
        name = asked.spec.partition("?")[0].removesuffix("-upright")  # one file for both
        if name in TORCHVISION and not (root / f"{name}.npz").exists():
            _download(name, root)
        for split in splits(asked.spec):
            say(describe(load(asked.spec, split, root, size=asked.size, workers=0), split))
    except (ValueError, TypeError, OSError) as error:
        parser.exit(2, f"{printable(error)}\n")


def describe(images: ImageSet, split: str) -> str:
    """Describe a split in one line: its name, number and size of images, and classes."""
    height, width = images.images.shape[-2:]
    first = ", ".join(images.classes[:10]) + (", ..." if len(images.classes) > 10 else "")
    return (
        f"{images.name} {split}: {len(images):,} images of {height} x {width}, "
        f"{len(images.classes)} classes: {first}"
    )


def _download(name: str, root: Path) -> None:
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
    main()
