"""Mutated files of other programs: each ends in a value or in one clear error that names the file.

    python tests/fuzz/fuzz_formats.py [--cases 20000] [--seed 0] [--kinds records packs lists]

The cases, their mutations and what is clear are those of fuzz_files.py.
"""

import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path

import fuzz_files
import numpy as np
from fuzz_files import image_seeds, mutated

from marginlab import formats
from marginlab.data import load


def record_seed(draw: random.Random, images: list[bytes]) -> tuple[bytes, bytes]:
    """A record file in one of the layouts that are about, and its index."""
    payloads = []
    if draw.random() < 0.5:
        payloads.append(struct.pack("<IfQQ2f", 2, 0, 0, 0, 7, 9))
    for key in range(6):
        body = draw.choice(images)
        if draw.random() < 0.5:
            payloads.append(struct.pack("<IfQQ", 0, key % 2, key, 0) + body)
        else:
            payloads.append(struct.pack("<IfQQ2f", 2, 0, key, 0, key % 2, 1) + body)
    data, lines = b"", b""
    magic = struct.pack("<I", 0xCED7230A)
    for key, payload in enumerate(payloads):
        lines += b"%d\t%d\n" % (key, len(data))
        cut = draw.choice([0, 0, 24, 40])
        parts = [(0, payload)] if not cut else [(1, payload[:cut]), (3, payload[cut:])]
        for kind, part in parts:
            data += magic + struct.pack("<I", kind << 29 | len(part)) + part + bytes(-len(part) % 4)
    return data, lines


def record_case(folder: Path) -> Callable[[random.Random], None]:
    """Read record files, indices and properties one or two of which are mutated."""
    images = image_seeds()["png"][:2]
    images = [image for image in images if len(image) < 2000]

    def case(draw: random.Random) -> None:
        parts = dict(zip(("train.rec", "train.idx"), record_seed(draw, images), strict=True))
        parts["property"] = b"2,12,9\n"
        for name in draw.choices(list(parts), [6, 2, 1], k=draw.randint(1, 2)):
            parts[name] = mutated(parts[name], draw, parts["train.rec"])
        if draw.random() < 0.2:
            del parts["train.idx"]
        for name in ("train.rec", "train.idx", "train.rec.index", "property"):
            (folder / name).unlink(missing_ok=True)
        for name, data in parts.items():
            (folder / name).write_bytes(data)
        split = draw.choice(["train", "train", "test"])
        if draw.random() < 0.5:
            found = formats.read_records(folder / "train.rec")
            reader = formats.RecordReader(folder / "train.rec")
            size = reader.version.size
            held = [formats.read_record(reader, at).image for at in found.offsets.tolist()]
            assert sum(map(len, held)) <= size
            return
        found = load(f"record:{folder}", split, size=draw.choice([0, 6]))
        assert found.images.shape[0] == len(found.labels)

    return case


def pack_case(folder: Path) -> Callable[[random.Random], None]:
    """Read packs of every protocol and kind of items."""
    draw = np.random.default_rng(0)
    images = [draw.bytes(n) for n in (3, 40, 300, 5)]
    arrays = [np.frombuffer(image, dtype=np.uint8).copy() for image in images]
    items = [images, arrays, [array[:, None] for array in arrays]]
    items.append([image.decode("latin-1") for image in images])
    same = [[True, False], np.array([True, False]), [1, 0]]
    seeds = [
        pickle.dumps((some, flags), protocol)
        for some in items
        for flags in same
        for protocol in (0, 2, 3, 4, 5)
    ]
    words = [b"cos\nsystem\n", b"(S'echo'\ntR", b"\x8c\x02os\x8c\x06system\x93", b"R", b"b", b"i"]
    words += [
        b"r\xff\xff\xff\x7f",
        b"\x8e" + b"\xff" * 7 + b"\x7f",
        b"2",
        b"}",
        b"\x81",
        b"e",
        b"h\x01",
    ]
    path = folder / "case.bin"

    def case(draw: random.Random) -> None:
        data = draw.choice(seeds)
        if draw.random() < 0.7:
            data = mutated(data, draw, draw.choice(seeds))
        if draw.random() < 0.5:
            at = draw.randrange(len(data) + 1)
            data = data[:at] + draw.choice(words) + data[at + draw.choice([0, 1, 4]) :]
        path.write_bytes(data)
        found = formats.read_pack(path)
        assert len(found.images) == 2 * len(found.same)
        distinct = {id(image): len(image) for image in found.images}
        assert sum(distinct.values()) <= len(data)

    return case


def list_case(folder: Path) -> Callable[[random.Random], None]:
    """Read the lists of protocols, and feature files."""
    feature = struct.pack("<4i4f", 4, 1, 4, 5, 1, 2, 3, 4)
    readers = [
        (formats.read_pairs, b"2\t1\nA_B\t1\t2\nA_B\t1\tC_D\t3\nE\t1\t4\nE\t1\tF\t2\n"),
        (formats.read_people, b"2\n1\nA_B\t3\n2\nC\t1\nD\t2\n"),
        (formats.read_people, b"2\nA_B\t3\nC\t1\n"),
        (formats.read_faces, b"1.jpg 1 10\n2.jpg 1 11\n3.jpg 2 12\n"),
        (
            formats.read_landmarks,
            b"1.jpg 1 2 3 4 5 6 7 8 9 10 0.5\n2.jpg 1 2 3 4 5 6 7 8 9 1e1 1\n",
        ),
        (formats.read_template_pairs, b"1 2 1\n1 3 0\n"),
        (
            lambda path: formats.read_subjects([path]),
            b"TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,2,a\n3,4,b\n",
        ),
        (formats.read_feature, feature),
    ]
    path = folder / "case.txt"

    def case(draw: random.Random) -> None:
        reader, data = draw.choice(readers)
        path.write_bytes(mutated(data, draw, draw.choice(readers)[1]))
        reader(path)

    return case


KINDS = {"records": record_case, "packs": pack_case, "lists": list_case}

if __name__ == "__main__":
    fuzz_files.KINDS = KINDS
    fuzz_files.main()
