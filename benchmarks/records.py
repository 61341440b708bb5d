"""Images a second of record files: beside decoding from memory, beside torchvision's ImageFolder.

    python benchmarks/records.py --out benchmarks/measured/records.json

The same JPEGs lie in a record file, in a folder with a file for each, and in memory. All are
decoded by PIL, in the same random order. Two races are run:

    one process    a read of the record file and decode, against decode alone: the share that the
                   reading costs
    workers        batches by our streamed reader, against a DataLoader over ImageFolder with the
                   same batches, decoder and number of workers; the workers are warm

Every race is repeated, and its contestants take turns, so that a machine that others use meets them
alike. Only ratios within one run mean anything.

A cold cache cannot be forced without the rights of an administrator. In its place the first reads
of the record file and of the folder are also timed, after their pages were advised away
(posix_fadvise, which the system may decline). Where the memory is larger than the files, the system
may hold them still, and both numbers are those of a warm cache: --images must then be larger than
what was just written, and larger than memory, for a cold one.
"""

import argparse
import io
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from _report import environment, save, show_products
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from marginlab.data.decoding import Encoded, decoded
from marginlab.data.pixels import BUDGET
from marginlab.data.records import RecordImages
from marginlab.data.streaming import Streamed, batches
from marginlab.formats import RecordReader, read_records, write_records

CLASSES = 100


def made(count: int, size: int) -> list[bytes]:
    """JPEGs of smooth random pictures, about as many bytes as photographs of this size."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    found = []
    for pixels in coarse:
        held = io.BytesIO()
        Image.fromarray(pixels).resize((size, size)).save(held, "jpeg", quality=90)
        found.append(held.getvalue())
    return found


def written(place: Path, images: list[bytes]) -> tuple[Path, Path]:
    """The same images as a record file and as a folder."""
    labels = [k * CLASSES // len(images) for k in range(len(images))]
    path = write_records(place / "records", zip(images, labels, strict=True), size=(0, 0))
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = place / "folder" / f"{label:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k:08d}.jpg").write_bytes(image)
    return path, place / "folder"


def forget(path: Path) -> None:
    """Advise the system to drop the pages of a file, or of all files of a folder."""
    for file in [path] if path.is_file() else path.rglob("*.jpg"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print the ratios, and keep them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "measured" / "records.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    show_products()
    here = environment()
    print(
        f"{here['device']}, {here['cores']} cores, torch {here['torch']}, torchvision "
        f"{torchvision.__version__}"
    )
    with tempfile.TemporaryDirectory() as place:
        rows = raced(Path(place), options)
    save("random reads of records", [{"torchvision": torchvision.__version__}, *rows], options.out)


def raced(place: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    """Write the images to a place, and run all races."""
    images = made(options.images, options.size)
    record, folder = written(place, images)
    index = read_records(record)
    offsets = torch.from_numpy(index.offsets)
    source = RecordImages(RecordReader(record), offsets, 0, "records", BUDGET)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = order.split(options.batch)
    common = {
        "images": len(images),
        "size": options.size,
        "bytes": sum(map(len, images)),
        "batch": options.batch,
    }

    def from_records() -> None:
        for part in parts:
            source[part]

    def from_memory() -> None:
        for part in parts:
            held = torch.empty(len(part), *source.shape[1:], dtype=torch.uint8)
            for row, k in enumerate(part.tolist()):
                held[row] = decoded(Encoded(images[k], "memory"), "memory", 0, BUDGET)

    rows = [race("one process", {"records": from_records, "memory": from_memory}, options, common)]
    turns = {"records": ours(source, parts, options), "ImageFolder": theirs(folder, parts, options)}
    for runner in turns.values():
        next(runner)  # starts the workers
    rows.append(
        race("workers", {k: lambda r=r: next(r) for k, r in turns.items()}, options, common)
    )
    cold = {}
    for name, path in (("records", record), ("ImageFolder", folder)):
        forget(path)
        cold[name] = lambda runner=turns[name]: next(runner)
    options.repeats = 1
    rows.append(race("workers, pages advised away", cold, options, common))
    for runner in turns.values():
        runner.close()
    return rows


def ours(
    source: RecordImages, parts: tuple[torch.Tensor, ...], options: argparse.Namespace
) -> Iterator[int]:
    """One pass over all batches at each turn, by our reader."""
    streamed = Streamed(source, torch.arange(len(source.offsets)), BUDGET, options.workers)
    passes = batches(streamed, (part for _ in range(options.repeats + 3) for part in parts))
    while True:
        for _ in parts:
            next(passes)
        yield 1


def pixels(image: Image.Image) -> torch.Tensor:
    """Convert a picture that PIL has decoded to (3, H, W) bytes, as our reader does."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def theirs(
    folder: Path, parts: tuple[torch.Tensor, ...], options: argparse.Namespace
) -> Iterator[int]:
    """One pass over all batches at each turn, by a DataLoader over ImageFolder."""
    loader = DataLoader(
        ImageFolder(str(folder), transform=pixels),
        batch_sampler=[part.tolist() for part in parts],
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    while True:
        for _ in loader:
            pass
        yield 1


def race(
    name: str,
    runners: dict[str, Callable[[], object]],
    options: argparse.Namespace,
    common: dict[str, object],
) -> dict[str, object]:
    """Time the contestants in turns; the ratio of speeds is the median over the rounds."""
    taken: dict[str, list[float]] = {by: [] for by in runners}
    for turn in range(options.repeats):
        names = list(runners)
        random.Random(turn).shuffle(names)
        for by in names:
            taken[by].append(seconds(runners[by]))
    first, other = runners
    ratio = statistics.median(b / a for a, b in zip(taken[first], taken[other], strict=True))
    speeds = {by: round(common["images"] / statistics.median(s)) for by, s in taken.items()}
    shown = "   ".join(f"{by} {speed:,}/s" for by, speed in speeds.items())
    print(f"{name:28s}  {shown}   {first} / {other} {ratio:.2f}", flush=True)
    row = {"race": name, **common, "images_per_second": speeds, "repeats": options.repeats}
    workers = options.workers if name != "one process" else 0
    return row | {"workers": workers, f"{first}_faster_by": round(ratio, 3)}


if __name__ == "__main__":
    main()
