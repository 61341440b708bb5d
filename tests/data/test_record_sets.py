"""Image sets from record files: built here byte by byte, held and streamed, split and named."""

import io
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from marginlab.data import load
from marginlab.data.__main__ import main
from marginlab.data.records import RecordImages
from marginlab.formats import RecordReader
from marginlab.settings import SettingsError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)


def png(number, size=None):
    stream = io.BytesIO()
    picture = Image.fromarray(PIXELS[number % 20])
    (picture.resize(size) if size else picture).save(stream, "png")
    return stream.getvalue()


def write(folder, items, name="train", prop=True):
    """Write a training set in InsightFace's layout, without our writer."""
    folder.mkdir(exist_ok=True)
    data, lines = b"", ""
    payloads = [struct.pack("<IfQQ2f", 2, 0, 0, 0, len(items) + 1, len(items) + 2)]
    payloads += [struct.pack("<IfQQ", 0, label, key, 0) + image
                 for key, (image, label) in enumerate(items, 1)]  # fmt: skip
    payloads.append(struct.pack("<IfQQ2f", 2, 0, 0, 0, 1, len(items) + 1))
    for key, payload in enumerate(payloads):
        lines += f"{key}\t{len(data)}\n"
        data += struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4)
    (folder / f"{name}.rec").write_bytes(data)
    (folder / f"{name}.idx").write_text(lines)
    if prop:
        classes = max(label for _, label in items) + 1
        (folder / "property").write_text(f"{classes},6,5\n")
    return f"record:{folder}"


def items(n=20, classes=2):
    return [(png(k), k * classes // n) for k in range(n)]


def chw(numbers):
    return torch.from_numpy(PIXELS[numbers].transpose(0, 3, 1, 2).copy())


def test_a_training_folder_gives_a_fifth_of_each_class_to_the_test(tmp_path):
    spec = write(tmp_path / "faces", items())
    train, test = load(spec), load(spec, "test")
    assert torch.bincount(train.labels).tolist() == [8, 8]
    assert torch.bincount(test.labels).tolist() == [2, 2]
    assert train.classes == test.classes == ("0", "1")
    both = torch.cat([train.images, test.images]).flatten(1).tolist()
    assert sorted(both) == sorted(chw(np.arange(20)).flatten(1).tolist())
    alone = load(f"record:{tmp_path}/faces/train.rec")
    assert torch.equal(alone.images, train.images)


def test_a_test_file_leaves_all_of_train_to_training(tmp_path):
    write(tmp_path / "faces", items())
    write(tmp_path / "faces", items(6, 3), "test", prop=False)
    (tmp_path / "faces" / "property").write_text("3,6,5\n")
    spec = write(tmp_path / "faces", items(4), "unseen", prop=False)
    with pytest.warns(UserWarning, match="1 of 3 classes has no train image: '2'"):
        train = load(spec)
    test, unseen = load(spec, "test"), load(spec, "unseen")
    assert torch.equal(train.images, chw(np.arange(20)))
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.classes == test.classes == ("0", "1", "2")
    assert unseen.classes == ("0", "1")


def test_streamed_is_held_whatever_the_workers(tmp_path):
    spec = write(tmp_path / "faces", items())
    held = load(spec, size=4)
    for workers in (0, 2):
        streamed = load(spec, size=4, budget=100, workers=workers)
        assert not isinstance(streamed.images, Tensor)
        assert torch.equal(torch.cat(list(streamed.images.split(5))), held.images)
        assert streamed.digest() == held.digest()
    with pytest.raises(ValueError, match=r"16 images of 4 x 4 take 768 bytes"):
        load(spec, size=4, budget=100)


def test_a_source_pickles_and_reads_again(tmp_path):
    write(tmp_path / "faces", items())
    path = tmp_path / "faces" / "train.rec"
    offsets = [
        int(line.split("\t")[1]) for line in path.with_suffix(".idx").read_text().split("\n")[1:3]
    ]
    source = RecordImages(RecordReader(path), torch.tensor(offsets), 0, "faces")
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again[torch.tensor([1, 0])], chw([1, 0]))


def test_classes_are_called_by_their_numbers_and_chosen(tmp_path):
    some = [(png(k), (3, 10, 200)[k % 3]) for k in range(18)] + [(png(19), 7)]
    spec = write(tmp_path / "faces", some)
    with pytest.warns(UserWarning, match="1 of 4 classes has no test image: '7'"):
        test = load(spec, "test")
    assert test.classes == ("3", "7", "10", "200")
    chosen = load(f"{spec}?min_per_class=2")
    assert chosen.classes == ("3", "10", "200")
    assert sorted(set(chosen.labels.tolist())) == [0, 1, 2]


def test_what_is_wrong_is_said(tmp_path):
    spec = write(tmp_path / "faces", items())
    with pytest.raises(SettingsError, match=r"a folder with unseen.rec"):
        load(spec, "unseen")
    (tmp_path / "faces" / "property").write_text("1,6,5\n")
    with pytest.raises(ValueError, match=r"has the label 1, and `property` says 1 classes"):
        load(spec)
    with pytest.raises(FileNotFoundError, match=r"there is no .*Give a folder with train.rec"):
        load(f"record:{tmp_path}/none")
    with pytest.raises(FileNotFoundError, match=r"has no train.rec, but 0 record files"):
        load(f"record:{tmp_path}")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"is not called NAME.rec"):
        load(f"record:{tmp_path}/notes.txt")
    with pytest.raises(ValueError, match=r"one class|of class 0"):
        load(write(tmp_path / "one", [(png(0), 0), (png(1), 0)]))
    with pytest.raises(ValueError, match="no class has two images"):
        load(write(tmp_path / "few", [(png(0), 0), (png(1), 1)]), "test")


def test_a_broken_image_and_mixed_sizes_name_the_byte(tmp_path):
    broken = [*items(8), (b"no image", 1)]
    spec = write(tmp_path / "broken", broken)
    with pytest.raises(ValueError, match=r"the image at byte [\d,]+ of .*train.rec cannot be read"):
        torch.cat([load(spec).images, load(spec, "test").images])
    mixed = write(
        tmp_path / "mixed", [(png(k, (4, 4) if k == 3 else None), k % 2) for k in range(8)]
    )
    with pytest.raises(ValueError, match=r"mixed sizes, .* the image at byte .*Give size="):
        load(mixed), load(mixed, "test")
    assert load(mixed, size=4).images.shape == (6, 3, 4, 4)


def test_the_command_describes_a_record_folder(tmp_path, capsys):
    main([write(tmp_path / "faces", items())])
    said = capsys.readouterr().out
    assert "train: 16 images of 6 x 5, 2 classes: 0, 1" in said
    assert "test: 4 images" in said
