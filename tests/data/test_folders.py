import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from marginlab.data import load
from marginlab.settings import SettingsError

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)


def chw(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def folder(path, splits=("",), classes=("ant", "bee"), n=5, size=(5, 6), ending="png"):
    for split in splits:
        for k, name in enumerate(classes):
            place = path / split / name
            place.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(IMAGES[(2 * i + k) % 20][: size[1], : size[0]]).save(
                    place / f"{i}.{ending}"
                )
    return f"folder:{path}"


def test_folder_with_its_own_split(tmp_path):
    spec = folder(tmp_path, ("train", "test"), n=4)
    (tmp_path / "train" / "notes.txt").write_text("not a class")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    train, test = load(spec), load(spec, "test")
    assert train.labels.tolist() == test.labels.tolist() == [0] * 4 + [1] * 4
    assert torch.equal(train.images, chw(IMAGES[[0, 2, 4, 6, 1, 3, 5, 7]]))
    assert train.classes == ("ant", "bee")
    theirs = datasets.ImageFolder(str(tmp_path / "test"))
    assert all(
        np.array_equal(np.array(image), mine.permute(1, 2, 0).numpy())
        for (image, _), mine in zip(theirs, test.images, strict=True)
    )


def test_folder_without_a_split(tmp_path):
    spec = folder(tmp_path, n=10)
    train, test = load(spec), load(spec, "test")
    assert torch.bincount(train.labels).tolist() == [8, 8]
    assert torch.bincount(test.labels).tolist() == [2, 2]
    assert sorted(torch.cat([train.images, test.images]).flatten(1).tolist()) == sorted(
        chw(IMAGES).flatten(1).tolist()
    )


def test_a_class_may_be_called_train(tmp_path):
    spec = folder(tmp_path, classes=("plane", "train"))
    assert load(spec).classes == ("plane", "train")


def test_a_class_of_one_split_keeps_its_number(tmp_path):
    folder(tmp_path, ("train",), classes=("ant", "bee", "cow"))
    spec = folder(tmp_path, ("test",), classes=("bee", "cow"))
    with pytest.warns(UserWarning, match="1 of 3 classes has no test image: 'ant'"):
        test = load(spec, "test")
    assert test.classes == ("ant", "bee", "cow")
    assert test.labels.unique().tolist() == [1, 2]


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    spec = folder(tmp_path, ("train",), n=2)
    grey = Image.fromarray(IMAGES[0, ..., 0])
    grey.save(tmp_path / "train" / "ant" / "0.png")
    Image.fromarray(IMAGES[1]).convert("RGBA").save(tmp_path / "train" / "bee" / "0.png")
    images = load(spec).images
    assert torch.equal(images[0], torch.from_numpy(IMAGES[0, ..., 0]).expand(3, -1, -1))
    assert torch.equal(images[2], chw(IMAGES[1:2])[0])


def test_mixed_sizes_need_a_size(tmp_path):
    spec = folder(tmp_path, ("train",), n=2)
    Image.fromarray(IMAGES[0][:4]).save(tmp_path / "train" / "bee" / "1.png")
    with pytest.raises(
        ValueError, match=r"mixed sizes, .*ant/0.png of 6 x 5 and .*bee/1.png of 4 x 5. Give size="
    ):
        load(spec)
    assert load(spec, size=8).images.shape == (4, 3, 8, 8)


def test_a_folder_above_the_budget_is_refused_before_an_image_is_decoded(tmp_path, monkeypatch):
    spec = folder(tmp_path, ("train",))
    monkeypatch.setattr(
        Image.Image, "convert", lambda *arguments: pytest.fail("an image was decoded")
    )
    with pytest.raises(
        ValueError,
        match=r"10 images of 6 x 5 take 900 bytes in memory, above the budget of 800\. "
        r".*size=.*fewer images",
    ):
        load(spec, budget=800)
    with pytest.raises(
        ValueError,
        match="10 images of 40000 x 40000 take 48,000,000,000 bytes in memory, above the budget "
        "of 2,147,483,648",
    ):
        load(spec, size=40_000)


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/none"):
        load(f"folder:{tmp_path}/none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no class folders"):
        load(f"folder:{tmp_path}/empty")
    spec = folder(tmp_path / "a", ("train",))
    with pytest.raises(
        FileNotFoundError, match=r"has class folders in .*a/train but none in .*a/test"
    ):
        load(spec, "test")
    (tmp_path / "a" / "train" / "cow").mkdir()
    with pytest.raises(
        ValueError, match=r"the class folder .*cow holds no images. Put some into it \(.jpg"
    ):
        load(spec)
    with pytest.raises(ValueError, match="all 5 images are of class 0"):
        load(folder(tmp_path / "b", classes=("ant",)))
    with pytest.raises(ValueError, match="no class has two images"):
        load(folder(tmp_path / "c", n=1), "test")


def test_unreadable_images_are_named(tmp_path):
    spec = folder(tmp_path, ("train",), size=(5, 5), n=2)
    bad = tmp_path / "train" / "bee" / "1.png"
    whole = bad.read_bytes()
    bad.write_text("no image")
    with pytest.raises(ValueError, match=r"bee/1.png cannot be read as an image: .*Remove it"):
        load(spec)
    bad.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"bee/1.png cannot be read as an image"):
        load(spec)
    Image.fromarray((IMAGES[0, :5, :, 0] * 256.0).astype(np.uint16)).save(bad)
    with pytest.raises(
        ValueError, match=r"bee/1.png holds values of more than 8 bits \(mode I;16\)"
    ):
        load(spec)


def images_of(path, names, count=2):
    """Images for each of these folders."""
    for k, name in enumerate(names):
        (path / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(IMAGES[(2 * i + k) % 20]).save(path / name / f"{i}.png")
    return f"folder:{path}"


def test_images_anywhere_below_a_class_folder_are_of_the_class(tmp_path):
    deep = ["ant", "ant/2024", "ant/2024/may", "bee/x", "bee/y/z", "bee/y"]
    spec = images_of(tmp_path / "train", deep, 8).replace("/train", "")
    (tmp_path / "train" / "bee" / ".thumbs").mkdir()
    Image.fromarray(IMAGES[0]).save(tmp_path / "train" / "bee" / ".thumbs" / "0.png")
    found = load(spec)
    assert torch.bincount(found.labels).tolist() == [24, 24]
    theirs = datasets.ImageFolder(str(tmp_path / "train"))
    shown = sorted(np.array(image).tobytes() for image, _ in theirs if image)
    ours = sorted(image.permute(1, 2, 0).numpy().tobytes() for image in found.images)
    assert set(ours) == set(shown)
    assert len(theirs) == 49  # also the hidden one


def test_a_link_that_leads_back_is_refused(tmp_path):
    spec = images_of(tmp_path, ["ant/more", "bee"])
    (tmp_path / "bee" / "other").symlink_to(tmp_path / "ant")  # this one ends
    assert torch.bincount(load(spec, "test").labels).tolist() == [1, 1]
    (tmp_path / "ant" / "more" / "again").symlink_to(tmp_path / "ant")
    with pytest.raises(ValueError, match=r"ant/more/again leads back to .*ant\. Remove the link"):
        load(spec)
    (tmp_path / "ant" / "more" / "again").unlink()
    odd = tmp_path / "ant" / os.fsdecode(b"\xff")
    odd.symlink_to(tmp_path / "ant")
    with pytest.raises(ValueError, match="leads back to") as error:
        load(spec)
    str(error.value).encode()  # a log can hold it


@pytest.mark.parametrize(
    "names",
    [("train", "test"), ("train", "val"), ("train", "test", "unseen"), ("a", "b", "unseen")],
)
def test_splits_without_class_folders_do_not_become_classes(tmp_path, names):
    spec = images_of(tmp_path, names)
    with pytest.raises(ValueError, match=r"would be the classes, among them .*/CLASS\."):
        load(spec)


def test_unseen_classes_stand_beside_class_folders_without_a_split(tmp_path):
    spec = images_of(tmp_path, ["a", "b", "unseen/c", "unseen/d"], 5)
    assert load(spec).classes == load(spec, "test").classes == ("a", "b")
    assert len(load(spec)) == 8
    unseen = load(spec, "unseen")
    assert unseen.classes == ("c", "d")
    assert unseen.labels.tolist() == [0] * 5 + [1] * 5


def test_what_is_left_out_is_told_with_counts(tmp_path):
    spec = images_of(tmp_path, ["train/ant", "train/bee", "train/bee/old", "test/ant", "test/bee"])
    Image.fromarray(IMAGES[0]).save(tmp_path / "train" / "ant" / "1.gif")
    for name in ("b.AVIF", "c.heic", "d.gif"):
        (tmp_path / "train" / "bee" / "old" / name).write_bytes(b"")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match=r"4 files are left out: 2 \.gif, 1 \.avif, 1 \.heic"):
        assert len(load(spec)) == 6
    assert len(load(spec, "test")) == 4
    Image.fromarray(IMAGES[0]).save(tmp_path / "test" / "loose.png")
    with pytest.warns(UserWarning, match=r"1 images in .*test are in no class folder.*loose"):
        load(spec, "test")
    (tmp_path / "test" / "loose.png").unlink()
    (tmp_path / "val").mkdir()
    with pytest.warns(UserWarning, match=r"1 folders of .* are left out: 'val'\. Only train"):
        load(spec, "test")
    (tmp_path / "val").rmdir()
    for file in (tmp_path / "test" / "ant").iterdir():
        file.rename(file.with_suffix(".gif"))
    with pytest.raises(ValueError, match=r"ant holds no images, but 2 \.gif, which are not read"):
        load(spec, "test")


def test_class_names_that_print_alike_are_one_class_and_never_two(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    spec = images_of(tmp_path, [f"train/{composed}", "train/tea", f"test/{apart}", "test/tea"])
    train, test = load(spec), load(spec, "test")
    assert train.classes == test.classes == (composed, "tea")
    assert train.labels.tolist() == test.labels.tolist() == [0, 0, 1, 1]
    images_of(tmp_path, [f"train/{apart}"])
    with pytest.raises(ValueError, match=r"print alike, 'cafe\\u0301' and 'caf\\xe9'"):
        load(spec)


def test_names_that_are_no_utf8(tmp_path):
    spec = images_of(tmp_path, ["ant", "bee"], 3)
    odd = os.fsdecode(b"caf\xe9")
    (tmp_path / "bee" / "0.png").rename(tmp_path / "bee" / f"{odd}.png")  # a file's is not shown
    assert len(load(spec)) == 4
    (tmp_path / "bee").rename(tmp_path / odd)
    with pytest.raises(ValueError, match=r"class folder b'caf\\xe9' in .* is no text in UTF-8"):
        load(spec)
    (tmp_path / odd).rename(tmp_path / "bee")
    (tmp_path / "bee" / f"{odd}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bee/caf\\xe9\.png cannot be read as an image") as error:
        load(spec)
    str(error.value).encode()
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    for path in (odd, "~nobody-of-this-name/x", "a" * 999):
        for kind in ("folder", "npz"):
            with pytest.raises(SettingsError, match="The path in") as error:
                load(f"{kind}:{path}")
            str(error.value).encode()
