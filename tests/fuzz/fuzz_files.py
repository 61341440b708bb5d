"""Mutated files of four kinds: each ends in a value or in one clear error that names the file.

    python tests/fuzz/fuzz_files.py [--cases 20000] [--seed 0] [--kinds npz images folders centers]

A case is a whole file with one to four mutations: bits, bytes, numbers that are too large, pieces
cut out, put in twice or taken from another file. Half of the zip files and PNGs get their checksums
put right again, so that what lies behind those is met as well. A clear error is of exactly one of
the types that a reader names, and its message holds the name of the file or folder.
"""

import argparse
import collections
import contextlib
import io
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from marginlab.data import load
from marginlab.formats.centers import import_insightface
from marginlab.settings import SettingsError

CLEAR = (ValueError, TypeError, FileNotFoundError, SettingsError)
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # files of which a disk knows nothing
LARGE = [0, 1, 2**7, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]
WORDS = [b"(", b")", b"[", b"'", b"\\x00", b"9" * 20, b"-", b"O", b"U", b"\xff" * 4, b"\0" * 8]
WORDS += [b"#"]


def mutated(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """The bytes with one to four mutations; a quarter of them in the first or last 200 bytes."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not found:
            break
        near = draw.random()
        at = draw.randrange(len(found))
        if near < 0.25:
            at = draw.randrange(min(len(found), 200))
        elif near < 0.5:
            at = len(found) - 1 - draw.randrange(min(len(found), 200))
        length = draw.randint(1, 40)
        match draw.randrange(8):
            case 0:
                found[at] ^= 1 << draw.randrange(8)
            case 1:
                found[at] = draw.randrange(256)
            case 2:
                form = draw.choice(["<I", ">I", "<H", ">H", "<Q"])
                number = draw.choice(LARGE) % 2 ** (8 * struct.calcsize(form))
                found[at : at + struct.calcsize(form)] = struct.pack(form, number)
            case 3:
                del found[at : at + length]
            case 4:
                found[at:at] = found[at : at + length]
            case 5:
                del found[at:]
            case 6:
                start = draw.randrange(max(len(other) - length, 1))
                found[at : at + length] = other[start : start + length]
            case 7:
                word = draw.choice(WORDS)
                found[at : at + len(word)] = word
    return bytes(found)


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


def unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def mutated_inside(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """A zip one of whose entries is mutated, with the checksum of what it then holds."""
    entries = unzipped(data)
    name = draw.choice(list(entries))
    entries[name] = mutated(entries[name], draw, other)
    return zipped(entries, draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def mutated_chunk(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """A PNG one of whose chunks is mutated, with the checksum of what it then holds."""
    chunks = []
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    place = draw.randrange(len(chunks))
    kind, held = chunks[place]
    chunks[place] = kind, mutated(held or b"0", draw, other)
    whole = data[:8]
    for kind, held in chunks:
        sum_ = struct.pack(">I", zlib.crc32(kind + held))
        whole += struct.pack(">I", len(held)) + kind + held + sum_
    return whole


def npz_case(folder: Path) -> Callable[[random.Random], None]:
    """Read npz files of all layouts."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (8, 5, 4, 3), dtype=np.uint8)
    labels = np.arange(8) % 2
    names = np.array(["ant", "bee"])
    seeds = []
    for save in (np.savez, np.savez_compressed):
        for images in (pixels, pixels / 255, np.asfortranarray(pixels), pixels[..., 0]):
            for fields in (
                {"images": images, "labels": labels, "classes": names},
                {"train_images": images, "train_labels": labels, "classes": names.astype("S")},
                {"unseen_images": images, "unseen_labels": labels, "unseen_classes": names},
            ):
                stream = io.BytesIO()
                save(stream, **fields)
                seeds.append(stream.getvalue())
    path = folder / "case.npz"

    def case(random: random.Random) -> None:
        change = random.choice([mutated, mutated_inside])
        path.write_bytes(change(random.choice(seeds), random, random.choice(seeds)))
        split = random.choice(["train", "test", "unseen"])
        found = load(f"npz:{path}", split, size=random.choice([0, 3]))
        assert found.images.shape[0] == len(found.labels)

    return case


def image_seeds() -> dict[str, list[bytes]]:
    draw = np.random.default_rng(0)
    colours = Image.fromarray(draw.integers(0, 256, (12, 9, 4), dtype=np.uint8), "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    seeds: dict[str, list[bytes]] = collections.defaultdict(list)
    for kind, mode, options in (
        ("png", "RGBA", {"exif": exif}),
        ("png", "RGB", {"transparency": (1, 2, 3)}),
        ("png", "P", {"transparency": 3}),
        ("png", "L", {}),
        ("png", "1", {}),
        ("jpeg", "RGB", {"exif": exif}),
        ("jpeg", "L", {"progressive": True}),
        ("jpeg", "CMYK", {}),
        ("bmp", "RGB", {}),
        ("bmp", "P", {}),
        ("ppm", "RGB", {}),
        ("tiff", "RGB", {"exif": exif}),
        ("tiff", "RGBA", {"compression": "tiff_lzw"}),
        ("tiff", "1", {"compression": "group4"}),
        ("tiff", "RGB", {"compression": "jpeg"}),
        ("webp", "RGBA", {"exif": exif}),
        ("webp", "RGB", {"lossless": True}),
        ("gif", "P", {"transparency": 0}),
    ):
        stream = io.BytesIO()
        colours.convert(mode).save(stream, kind, **options)
        seeds[kind].append(stream.getvalue())
    return seeds


def image_case(folder: Path) -> Callable[[random.Random], None]:
    """Read folders of two classes one of whose images is mutated."""
    seeds = image_seeds()
    every = [data for some in seeds.values() for data in some]
    for number in range(2):
        for name in ("ant", "bee"):
            (folder / "train" / name).mkdir(parents=True, exist_ok=True)
            (folder / "train" / name / f"{number}.png").write_bytes(seeds["png"][number])
    ends = ("png", "jpg", "webp", "tif")

    def case(random: random.Random) -> None:
        data = random.choice(seeds[random.choice(list(seeds))])
        change = mutated_chunk if data[:4] == b"\x89PNG" and random.random() < 0.5 else mutated
        path = folder / "train" / "bee" / f"case.{random.choice(ends)}"
        path.write_bytes(change(data, random, random.choice(every)))
        try:
            found = load(f"folder:{folder}", size=random.choice([0, 6]))
            assert found.images.shape[0] == 5
        finally:
            path.unlink()

    return case


PARTS = ["train", "test", "unseen", "val", "ant", "bee", "caf\u00e9", "cafe\u0301", "x.png", "a b"]
ODD = [b"caf\xe9", b"\xff", b"\x1b[31m", b"\n", b"[link](x)", "\u202e".encode(), b"~", b"?", b":"]


def folder_case(folder: Path) -> Callable[[random.Random], None]:
    """Read trees of folders of any names, with files, pipes and links of any names in them."""
    picture = folder / "picture.png"
    Image.new("RGB", (4, 4)).save(picture)

    def name(random: random.Random) -> str:
        if random.random() < 0.9:
            return random.choice(PARTS)
        end = bytes(random.choice(b"abc\xc3\xa9\x01 .-") for _ in range(random.randint(0, 3)))
        return os.fsdecode(random.choice(ODD) + end)

    def put(path: Path, random: random.Random) -> None:
        if path.is_symlink() or path.exists():
            return
        match random.randrange(60):
            case 0:
                os.mkfifo(path)
            case 1:
                path.symlink_to(path.parent)
            case 2:
                path.symlink_to("nothing")
            case _:
                path.hardlink_to(picture)

    def case(random: random.Random) -> None:
        root = folder / "tree"
        root.mkdir()
        names = [name(random) for _ in range(random.randint(2, 5))]
        ends = [".png"] * 8 + [".gif", ".txt", ""]
        for number in range(random.randint(3, 9)):
            place = root.joinpath(*random.choices(names, k=random.choice([1, 1, 1, 2, 2, 3])))
            with contextlib.suppress(FileExistsError, NotADirectoryError):
                place.mkdir(parents=True, exist_ok=True)
                put(place / f"{number}{random.choice(ends)}", random)
        try:
            load(f"folder:{root}", random.choice(["train", "train", "test", "unseen"]))
        finally:
            shutil.rmtree(root)

    return case


def center_case(folder: Path) -> Callable[[random.Random], None]:
    """Read insightface's shards of both formats, old and new."""
    centers = torch.arange(12.0).reshape(3, 4)
    whole = {"epoch": 1, "state_dict_backbone": {"w": torch.ones(2)}}
    whole["state_dict_softmax_fc"] = {"weight": centers}
    seeds: dict[str, list[bytes]] = {}
    for name, held in (("checkpoint_gpu_0.pt", whole), ("rank_0_softmax_weight.pt", centers)):
        for new in (True, False):
            stream = io.BytesIO()
            torch.save(held, stream, _use_new_zipfile_serialization=new)
            seeds.setdefault(name, []).append(stream.getvalue())

    def case(random: random.Random) -> None:
        name = random.choice(list(seeds))
        data = random.choice(seeds[name])
        packed = data[:2] == b"PK"
        change = mutated_inside if packed and random.random() < 0.5 else mutated
        path = folder / name
        path.write_bytes(change(data, random, random.choice(seeds[name])))
        try:
            found = import_insightface(folder)
            assert found.ndim == 2
        finally:
            path.unlink()

    return case


KINDS = {"npz": npz_case, "images": image_case, "folders": folder_case, "centers": center_case}


def is_text(said: str) -> bool:
    """Return whether a log in UTF-8 can hold it."""
    try:
        return bool(said.encode())
    except UnicodeEncodeError:
        return False


def fuzz(kind: str, cases: int, seed: int, folder: Path) -> collections.Counter[str]:
    """Run the cases of a kind; count values, clear errors, and other ends by what they say."""
    case = KINDS[kind](folder)
    ends: collections.Counter[str] = collections.Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a folder leaves out
        for number in range(cases):
            try:
                case(random.Random(f"{kind} {seed} {number}"))
                ends["value"] += 1
            except Exception as error:
                said = str(error)
                if type(error) in CLEAR and folder.name in said and is_text(said):
                    ends["clear error"] += 1
                else:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    told = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
                    ends[f"{told}: {said[:200]} (case {number})"] += 1
    return ends


def main() -> None:
    """Read the command line and print what came of each kind."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    bad = 0
    for kind in asked.kinds:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            ends = fuzz(kind, asked.cases, asked.seed, Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        value, clear = ends.pop("value", 0), ends.pop("clear error", 0)
        print(
            f"{kind}: {asked.cases:,} cases, {value:,} values, {clear:,} clear errors, "
            f"{ends.total():,} others; {time.monotonic() - began:.0f} s, peak {peak:,} MiB",
            flush=True,
        )
        for told, n in ends.most_common(20):
            print(f"  {n:,} x {told}", flush=True)
        bad += ends.total()
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
