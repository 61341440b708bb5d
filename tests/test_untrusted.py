"""Bytes that nobody vouches for: flipped bits, what is no file, and every Python that is found."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from marginlab.data import load
from marginlab.files import untrusted
from marginlab.files.untrusted import DamagedError, Entries

RANDOM = np.random.default_rng(0)
LABELS = np.arange(20) % 2

# run by interpreters that have neither numpy nor torch
READ_ALL = """
import importlib.util, pathlib, sys
sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parents[2]))  # for marginlab.files
spec = importlib.util.spec_from_file_location("untrusted", sys.argv[1])
untrusted = importlib.util.module_from_spec(spec)
spec.loader.exec_module(untrusted)
taken = refused = 0
path = pathlib.Path(sys.argv[2])
whole = path.read_bytes()
flipped = path.with_name("flipped.npz")
for at in [None, *map(int, sys.argv[3].split(","))]:
    data = bytearray(whole)
    if at is not None:
        data[at] ^= 16
    flipped.write_bytes(data)
    try:
        with untrusted.Entries(flipped) as entries:
            for name in entries.names:
                entries.open(name).verify(100)
        taken += 1
    except untrusted.DamagedError:
        refused += 1
print(taken, refused)
"""


def interpreters(version):
    """Every Python of this version on the path, or where pyenv and uv put them."""
    home = Path.home()
    places = [home / ".pyenv" / "versions", home / ".local" / "share" / "uv" / "python"]
    for place in places:
        for found in sorted(place.glob(f"*{version}*/bin/python{version}")):
            yield str(found)
    if found := shutil.which(f"python{version}"):
        yield found


def runs(python, version):
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    asked = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    return asked.stdout.strip() == version


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("version", ["this", "3.11", "3.12", "3.13", "3.14", "3.15"])
def test_a_flipped_bit_is_seen_by_every_python(tmp_path, version, save):
    """From 3.12 on, zipfile verifies no checksum after a seek."""
    found = [sys.executable] if version == "this" else interpreters(version)
    python = next((path for path in found if version == "this" or runs(path, version)), None)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    pixels = RANDOM.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    save(tmp_path / "whole.npz", images=pixels, labels=LABELS)
    with zipfile.ZipFile(tmp_path / "whole.npz") as archive:
        size = archive.getinfo("images.npy").compress_size
    begin = 70  # behind the first entry's own header
    places = ",".join(map(str, RANDOM.integers(begin, begin + size - 20, 200)))
    command = [python, "-I", "-c", READ_ALL, untrusted.__file__, tmp_path / "whole.npz", places]
    read = subprocess.run(command, capture_output=True, text=True, check=True)
    assert read.stdout.split() == ["1", "200"]


def test_flipped_pixels_are_never_loaded(tmp_path):
    pixels = RANDOM.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    path = tmp_path / "a.npz"
    np.savez(path, train_images=pixels, train_labels=LABELS)
    whole = path.read_bytes()
    start = whole.index(pixels.tobytes())
    for at in range(start, start + 1800, 60):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is no whole npz file: Bad CRC"):
            load(f"npz:{path}")


def test_no_entry_is_read_by_a_seek(tmp_path, monkeypatch):
    pixels = RANDOM.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    path = tmp_path / "a.npz"
    np.savez(path, images=pixels, labels=LABELS, classes=np.array(["a", "b"]))
    np.savez(tmp_path / "b.npz", images=np.asfortranarray(pixels), labels=LABELS)
    monkeypatch.setattr(zipfile.ZipExtFile, "seek", lambda *_: pytest.fail("an entry was sought"))
    assert len(load(f"npz:{path}")) == len(load(f"npz:{tmp_path}/b.npz"))


def others(folder):
    """Places that are no files, by the word that a message has for them."""
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "socket"))
    (folder / "folder").mkdir()
    return {
        "a named pipe": folder / "pipe",
        "a socket": folder / "socket",
        "a device": Path("/dev/zero"),
        "a folder": folder / "folder",
    }


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    for kind, path in others(tmp_path).items():
        with pytest.raises(OSError, match=f"it is {kind}, not a file"):
            untrusted.open_regular(path)
        with pytest.raises(ValueError, match=f"cannot be read: it is {kind}, not a file"):
            load(f"npz:{path}")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a named pipe"):
        untrusted.open_regular(tmp_path / "link")


def test_a_pipe_that_took_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    stat = (tmp_path / "file").stat()
    monkeypatch.setattr(Path, "stat", lambda path: stat)
    said = []

    def read():
        try:
            untrusted.open_regular(tmp_path / "pipe")
        except OSError as error:
            said.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert said == ["it is a named pipe, not a file"]


def claimed(path, offset, value):
    """Write four bytes into the central directory's only entry."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + offset : at + offset + 4] = value.to_bytes(4, "little")
    path.write_bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_claim_beyond_the_length_of_the_file_is_refused_before_it_is_believed(tmp_path, method):
    path = tmp_path / "a.zip"
    for offset in (24, 20):  # unpacked size, then packed size as well
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("a.npy", bytes(1000))
        claimed(path, 24, 2**31)
        claimed(path, offset, 2**31)
        with Entries(path) as entries, pytest.raises(DamagedError, match="claims 2,147,483,648"):
            entries.open("a.npy")


def test_what_is_packed_to_the_last_bit_is_read(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("a.npy", bytes(50_000_000))
    with Entries(path) as entries:
        entry = entries.open("a.npy")
        entry.verify()
        assert entry.size == 50_000_000


def test_other_packings_and_passwords_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", bytes(1000))
    with Entries(path) as entries, pytest.raises(DamagedError, match="packed by method 12"):
        entries.open("a.npy")
    with Entries(path) as entries, pytest.raises(DamagedError, match=r"b\.npy"):
        entries.open("b.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", bytes(1000))
    data = bytearray(path.read_bytes())
    for at in (6, data.rindex(b"PK\x01\x02") + 8):
        data[at] |= 1  # encrypted
    path.write_bytes(data)
    with Entries(path) as entries, pytest.raises(DamagedError, match="encrypted"):
        entries.open("a.npy")


def test_an_entry_is_found_by_where_its_data_begin(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("first", b"12345")
        archive.writestr("second one", b"6789")
    whole = path.read_bytes()
    with Entries(path) as entries:
        assert entries.at(whole.index(b"6789")) == "second one"
        assert entries.at(whole.index(b"6789") + 1) is None
