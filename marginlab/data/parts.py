"""The splits of a spec as a conversion reads them: a batch at a time, each image once.

images of files         decoded, or aligned, in the processes that read ahead
arrays of an npz file   a block of the file at a time, from the first to the last
other sources           held, since they are small
original bytes          where nothing is changed: what a file or a record holds
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from marginlab.data.alignment import SIDE, align_faces
from marginlab.data.arrays import NpzStream
from marginlab.data.decoding import decoded, look
from marginlab.data.folders import ImageFiles
from marginlab.data.landmarks import AlignedImages, Stored, chosen_points
from marginlab.data.loading import load, splits
from marginlab.data.pixels import BUDGET
from marginlab.data.selection import Selection, selection_of
from marginlab.data.sheet import encode_picture
from marginlab.data.streaming import Streamed, batches

BATCH = 64  # images
_FILES = ("folder", "index", "record")
# beginnings of files, and the endings by which a folder of images is read
_KINDS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"BM": ".bmp",
    b"II*\x00": ".tif",
    b"MM\x00*": ".tif",
    b"RIFF": ".webp",
    b"P": ".ppm",
}


@dataclass(frozen=True)
class Encoding:
    """Form in which images are stored: PNG, or JPEG where the quality is above 0."""

    quality: int = 0

    @property
    def ending(self) -> str:
        """Ending of a file's name."""
        return ".jpg" if self.quality else ".png"

    def encoded(self, image: UInt8[Tensor, "3 H W"]) -> bytes:
        """Return the bytes of a file of the image."""
        if self.quality:
            return encode_picture(image, "jpeg", quality=self.quality)
        return encode_picture(image)


@dataclass(frozen=True)
class Part:
    """A split of N images, read in their order.

    Args:
        split: `train`, `test` or `unseen`.
        labels: (N,) classes.
        classes: Names of the classes.
        images: The images.
        mark: Text that differs where the images differ.
        landmarks: (N, 5, 2) points by which held images and arrays are aligned.
        size: Side of aligned images.
    """

    split: str
    labels: Int64[Tensor, " N"]
    classes: tuple[str, ...]
    images: Tensor | Streamed | NpzStream
    mark: str
    landmarks: Float[Tensor, "N 5 2"] | None = None
    size: int = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, H, W) of the images as they are read."""
        N, _, height, width = self.images.shape
        if self.landmarks is not None:
            height = width = self.size
        return N, 3, height, width

    @property
    def stored(self) -> bool:
        """True where the images are the unchanged ones of files or records."""
        return isinstance(self.images, Streamed) and isinstance(self.images.source, Stored)

    def pictures(self, rows: Int64[Tensor, " M"]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (numbers, images) for these numbers of images, which ascend, a batch at a time."""
        if isinstance(self.images, NpzStream):
            found = self._streamed(self.images, rows)
        else:
            found = batches(self.images, rows.split(BATCH))
        for some, images in found:
            if self.landmarks is not None:
                images = align_faces(images, self.landmarks[some], size=self.size)
            yield some, images

    def _streamed(self, stream: NpzStream, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        wanted = torch.zeros(len(self.labels), dtype=torch.bool)
        wanted[rows] = True
        start = 0
        for block in stream.parts():
            for images in block.split(BATCH):
                some = torch.arange(start, start + len(images))
                chosen = wanted[some]
                if bool(chosen.any()):
                    yield some[chosen], images[chosen]
                start += len(images)

    def original(self, row: int) -> tuple[bytes, str]:
        """Return the stored bytes of an image and the ending of their kind.

        A GIF becomes a PNG, since folders of images are read without them.

        Raises:
            ValueError: The bytes cannot be read as an image of the size of the others.
        """
        assert isinstance(self.images, Streamed)
        source = self.images.source
        assert isinstance(source, Stored)
        file = source.encoded(int(self.images.rows[row]))
        found = look(file, source.name, 0, source.budget)
        if (found.height, found.width) != self.shape[2:]:
            told = f"{source.name}: {file.place} is of {found.height} x {found.width}, the first "
            raise ValueError(
                f"{told}image of {self.shape[2]} x {self.shape[3]}. Give a size to bring them to "
                "one."
            )
        for beginning, ending in _KINDS.items():
            if file.data.startswith(beginning):
                return file.data, ending
        return Encoding().encoded(decoded(file, source.name, 0, source.budget)), ".png"


def read_parts(
    spec: str,
    *,
    root: str | Path | None = None,
    size: int = 0,
    points: dict[str, tuple[float, ...]] | None = None,
    workers: int = 0,
) -> tuple[Part, ...]:
    """Look at all splits of a spec, without reading more pixels than needed.

    Args:
        spec: A spec of `marginlab.data.load`.
        root: The folder of the published sets.
        size: Pixels that images are brought to, or the side of aligned faces, 0 for 112.
        points: Landmarks by which faces are aligned; see `read_points`.
        workers: Processes that decode ahead.

    Raises:
        SettingsError, FileNotFoundError, TypeError, ValueError: As `load`; or landmarks that do not
            fit.
    """
    parts, first = [], 0
    source, selection = selection_of(spec)
    kind, _, rest = source.partition(":")
    path = Path(rest).expanduser()
    base = path if kind == "folder" else path.parent
    for split in splits(spec):
        if kind == "npz" and rest and selection == Selection():
            own = 0 if points is not None else size
            stream = NpzStream(path, split, spec, size=own, budget=BUDGET)
            stat = path.stat()
            mark = f"{stat.st_size} {stat.st_mtime_ns}"
            chosen = stream.chosen
            part = Part(split, chosen.labels, chosen.classes, stream, mark)
        else:
            part = _loaded(spec, split, root, kind in _FILES, size, points, workers)
        if points is not None:
            part = _aligned(part, points, base, first, size or SIDE)
        parts.append(part)
        first += len(part.labels)
    return tuple(parts)


def _loaded(
    spec: str,
    split: str,
    root: str | Path | None,
    files: bool,
    size: int,
    points: dict[str, tuple[float, ...]] | None,
    workers: int,
) -> Part:
    # images of files are not held, and are given one size where they are to be aligned: alignment
    # reads the originals, whose sizes may differ
    own = size if points is None else (size or SIDE) if files else 0
    budget = 1 if files else BUDGET
    found = load(spec, split, root, size=own, budget=budget, workers=workers if files else 0)
    return Part(split, found.labels, found.classes, found.images, found.digest())


def _aligned(
    part: Part, points: dict[str, tuple[float, ...]], base: Path, first: int, size: int
) -> Part:
    images = part.images
    files = None
    if isinstance(images, Streamed) and isinstance(images.source, ImageFiles):
        files = [images.source.path(row) for row in images.rows.tolist()]
    landmarks = chosen_points(points, base, files, first, len(part.labels))
    if not (isinstance(images, Streamed) and isinstance(images.source, Stored)):
        return replace(part, landmarks=landmarks, size=size)
    by_row = torch.zeros(images.source.shape[0], 5, 2, dtype=torch.float64)
    by_row[images.rows] = landmarks
    aligned = AlignedImages(images.source, by_row, size)
    return replace(part, images=replace(images, source=aligned))


def mark_of(parts: tuple[Part, ...], *settings: object) -> str:
    """Return 16 hexadecimal digits that differ where the images or the settings differ."""
    found = hashlib.sha256(repr(settings).encode())
    for part in parts:
        found.update(repr((part.split, part.shape, part.classes, part.mark)).encode())
        found.update(part.labels.numpy().tobytes())
    return found.hexdigest()[:16]


def inside(path: Path, other: Path) -> bool:
    """Return whether a path is another one, or lies in it."""
    return path.resolve().is_relative_to(other.resolve())
