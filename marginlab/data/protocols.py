"""Protocols of face recognition as they lie on the disk: pictures, and who is compared with whom.

    lfw         a folder with pairs.txt and NAME/NAME_0001.jpg
    pack        a verification pack of insightface, such as lfw.bin
    tinyface    TinyFace's folder Testing_Set
    ijb         meta/*_face_tid_mid.txt, *_name_5pts_score.txt, *_template_pair_label.txt, and the
                pictures in loose_crop/

`marginlab.formats` reads the lists. Pictures are decoded when they are asked for. A picture that
cannot be read is an error, since a protocol without it is another protocol.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from marginlab import formats
from marginlab.data.alignment import align_faces
from marginlab.data.decoding import Encoded, decoded
from marginlab.data.pixels import BUDGET, resized
from marginlab.evaluation import people_of_pairs


class Pictures:
    """N pictures that are decoded when they are asked for.

    Args:
        sources: Files, or encoded pictures.
        name: The protocol, for messages.
        landmarks: (N, 5, 2) points by which pictures are aligned. Without them the shorter side is
            resized and the centre is cut out.
    """

    def __init__(
        self,
        sources: Sequence[Path | Encoded],
        name: str,
        landmarks: Float[Tensor, "N 5 2"] | None = None,
    ):
        self.sources, self.name, self.landmarks = list(sources), name, landmarks

    def __len__(self) -> int:
        return len(self.sources)

    def read(self, rows: Sequence[int], size: int) -> UInt8[Tensor, "n 3 S S"]:
        """Decode some pictures, aligned or resized.

        Raises:
            ValueError: A picture cannot be read; the message names it.
        """
        images = []
        for row in rows:
            cut = size if self.landmarks is None else 0
            image = decoded(self.sources[row], self.name, cut, BUDGET)[None]
            if self.landmarks is None:
                images.append(resized(image, size))
            else:
                images.append(align_faces(image, self.landmarks[row][None], size=size))
        return torch.cat(images)


class Paired(NamedTuple):
    """M pairs of pictures, or of templates of pictures.

    Attributes:
        pictures: All pictures.
        first: (M,) number of each pair's first picture, or of its template.
        second: That of the second.
        same: (M,) true for one person.
        people: The identities of the first and of the second.
        folds: Number of contiguous folds; 0 for none.
        templates: (N,) template of each picture, where templates are compared.
        media: (N,) medium of each picture.
        detector: (N,) score of the face detector.
    """

    pictures: Pictures
    first: Int64[Tensor, " M"]
    second: Int64[Tensor, " M"]
    same: Bool[Tensor, " M"]
    people: tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]
    folds: int = 0
    templates: Int64[Tensor, " N"] | None = None
    media: Int64[Tensor, " N"] | None = None
    detector: Float[Tensor, " N"] | None = None


class Identified(NamedTuple):
    """Probes that are looked up in a gallery; the identity -1 is of nobody on the other side."""

    pictures: Pictures
    gallery: Int64[Tensor, " G"]
    probes: Int64[Tensor, " P"]
    gallery_ids: Int64[Tensor, " G"]
    probe_ids: Int64[Tensor, " P"]


Faces = Paired | Identified


def read_protocol(name: str, path: Path) -> Faces:
    """Read the lists of a protocol, and see that each picture is there.

    Args:
        name: "lfw", "pack", "tinyface" or "ijb".
        path: Its folder, or the pack.

    Raises:
        FileNotFoundError: A list or a picture is missing; the message names it.
        ValueError: A list is broken, or the name is another one.
    """
    readers: dict[str, Callable[[Path], Faces]] = {
        "lfw": _lfw,
        "pack": _pack,
        "tinyface": _tinyface,
        "ijb": _ijb,
    }
    if name not in readers:
        raise ValueError(f"There is no protocol {name!r}. There are: {', '.join(readers)}.")
    return readers[name](path)


def _lfw(path: Path) -> Paired:
    pairs = formats.read_pairs(path / "pairs.txt")
    names, number = np.unique([*pairs.first, *pairs.second], return_inverse=True)
    people = np.unique([name.split("/")[0] for name in names], return_inverse=True)[1]
    first, second = np.split(number, 2)
    pictures = Pictures(_there(path, names.tolist()), "lfw")
    who = torch.from_numpy(people[first]), torch.from_numpy(people[second])
    folds = int(pairs.fold.max()) + 1
    return Paired(
        pictures,
        torch.from_numpy(first),
        torch.from_numpy(second),
        torch.from_numpy(pairs.same),
        who,
        folds if folds > 1 else 10 if len(first) >= 20 else 0,
    )


def _pack(path: Path) -> Paired:
    pack = formats.read_pack(path)
    numbers: dict[bytes, int] = {}
    # a picture that stands in several pairs is encoded once
    held = [numbers.setdefault(image, len(numbers)) for image in pack.images]
    sources = [Encoded(image, f"image {n} of {path}") for n, image in enumerate(numbers)]
    first, second = torch.tensor(held[::2]), torch.tensor(held[1::2])
    same = torch.from_numpy(pack.same)
    who = people_of_pairs(first, second, same)
    folds = 10 if len(same) >= 20 else 0
    return Paired(Pictures(sources, path.name), first, second, same, who, folds)


def _tinyface(path: Path) -> Identified:
    found = formats.read_tinyface(path)
    gallery, probes = found.gallery, found.probes
    sources = _there(path, [*gallery.paths, *probes.paths])
    number = torch.arange(len(sources))
    return Identified(
        Pictures(sources, "tinyface"),
        number[: len(gallery.paths)],
        number[len(gallery.paths) :],
        torch.from_numpy(gallery.ids),
        torch.from_numpy(probes.ids),
    )


def _ijb(path: Path) -> Paired:
    meta = path / "meta"
    faces = formats.read_faces(_one(meta, "*_face_tid_mid.txt"))
    points = formats.read_landmarks(_one(meta, "*_name_5pts_score.txt"))
    pairs = formats.read_template_pairs(_one(meta, "*_template_pair_label.txt"))
    if faces.names != points.names:
        at = next(
            (n for n, (a, b) in enumerate(zip(faces.names, points.names, strict=False)) if a != b),
            min(len(faces.names), len(points.names)),
        )
        raise ValueError(
            f"{meta}: the lists of templates and of landmarks differ from face {at} on. Give both "
            "as the set's authors publish them."
        )
    sources = _there(path / "loose_crop", faces.names)
    first, second = torch.from_numpy(pairs.first), torch.from_numpy(pairs.second)
    same = torch.from_numpy(pairs.same)
    return Paired(
        Pictures(sources, "ijb", torch.from_numpy(points.points)),
        first,
        second,
        same,
        people_of_pairs(first, second, same),
        0,
        torch.from_numpy(faces.template),
        torch.from_numpy(faces.medium),
        torch.from_numpy(points.score),
    )


def _there(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the files of names below a folder, all of which are there."""
    found = [folder / name for name in names]
    missing = [file for file in found if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of {len(found):,} pictures are missing, the first of them "
            f"{missing[0]}. Give the folder as the set's authors publish it."
        )
    return found


def _one(folder: Path, pattern: str) -> Path:
    """Return the one file of a pattern."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(f"{folder} has {len(found)} files {pattern}, not one.")
    return found[0]
