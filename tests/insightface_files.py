"""A training folder and a verification pack of insightface, byte by byte, without our writers."""

import io
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def face(person: int, shot: int, side: int = 16) -> Image.Image:
    """A picture of a person: a colour of its own, and some noise of the shot."""
    pixels = np.full((side, side, 3), (40 + 37 * person % 180, 53 * person % 200, 90), np.uint8)
    noise = np.random.default_rng(100 * person + shot).integers(0, 6, pixels.shape, dtype=np.uint8)
    return Image.fromarray(pixels + noise)


def encoded(person: int, shot: int, side: int = 16) -> bytes:
    """The bytes of a picture file of a person."""
    stream = io.BytesIO()
    face(person, shot, side).save(stream, "png")
    return stream.getvalue()


def write_training_folder(folder: Path, people: int, shots: int, side: int = 16) -> None:
    """Write train.rec, train.idx and property: header, images, then a record for each identity."""
    folder.mkdir(parents=True, exist_ok=True)
    first_identity = people * shots + 1
    payloads = [struct.pack("<IfQQ2f", 2, 0, 0, 0, first_identity, first_identity + people)]
    for key in range(1, first_identity):
        person, shot = divmod(key - 1, shots)
        payloads.append(struct.pack("<IfQQ", 0, person, key, 0) + encoded(person, shot, side))
    for person in range(people):
        bounds = 1 + person * shots, 1 + (person + 1) * shots
        payloads.append(struct.pack("<IfQQ2f", 2, 0, first_identity + person, 0, *bounds))
    data, lines = b"", ""
    for key, payload in enumerate(payloads):
        lines += f"{key}\t{len(data)}\n"
        data += struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4)
    (folder / "train.rec").write_bytes(data)
    (folder / "train.idx").write_text(lines)
    (folder / "property").write_text(f"{people},{side},{side}\n")


def write_pack(path: Path, people: int = 12, side: int = 16) -> None:
    """Write a pack of a genuine and an impostor pair of each person, by Python's own pickle."""
    images: list[bytes] = []
    for person in range(people):
        one = encoded(person, 0, side)
        images += [one, encoded(person, 1, side), one, encoded((person + 1) % people, 1, side)]
    path.write_bytes(pickle.dumps((images, [True, False] * people), protocol=2))
