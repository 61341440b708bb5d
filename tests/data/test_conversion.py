"""Conversion keeps pixels, labels, names and splits; goes on after a kill; refuses before it
writes.
"""

import io
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from marginlab.data import FACE_TEMPLATE, align_faces, arrays, convert, load, targets
from marginlab.data.__main__ import main
from marginlab.data.arrays import NpzStream
from marginlab.formats import RecordReader, read_record, read_records
from marginlab.settings import SettingsError

N = 20
PIXELS = np.random.default_rng(3).integers(0, 256, (N, 12, 9, 3), dtype=np.uint8)
LABELS = np.arange(N) % 2
NAMES = ("ant", "bee")


def encoded(image, kind="png"):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    for k, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        place = tmp_path / "photos" / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{k:02d}.png").write_bytes(encoded(image))
    return f"folder:{tmp_path / 'photos'}"


def npz(place, **more):
    fields = {"images": PIXELS, "labels": LABELS, "classes": np.array(NAMES)} | more
    np.savez(place / "some.npz", **fields)
    return f"npz:{place / 'some.npz'}"


def contents(spec, split, names=NAMES):
    """Pixels and class name of each image of a split, in an order of their own."""
    found = load(spec, split)
    numbered = found.classes != names and set(found.classes) <= set("01")
    classes = names if numbered else found.classes
    pixels = [image.numpy().tobytes() for image in found.images]
    return sorted(
        (classes[label], image) for label, image in zip(found.labels.tolist(), pixels, strict=True)
    )


@pytest.mark.parametrize("target", ["folder", "npz", "record"])
@pytest.mark.parametrize("source", ["folder", "npz", "record"])
def test_a_conversion_keeps_pixels_classes_and_splits(folder, tmp_path, source, target):
    spec = npz(tmp_path) if source == "npz" else folder
    if source == "record":
        convert(folder, f"record:{tmp_path / 'records'}")
        spec = f"record:{tmp_path / 'records'}"
    out = f"{target}:{tmp_path / 'out'}{'.npz' if target == 'npz' else ''}"
    seen = []
    parts = convert(spec, out, report=lambda done, total: seen.append((done, total)))
    assert [len(part.labels) for part in parts] == [16, 4]
    assert seen[0] == (0, N)
    assert seen[-1] == (N, N)
    for split in ("train", "test"):
        assert contents(out, split) == contents(spec, split)
    assert not [path for path in tmp_path.rglob(".*") if path.name != targets.MARK]


def test_unseen_classes_keep_their_own_names_and_numbers(tmp_path):
    spec = npz(
        tmp_path,
        unseen_images=PIXELS[:4, ::-1],
        unseen_labels=LABELS[:4],
        unseen_classes=np.array(("cow", "dog")),
    )
    for out in ("folder:{}/f", "npz:{}/n.npz", "record:{}/r"):
        made = out.format(tmp_path)
        convert(spec, made)
        assert contents(made, "unseen", ("cow", "dog")) == contents(spec, "unseen")
        assert contents(made, "test") == contents(spec, "test")
    assert (tmp_path / "r" / "unseen_classes.txt").read_text() == "cow\ndog\n"
    assert (tmp_path / "r" / "classes.txt").read_text() == "ant\nbee\n"


def test_bytes_of_files_are_copied_where_nothing_is_changed(tmp_path):
    files = {}
    for k, label in enumerate(LABELS):
        file = tmp_path / "photos" / NAMES[label] / f"{k:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        files[k] = encoded(PIXELS[k], "jpeg")
        file.write_bytes(files[k])
    convert(f"folder:{tmp_path / 'photos'}", f"record:{tmp_path / 'records'}")
    found = set()
    for name in ("train.rec", "test.rec"):
        path = tmp_path / "records" / name
        reader = RecordReader(path)
        found |= {read_record(reader, at).image for at in read_records(path).offsets.tolist()}
    assert found == set(files.values())
    convert(f"record:{tmp_path / 'records'}", f"folder:{tmp_path / 'again'}")
    assert {file.read_bytes() for file in (tmp_path / "again").rglob("*.jpg")} == found


def test_a_size_and_a_quality_make_jpegs_of_that_size(folder, tmp_path):
    convert(folder, f"folder:{tmp_path / 'small'}", size=6, quality=90)
    files = sorted((tmp_path / "small").rglob("*.jpg"))
    assert len(files) == N
    for file in files:
        with Image.open(file) as picture:
            assert picture.size == (6, 6)
    assert not list((tmp_path / "small").rglob("*.png"))


def test_a_choice_of_classes_is_converted_as_it_is_loaded(folder, tmp_path):
    convert(f"{folder}?max_per_class=3", f"npz:{tmp_path / 'few.npz'}")
    assert torch.bincount(load(f"npz:{tmp_path / 'few.npz'}").labels).tolist() == [3, 3]


@pytest.mark.parametrize("options", [{}, {"size": 6}])
def test_a_folder_goes_on_where_it_was_stopped(folder, tmp_path, monkeypatch, options):
    put, left = targets._put, itertools.count(1)

    def stopping(file, data):
        if next(left) == 8:
            raise KeyboardInterrupt
        put(file, data)

    out = tmp_path / "out"
    monkeypatch.setattr(targets, "_put", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert(folder, f"folder:{out}", **options)
    written = sorted(out.rglob("*.png"))
    assert len(written) == 7
    written[0].write_bytes(written[0].read_bytes()[:20])  # as a power failure leaves it
    again = []
    monkeypatch.setattr(targets, "_put", lambda file, data: (again.append(file), put(file, data)))
    convert(folder, f"folder:{out}", **options)
    assert len(again) == N - 6
    assert written[0] in again
    assert len(load(f"folder:{out}", "train")) == 16
    again.clear()
    convert(folder, f"folder:{out}", **options)
    assert not again
    with pytest.raises(ValueError, match=r"holds another conversion.*Remove it"):
        convert(folder, f"folder:{out}", size=5)


def test_record_files_that_are_whole_are_kept_and_others_are_begun_again(
    folder, tmp_path, monkeypatch
):
    real, calls = targets.write_records, []

    def stopping(path, pairs, **options):
        calls.append(options["name"])
        if options["name"] == "test":
            next(iter(pairs))
            raise KeyboardInterrupt
        return real(path, pairs, **options)

    out = tmp_path / "out"
    monkeypatch.setattr(targets, "write_records", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert(folder, f"record:{out}")
    before = (out / "train.rec").stat().st_mtime_ns
    monkeypatch.undo()
    convert(folder, f"record:{out}")
    assert (out / "train.rec").stat().st_mtime_ns == before
    assert contents(f"record:{out}", "test") == contents(folder, "test")


def test_a_broken_image_leaves_no_npz_and_names_the_file(folder, tmp_path):
    file = next((tmp_path / "photos" / "bee").iterdir())
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{file.name} cannot be read as an image"):
        convert(folder, f"npz:{tmp_path / 'out.npz'}")
    assert not list(tmp_path.glob("*out.npz*"))


def test_an_npz_file_is_read_and_written_in_blocks(tmp_path, monkeypatch):
    spec = npz(tmp_path)
    monkeypatch.setattr(arrays, "_BLOCK", 3 * PIXELS[0].size)
    stream = NpzStream(Path(spec[4:]), "train", spec, size=0, budget=10_000)
    assert stream.shape == (16, 3, 12, 9)
    sizes = [len(part) for part in stream.parts()]
    assert sum(sizes) == 16
    assert max(sizes) <= 3
    convert(spec, f"npz:{tmp_path / 'out.npz'}")
    assert contents(f"npz:{tmp_path / 'out.npz'}", "train") == contents(spec, "train")
    with np.load(tmp_path / "out.npz") as made:
        assert made["train_images"].shape == (16, 12, 9, 3)


def points(k):
    """Five points of an image: the template, turned, made smaller and moved."""
    x, y = np.array(FACE_TEMPLATE).T / 14
    return np.stack((x * 0.9 - 0.1 * y + 0.1 * k, y * 0.9 + 0.1 * x), 1)


def landmark_file(place, names, header=True):
    lines = ["path,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5"] if header else []
    lines += [f"{name}," + ",".join(map(repr, points(k).ravel().tolist())) for k, name in names]
    (place / "points.csv").write_text("\n".join(lines) + "\n")
    return place / "points.csv"


def test_faces_of_files_are_aligned_by_their_paths(folder, tmp_path):
    names = [(k, f"{NAMES[LABELS[k]]}/{k:02d}.png") for k in range(N)]
    large = tmp_path / "photos" / names[0][1]
    Image.fromarray(PIXELS[0].repeat(2, 0)).save(large)  # photographs have sizes of their own
    file = landmark_file(tmp_path, names)
    for out in (f"npz:{tmp_path / 'faces.npz'}", f"record:{tmp_path / 'f'}"):
        (part, _) = convert(folder, out, landmarks=file, size=28)
        copy = pickle.loads(pickle.dumps(part.images.source))  # as a worker gets it
        assert torch.equal(copy[torch.arange(2)], part.images.source[torch.arange(2)])
        made = torch.cat([load(out, split).images for split in ("train", "test")])
        wanted = []
        for k, name in names:
            with Image.open(tmp_path / "photos" / name) as picture:
                image = np.array(picture)
            image = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
            wanted.append(align_faces(image, torch.from_numpy(points(k))[None], size=28))
        assert {image.numpy().tobytes() for image in made} == {
            image[0].numpy().tobytes() for image in wanted
        }


def test_faces_without_paths_are_aligned_by_their_numbers(tmp_path):
    spec = npz(
        tmp_path, train_images=PIXELS, train_labels=LABELS,
        test_images=PIXELS[:4], test_labels=LABELS[:4],
    )  # fmt: skip
    numbers = [(k, str(k)) for k in range(N + 4)]
    out = f"npz:{tmp_path / 'faces.npz'}"
    convert(spec, out, landmarks=landmark_file(tmp_path, numbers, header=False))
    made = load(out, "test").images
    image = torch.from_numpy(PIXELS[1].transpose(2, 0, 1).copy())[None]
    wanted = align_faces(image, torch.from_numpy(points(N + 1))[None])
    assert made.shape == (4, 3, 112, 112)
    assert torch.equal(made[1], wanted[0])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0,1,2,3,4,5,6,7,8,9,10\n", "no line for the image .*0[0-9].png"),
        ("a,1,2\n", "Line 1 of .*five points"),
        ("a,1,2,3,4,5,6,7,8,9,nan\nb,1,2,3,4,5,6,7,8,9,inf\n", "Line 2 of"),
        ("a,1,2,3,4,5,6,7,8,9,10\na,1,2,3,4,5,6,7,8,9,10\n", "Line 2 of .*once more"),
        ("".join(f"{k},1,1,1,1,1,1,1,1,1,1\n" for k in range(N)), "image 0.*in one place"),
        (
            "".join(f"{k},1e160,0,0,0,0,9e160,0,0,0,0\n" for k in range(N)),
            "image 0.*shrunk to a point",
        ),
    ],
)
def test_landmarks_that_do_not_fit_are_refused_before_anything_is_written(
    folder, tmp_path, lines, message
):
    (tmp_path / "points.csv").write_text(lines)
    with pytest.raises(ValueError, match=message):
        convert(folder, f"folder:{tmp_path / 'out'}", landmarks=tmp_path / "points.csv")
    assert not (tmp_path / "out").exists()


def test_targets_that_make_no_sense_are_refused_and_left_alone(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "mine.npz").write_text("mine")
    photos = tmp_path / "photos"
    cases = [
        (f"folder:{tmp_path / 'mine'}", {}, FileExistsError, "is there already"),
        (f"record:{tmp_path / 'mine'}", {}, FileExistsError, "is there already"),
        (f"npz:{tmp_path / 'mine.npz'}", {}, FileExistsError, "is there already"),
        (f"npz:{tmp_path / 'mine.zip'}", {}, SettingsError, "called NAME.npz"),
        (f"record:{tmp_path / 'a.rec'}", {}, SettingsError, "have a folder"),
        (f"folder:{photos / 'small'}", {}, SettingsError, "lies in what is converted"),
        (folder, {}, SettingsError, "lies in what is converted"),
        (f"index:{tmp_path / 'a'}", {}, SettingsError, "folder:PATH, npz:PATH or record:PATH"),
        (f"npz:{tmp_path / 'b.npz'}", {"quality": 90}, SettingsError, "holds pixels"),
        (f"folder:{tmp_path / 'b'}", {"quality": 101}, SettingsError, "1 to 100"),
        (f"folder:{tmp_path / 'b'}", {"size": -1}, SettingsError, "number of pixels"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for out, options, error, message in cases:
        with pytest.raises(error, match=message):
            convert(folder, out, **options)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "mine.npz").read_text() == "mine"


@pytest.mark.parametrize("names", [("a/b", "c"), (".a", "b"), ("x" * 300, "b"), ("A", "a"),
                                   ("\u00e9", "e\u0301")])  # fmt: skip
def test_names_that_no_folder_can_have_are_refused(tmp_path, names):
    spec = npz(tmp_path, classes=np.array(names))
    with pytest.raises(ValueError, match="Convert to npz"):
        convert(spec, f"folder:{tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
    convert(spec, f"record:{tmp_path / 'out'}")


def test_the_command_converts_inspects_and_draws_a_sheet(folder, tmp_path, capsys):
    out = f"record:{tmp_path / 'records'}"
    main(["convert", folder, out, "--size", "8", "--workers", "0"])
    said = capsys.readouterr().out
    assert f"{out} train: 16 images of 8 x 8, 2 classes" in said
    sheet = tmp_path / "sheet.png"
    main(["inspect", out, "--sheet", str(sheet)])
    said = capsys.readouterr().out
    assert "train: 16 images of 8 x 8, 2 classes: 0, 1" in said
    assert "  0  " + 40 * "#" + "  8 images" in said
    with Image.open(sheet) as picture:
        assert picture.size[0] > 4 * 64
    for wrong in (["inspect", out, "--sheet", "sheet.txt"], ["convert", folder, out]):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 2
    assert "another conversion" in capsys.readouterr().err


def test_a_histogram_of_many_classes_counts_the_classes_of_a_size(tmp_path, capsys):
    labels = np.concatenate([np.full(1 + k % 4, k) for k in range(30)])
    images = np.zeros((len(labels), 4, 4), dtype=np.uint8)
    np.savez(
        tmp_path / "many.npz", train_images=images, train_labels=labels,
        test_images=images, test_labels=labels,
    )  # fmt: skip
    main([f"npz:{tmp_path / 'many.npz'}"])
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1].strip() for line in said[1:4]] == [
        "1 image", "2 to 3 images", "4 to 7 images",
    ]  # fmt: skip
    assert said[2].endswith("15 classes")
