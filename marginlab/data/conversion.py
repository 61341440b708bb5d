"""Convert an image set: folder, npz file and record files, each into the others.

    convert(spec, out)      out = folder:PATH | npz:PATH | record:PATH, a spec that `load` reads

Splits stay as they are, so a target has splits of its own. Images are read a batch at a time.
Where neither a size, nor a quality, nor landmarks are given, the bytes of files and records are
copied as they are. Other images are written as PNG, which loses nothing, or as JPEG.
"""

from collections.abc import Callable
from pathlib import Path

from marginlab.data.landmarks import read_points
from marginlab.data.parts import Encoding, Part, inside, mark_of, read_parts
from marginlab.data.selection import selection_of
from marginlab.data.targets import (
    begin,
    check_names,
    marked,
    write_folder,
    write_npz,
    write_record_files,
)
from marginlab.files.untrusted import shown
from marginlab.settings import SettingsError

TARGETS = ("folder", "npz", "record")


def convert(
    spec: str,
    out: str,
    *,
    size: int = 0,
    quality: int = 0,
    landmarks: Path | None = None,
    root: str | Path | None = None,
    workers: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> tuple[Part, ...]:
    """Write all splits of a spec to a folder, an npz file or record files.

    A killed conversion goes on by the same call: a folder keeps the images that are whole, and
    record files the splits that are. An npz file is begun again.

    Args:
        spec: A spec of `load`, with or without a choice of classes.
        out: `folder:PATH`, `npz:PATH` or `record:PATH`. Folders are made.
        size: Pixels that images are brought to, as by `load`; 0 keeps their own. Of aligned faces
            the side, 0 for 112.
        quality: Quality of JPEG from 1 to 100; 0 writes PNG, or the bytes that are there.
        landmarks: A csv of five points for each image, by which faces are aligned
            (`marginlab.data.landmarks`).
        root: The folder of the published sets.
        workers: Processes that decode ahead; 0 for none beside this one.
        report: Called with the number of images that are done, and of all.

    Returns:
        The splits that were written.

    Raises:
        SettingsError: A target, size or quality that makes no sense.
        FileExistsError: A target that is there and was not begun by a conversion.
        ValueError: Images or landmarks that cannot be used, names that no folder can have, or a
            target that holds another conversion. But for pixels that cannot be decoded, all is
            refused before the target is touched.

    Example:
        >>> import tempfile
        >>> from marginlab.data import load
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = convert("digits", f"record:{folder}/digits")
        ...     load(f"record:{folder}/digits", "test").images.shape
        torch.Size([359, 3, 8, 8])
    """
    kind, path = _target(spec, out)
    if size < 0 or not 0 <= quality <= 100:
        raise SettingsError(
            f"size is 0 or a number of pixels and quality 0 or 1 to 100, not {size} and {quality}."
        )
    if quality and kind == "npz":
        raise SettingsError("An npz file holds pixels, and no JPEG of a quality. Leave it out.")
    points = None if landmarks is None else read_points(landmarks)
    parts = read_parts(spec, root=root, size=size, points=points, workers=workers)
    if kind == "folder":
        check_names(parts)
    changed = bool(size or quality or points is not None)
    encoding = Encoding(quality) if changed or not all(part.stored for part in parts) else None
    done, total = 0, sum(len(part.labels) for part in parts)

    def tick(n: int) -> None:
        nonlocal done
        done += n
        if report:
            report(done, total)

    tick(0)
    if kind == "npz":
        write_npz(parts, path, tick)
        return parts
    begin(path, mark_of(parts, kind, size, quality, points), spec)
    if kind == "folder":
        write_folder(parts, path, encoding, tick)
    else:
        write_record_files(parts, path, encoding, tick)
    return parts


def _target(spec: str, out: str) -> tuple[str, Path]:
    """Return kind and place of a target, after a look at what is there."""
    kind, _, rest = out.partition(":")
    if kind not in TARGETS or not rest:
        raise SettingsError(f"A target is folder:PATH, npz:PATH or record:PATH, not {out!r}.")
    path = Path(rest).expanduser()
    if kind == "npz" and path.suffix != ".npz":
        raise SettingsError(f"An npz file is called NAME.npz, not {path.name!r}.")
    if kind == "record" and path.suffix == ".rec":
        raise SettingsError(f"Record files have a folder: give {kind}:{path.with_suffix('')}.")
    of, _, source = selection_of(spec)[0].partition(":")
    if of in ("folder", "record") and source and inside(path, Path(source).expanduser()):
        raise SettingsError(f"{shown(path)} lies in what is converted. Choose a place outside.")
    if kind == "npz":
        there = path.exists()
    else:
        there = path.exists() and (not path.is_dir() or (any(path.iterdir()) and not marked(path)))
    if there:
        told = f"{shown(path)} is there already, and is no conversion that was begun"
        raise FileExistsError(f"{told}. Remove it, or choose another place.")
    return kind, path
