"""A checkpoint's folder read as data: checked against itself, and no code in it is run.

    checksums.sha256      "HEX  NAME" for every other file, in the format of `sha256sum -c`
    .metadata             a pickle of names, shapes and places; only the types of torch's checkpoint
                          format are made from it (a pickle may otherwise call any function)
    __RANK_NUMBER.distcp  tensors and plain values, which `torch.load` reads with `weights_only`

Checksums find changed bytes. They are no signature: whoever can write into the folder can also
write new checksums. Such a folder can still hold wrong numbers; see docs/trust.md.
"""

import functools
import hashlib
import io
import json
import math
import pathlib
import pickle
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from marginlab import files
from marginlab.files import content_of, open_regular

REMEDY = "Remove it, and train again or take an older copy."
SUMS = "checksums.sha256"
FORMAT = 2  # of progress.json; checkpoints before 2 have no checksums
NAME = re.compile(r"__(\d+)_\d+\.distcp", re.ASCII)  # rank and number
METADATA = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"}
    | {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)},
}
PATHS = {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"}


class _Unpickler(pickle.Unpickler):
    """Unpickler of checkpoint metadata: all other types are refused before they are imported."""

    def find_class(self, module: str, name: str) -> Any:
        if name in METADATA.get(module, ()):
            return super().find_class(module, name)
        if module.split(".")[0] == "pathlib" and name in PATHS:
            return pathlib.PurePosixPath  # where it was written, not where it is read
        raise pickle.UnpicklingError(
            f"it holds {module}.{name}, which is no part of a checkpoint's metadata: it may be "
            "made to run code"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside of it")


class Reader(FileSystemReader):
    """torch's reader of checkpoint folders, restricted to data."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read `.metadata`; raise ValueError or UnpicklingError if it holds anything else."""
        content = content_of(Path(self.path) / ".metadata")
        found = _Unpickler(io.BytesIO(content)).load()
        _well_formed(found)
        found.storage_meta.load_id = self.load_id
        return found  # type: ignore[no-any-return]  # looked at in `_well_formed`


class Planner(DefaultLoadPlanner):
    """torch's planner, restricted to plain data for values that are not tensors."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Read a value, then let torch put it in its place."""
        plain = torch.load(value, map_location="cpu", weights_only=True)
        clean = io.BytesIO()  # torch reads it a second time, with any class
        torch.save(plain, clean)
        clean.seek(0)
        super().load_bytes(read_item, clean)


def _well_formed(found: Any) -> None:
    """Refuse metadata that points out of its folder, or promises more than its files can hold."""
    if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
        raise ValueError("it is no metadata of a checkpoint")
    stored = dict[str, int]()
    for index, place in found.storage_data.items():
        file, offset, length = place.relative_path, place.offset, place.length
        # no repr of other types: nested tuples may be longer as text than any memory
        if type(file) is not str or type(index.fqn) is not str:
            raise ValueError("it names a tensor, or a file of this checkpoint, by no text")
        if NAME.fullmatch(file) is None:
            raise ValueError(f"it points to {file[:80]!r}, which is no file of this checkpoint")
        if type(offset) is not int or type(length) is not int:
            raise ValueError(f"a part of {file} is at no whole numbers")
        if offset < 0 or length < 0:
            raise ValueError(f"a part of {file} begins at {offset} and has {length} bytes")
        if getattr(place, "transform_descriptors", None):
            raise ValueError(f"{file} is written with transforms, which are not read here")
        stored[index.fqn] = stored.get(index.fqn, 0) + length
    for name, held in (found.state_dict_metadata or {}).items():
        if isinstance(held, TensorStorageMetadata):
            size = math.prod(held.size) * held.properties.dtype.itemsize
            if min(held.size, default=0) < 0 or size > stored.get(name, 0):
                shape = tuple(held.size)
                raise ValueError(f"it says that {name} is {shape}, which its files do not hold")


def read(checkpoint: Path, function: Callable[[], Any]) -> Any:
    """Call a function that reads a checkpoint; turn a failure into a ValueError with its name."""
    try:
        return function()
    except Exception as error:  # an error of JSON, of pickle or of the disk
        words = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{checkpoint} cannot be read: {words}. {REMEDY}") from error


def metadata(checkpoint: Path) -> Metadata:
    """Read names, shapes and places of what a checkpoint holds."""
    found: Metadata = read(checkpoint / ".metadata", Reader(checkpoint).read_metadata)
    return found


def progress(checkpoint: Path) -> dict[str, Any]:
    """Read the progress that the training loop wrote beside the tensors.

    Raises:
        ValueError: It is no JSON object, or was written by a later version.
    """
    file = checkpoint / "progress.json"
    found = read(file, lambda: json.loads(content_of(file).decode("utf-8")))
    if not isinstance(found, dict) or type(found.get("step")) is not int or found["step"] < 0:
        raise ValueError(f"{file} is not the progress of a training: it names no step. {REMEDY}")
    if type(found.get("format", 1)) is not int or not 1 <= found.get("format", 1) <= FORMAT:
        raise ValueError(
            f"{file} is of format {found['format']!r}, and this version reads up to {FORMAT}. Read "
            "it by the version that wrote it."
        )
    for name in ("ranks", "num_classes"):
        if name in found and (type(found[name]) is not int or found[name] < 1):
            raise ValueError(f"{file} says no number of {name}, from 1 on. {REMEDY}")
    classes = found.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{file} holds no list of names of classes. {REMEDY}")
    return found


def digest(file: Path) -> str:
    """Return the SHA-256 of a regular file, in hexadecimal (OSError if it is another kind)."""
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def mark(checkpoint: Path) -> str:
    """Return 16 hexadecimal digits that tell a checkpoint from others of its step.

    They are of its checksums. Versions that kept no checksums wrote metadata with a number of its
    own, which is used instead.
    """
    sums = checkpoint / SUMS
    return digest(sums if sums.exists() else checkpoint / ".metadata")[:16]


def write_sums(folder: Path, known: dict[str, str]) -> None:
    """Write checksums of all files of a folder; files of `known` names are not read again."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    lines = [f"{known.get(name) or digest(folder / name)}  {name}\n" for name in names]
    put(folder / SUMS, "".join(lines))


def put(file: Path, text: str) -> None:
    """Write a file to the disk before anything that follows, as torch does with the tensors."""
    files.write(file, text)


def check_sums(checkpoint: Path, part: int = 0, parts: int = 1) -> None:
    """Compare the files of a checkpoint, or one of `parts` parts of them, with their checksums.

    Raises:
        ValueError: A file was changed, is missing, or was added. The message names it.
    """
    file = checkpoint / SUMS
    if not file.exists():
        if progress(checkpoint).get("format", 1) >= 2:
            raise ValueError(f"{file} is missing: the checkpoint was changed. {REMEDY}")
        warnings.warn(
            f"{checkpoint} is of a version that kept no checksums: changed bytes are not noticed.",
            stacklevel=3,
        )
        return
    lines = read(file, lambda: content_of(file).decode("utf-8")).splitlines()
    told = {name: said for said, _, name in (line.partition("  ") for line in lines)}
    there = {path.name for path in checkpoint.iterdir()} - {SUMS}
    for name in (*_unlisted(there - told.keys()), *told)[part::parts]:
        path = checkpoint / name
        if name not in there:
            raise ValueError(f"{path} is missing, and {file.name} lists it. {REMEDY}")
        if told.get(name) != read(path, functools.partial(digest, path)):
            raise ValueError(
                f"{path} is not as it was written: its bytes, or its line in {file.name}, have "
                f"changed. {REMEDY}"
            )


def _unlisted(names: Iterable[str]) -> list[str]:
    """Select the checkpoint's own files, without those that a system leaves in folders."""
    own = {".metadata", "progress.json", "recipe.toml"}
    return sorted(name for name in names if name in own or name.endswith(".distcp"))


def whole(checkpoint: Path, *, part: int = 0, parts: int = 1) -> tuple[dict[str, Any], Metadata]:
    """Return the progress and metadata of a checkpoint that is as it was written.

    Ranks that share the work check one of `parts` parts of the checksums each.

    Raises:
        ValueError: A file is changed, missing or cut short. The message names it.
    """
    found = progress(checkpoint)
    places = metadata(checkpoint)
    named = checkpoint.name.removeprefix("step-")
    if named.isdigit() and int(named) != found["step"]:
        raise ValueError(
            f"{checkpoint} says that it is of step {found['step']}: it was renamed, or its "
            f"progress.json changed. {REMEDY}"
        )
    ends = dict[str, int]()
    for place in places.storage_data.values():
        end = place.offset + place.length
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), end)
    for name, end in ends.items():
        path = checkpoint / name
        size = path.stat().st_size if path.is_file() else 0
        if size < end or not path.is_file():
            raise ValueError(
                f"{path} has {size} of {end} bytes that .metadata names: it is missing or cut "
                f"short. {REMEDY}"
            )
    writers = len({name[1] for name in map(NAME.fullmatch, ends) if name is not None})
    if writers > found.get("ranks", writers):
        raise ValueError(
            f"{checkpoint} holds files of {writers} ranks, but {found['ranks']} wrote it: two "
            f"checkpoints are mixed, or progress.json changed. {REMEDY}"
        )
    check_sums(checkpoint, part, parts)
    return found, places
