"""`python -m marginlab.purify RUN OUT --data SPEC`: find wrong labels with a trained run.

    python -m marginlab.purify runs/a purified --data folder:faces
    python -m marginlab.purify runs/a purified --data folder:faces --max-angle mixture --write links

The run is a margin classifier that was trained on this data, best with subcenters=3. The data is
never modified. The output folder holds:

    images.csv      for each image: label, nearest sub-center, angle, and whether it stays
    classes.csv     for each class: images, those that stay, and the votes for its sub-centers
    conflicts.csv   pairs of classes whose centers are near, with --conflicts
    purified.csv    an index of what stays (--write index), or a folder purified/ with links,
                    copies or record files; the other splits of the data are written along
    worst.png       the images furthest from their class
    report.html     the angles, the classes that lose most, the worst images; opens offline
    cosines/        what was embedded; the same command resumes after a stop
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from marginlab import files
from marginlab.data import ImageSet, load
from marginlab.data.loading import splits
from marginlab.data.selection import selection_of
from marginlab.data.sheet import encode_picture
from marginlab.machine import check_device
from marginlab.purify.conflicts import Conflicts, conflicts
from marginlab.purify.embedding import check_classes, embedder
from marginlab.purify.page import page, worst_sheet
from marginlab.purify.purification import Purification, check_angle
from marginlab.purify.purify import purify
from marginlab.purify.writing import (
    check_index,
    files_of,
    has_files,
    write_folder,
    write_index,
    write_record,
)
from marginlab.settings import SettingsError
from marginlab.terminal import printable, run_command, say
from marginlab.train import load as load_run
from marginlab.train.recipe import recipe_of

_WRITE = ("index", "links", "copies", "records", "none")
_FILES = ("folder:", "index:", "record:")


def main(arguments: list[str]) -> int:
    """Purify what the arguments say, and return the exit status."""
    asked = _parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "marginlab.purify", *arguments])
    try:
        angle = _angle(asked.max_angle)
        if asked.conflicts is not None and not 0 < asked.conflicts < 180:
            raise SettingsError(f"--conflicts is between 0 and 180, not {asked.conflicts:g}.")
        if asked.batch < 1 or asked.worst < 1:
            raise SettingsError(
                f"--batch and --worst are at least 1, not {asked.batch} and {asked.worst}."
            )
        check_device(asked.device)
        size = recipe_of(asked.run).image_size if asked.size is None else asked.size
        model = load_run(asked.run, asked.device)
        images = _images(asked, asked.split, size)
        head = embedder(model).head
        check_classes(images, model, head)
        write = asked.write or ("index" if has_files(images) else "records")
        if write in ("index", "links") and not has_files(images):
            raise SettingsError(f"{asked.data} has no files. Take --write copies or records.")
        others = {} if write == "none" else _other_splits(asked, size)
        if write == "index":
            check_index({asked.split: images} | others)
        _check_out(asked.out, asked.data, write)
        with Progress() as bar:
            task = bar.add_task("images", total=len(images))
            found = purify(
                model,
                images,
                max_angle=angle,
                batch=asked.batch,
                folder=asked.out / "cosines",
                say=lambda done, _: bar.update(task, completed=done),
            )
        pairs = None
        if asked.conflicts is not None:
            centers = head.centers.detach()[torch.arange(len(found.dominant)), found.dominant]
            pairs = conflicts(centers, max_angle=asked.conflicts)
        _tables(asked.out, found, images, pairs)
        _purified(asked, write, found, images, others)
        files.write(
            asked.out / "worst.png", encode_picture(worst_sheet(found, images, asked.worst))
        )
        text = page(found, images, command=command, worst=asked.worst, pairs=pairs)
        files.write(asked.out / "report.html", text)
    except (ValueError, OSError) as error:
        say(printable(error), error=True)
        return 2
    _told(found)
    say(f"Kept in {asked.out.absolute()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m marginlab.purify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("run", type=Path, help="the folder of a trained run, or a checkpoint of it")
    add("out", type=Path, help="the folder that is written")
    add("--data", required=True, help="the data that the run was trained on, such as folder:faces")
    add("--split", default="train", help="the split that is purified")
    add("--root", help="folder of the published sets")
    add("--size", type=int, help="side of the images in pixels; by default that of the run")
    add("--max-angle", default="75", help="degrees, or 'mixture' to take it from the angles")
    add("--conflicts", type=float, help="list classes whose centers are nearer, in degrees")
    add("--write", choices=_WRITE, help="by default index for files and records for others")
    add("--worst", type=int, default=48, help="images on the contact sheet")
    add("--batch", type=int, default=512, help="images that are embedded at a time")
    add("--workers", type=int, default=0, help="processes that decode files ahead")
    add("--device", default="cpu", help="where the model runs")
    return parser


def _angle(text: str) -> Any:
    try:
        angle = text if text == "mixture" else float(text)
    except ValueError as error:
        told = f"--max-angle is a number of degrees or 'mixture', not {text!r}."
        raise SettingsError(told) from error
    check_angle(angle)
    return angle


def _images(asked: argparse.Namespace, split: str, size: int) -> ImageSet:
    """Load a split; what is in files stays there, so that the files can be named."""
    if asked.data.startswith(_FILES):
        return load(asked.data, split, asked.root, size=size, budget=1, workers=asked.workers)
    return load(asked.data, split, asked.root, size=size)


def _check_out(out: Path, spec: str, write: str) -> None:
    """Refuse a folder that holds something else, or lies in the data."""
    if out.exists() and not out.is_dir():
        raise SettingsError(f"{out} is a file. Name a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / "cosines" / "cosines.json").is_file():
        raise SettingsError(f"{out} holds other files. Choose another folder.")
    source, _ = selection_of(spec)
    kind, _, rest = source.partition(":")
    if rest and kind in ("folder", "record"):
        data = Path(rest).expanduser().resolve()
        if out.resolve().is_relative_to(data):
            raise SettingsError(f"{out} lies in the data, {data}. Choose a folder beside it.")
    if write in ("links", "copies") and (out / "purified").exists():
        raise SettingsError(f"{out / 'purified'} is there already. Remove it to write it again.")


def _tables(out: Path, found: Purification, images: ImageSet, pairs: Conflicts | None) -> None:
    own = [str(file) for file in files_of(images) or ()] or [""] * len(images)
    columns = (own, found.labels, found.nearest, found.is_dominant, found.angle, found.keep)
    listed = [part.tolist() if isinstance(part, Tensor) else part for part in columns]
    rows = [
        (n, file, found.classes[label], near, int(first), angle, int(keep))
        for n, (file, label, near, first, angle, keep) in enumerate(zip(*listed, strict=True))
    ]
    header = ("image", "file", "class", "nearest", "is_dominant", "angle", "keep")
    files.write(out / "images.csv", files.csv_text(header, rows))
    votes = tuple(f"votes_{k}" for k in range(found.votes.shape[1]))
    each = zip(found.classes, found.counts.tolist(), found.dominant.tolist(), strict=True)
    lines = [
        (name, *count, first, *vote)
        for (name, count, first), vote in zip(each, found.votes.tolist(), strict=True)
    ]
    files.write(
        out / "classes.csv", files.csv_text(("class", "images", "kept", "dominant", *votes), lines)
    )
    if pairs is not None:
        near = zip(pairs.first.tolist(), pairs.second.tolist(), pairs.angle.tolist(), strict=True)
        named = [(found.classes[a], found.classes[b], angle) for a, b, angle in near]
        files.write(out / "conflicts.csv", files.csv_text(("class", "other", "angle"), named))


def _other_splits(asked: argparse.Namespace, size: int) -> dict[str, ImageSet]:
    """Load the splits that are written beside a purified train."""
    if asked.split != "train":
        return {}
    return {split: _images(asked, split, size) for split in splits(asked.data) if split != "train"}


def _purified(
    asked: argparse.Namespace,
    write: str,
    found: Purification,
    images: ImageSet,
    others: dict[str, ImageSet],
) -> None:
    """Write what stays, and beside it the data's other splits of the classes that stay."""
    if write == "none":
        return
    sets = {asked.split: found.apply(images)}
    for split, other in others.items():
        sets[split] = other
        if other.classes == images.classes:  # unseen classes are others
            left = found.counts[:, 1] > 0
            mask = left[other.labels.cpu()]
            if int((torch.bincount(other.labels.cpu()[mask]) > 0).sum()) < 2:
                say(f"The split {split} is left out: fewer than two of its classes stay.")
                del sets[split]
                continue
            some = other.where(mask)
            number = left.cumsum(0) - 1
            sets[split] = some.with_labels(number[some.labels.cpu()], sets["train"].classes)
    if write == "index":
        write_index(asked.out / "purified.csv", sets)
    elif write == "records":
        write_record(asked.out / "purified", sets)
    else:
        write_folder(asked.out / "purified", sets, links=write == "links")


def _told(found: Purification) -> None:
    N, kept = len(found.keep), int(found.keep.sum())
    say(f"{kept:,} of {N:,} images stay ({kept / N:.1%}).")
    say(f"Largest angle: {found.threshold.value:.4g} degrees; {found.threshold.reason}.")
    if gone := found.vanished:
        more = f" and {len(gone) - 10:,} more" if len(gone) > 10 else ""
        say(f"{len(gone):,} classes vanish: {', '.join(gone[:10])}{more}")


if __name__ == "__main__":
    run_command(main, resumes=True)
