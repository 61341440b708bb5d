"""Record files: each rule of the format with bytes made here by struct, never by our writer."""

import os
import pickle
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from records_by_hand import MAGIC, floats, header, image, images_of, part, put

from marginlab import formats
from marginlab.formats import index, read_property, read_record, read_records
from marginlab.formats.recordio import RecordReader


def test_parts_are_joined_by_the_magic_word(tmp_path):
    whole = b"abcd" + MAGIC + b"efgh" + MAGIC + b"ij"
    record = part(1, b"abcd") + part(2, b"efgh") + part(3, b"ij")
    empty = part(1, b"") + part(2, b"") + part(3, b"")
    path, offsets = put(tmp_path, [part(0, b"one"), record, empty, part(0, b"")])
    reader = RecordReader(path)
    assert [reader.payload(at) for at in offsets] == [b"one", whole, MAGIC * 2, b""]
    assert [payload for _, payload in reader.walk()] == [b"one", whole, MAGIC * 2, b""]


def test_flags_0_1_and_2_and_bodies(tmp_path):
    records = [
        part(0, header(2, 0.0) + floats(5, 7)),  # bounds of InsightFace
        image(3, b"scalar"),
        part(0, header(1, 0.0) + floats(4) + b"one label"),
        part(0, header(2, 0.0) + floats(3, 1) + b"two labels"),
        part(0, header(0, 9.0)),  # no image
        part(0, header(2, 0.0) + floats(1, 3)),
        part(0, header(2, 0.0) + floats(3, 5)),
    ]
    path, offsets = put(tmp_path, records)
    found = read_records(path)
    assert found.keys.tolist() == [1, 2, 3]
    assert found.labels.tolist() == [3, 4, 3]
    assert images_of(path) == [b"scalar", b"one label", b"two labels"]
    assert found.offsets.tolist() == offsets[1:4]
    assert len(set(found.fingerprints.tolist())) == 3
    assert {column.dtype for column in found} == {np.dtype(np.int64)}


def test_a_class_may_own_several_identity_records(tmp_path):
    def bounds(a, b):
        return part(0, header(2) + floats(a, b))

    records = [bounds(5, 8), *(image(k, b"x%d" % n) for n, k in enumerate((0, 0, 1, 0)))]
    records += [bounds(1, 3), bounds(3, 4), bounds(4, 5)]
    path, _ = put(tmp_path, records)
    assert read_records(path).labels.tolist() == [0, 0, 1, 0]


def test_keys_above_2_24_are_exact(tmp_path):
    first = 2**24 + 1  # a float32 reads 16,777,217 as 16,777,216
    keys = [0, first, first + 1, first + 2, first + 3]
    records = [part(0, header(2) + floats(first + 3, first + 4))]
    records += [image(k, b"image %d" % k) for k in range(3)]
    records.append(part(0, header(2) + floats(first, first + 3)))
    path, _ = put(tmp_path, records, keys)
    assert read_records(path).keys.tolist() == keys[1:4]
    assert images_of(path) == [b"image 0", b"image 1", b"image 2"]


def test_a_shuffled_file_has_no_header_record(tmp_path):
    keys = [7, 2, 9, 4]
    path, _ = put(tmp_path, [image(k % 3, b"key %d" % k) for k in keys], keys)
    found = read_records(path)
    assert found.keys.tolist() == [2, 4, 7, 9]
    assert found.labels.tolist() == [2, 1, 1, 0]
    assert images_of(path) == [b"key 2", b"key 4", b"key 7", b"key 9"]


def test_magic_in_header_and_labels(tmp_path):
    number = 0xCED7230A  # as an id, it stands at a multiple of 4 of the payload
    payload = header(0, 1.0, number) + b"image"
    cut = payload.index(MAGIC)
    record = part(1, payload[:cut]) + part(3, payload[cut + 4 :])
    path, _ = put(tmp_path, [image(0, b"first"), record])
    assert read_records(path).labels.tolist() == [0, 1]
    assert read_record(RecordReader(path), len(image(0, b"first"))).id == number


def test_without_an_index_the_file_is_walked(tmp_path):
    path, offsets = put(tmp_path, [image(0, b"a"), image(1, b"bcdef")])
    path.with_suffix(".idx").unlink()
    found = read_records(path)
    assert found.keys.tolist() == [0, 1]
    assert found.offsets.tolist() == offsets


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0" * 12, "byte 0: a record begins with 0xced7230a, not 0x00000000"),
        (MAGIC + struct.pack("<I", 2**29 - 1), "claims 536,870,911 bytes, but 0 are left"),
        (part(2, b"abcd"), "a part of kind 2 begins no record"),
        (part(5, b"abcd"), "there is no part of kind 5"),
        (part(1, b"abc") + part(3, b""), "a multiple of 4, not 3 bytes long"),
        (part(1, b"abcd") + part(0, b""), "byte 12: a part of kind 0 stands inside a record"),
        (part(1, b"abcd"), "byte 12: no record can begin here"),
        (part(0, b"abc"), "header of 24 bytes, not 3 bytes"),
        (part(0, header(2**31)), "claims 2,147,483,648 labels in 0 bytes"),
        (image(0.5, b"x"), "the label of an image is 0.5"),
        (image(-1, b"x"), "the label of an image is -1.0"),
        (image(float("nan"), b"x"), "the label of an image is nan"),
        (image(2**24, b"x"), "is 16777216, and a float32 is exact below 16,777,216"),
        (part(0, header(0)), "no record holds an image"),
    ],
)
def test_damaged_records_name_file_place_and_remedy(tmp_path, data, message):
    path, _ = put(tmp_path, [data])
    with pytest.raises(ValueError, match=r"train.rec, ") as caught:
        read_records(path)
    assert message in str(caught.value)
    path.with_suffix(".idx").unlink()
    with pytest.raises(ValueError, match=r"train.rec, "):
        read_records(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 zero\n", "line 1: a line is a key, a tab and a byte offset"),
        ("0\n", "line 1: a line is a key"),
        ("-1\t0\n", "line 1: a line is a key"),
        ("1_0\t0\n", "line 1: a line is a key"),
        ("0\t0\n\n1\t400\n", "line 3: no record of 72 bytes begins at 400"),
        ("0\t2\n", "begins at 2"),
        ("0\t0\n0\t36\n", "the key 0 comes more than once"),
        ("0\t0\n1\t0\n", "the offset 0 comes more than once"),
        ("9" * 30 + "\t0\n", "line 1: a line is a key"),
        ("".join(f"{k}\t0\n" for k in range(10)), "more records than 72 bytes"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, text, message):
    path, _ = put(tmp_path, [image(0, b"abcd"), image(1, b"efgh")])
    path.with_suffix(".idx").write_text(text)
    with pytest.raises(ValueError, match=r"train.idx") as caught:
        read_records(path)
    assert message in str(caught.value)
    assert "Remove the index" in str(caught.value)


def test_records_that_overlap_are_refused(tmp_path):
    inner = image(0, b"abcd")
    path, _ = put(tmp_path, [part(0, header(0) + inner), image(1, b"x")])
    path.with_suffix(".idx").write_text("0\t0\n1\t32\n")
    with pytest.raises(ValueError, match="byte 32: a record begins here inside another one"):
        read_records(path)


def test_the_index_is_kept_beside_the_file_until_the_file_changes(tmp_path, monkeypatch):
    path, _ = put(tmp_path, [image(0, b"a"), image(1, b"b")])
    first = read_records(path)
    kept = tmp_path / "train.rec.index"
    assert kept.is_file()
    scans = []
    real = index._scan
    monkeypatch.setattr(index, "_scan", lambda *a: scans.append(1) or real(*a))
    again = read_records(path)
    assert not scans
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    put(tmp_path, [image(5, b"a"), image(6, b"b")])
    os.utime(path, ns=(1, 1))
    assert read_records(path).labels.tolist() == [5, 6]
    assert len(scans) == 1
    for damage in (b"", b"{", b"[" * 4000, kept.read_bytes()[:-1], kept.read_bytes() + bytes(32)):
        kept.write_bytes(damage)
        assert read_records(path).labels.tolist() == [5, 6]
    assert len(scans) == 6
    path.with_suffix(".idx").unlink()
    assert read_records(path).labels.tolist() == [5, 6]
    assert len(scans) == 7


def test_the_index_of_a_read_only_folder_is_kept_in_a_cache(tmp_path, monkeypatch):
    path, _ = put(tmp_path, [image(0, b"a"), image(1, b"b")])
    monkeypatch.setenv("MARGINLAB_CACHE", str(tmp_path / "cache"))
    real = index.write

    def write(place, data):
        if place.parent == tmp_path:
            raise PermissionError(13, "Permission denied", str(place))
        real(place, data)

    monkeypatch.setattr(index, "write", write)
    read_records(path)
    assert not (tmp_path / "train.rec.index").exists()
    assert len(list((tmp_path / "cache" / "records").iterdir())) == 1
    monkeypatch.setattr(index, "_scan", None)
    assert read_records(path).labels.tolist() == [0, 1]
    monkeypatch.undo()
    monkeypatch.setattr(index, "write", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
    monkeypatch.setenv("MARGINLAB_CACHE", str(tmp_path / "other"))
    with pytest.warns(UserWarning, match="could not be kept in .*full.*MARGINLAB_CACHE names"):
        read_records(path)


def test_a_reader_pickles_and_opens_its_file_again(tmp_path):
    path, offsets = put(tmp_path, [part(0, b"one"), part(0, b"two")])
    reader = RecordReader(path)
    assert reader.payload(offsets[1]) == b"two"
    again = pickle.loads(pickle.dumps(reader))
    assert again._descriptor is None
    assert again.payload(offsets[0]) == b"one"
    path.write_bytes(part(0, b"other") * 2)
    with pytest.raises(ValueError, match=r"train.rec, byte 0: the file has changed"):
        pickle.loads(pickle.dumps(reader)).payload(0)
    with path.open("r+b") as file:
        file.truncate(4)
    with pytest.raises(ValueError, match="the file ends after"):
        reader.payload(offsets[1])


def test_many_processes_read_one_file(tmp_path):
    path, offsets = put(tmp_path, [part(0, b"%d" % k) for k in range(200)])
    reader = RecordReader(path)
    assert reader.payload(offsets[7]) == b"7"
    children = []
    for start in range(3):  # forked: they share the open file
        child = os.fork()
        if not child:
            good = all(reader.payload(offsets[k]) == b"%d" % k for k in range(start, 200, 3))
            os._exit(0 if good else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def test_an_absent_file_and_a_folder_are_said(tmp_path):
    for path in (tmp_path / "no.rec", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"There is no file .*Give a record file"):
            read_records(path)


def test_property(tmp_path):
    path = tmp_path / "property"
    assert read_property(path) is None
    path.write_text("85742,112,112\n")
    assert read_property(path) == (85742, 112, 112)
    for text in ("", "1,2", "1,2,x", "0,1,1", "1,2,3,4", "9" * 300):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"property, line 1: .* is not three numbers above 0"):
            read_property(path)


def test_formats_load_numpy_only():
    text = (
        "import sys, marginlab.formats; print({'PIL', 'torchvision', 'scipy'} & set(sys.modules))"
    )
    package = Path(formats.__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=package)
    assert said.stdout.strip() == "set()", said.stderr


def test_reading_warns_of_nothing(tmp_path):
    path, _ = put(tmp_path, [image(0, b"a"), image(1, b"b")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_records(path)
