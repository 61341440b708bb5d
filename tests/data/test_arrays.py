import io
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from marginlab.data import arrays, load

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(20) % 2


def chw(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def npz(folder, **fields):
    np.savez(folder / "made.npz", **fields)
    return f"npz:{folder}/made.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_its_own_split(tmp_path, save):
    save(
        tmp_path / "a.npz",
        train_images=IMAGES,
        train_labels=LABELS,
        test_images=IMAGES[:7],
        test_labels=LABELS[:7].astype(np.uint8),
    )
    train, test = load(f"npz:{tmp_path}/a.npz"), load(f"npz:{tmp_path}/a.npz", "test")
    assert torch.equal(train.images, chw(IMAGES))
    assert train.labels.tolist() == LABELS.tolist()
    assert torch.equal(test.images, chw(IMAGES[:7]))
    assert test.labels.tolist() == LABELS[:7].tolist()
    assert train.classes == test.classes == ("0", "1")
    assert train.name == f"npz:{tmp_path}/a.npz"


def test_npz_without_a_split_is_split_by_class(tmp_path):
    labels = np.array([0] * 10 + [1] * 5 + [2] * 4 + [3])
    spec = npz(tmp_path, images=IMAGES, labels=labels, classes=np.array(["w", "x", "y", "z"]))
    train = load(spec)
    with pytest.warns(UserWarning, match="1 of 4 classes has no test image: 'z'"):
        test = load(spec, "test")
    assert torch.bincount(train.labels).tolist() == [8, 4, 3, 1]
    assert torch.bincount(test.labels).tolist() == [2, 1, 1]
    assert train.classes == test.classes == ("w", "x", "y", "z")
    rows = sorted(torch.cat([train.images, test.images]).flatten(1).tolist())
    assert rows == sorted(chw(IMAGES).flatten(1).tolist())
    assert torch.equal(load(spec).images, train.images)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", ">f4"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_npz_layouts_and_dtypes_read_equal_in_blocks(tmp_path, monkeypatch, layout, dtype, order):
    monkeypatch.setattr(arrays, "_BLOCK", 1_000)  # a few images a block
    source = {"NHWC": IMAGES, "NCHW": IMAGES.transpose(0, 3, 1, 2), "NHW": IMAGES[..., 0]}[layout]
    stored = np.asarray(source if dtype == "uint8" else source / 255, dtype=dtype, order=order)
    spec = npz(tmp_path, train_images=stored, train_labels=LABELS)
    expected = chw(IMAGES) if layout != "NHW" else chw(IMAGES[..., :1]).expand(-1, 3, -1, -1)
    assert torch.equal(load(spec).images, expected)


def test_size_resizes_the_shorter_side_and_cuts_the_centre(tmp_path):
    wide = RANDOM.integers(0, 256, (4, 20, 31, 3), dtype=np.uint8)
    spec = npz(tmp_path, train_images=wide, train_labels=LABELS[:4])
    expected = functional.center_crop(functional.resize(chw(wide), [8], antialias=True), [8, 8])
    found = load(spec, size=8).images
    assert found.shape == (4, 3, 8, 8)
    assert torch.equal(found, expected)
    assert load(spec, size=40).images.shape == (4, 3, 40, 40)
    square = npz(tmp_path, train_images=IMAGES[:, :5], train_labels=LABELS)
    assert torch.equal(load(square, size=5).images, chw(IMAGES[:, :5]))


BAD_ARRAYS = {
    "no labels": ({"images": IMAGES}, ValueError, "has no 'labels'; its keys are: images"),
    "other keys": ({"x": IMAGES, "y": LABELS}, ValueError, "has no 'images'; its keys are: x, y"),
    "half a split": (
        {"test_images": IMAGES, "test_labels": LABELS},
        ValueError,
        "has no 'train_images'; its keys are: test_images, test_labels",
    ),
    "empty": (
        {"images": IMAGES[:0], "labels": LABELS[:0]},
        ValueError,
        r"there are no images, but an array of shape \(0, 6, 5, 3\)",
    ),
    "object": (
        {"images": np.array([None] * 20), "labels": LABELS},
        TypeError,
        "images are of dtype object",
    ),
    "int64": (
        {"images": IMAGES.astype(np.int64), "labels": LABELS},
        TypeError,
        "images are of dtype int64. Save bytes as uint8",
    ),
    "bool": ({"images": IMAGES > 9, "labels": LABELS}, TypeError, "images are of dtype bool"),
    "flat": (
        {"images": IMAGES.reshape(20, -1), "labels": LABELS},
        ValueError,
        r"images of shape \(20, 90\)",
    ),
    "four channels": (
        {"images": np.zeros((20, 4, 4, 4), np.uint8), "labels": LABELS},
        ValueError,
        r"images of shape \(20, 4, 4, 4\)",
    ),
    "nan": (
        {"images": np.array([0.5] * 3 + [np.nan] * 17).reshape(20, 1, 1), "labels": LABELS},
        ValueError,
        "image 3 holds the value nan",
    ),
    "inf": (
        {"train_images": np.full((20, 2, 2), np.inf), "train_labels": LABELS},
        ValueError,
        "image 0 holds the value inf",
    ),
    "bytes as floats": (
        {"images": IMAGES.astype(np.float32), "labels": LABELS},
        ValueError,
        r"Floats are finite and in \[0, 1\]; divide by 255",
    ),
    "negative pixels": (
        {"images": np.full((20, 2, 2), -0.5), "labels": LABELS},
        ValueError,
        r"holds the value -0\.5",
    ),
    "float labels": (
        {"images": IMAGES, "labels": LABELS * 1.0},
        TypeError,
        "labels are of dtype float64. Labels are integers",
    ),
    "object labels": (
        {"images": IMAGES, "labels": LABELS.astype(object)},
        TypeError,
        "labels are of dtype object",
    ),
    "one-hot labels": (
        {"images": IMAGES, "labels": np.eye(2, dtype=int)[LABELS]},
        ValueError,
        r"labels are of shape \(20, 2\)",
    ),
    "fewer labels": (
        {"images": IMAGES, "labels": LABELS[:19]},
        ValueError,
        "20 images of shape .* and 19 labels",
    ),
    "negative label": (
        {"images": IMAGES, "labels": LABELS - 1},
        ValueError,
        "label -1 is out of range",
    ),
    "label above the classes": (
        {"images": IMAGES, "labels": LABELS + 1, "classes": np.array(["a", "b"])},
        ValueError,
        "label 2 is out of range: 2",
    ),
    "label above all": (
        {"images": IMAGES, "labels": LABELS * 1000},
        ValueError,
        "label 1000 is out of range for 20 images",
    ),
    "huge label": (
        {"images": IMAGES, "labels": np.array([2**64 - 2, 2**64 - 1] * 10)},
        ValueError,
        f"label {2**64 - 1} in labels is out",
    ),
    "one class": (
        {"images": IMAGES, "labels": LABELS * 0},
        ValueError,
        "are of class 0, and a set has at least two classes",
    ),
    "object classes": (
        {"images": IMAGES, "labels": LABELS, "classes": np.array(["a", None])},
        TypeError,
        "classes are of dtype object",
    ),
    "a class each": (
        {"images": IMAGES, "labels": np.arange(20)},
        ValueError,
        "no class has two images, so none is left for the test split",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_cannot_be_used_are_refused(tmp_path, case):
    fields, error, message = BAD_ARRAYS[case]
    with pytest.raises(error, match=message):
        load(npz(tmp_path, **fields), "test" if case == "a class each" else "train")


def test_refusals_come_before_the_pixels_are_read(tmp_path, monkeypatch):
    read = arrays.read_blocks

    def blocks(archive, key, step):
        return pytest.fail("the pixels were read") if "images" in key else read(archive, key, step)

    monkeypatch.setattr(arrays, "read_blocks", blocks)
    for case in set(BAD_ARRAYS) - {"nan", "inf", "bytes as floats", "negative pixels"}:
        fields, error, message = BAD_ARRAYS[case]
        with pytest.raises(error, match=message):
            load(npz(tmp_path, **fields), "test" if case == "a class each" else "train")
    with pytest.raises(
        ValueError,
        match=r"20 images of 6 x 5 take 1,800 bytes in memory, above the budget of "
        r"1,799.*size=.*fewer images",
    ):
        load(npz(tmp_path, train_images=IMAGES, train_labels=LABELS), budget=1_799)


def test_files_that_are_no_npz_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*/none\.npz"):
        load(f"npz:{tmp_path}/none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="is no whole npz file"):
        load(f"npz:{tmp_path}/text.npz")
    cut = io.BytesIO()  # an array that ends before its header says
    np.lib.format.write_array(cut, IMAGES)
    label = io.BytesIO()
    np.lib.format.write_array(label, LABELS)
    with zipfile.ZipFile(tmp_path / "cut.npz", "w") as archive:
        archive.writestr("train_images.npy", cut.getvalue()[:-100])
        archive.writestr("train_labels.npy", label.getvalue())
    with pytest.raises(
        ValueError, match="is no whole npz file: train_images ends after 18 of 20 images"
    ):
        load(f"npz:{tmp_path}/cut.npz")
    whole = (tmp_path / "text.npz").parent / "flipped.npz"
    np.savez(whole, train_images=IMAGES, train_labels=LABELS)
    data = bytearray(whole.read_bytes())
    data[400] ^= 255  # a pixel: the archive's checksum knows
    whole.write_bytes(data)
    with pytest.raises(ValueError, match="is no whole npz file: Bad CRC"):
        load(f"npz:{whole}")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a pickle was opened",)

    for key in ("images", "labels", "classes"):
        fields = {"images": IMAGES, "labels": LABELS} | {key: np.array([Bomb()] * 20)}
        with pytest.raises(TypeError, match=f"{key} are of dtype object"):
            load(npz(tmp_path, **fields))


def test_real_cifar10(real_images):
    train, test = load("cifar10", root=real_images), load("cifar10", "test", root=real_images)
    assert train.images.shape == (50_000, 3, 32, 32)
    assert test.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(train.labels).tolist() == [5_000] * 10
    assert train.classes[:3] == ("airplane", "automobile", "bird")
    with np.load(real_images / "cifar10.npz") as file:
        assert np.array_equal(
            file["test_images"][::500], test.images[::500].permute(0, 2, 3, 1).numpy()
        )
    mean = train.images[::10].double().mean((0, 2, 3)) / 255
    assert torch.allclose(
        mean, torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float64), atol=0.005
    )
    assert torch.bincount(train.subset(1_000).labels).tolist() == [100] * 10


def stored(path, **arrays):
    """Write an npz file from the bytes of its entries."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, data in arrays.items():
            archive.writestr(f"{key}.npy", data)
    return f"npz:{path}"


def npy(shape, descr="|u1", fortran=False, data=b"", version=1, pad=0):
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode() + b" " * pad
    text += b"\n"
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + length + text + data


LABEL = npy((20,), data=bytes(LABELS.astype(np.uint8)))
CLAIMS = {
    "a thousand million million images": {"images": npy((10**15, 8, 8, 3)), "labels": LABEL},
    "labels of them": {
        "images": npy((20, 8, 8), data=bytes(1280)),
        "labels": npy((10**15,), "<i8"),
    },
    "names of them": {
        "images": npy((20, 8, 8), data=bytes(1280)),
        "labels": LABEL,
        "classes": npy((10**12,), "<U9"),
    },
    "one name of a gigabyte": {
        "images": npy((20, 8, 8), data=bytes(1280)),
        "labels": LABEL,
        "classes": npy((2,), f"<U{2**28}"),
    },
    "a negative shape": {"images": npy((-20, 8, 8), data=bytes(1280)), "labels": LABEL},
    "a shape of truths": {"images": npy((True, 8, 8), data=bytes(64)), "labels": LABEL},
    "a header of 40 MB": {"images": npy((20, 8, 8), version=2, pad=40_000_000), "labels": LABEL},
    "more than the shape says": {"images": npy((20, 8, 8), data=bytes(1290)), "labels": LABEL},
    "no array": {"images": b"GIF89a" * 9, "labels": LABEL},
    "nothing": {"images": b"", "labels": LABEL},
    "no end of a bracket": {"images": npy((20, 8, 8)).replace(b"(", b" "), "labels": LABEL},
    "brackets": {
        "images": npy((20, 8, 8)).replace(b"(20, 8, 8)", b"(" * 10),
        "labels": LABEL,
    },
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_header_that_claims_what_the_file_cannot_hold_is_refused_first(tmp_path, case):
    spec = stored(tmp_path / "a.npz", **CLAIMS[case])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.npz is no whole npz file: ") as error:
        load(spec)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert type(error.value) is ValueError


def test_what_a_small_file_may_truly_unpack_is_held_against_the_budget(tmp_path, monkeypatch):
    many = bytes(40_000_000)
    images = npy((40_000_000, 1, 1), data=many)
    spec = stored(tmp_path / "a.npz", images=images, labels=LABEL)
    assert (tmp_path / "a.npz").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"40000000 images of shape .* and 20 labels"):
        load(spec)
    spec = stored(tmp_path / "a.npz", images=images, labels=npy((40_000_000,), data=many))
    with pytest.raises(ValueError, match=r"labels of shape .* would take 320,000,000 bytes"):
        load(spec, budget=1)
    names = npy((20_000_000,), "|S1", data=many[:20_000_000])
    pixels = npy((20, 8, 8), data=bytes(1280))
    spec = stored(tmp_path / "a.npz", images=pixels, labels=LABEL, classes=names)
    with pytest.raises(ValueError, match="20,000,000 names of up to 1 bytes in classes would take"):
        load(spec, budget=1)
    wide = npy((2, 3, 5_000, 2_000), data=bytes(60_000_000))
    two = npy((2,), data=bytes((0, 1)))
    spec = stored(tmp_path / "a.npz", train_images=wide, train_labels=two)
    monkeypatch.setattr("marginlab.data.pixels._BESIDE", 1)
    with pytest.raises(ValueError, match="each image of 5,000 x 2,000 pixels would take"):
        load(spec, size=8, budget=10**8)


def test_small_images_made_large_are_not_all_made_so_at_once(tmp_path, monkeypatch):
    made = []
    resize = arrays.resized
    monkeypatch.setattr(arrays, "_BLOCK", 3 * 64 * 64 * 2)
    monkeypatch.setattr(arrays, "resized", lambda x, size: made.append(len(x)) or resize(x, size))
    spec = npz(tmp_path, train_images=IMAGES[:, :4, :4], train_labels=LABELS)
    assert load(spec, size=64).images.shape == (20, 3, 64, 64)
    assert made == [2] * 10


def test_names_of_bytes_are_utf8_and_others_are_refused_with_the_name(tmp_path):
    fields = {"images": IMAGES, "labels": LABELS}
    names = np.array([b"caf\xc3\xa9", b"th\xc3\xa9"])
    assert load(npz(tmp_path, **fields, classes=names)).classes == ("café", "thé")
    latin = np.array(["thé", "café"], dtype=object).astype("U").astype(object)
    latin = np.array([text.encode("latin-1") for text in latin])
    with pytest.raises(ValueError, match=r"class 0 in classes, b'th\\xe9") as error:
        load(npz(tmp_path, **fields, classes=latin))
    assert type(error.value) is ValueError
    half = np.array(["a", "b\ud800"])
    with pytest.raises(ValueError, match=r"class 1 in classes, .*is no text in UTF-8"):
        load(npz(tmp_path, **fields, classes=half))
    beyond = np.array([1, 2**21], "<u4").view("<U1")
    with pytest.raises(ValueError, match=r"class 1 in classes, .*is no text in UTF-8"):
        load(npz(tmp_path, **fields, classes=beyond))


def test_a_part_with_a_label_out_of_range_is_refused_before_its_pixels_are_read(tmp_path):
    fields = {"unseen_images": IMAGES, "unseen_labels": LABELS + 1}
    spec = npz(tmp_path, **fields, unseen_classes=np.array(["a", "b"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_filled", lambda *arguments: pytest.fail("the pixels were read"))
        with pytest.raises(ValueError, match="the label 2 is out of range: 2 classes"):
            load(spec, "unseen")
