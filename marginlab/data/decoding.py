"""Decoder of one image file: few formats, bounded memory, upright, and over white.

    pixel over white = round((a c + (255 - a) 255) / 255)      of a colour c of opacity a

JPEG, PNG, PPM, BMP, TIFF, WEBP and GIF are opened. The format is found from a file's contents and
not from its name. None of these formats starts another program, as PostScript does. The first of
several pictures in a file is taken. A photograph is turned as its EXIF orientation says; if the
EXIF is broken, it stays as it is.

    fingerprint = 64 bits of a hash of (version of this reader, length of the file, bytes)

The bytes of a PNG or a JPEG are its first and last 4 KiB. Other pixels change the checksum at the
end of a PNG, and nearly always the length of a JPEG. Formats without a checksum are read whole.
"""

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from marginlab.data.pixels import afford_one
from marginlab.files import open_regular
from marginlab.files.untrusted import shown

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
READER = 2  # another one makes other pixels of some files: 2 turns by EXIF, and puts over white
_TOLD_BY_ENDS = ("PNG", "JPEG", "MPO")  # MPO: a JPEG with further pictures behind it
_BLOCK = 2**20  # bytes that are read at a time
_END = 4096  # bytes of a file's beginning and of its end that tell it from others
_ORIENTATION = 0x0112  # EXIF's tag
_EXIF = 2**16  # bytes of EXIF in a JPEG at most; of a PNG no more are read


class Look(NamedTuple):
    """Height and width of the upright image, from its header, and the fingerprint of its file."""

    height: int
    width: int
    fingerprint: int


class Encoded(NamedTuple):
    """Bytes of an encoded image, and the place that they were read from, for messages."""

    data: bytes
    place: str


def look(file: Path | Encoded, name: str, size: int, budget: int) -> Look:
    """Read a file's header, so that a bad file is known before the work starts.

    Raises:
        ValueError: With the file's name: a file that cannot be read, has more than 8 bits a
            channel, or takes more memory than there is for it (`afford_one`).
    """
    with _opened(file, name) as (image, stream):
        _usable(image, file, name, size, budget)
        with _named(file, name):
            fingerprint = _fingerprint(stream, whole=image.format not in _TOLD_BY_ENDS)
        turned = _turn(image, stream) > 4
        width, height = image.size[::-1] if turned else image.size
    return Look(height, width, fingerprint)


def decoded(file: Path | Encoded, name: str, size: int, budget: int) -> UInt8[Tensor, "3 H W"]:
    """Decode an image file, or its bytes: upright, its transparent parts over white.

    Raises:
        ValueError: With the file's name: a file that is no whole image, has more than 8 bits a
            channel, or takes more memory than there is for it (`afford_one`).
    """
    with _opened(file, name) as (image, stream):
        _usable(image, file, name, size, budget)
        with _named(file, name):
            turn = _turn(image, stream)
            image.load()
            colours = _over_white(image) if image.has_transparency_data else image.convert("RGB")
            if turn > 1:
                colours = colours.transpose(_turns()[turn])
            return torch.from_numpy(np.array(colours)).permute(2, 0, 1)


def _told(file: Path | Encoded) -> str:
    return file.place if isinstance(file, Encoded) else shown(file)


def _turns() -> dict[int, Any]:
    """Map each of EXIF's orientations to the transposition that undoes it; 1 is upright already."""
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }


@contextlib.contextmanager
def _opened(file: Path | Encoded, name: str) -> Iterator[tuple[Any, io.BufferedIOBase]]:
    """Open a file as an image whose pixels are not read yet, and as their stream of bytes."""
    from PIL import Image

    with contextlib.ExitStack() as stack:
        with _named(file, name):
            found: Any = io.BytesIO(file.data) if isinstance(file, Encoded) else open_regular(file)
            stream = stack.enter_context(found)
            image = stack.enter_context(Image.open(stream, formats=FORMATS))
        yield image, stream


@contextlib.contextmanager
def _named(file: Path | Encoded, name: str) -> Iterator[None]:
    """Turn any error of a decoder into one ValueError with the file's name, and hide its warnings.

    Pillow meets broken files with OSError, SyntaxError, KeyError, struct.error, MemoryError, ...
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        said = (str(error) or type(error).__name__).rstrip(".")
        remedy = "Remove it, or save it again"
        if "too large" in said:  # Pillow's word for texts and colour profiles above 1 MB
            remedy += " without the texts and colour profile in it"
        raise ValueError(
            f"{name}: {_told(file)} cannot be read as an image: {said}. {remedy}."
        ) from error


def _usable(image: Any, file: Path | Encoded, name: str, size: int, budget: int) -> None:
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{name}: {_told(file)} holds values of more than 8 bits (mode {image.mode}), which "
            "would be clipped. Save it with 8 bits a channel."
        )
    width, height = image.size
    afford_one(height, width, size, budget, f"{name}: {_told(file)}")


def _turn(image: Any, stream: io.BufferedIOBase) -> int:
    """Return EXIF's orientation, 1 to 8; 1 where there is none, or none that makes sense."""
    from PIL import Image

    if image.format == "TIFF":  # Pillow turns it as it is decoded, and its size is the upright one
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            late = image.format == "PNG" and "exif" not in image.info and _exif_of_png(stream)
            exif = Image.Exif()
            if late:
                exif.load(late)
            else:
                exif = Image.Image.getexif(image)  # PNG's own method would decode the image first
            found = exif.get(_ORIENTATION, 1)
    except Exception:  # as many kinds as there are ways to break EXIF
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _exif_of_png(stream: io.BufferedIOBase) -> bytes:
    """Read the EXIF of a PNG wherever it stands, which may be behind the pixels.

    The stream's position is restored.
    """
    before = stream.tell()
    try:
        stream.seek(8)
        while len(head := stream.read(8)) == 8 and head[4:] != b"IEND":
            length = int.from_bytes(head[:4])
            if head[4:] == b"eXIf":
                return stream.read(min(length, _EXIF))
            stream.seek(length + 4, os.SEEK_CUR)
    finally:
        stream.seek(before)
    return b""


def _over_white(image: Any) -> Any:
    from PIL import Image

    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


def _fingerprint(stream: io.BufferedIOBase, *, whole: bool) -> int:
    before = stream.tell()
    length = stream.seek(0, os.SEEK_END)
    found = hashlib.blake2b(b"%d:%d:" % (READER, length), digest_size=8)
    stream.seek(0)
    if whole:
        while block := stream.read(_BLOCK):
            found.update(block)
    else:
        found.update(stream.read(_END))
        stream.seek(max(length - _END, _END))  # of a short file all is read, and nothing twice
        found.update(stream.read(_END))
    stream.seek(before)
    return int.from_bytes(found.digest(), "little", signed=True)
