"""Verification packs of every kind that is about, and pickles that would run code."""

import codecs
import pickle
import struct

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from marginlab.formats import read_pack, write_pack

BODY = bytes(range(256)) * 2
ITEMS = [b"one", BODY, b"three", b""]


def python2(images, same, global_bools=False):
    """The bytes of protocol 2 as Python 2 writes them: a str is a counted string of bytes."""
    out = b"\x80\x02]q\x00("
    for number, image in enumerate(images):
        short = len(image) < 256
        head = (
            b"U" + struct.pack("<B", len(image)) if short else b"T" + struct.pack("<i", len(image))
        )
        out += head + image + b"q" + bytes([number + 1])
    out += b"e]q\xf0("
    return out + b"".join(b"\x88" if flag else b"\x89" for flag in same) + b"e\x86q\xf1."


def python2_arrays(images):
    """The bytes of protocol 2 as numpy of Python 2 writes them, for arrays (n, 1) of uint8."""

    def name(number):
        return b"cnumpy.core.multiarray\n_reconstruct\n" if not number else b"h\x01"

    out = b"\x80\x02]("
    for number, image in enumerate(images):
        out += name(number) + (b"q\x01" if not number else b"")
        out += b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R("
        out += b"K\x01M" + struct.pack("<H", len(image)) + b"K\x01\x86"
        out += b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        out += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        out += b"\x89T" + struct.pack("<i", len(image)) + image + b"tb"
    return out + b"e](\x88\x89e\x86."


def test_python_2_packs(tmp_path):
    path = tmp_path / "lfw.bin"
    path.write_bytes(python2(ITEMS, [True, False]))
    assert list(pickle.loads(path.read_bytes(), encoding="bytes")[0]) == ITEMS
    found = read_pack(path)
    assert found.images == tuple(ITEMS)
    assert found.same.tolist() == [True, False]
    path.write_bytes(python2_arrays(ITEMS))
    theirs = pickle.loads(path.read_bytes(), encoding="latin1")[0]
    assert [bytes(item) for item in theirs] == ITEMS
    assert theirs[1].shape == (512, 1)
    assert read_pack(path).images == tuple(ITEMS)


def arrays(items, shape):
    return [np.frombuffer(item, dtype=np.uint8).reshape(shape) for item in items]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "make",
    [
        list,
        lambda items: [bytearray(item) for item in items],
        lambda items: arrays(items, -1),
        lambda items: arrays(items, (-1, 1)),
        lambda items: [np.array(item) for item in arrays(items, (-1, 1))],
        lambda items: [item.decode("latin-1") for item in items],
    ],
)
def test_packs_of_every_protocol_and_item(tmp_path, protocol, make):
    path = tmp_path / "agedb_30.bin"
    items = [item or b"0" for item in ITEMS]
    for same in ([True, False], (1, 0), np.array([True, False]), list(np.array([True, False]))):
        path.write_bytes(pickle.dumps((make(items), same), protocol=protocol))
        found = read_pack(path)
        assert found.images == tuple(items)
        assert found.same.dtype == np.bool_
        assert found.same.tolist() == [True, False]


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "value",
    [
        Calls(eval, "open('ran', 'w')"),
        Calls(codecs.decode, b"x", "hex"),
        Calls(print, "ran"),
        {"a": 1},
        {1, 2},
        [1.5],
        (["x"], Calls(np.zeros, 10**12)),
    ],
)
def test_nothing_is_run_or_built(tmp_path, monkeypatch, value, protocol, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    with pytest.raises(ValueError, match=r"evil.bin, byte .*Give a pack of \(images, same\)"):
        read_pack(path)
    assert not (tmp_path / "ran").exists()
    assert not capsys.readouterr().out


def test_a_name_is_no_function_that_may_be_called_with_anything(tmp_path):
    path = tmp_path / "evil.bin"
    for data in (
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R.",
        b"cos\nsystem\n(S'touch ran'\ntR.",
        b"(S'touch ran'\nios\nsystem\n.",
        b"\x80\x02cnumpy\ndtype\n)R.",
        b"\x80\x02]]\x86b.",
        b"\x80\x02](h\x05e.",
        b"\x80\x02e.",
        b"\x80\x02.",
        b"\x80\x02]].",
        b"\x80\x02](]).",
        b"",
        b"not a pickle",
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"evil.bin, byte"):
            read_pack(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (([b"a", b"b"], [True, False]), "2 images for 2 flags, not 2 for each"),
        (([], []), "0 images for 0 flags"),
        (([b"a", 3], [True]), "image 1 is a int, not bytes"),
        (([b"a", b"b"], [2]), "flag 0 is a int, not true or false"),
        (([b"a", b"b"], [None]), "flag 0 is a NoneType"),
        (([b"a", b"b"],), "holds a tuple, not two lists"),
        ((b"a", b"b"), "holds a bytes and a bytes, not two lists"),
        (([np.zeros((2, 2), np.uint8), b"b"], [True]), "another shape than"),
        (([np.zeros(2, np.float32), b"b"], [True]), "of dtype 'f4', not bytes"),
        ((["\u20ac", b"b"], [True]), "letters that are no bytes"),
    ],
)
def test_pickles_that_are_no_pack(tmp_path, value, message):
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match=r"lfw.bin, byte") as caught:
        read_pack(path)
    assert message in str(caught.value)


def test_bytes_that_are_named_often_are_held_once(tmp_path):
    path = tmp_path / "lfw.bin"
    body = bytes(10**6)
    path.write_bytes(pickle.dumps(([body] * 20_000, [True] * 10_000)))
    assert path.stat().st_size < 2 * 10**6
    found = read_pack(path)
    assert len(set(map(id, found.images))) == 1


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=9), st.booleans()), min_size=1)
)
def test_a_pack_is_read_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("packs") / "a.bin"
    images = [image for first, second, _ in rows for image in (first, second)]
    same = [flag for _, _, flag in rows]
    write_pack(str(path), images, same)  # a text names a file as well as a Path does
    found = read_pack(path)
    assert list(found.images) == images
    assert found.same.tolist() == same
    assert pickle.loads(path.read_bytes()) == (images, same)


def test_a_writer_refuses_what_is_no_pairs(tmp_path):
    with pytest.raises(ValueError, match="3 images are no 1 pairs"):
        write_pack(tmp_path / "a.bin", [b"a"] * 3, [True])
    with pytest.raises(FileNotFoundError, match=r"There is no file .*Give a pack"):
        read_pack(tmp_path / "a.bin")
