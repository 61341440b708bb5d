"""The writer of record files, against the reader and against bytes that are made here by struct."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from records_by_hand import MAGIC, floats, header, image, images_of, part

from marginlab.formats import read_property, read_records, write_records
from marginlab.formats.recordio import RecordReader, RecordWriter, read_idx

payloads = st.lists(
    st.lists(st.sampled_from([MAGIC, MAGIC[:2], b"a", b"abcd", b""]), max_size=6).map(b"".join),
    max_size=6,
)


@given(payloads)
def test_the_writer_and_the_reader_agree(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("records") / "a.rec"
    with RecordWriter(path) as out:
        offsets = [out.write(payload) for payload in records]
    reader = RecordReader(path)
    assert [reader.payload(at) for at in offsets] == records
    assert list(reader.walk()) == list(zip(offsets, records, strict=True))
    # the magic word begins parts and stands nowhere else at a multiple of 4
    data = path.read_bytes()
    words = [at for at in range(0, len(data), 4) if data[at : at + 4] == MAGIC]
    assert len(words) == sum(1 + _aligned(payload) for payload in records)
    assert read_idx(path.with_suffix(".idx"), len(data)).offsets.tolist() == offsets


def _aligned(payload):
    return sum(payload[at : at + 4] == MAGIC for at in range(0, len(payload), 4))


pairs = st.lists(
    st.tuples(st.binary(min_size=1, max_size=20), st.integers(0, 5)), min_size=1, max_size=12
)


@given(pairs, st.booleans())
def test_image_records_are_read_as_they_were_written(tmp_path_factory, images, identities):
    folder = tmp_path_factory.mktemp("images")
    path = write_records(folder, iter(images), size=(9, 7), identities=identities)
    found = read_records(path)
    assert list(zip(images_of(path), found.labels.tolist(), strict=True)) == images
    assert found.keys.tolist() == list(range(identities, len(images) + identities))
    most = max(label for _, label in images)
    assert read_property(folder / "property") == (most + 1, 9, 7)


def test_the_writer_makes_the_layout_of_insightface(tmp_path):
    images = [(b"a", 0), (b"b", 0), (b"c", 1), (b"d", 0)]
    path = write_records(tmp_path, images, size=(112, 112))
    records = [part(0, header(2) + floats(5, 8)), *(
        image(label, data, number) for number, (data, label) in enumerate(images, 1)
    )]  # fmt: skip
    for number, bounds in enumerate([(1, 3), (3, 4), (4, 5)], 5):
        records.append(part(0, header(2, 0.0, number) + floats(*bounds)))
    assert path.read_bytes() == b"".join(records)
    offsets = np.cumsum([0, *map(len, records)])[:-1].tolist()
    text = "".join(f"{key}\t{offset}\n" for key, offset in enumerate(offsets))
    assert path.with_suffix(".idx").read_text() == text
    assert (tmp_path / "property").read_text() == "2,112,112\n"


def test_a_writer_that_fails_leaves_the_old_files(tmp_path):
    write_records(tmp_path, [(b"a", 0), (b"b", 1)], size=(1, 1))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for images, message in (
        ([(b"x", 0), (b"", 1)], "Image 2 has no bytes"),
        ([(b"x", -1)], "from 0 to 16,777,215, not -1"),
        ([(b"x", 2**24)], "not 16777216"),
        ([], "There are no images"),
    ):
        with pytest.raises(ValueError, match=message):
            write_records(tmp_path, images, size=(1, 1))
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with RecordWriter(tmp_path / "b.rec") as out:
        out.write(b"a", 3)
        with pytest.raises(ValueError, match="no record has yet, not 3"):
            out.write(b"a", 3)
    with pytest.raises(ValueError, match=r"called NAME.rec, not 'b.txt'"):
        RecordWriter(tmp_path / "b.txt")
