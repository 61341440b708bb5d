"""Image sets from an index: a file that names images and their classes, wherever the images lie.

    PATH.csv      a header with `path` and `label`, and optionally `split`
    PATH.npz      arrays `paths` and `labels`, and optionally `splits`
    other names   text, one image a line: its path, blanks or a tab, its label

A path is relative to the folder of the index, or absolute. Labels are names. Integers are taken as
names that are sorted as numbers, so no label is without an image. A split is train, test or unseen.
If none is named, one fifth of each class is the test. The classes of `unseen` are its own.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import torch

from marginlab.data.folders import image_files
from marginlab.data.images import ImageSet
from marginlab.data.labels import check_labels, in_split
from marginlab.data.lists import read_columns
from marginlab.data.pixels import BUDGET

_SPLITS = ("train", "test", "unseen")
_REMEDY = "One line for each image: its path relative to the index, and its label."


class Entry(NamedTuple):
    """An image of an index: its path as written, its label, its split or "", and its place."""

    path: str
    label: str
    split: str
    place: str


def read_index(
    path: Path, split: str, name: str, *, size: int, budget: int, workers: int | None = None
) -> ImageSet:
    """Read the images of a split of an index file.

    Args:
        path: The index, a csv, npz or text file as the head of this module describes them.
        split: `train`, `test` or `unseen`.
        name: The spec, for messages.
        size: Pixels that images are brought to; 0 keeps their own.
        budget: Bytes that the images may take in memory.
        workers: Processes that decode a set of more bytes; None refuses such a set.

    Returns:
        The images in the order of the index.

    Raises:
        FileNotFoundError: No index, or an image of this split that is not there.
        ValueError: An index that cannot be read, names an image twice, or has no such split.

    """
    entries = index_entries(path, name)
    named = any(entry.split for entry in entries)
    sides = ("unseen",) if split == "unseen" else ("train", "test")
    if named:
        entries = [entry for entry in entries if entry.split in sides]
    if not entries or (split == "unseen" and not named):
        raise ValueError(f"{name}: {path} names no image of the split {split}. {_REMEDY}")
    classes = _in_order({entry.label for entry in entries})
    number = {label: k for k, label in enumerate(classes)}
    labels = torch.tensor([number[entry.label] for entry in entries])
    check_labels(labels, len(classes), name)
    there = torch.tensor([entry.split == split for entry in entries])
    chosen = there if named else in_split(labels, split)
    if not bool(chosen.any()):
        raise ValueError(f"{name}: {path} names no image of the split {split}. {_REMEDY}")
    check_labels(labels[chosen], len(classes), f"{name} ({split})")
    own = [entry for entry, wanted in zip(entries, chosen.tolist(), strict=True) if wanted]
    files = [path.parent / entry.path for entry in own]
    for file, entry in zip(files, own, strict=True):
        if not file.is_file():
            where = f"which {entry.place} of {path} names"
            raise FileNotFoundError(f"{name}: there is no file {file}, {where}. {_REMEDY}")
    return image_files(
        files, labels[chosen], classes, name, size=size, budget=budget, workers=workers
    )


def index_has(path: Path, split: str) -> bool:
    """Return whether an index names images of this split; False if it cannot be read."""
    try:
        return any(entry.split == split for entry in index_entries(path, str(path)))
    except (OSError, ValueError):
        return False  # loading it says why


def index_entries(path: Path, name: str) -> list[Entry]:
    """Read the entries of an index, without looking at the images.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is not text in UTF-8, a missing column or array, a line without a
            label, a word that is no split, splits of some images only, or an image named twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{name}: there is no index {path}. {_REMEDY}")
    try:
        if path.suffix.lower() == ".npz":
            entries = _from_npz(path, name)
        elif path.suffix.lower() == ".csv":
            entries = _from_csv(path, name)
        else:
            entries = _from_text(path, name)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {path} is not text in UTF-8: {error}. Save it so.") from error
    except csv.Error as error:
        raise ValueError(f"{name}: {path} is no csv file: {error}.") from error
    if not entries:
        raise ValueError(f"{name}: {path} names no image. {_REMEDY}")
    first: dict[Path, Entry] = {}
    for entry in entries:
        if not entry.path or not entry.label:
            lacking = "label" if entry.path else "path"
            raise ValueError(f"{name}: {entry.place} of {path} has no {lacking}. {_REMEDY}")
        if "\0" in entry.path:
            raise ValueError(f"{name}: {entry.place} of {path} has a path with a null character.")
        if entry.split not in ("", *_SPLITS):
            told = f"{entry.place} of {path} has the split {entry.split!r}"
            raise ValueError(f"{name}: {told}. A split is one of {', '.join(_SPLITS)}.")
        if bool(entry.split) != bool(entries[0].split):
            told = "has no split, while others have one"
            lone = entry if not entry.split else entries[0]
            raise ValueError(f"{name}: {lone.place} of {path} {told}. Give one to all or to none.")
        before = first.setdefault(path.parent / entry.path, entry)
        if before is not entry:
            both = f"{before.place} and {entry.place} of {path}"
            raise ValueError(f"{name}: {both} name the same image, {entry.path}. Name it once.")
    return entries


def _in_order(labels: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def _from_text(path: Path, name: str) -> list[Entry]:
    entries = []
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    for number, line in enumerate(lines, 1):
        if not (words := line.strip().rsplit(maxsplit=1)):
            continue
        file, label = words if len(words) == 2 else (words[0], "")
        entries.append(Entry(file, label, "", f"line {number}"))
    return entries


def _from_csv(path: Path, name: str) -> list[Entry]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream)
        columns = [column.strip() for column in rows.fieldnames or ()]
        for column in ("path", "label"):
            if column not in columns:
                there = ", ".join(columns) or "none"
                raise ValueError(
                    f"{name}: {path} has no column {column!r}; its columns are: {there}. The first "
                    "line is path,label or path,label,split."
                )
        rows.fieldnames = columns
        entries = []
        for row in rows:
            file, label, split = (
                (row.get(column) or "").strip() for column in ("path", "label", "split")
            )
            entries.append(Entry(file, label, split, f"line {rows.line_num}"))
    return entries


def _from_npz(path: Path, name: str) -> list[Entry]:
    found = read_columns(path, name, ("paths", "labels"), ("splits",), budget=BUDGET)
    splits = found.get("splits", ("",) * len(found["paths"]))
    each = zip(found["paths"], found["labels"], splits, strict=True)
    return [Entry(*entry, place=f"entry {number}") for number, entry in enumerate(each)]
