"""One image file: formats, memory, orientation, transparency, and errors that name the file."""

import io
import os
import resource
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, PngImagePlugin

from marginlab.data import decoding, load
from marginlab.data.decoding import decoded, look
from marginlab.data.pixels import BUDGET

RANDOM = np.random.default_rng(0)
UPRIGHT = np.kron(
    RANDOM.integers(0, 256, (2, 3, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8)
)

# EXIF: where the stored row 0 and column 0 lie in the upright image
STORED = {
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.transpose(1, 0, 2),  # left, top
    6: UPRIGHT[:, ::-1].transpose(1, 0, 2),  # right, top
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: UPRIGHT[::-1].transpose(1, 0, 2),  # left, bottom
}


def read(path, size=0, budget=BUDGET):
    image = decoded(path, "made", size, budget)
    seen = look(path, "made", size, budget)
    assert image.shape == (3, seen.height, seen.width)
    return image.permute(1, 2, 0).numpy()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def behind_the_pixels(png, kind):
    """Move a chunk of a PNG behind its pixels."""
    at = png.index(kind) - 4
    n = 12 + int.from_bytes(png[at : at + 4], "big")
    rest = png[:at] + png[at + n :]
    return rest[:-12] + png[at : at + n] + rest[-12:]


@pytest.mark.parametrize("kind", ["jpg", "png", "late.png", "tif", "packed.tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_photograph_is_upright(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
    if kind == "packed.tif":
        options = {"compression": "tiff_lzw"}
    path = tmp_path / f"a.{kind}"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    stored.save(path, exif=exif, **options)
    if kind == "late.png":
        path.write_bytes(behind_the_pixels(path.read_bytes(), b"eXIf"))
    found = read(path)
    assert found.shape == UPRIGHT.shape
    assert np.abs(found.astype(int) - UPRIGHT).max() <= (3 if kind == "jpg" else 0)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12", b"", b"Exif\0\0II", b"?"]
)
def test_a_broken_or_absurd_orientation_leaves_an_image_as_it_is(tmp_path, exif):
    path = tmp_path / "a.png"
    Image.fromarray(UPRIGHT).save(path, exif=exif or None)
    assert np.array_equal(read(path), UPRIGHT)
    absurd = Image.Exif()
    absurd[0x0112] = 77
    Image.fromarray(UPRIGHT).save(path, exif=absurd)
    assert np.array_equal(read(path), UPRIGHT)


def over_white(colour, opacity):
    """The formula, in float64."""
    share = opacity[..., None].astype(float) / 255
    return share * colour + (1 - share) * 255


def test_transparent_parts_lie_over_white(tmp_path):
    every = np.stack(np.meshgrid(np.arange(256), np.arange(256)), -1).astype(np.uint8)
    red = every[..., :1]
    rgba = np.concatenate([red, 255 - red, red // 2, every[..., 1:]], -1)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    found = read(tmp_path / "a.png")
    assert np.abs(found - over_white(rgba[..., :3], rgba[..., 3])).max() <= 0.51
    Image.fromarray(every, "LA").save(tmp_path / "b.png")
    found = read(tmp_path / "b.png")
    assert np.abs(found - over_white(np.repeat(every[..., :1], 3, -1), every[..., 1])).max() <= 0.51


def test_logos_that_look_alike_are_alike(tmp_path):
    for name, under in (("black", (0, 0, 0, 0)), ("red", (255, 0, 0, 0))):
        logo = Image.new("RGBA", (6, 5), under)
        logo.putpixel((2, 3), (10, 20, 30, 255))
        logo.save(tmp_path / f"{name}.png")
        logo.save(tmp_path / f"{name}.webp", lossless=True, exact=True)
    expected = np.full((5, 6, 3), 255)
    expected[3, 2] = 10, 20, 30
    for path in tmp_path.iterdir():
        assert np.array_equal(read(path), expected), path


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "P of many", "gif"])
def test_a_transparent_colour_lies_over_white(tmp_path, mode):
    """One colour of the image, or of its palette, is said to be none."""
    grey = np.array([[0, 255, 0], [255, 0, 255]], np.uint8)
    image = Image.fromarray(grey)
    path = tmp_path / ("a.webp" if mode == "gif" else "a.png")  # a name says nothing of the kind
    none = 0
    if mode == "RGB":
        image, none = image.convert("RGB"), (0, 0, 0)
    elif mode == "1":
        image = image.convert("1")
    elif mode != "L":
        image = Image.fromarray(grey // 255)
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([0, 0, 0, 255, 0, 0])
        none = b"\0\xff" if mode == "P of many" else 0
    image.save(path, format="GIF" if mode == "gif" else "PNG", transparency=none)
    red = mode in ("P", "P of many", "gif")
    ink = np.array((255, 0, 0)) if red else np.array((255, 255, 255))
    assert np.array_equal(read(path), np.where(grey[..., None] > 0, ink, 255))


def thin(path, width, height=1):
    """A PNG of black pixels, one bit each, built without the memory they take."""
    pack = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(pack.compress(row) for _ in range(height)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def classes(folder, *names):
    for name in names or ("ant", "bee"):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(UPRIGHT).save(folder / name / f"{i}.png")
    return f"folder:{folder}"


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    spec = classes(tmp_path, "train/ant", "train/bee")
    bomb = tmp_path / "train" / "bee" / "1.png"
    thin(bomb, 170_000_000)
    assert bomb.stat().st_size < 25_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in (0, 8):
        with pytest.raises(
            ValueError, match=r"bee/1\.png of 1 x 170,000,000 pixels would take .* above"
        ):
            load(spec, size=size)
    thin(bomb, 180_000_000)
    with pytest.raises(ValueError, match=r"bee/1\.png cannot be read as an image: Image size"):
        load(spec, size=8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_the_limit_is_the_budget_and_never_less_than_a_photograph_takes(tmp_path):
    spec = classes(tmp_path, "train/ant", "train/bee")
    odd = tmp_path / "train" / "bee" / "1.png"
    thin(odd, 4_000, 4_000)  # 16 million pixels, 16 bytes each
    assert load(spec, size=8, budget=1_000).images.shape == (4, 3, 8, 8)
    thin(odd, 4_200, 4_200)
    with pytest.raises(
        ValueError, match=r"4,200 x 4,200 pixels would take 282,240,000 .* 268,435,456"
    ):
        load(spec, size=8, budget=1_000)
    assert load(spec, size=8, budget=300_000_000).images.shape == (4, 3, 8, 8)


def test_a_thin_image_that_resizing_would_make_large_is_refused(tmp_path):
    spec = classes(tmp_path, "train/ant", "train/bee")
    thin(tmp_path / "train" / "bee" / "1.png", 1, 10_000)
    with pytest.raises(
        ValueError, match=r"10,000 x 1 pixels would take 8,028,160,000.*longer side"
    ):
        load(spec, size=224)
    assert load(spec, size=32).images.shape == (4, 3, 32, 32)


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    marker = tmp_path / "started"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    spec = classes(tmp_path / "data", "train/ant", "train/bee")
    hostile = tmp_path / "data" / "train" / "bee" / "1.jpg"
    hostile.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 32\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ValueError, match=r"bee/1\.jpg cannot be read as an image"):
        load(spec)
    assert not marker.exists()


def with_chunk(path, kind, data):
    stream = io.BytesIO()
    Image.fromarray(UPRIGHT).save(stream, "PNG")
    png = stream.getvalue()
    path.write_bytes(png[:33] + chunk(kind, data) + png[33:])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"late zTXt"])
def test_a_text_or_profile_of_2_mb_names_the_file(tmp_path, kind, streamed):
    spec = classes(tmp_path, "train/ant", "train/bee")
    big = zlib.compress(bytes(2 * PngImagePlugin.MAX_TEXT_CHUNK))
    path = tmp_path / "train" / "bee" / "1.png"
    data = {b"iTXt": b"key\0\1\0\0\0" + big}.get(kind, b"key\0\0" + big)
    with_chunk(path, kind[-4:], data)
    if kind == b"late zTXt":
        path.write_bytes(behind_the_pixels(path.read_bytes(), kind[-4:]))

    def read_all():
        return load(spec, budget=1, workers=0).images[torch.arange(4)] if streamed else load(spec)

    with pytest.raises(ValueError, match=r"bee/1\.png cannot be read as an image") as error:
        read_all()
    assert "texts and colour profile" in str(error.value)


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    spec = classes(tmp_path, "train/ant", "train/bee")
    pipe = tmp_path / "train" / "bee" / "2.png"
    os.mkfifo(pipe)
    with pytest.raises(
        ValueError, match=r"bee/2\.png cannot be read as an image: it is a named pipe"
    ):
        load(spec)
    pipe.unlink()
    pipe.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"bee/2\.png cannot be read as an image: it is a device"):
        load(spec)
    pipe.unlink()
    pipe.symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"bee/2\.png cannot be read as an image: .*No such file"):
        load(spec)


@pytest.mark.parametrize("kind", ["bmp", "ppm", "tif", "gif", "webp", "png", "jpg"])
def test_pixels_in_the_middle_of_a_file_tell_it_from_others(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    found = []
    for value in (0, 255, 0):
        pixels[48, 40:50] = value
        image = Image.fromarray(pixels)
        image = image.convert("P") if kind == "gif" else image
        image.save(tmp_path / f"one.{kind}", **({"lossless": True} if kind == "webp" else {}))
        found.append(look(tmp_path / f"one.{kind}", "made", 0, BUDGET).fingerprint)
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("size", [0, 8])
def test_a_set_of_bitmaps_has_the_digest_of_its_pixels_held_and_streamed(
    tmp_path, size, monkeypatch
):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "all" / f"{name}.bmp")

    def digests():
        spec = f"folder:{tmp_path / 'all'}"
        one, other = load(spec, size=size), load(spec, size=size, budget=1, workers=0)
        assert one.digest() == other.digest()
        return one.digest()

    before = digests()
    monkeypatch.setattr(decoding, "READER", decoding.READER + 1)
    assert digests() != before
    monkeypatch.undo()
    pixels[30] = 0
    for file in (tmp_path / "all").glob("*/*.bmp"):
        Image.fromarray(pixels).save(file)
    assert digests() != before
