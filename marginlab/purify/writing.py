"""Image sets written out: an index of the files, a folder of links or copies, or record files.

    write_index     PATH.csv with path, label and, if there are several splits, split
    write_folder    FOLDER/CLASS/NUMBER.png, or FOLDER/SPLIT/CLASS/... with several splits
    write_record    FOLDER/SPLIT.rec, .idx and property

The data that is read stays as it is. Images that come from files or records and kept their own size
are written as the same bytes; others as PNG, which loses nothing. The same sets give the same
bytes. Everything is put in place when it is whole.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from marginlab import files
from marginlab.data import ImageSet
from marginlab.data.folders import NO_CLASSES, ImageFiles
from marginlab.data.records import RecordImages
from marginlab.data.sheet import encode_picture
from marginlab.data.streaming import Streamed
from marginlab.data.targets import equal_folder_names, is_folder_name
from marginlab.formats import write_records

_BLOCK = 64  # images that are held at a time
_ORDER = ("unseen", "test", "train")  # `property` is written last for train, which has all classes


def files_of(images: ImageSet) -> list[Path] | None:
    """Return the files of a set that is streamed from files, else None.

    A folder or an index is streamed by `load(spec, budget=1, workers=0)`.
    """
    held = images.images
    if not isinstance(held, Streamed) or not isinstance(held.source, ImageFiles):
        return None
    return [held.source.path(row) for row in held.rows.tolist()]


def has_files(images: ImageSet) -> bool:
    """Return whether a set is streamed from files, so that `files_of` names them."""
    held = images.images
    return isinstance(held, Streamed) and isinstance(held.source, ImageFiles)


def check_index(sets: Mapping[str, ImageSet]) -> None:
    """Refuse sets that no index can name.

    Raises:
        ValueError: A set that has no files, or a path or a class name that a line cannot hold.
    """
    for images in sets.values():
        own = files_of(images)
        if own is None:
            raise ValueError(
                f"{images.name} has no files to name in an index. Write a folder or record files."
            )
        for word in (*images.classes, *(str(file.absolute()) for file in own)):
            _check_word(word, images.name)


def write_index(path: Path | str, sets: Mapping[str, ImageSet]) -> None:
    """Write an index that `load("index:PATH")` reads: absolute paths and class names.

    Args:
        path: The file, NAME.csv.
        sets: Image sets by split (train, test, unseen). With one set no split is written, and one
            fifth of it is the test when it is read.

    Raises:
        ValueError: A set that has no files, or a path or a class name that a line cannot hold.
    """
    path = Path(path)
    if path.suffix != ".csv":
        raise ValueError(f"An index is called NAME.csv, not {path.name!a}. Rename it.")
    check_index(sets)
    rows = []
    for split, images in sets.items():
        for file, label in zip(files_of(images) or (), images.labels.tolist(), strict=True):
            words = [str(file.absolute()), images.classes[label]]
            rows.append([*words, split] if len(sets) > 1 else words)
    header = ("path", "label", "split") if len(sets) > 1 else ("path", "label")
    files.write(path, files.csv_text(header, rows))


def write_folder(folder: Path | str, sets: Mapping[str, ImageSet], *, links: bool = False) -> None:
    """Write a folder that `load("folder:FOLDER")` reads, and FOLDER/classes.csv.

    A class has a folder of its name. If a name cannot be one, all are called by their numbers;
    classes.csv has both.

    Args:
        folder: The folder; it must not exist.
        sets: As for `write_index`.
        links: Link to the files instead of copying them.

    Raises:
        ValueError: The folder exists, or links to images that have no files.
    """
    folder = Path(folder)
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"{folder} exists already. Choose another folder, or remove it.")
    draft = folder.with_name(f".{folder.name}.draft")
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft)  # of a process that was killed
    draft.mkdir(parents=True)
    by_name = all(_can_be_folders(images.classes) for images in sets.values())
    rows = []
    for split, images in sets.items():
        own = files_of(images) if links else None
        if links and own is None:
            raise ValueError(f"{images.name} has no files to link to. Write copies.")
        top = draft / split if len(sets) > 1 else draft
        called = [name if by_name else f"{k:07d}" for k, name in enumerate(images.classes)]
        rows += [(split, k, called[k], name) for k, name in enumerate(images.classes)]
        for label in images.labels.unique().tolist():
            (top / called[label]).mkdir(parents=True)
        labels = images.labels.tolist()
        if own is not None:
            for n, file in enumerate(own):
                place = top / called[labels[n]] / f"{n:08d}{file.suffix.lower()}"
                place.symlink_to(file.absolute())
            continue
        for n, (data, suffix) in enumerate(encoded_images(images)):
            (top / called[labels[n]] / f"{n:08d}{suffix}").write_bytes(data)
    files.write(draft / "classes.csv", files.csv_text(("split", "label", "folder", "class"), rows))
    draft.rename(folder)


def write_record(folder: Path | str, sets: Mapping[str, ImageSet]) -> None:
    """Write record files that `load("record:FOLDER")` reads, and FOLDER/classes.csv with the names.

    Args:
        folder: The folder, made if absent. Its record files of the same names are replaced.
        sets: As for `write_index`; a file of this name for each.

    Raises:
        ValueError: `write_records` refuses an image.
    """
    folder = Path(folder)
    rows = []
    for split in sorted(sets, key=lambda name: _ORDER.index(name) if name in _ORDER else -1):
        images = sets[split]
        height, width = images.images.shape[2:]
        pairs = zip(encoded_images(images), images.labels.tolist(), strict=True)
        coded = ((data, label) for (data, _), label in pairs)
        write_records(folder, coded, size=(height, width), name=split)
        rows += [(split, k, name) for k, name in enumerate(images.classes)]
    files.write(folder / "classes.csv", files.csv_text(("split", "label", "class"), rows))


def encoded_images(images: ImageSet) -> Iterator[tuple[bytes, str]]:
    """Yield the encoded bytes of each image and the ending of its file's name."""
    held = images.images
    if isinstance(held, Streamed) and isinstance(held.source, ImageFiles | RecordImages):
        source = held.source
        if not source.size and isinstance(source, RecordImages):
            for row in held.rows.tolist():
                data = source.encoded(row).data
                yield data, ".png" if data.startswith(b"\x89PNG") else ".jpg"
            return
        if not source.size and isinstance(source, ImageFiles):
            for row in held.rows.tolist():
                file = source.path(row)
                yield files.content_of(file), file.suffix.lower()
            return
    for part in held.split(_BLOCK):
        for picture in part.cpu():
            yield encode_picture(picture), ".png"


def _check_word(word: str, name: str) -> None:
    try:
        word.encode()
    except UnicodeEncodeError as error:
        told = f"{name}: the path {os.fsencode(word)!r} is no text in UTF-8"
        raise ValueError(f"{told}. Rename the file, or write copies.") from error
    if not word or word != word.strip() or set(word) & {"\0", "\n", "\r"}:
        raise ValueError(
            f"{name}: {word!a} begins or ends with a blank, is empty or breaks a line, which an "
            "index cannot hold. Write a folder or record files."
        )


def _can_be_folders(classes: Sequence[str]) -> bool:
    if any(name in NO_CLASSES or not is_folder_name(name) for name in classes):
        return False
    return equal_folder_names(classes) is None
