"""Faces that are aligned while they are read, by five landmarks of each in a csv file.

    path or number, x1, y1, x2, y2, x3, y3, x4, y4, x5, y5

A path is relative to the folder of the images, or to that of the index, or absolute. Images without
a path have numbers from 0: those of train first, then those of test, then those of unseen. The
points are those of `marginlab.data.align_faces`, in pixels of the image as it is stored. A first
line without numbers is a header.
"""

import csv
import math
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from marginlab.data.alignment import align_faces, template_to_image
from marginlab.data.decoding import Encoded, decoded
from marginlab.files.untrusted import shown

_LINE = "A line is a path or a number, and x and y of five points"
_NUMBERS = 10


@runtime_checkable
class Stored(Protocol):
    """A source whose images are stored as encoded bytes."""

    name: str
    budget: int
    shape: torch.Size

    def encoded(self, row: int) -> Encoded:
        """Return the bytes of the image of a row."""

    def __getitem__(self, rows: Int64[Tensor, " M"], /) -> UInt8[Tensor, "M 3 H W"]:
        """Return the images at these rows."""


def read_points(file: Path) -> dict[str, tuple[float, ...]]:
    """Read a landmark file: ten numbers by the path or number as written.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is no csv in UTF-8, a line without a name and ten finite numbers, or
            an image named twice. The message names the line.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no landmark file {shown(file)}. {_LINE}.")
    found: dict[str, tuple[float, ...]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for number, row in enumerate(csv.reader(stream), 1):
                if not row:
                    continue
                points = _numbers(row[1:])
                if points is None and number == 1 and len(row) == 1 + _NUMBERS:
                    continue
                if points is None or not row[0].strip():
                    raise ValueError(f"Line {number} of {shown(file)} is {row!r:.80}. {_LINE}.")
                if row[0].strip() in found:
                    told = f"Line {number} of {shown(file)} names {row[0]!r:.80} once more"
                    raise ValueError(f"{told}. Remove one of its lines.")
                found[row[0].strip()] = points
    except (UnicodeDecodeError, csv.Error) as error:
        told = f"{shown(file)} is no csv file in UTF-8: {error}"
        raise ValueError(f"{told}. {_LINE}.") from error
    return found


def _numbers(words: list[str]) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        return None
    right = len(numbers) == _NUMBERS and all(math.isfinite(number) for number in numbers)
    return numbers if right else None


def chosen_points(
    points: dict[str, tuple[float, ...]], base: Path, files: list[Path] | None, first: int, n: int
) -> Float[Tensor, "N 5 2"]:
    """Return the landmarks of n images, after a check that each can be aligned.

    Args:
        points: The result of `read_points`.
        base: The folder that its paths are relative to.
        files: The files of the images; None where they have none.
        first: Number of the first image.
        n: How many images there are.

    Raises:
        ValueError: An image without landmarks, or with five points that no template fits.
    """
    by_file = {(base / text).resolve(): found for text, found in points.items()}
    chosen = []
    for k in range(n):
        found = points.get(str(first + k))
        if files is not None:
            found = by_file.get(files[k].resolve(), found)
        if found is None:
            named = f"number {first + k}" if files is None else shown(files[k])
            raise ValueError(f"The landmark file has no line for the image {named}. Add one.")
        chosen.append(found)
    landmarks = torch.tensor(chosen, dtype=torch.float64).view(-1, 5, 2)
    try:
        template_to_image(landmarks)
    except ValueError as error:
        raise ValueError(f"Landmarks, counted from image {first}: {error}") from error
    return landmarks


class AlignedImages:
    """Stored images as a source: each is decoded at its own size and aligned when asked for.

    Args:
        source: The stored images.
        landmarks: (R, 5, 2) points by row of the source.
        size: Side of the results.
    """

    def __init__(self, source: Stored, landmarks: Float[Tensor, "R 5 2"], size: int):
        self.source, self.landmarks = source, landmarks
        self.shape = torch.Size((source.shape[0], 3, size, size))

    def __getitem__(self, rows: Int64[Tensor, " M"], /) -> UInt8[Tensor, "M 3 H W"]:
        images = torch.empty(len(rows), *self.shape[1:], dtype=torch.uint8)
        for place, row in enumerate(rows.tolist()):
            image = decoded(self.source.encoded(row), self.source.name, 0, self.source.budget)
            points = self.landmarks[row : row + 1]
            images[place] = align_faces(image[None], points, size=self.shape[-1])[0]
        return images
