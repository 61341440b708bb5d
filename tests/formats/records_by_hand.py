"""Record files made by struct, never by our writer."""

import struct

import numpy as np

from marginlab.formats import read_record, read_records
from marginlab.formats.recordio import RecordReader

MAGIC = struct.pack("<I", 0xCED7230A)


def part(kind, data):
    return MAGIC + struct.pack("<I", kind << 29 | len(data)) + data + bytes(-len(data) % 4)


def header(flag, label=0.0, number=0):
    return struct.pack("<IfQQ", flag, label, number, 0)


def floats(*labels):
    return struct.pack(f"<{len(labels)}f", *labels)


def image(label, data, number=0):
    return part(0, header(0, label, number) + data)


def put(folder, records, keys=None, name="train"):
    """Write records and their index; return the record file and the offsets."""
    offsets = np.cumsum([0, *map(len, records)])[:-1].tolist()
    path = folder / f"{name}.rec"
    path.write_bytes(b"".join(records))
    keys = range(len(records)) if keys is None else keys
    lines = [f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=True)]
    path.with_suffix(".idx").write_text("".join(lines))
    return path, offsets


def images_of(path):
    found = read_records(path)
    reader = RecordReader(path)
    return [read_record(reader, offset).image for offset in found.offsets.tolist()]
