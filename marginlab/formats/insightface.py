"""The files of insightface's ranks: named, put in order of rank, and read as data.

insightface's `arcface_torch` writes one file per rank, with the rows of consecutive classes. Of N
ranks

    rank k holds    C // N + [k < C mod N]    classes

    checkpoint_gpu_{k}.pt            since 2022: a dictionary, the centers at
                                     ["state_dict_softmax_fc"]["weight"]
    rank_{k}_softmax_weight.pt       2021: the tensor itself; for a while the name began with
                                     rank:{k}
    rank_{k}_softmax_weight_mom.pt   2021: the momentum of the same rows

Source: insightface's `recognition/arcface_torch`.
"""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marginlab.files import open_regular
from marginlab.files.untrusted import DamagedError, Entries, refusal

PATTERNS = (
    re.compile(r"checkpoint_gpu_(\d+)\.pt"),
    re.compile(r"rank[_:](\d+)_softmax_weight\.pt"),
)
MOMENTUM = (re.compile(r"rank[_:](\d+)_softmax_weight_mom\.pt"),)


def sizes(num_classes: int, ranks: int) -> list[int]:
    """Return the number of classes that each rank of insightface holds.

    Example:
        >>> sizes(7, 3)
        [3, 2, 2]
    """
    return [num_classes // ranks + (rank < num_classes % ranks) for rank in range(ranks)]


def rank_of(path: Path, patterns: tuple[re.Pattern[str], ...] = PATTERNS) -> tuple[int, int] | None:
    """Return the format and the rank that a file's name says, or None."""
    for kind, pattern in enumerate(patterns):
        if found := pattern.fullmatch(path.name):
            return kind, int(found[1])
    return None


def by_rank(
    source: Path | str | Iterable[Path | str],
    patterns: tuple[re.Pattern[str], ...] = PATTERNS,
) -> list[Path]:
    """Return the files of ranks 0 to N - 1."""
    known = (
        "rank_0_softmax_weight_mom.pt"
        if patterns is MOMENTUM
        else "checkpoint_gpu_0.pt or rank_0_softmax_weight.pt"
    )
    folder = isinstance(source, Path | str)
    if isinstance(source, Path | str):
        if not Path(source).is_dir():
            raise FileNotFoundError(
                f"{source} is no folder. Give the folder of the shards, or a list of files."
            )
        paths = list(Path(source).iterdir())
    else:
        paths = [Path(path) for path in source]
    named = [(key, path) for path in paths if (key := rank_of(path, patterns)) is not None]
    if not folder and len(named) < len(paths):
        odd = next(path for path in paths if rank_of(path, patterns) is None)
        raise ValueError(
            f"The name of {odd} says no rank. A shard is called {known}, counted from 0."
        )
    if not named:
        raise FileNotFoundError(
            f"{source if folder else 'The list'} holds no shard, such as {known}."
        )
    named.sort()
    if len({kind for (kind, _), _ in named}) > 1:
        raise ValueError(
            f"{named[0][1]} and {named[-1][1]} are of two formats, and may be of two runs. Give "
            "the files of one."
        )
    ranks = [rank for (_, rank), _ in named]
    if ranks != list(range(len(ranks))):
        missing = sorted(set(range(ranks[-1] + 1)) - set(ranks))
        if missing:
            raise FileNotFoundError(
                f"Of the shards up to {named[-1][1]} there is none of rank "
                f"{', '.join(map(str, missing))}."
            )
        raise ValueError(f"A rank is given twice: {', '.join(str(path) for _, path in named)}.")
    return [path for _, path in named]


def read_shard(path: Path) -> Tensor:
    """Read the centers of one file, after checking its bytes.

    If the file is a zip (torch 1.6 and later), the checksums of the centers and of everything that
    says how to read them are verified. torch.load does not do this. Older files have no checksums.
    """
    try:
        with open_regular(path) as stream:
            zipped = stream.read(4) == b"PK\3\4"
        if zipped:
            _verify(path)
        head = _head(path, map_location="cpu", mmap=zipped)
        # a matrix whose rows overlap would be many times larger than its file
        repeated = head is not None and head.nbytes > head.untyped_storage().nbytes()
    except FileNotFoundError:
        raise
    except Exception as error:  # torch meets broken files with a dozen kinds of errors
        raise no_data(path, error, "save its centers alone") from error
    if head is None or repeated:
        raise ValueError(
            f"{path} holds no centers: a checkpoint has them at "
            "['state_dict_softmax_fc']['weight'], a file of 2021 is the tensor."
        )
    return head


def no_data(path: Path, error: Exception, remedy: str) -> ValueError:
    """Make the error of a file that torch cannot read as data, from the error of torch.

    Args:
        path: The file.
        error: The error met in reading it.
        remedy: Words after "load it yourself and".
    """
    return ValueError(
        f"{path} could not be read as tensors and plain containers: {refusal(error)}. If you trust "
        f"it, load it yourself and {remedy}."
    )


def _head(path: Path, **options: Any) -> Tensor | None:
    """Load a file, and find the centers in what it holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of types that torch no longer writes
        held: Any = torch.load(path, weights_only=True, **options)
    if path.name.startswith("checkpoint"):
        head = held.get("state_dict_softmax_fc") if isinstance(held, dict) else None
        held = head.get("weight") if isinstance(head, dict) else None
    return held if isinstance(held, Tensor) and held.layout == torch.strided else None


def _verify(path: Path) -> None:
    """Verify the checksums of the centers in a zip, and of records that say how to read them."""
    with Entries(path) as entries:
        for name in entries.names:
            if "/data/" not in name:
                entries.open(name).verify()
        if (claimed := _head(path, map_location="meta")) is None:
            return
        storage = claimed.untyped_storage()
        record = entries.at(storage._checkpoint_offset or 0) or "the record of the centers"
        entry = entries.open(record)
        if entry.size != storage.nbytes():
            told = f"{record} has {entry.size:,} bytes, not {storage.nbytes():,}"
            raise DamagedError(told)
        entry.verify()
