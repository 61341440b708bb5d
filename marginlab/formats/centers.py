"""Files of class centers: insightface's shards, and one safetensors file.

insightface's shards follow its own rule (`insightface`). The shards of marginlab's own checkpoints
follow DTensor, ceil(C / N) each. The two may not be mixed, and are not mixed here. Nothing in
insightface's files says C or N. A folder whose sizes break the rule, or that lacks a rank, is
refused. A folder that lost rows in every shard evenly can be recognised only by the number of
classes, which is therefore asked for where it is known.

On several ranks a head holds a shard, in marginlab's cut. There are two ways to the centers of all
ranks: `load(run).classifier.centers`, from any checkpoint on any number of processes, and
`head.state_dict()["centers"].full_tensor()`, which all ranks call.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from marginlab.formats.insightface import (
    MOMENTUM,
    PATTERNS,
    by_rank,
    rank_of,
    read_shard,
    sizes,
)


def import_insightface(
    source: Path | str | Iterable[Path | str],
    num_classes: int | None = None,
    *,
    momentum: bool = False,
) -> Float[Tensor, "C D"]:
    """Read the class centers of an insightface run from its shards, in rank order, on the CPU.

    Args:
        source: The folder with `checkpoint_gpu_{k}.pt` or `rank_{k}_softmax_weight.pt`, or the
            files themselves, in any order. Files are read as tensors and plain containers only
            (`weights_only`): no code in them is run. From a checkpoint only the centers are read
            from the disk, and their checksum is verified.
        num_classes: C, where it is known.
        momentum: Read the optimizer's momentum of the centers instead, which runs of 2021 keep in
            `rank_{k}_softmax_weight_mom.pt`. Later files have no such entry of its own.

    Returns:
        The centers (C, D), or their momentum.

    Raises:
        FileNotFoundError: The folder holds no shard, or a rank between the first and the last is
            missing.
        ValueError: A file is no shard. Or shards are of both formats, of different widths or types,
            or of sizes that do not follow the rule. Or C is another number.

    Example:
        >>> import tempfile
        >>> centers = torch.randn(7, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_insightface(centers, folder, ranks=3)
        ...     torch.equal(import_insightface(folder, num_classes=7), centers)
        True
    """
    files = by_rank(source, MOMENTUM if momentum else PATTERNS)
    shards = [read_shard(file) for file in files]
    first = shards[0]
    for file, shard in zip(files, shards, strict=True):
        if (
            shard.ndim != 2
            or shard.shape[1] != first.shape[1]
            or shard.dtype != first.dtype
            or not shard.is_floating_point()
        ):
            raise ValueError(
                f"{file} holds {tuple(shard.shape)} of {shard.dtype}, and {files[0]} "
                f"{tuple(first.shape)} of {first.dtype}. The shards of a run are floating-point "
                "matrices (classes, D) of one width and type: give the files of one run."
            )
    classes = [len(shard) for shard in shards]
    C, N = sum(classes), len(classes)
    wrong = [
        f"{file} ({rows}, not {due})"
        for file, rows, due in zip(files, classes, sizes(C, N), strict=True)
        if rows != due
    ]
    if wrong:
        raise ValueError(
            f"{N} shards with {C} classes together hold C // N + [k < C mod N] classes each, but "
            f"not these: {', '.join(wrong)}. A shard is missing or is of another run."
        )
    if num_classes is not None and num_classes != C:
        raise ValueError(
            f"The {N} shards from {files[0]} on hold {C} classes, not {num_classes}: rows were "
            "lost, or they are of other data."
        )
    return torch.cat(shards)


def export_insightface(
    centers: Float[Tensor, "C *K D"],
    folder: Path | str,
    ranks: int,
    *,
    momentum: Float[Tensor, "C *K D"] | None = None,
) -> None:
    """Write centers as the files `checkpoint_gpu_{k}.pt` of `ranks` ranks.

    With momentum they are the files of 2021, `rank_{k}_softmax_weight.pt`, each beside that of its
    momentum, `rank_{k}_softmax_weight_mom.pt`, since later ones have no place for it.

    `import_insightface` and insightface's head read these files. They hold the head alone.
    insightface's own resume also wants a backbone, an optimizer and a step, and looks for them in
    the same file.

    Args:
        centers: Centers (C, D) or (C, 1, D) of all classes, on one process. Do not give the part of
            them that a rank of several holds.
        folder: The folder to write into. It is made if it does not exist.
        ranks: Number of files, of each kind.
        momentum: The optimizer's momentum of the centers, of their shape.

    Raises:
        ValueError: There are several centers for a class, for which the format has no place. Or
            `ranks` is below 1. Or the centers are a DTensor. Or the momentum is of another shape.
        FileExistsError: The folder already holds shards, whose ranks would mix with these.
    """
    if centers.ndim == 3 and centers.shape[1] != 1:
        raise ValueError(
            f"insightface has one center for a class, here are {tuple(centers.shape)}. Choose one "
            "of them for each class first."
        )
    if ranks < 1:
        raise ValueError(f"Shards are written for 1 rank or more, not {ranks}.")
    _refuse_part(centers)
    if momentum is not None:
        _refuse_part(momentum)
        if momentum.shape != centers.shape:
            raise ValueError(
                f"Momentum is of the centers' shape {tuple(centers.shape)}, not "
                f"{tuple(momentum.shape)}. Give the optimizer's momentum_buffer of the centers."
            )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    there = [path for path in folder.iterdir() if rank_of(path, (*PATTERNS, *MOMENTUM)) is not None]
    if there:
        raise FileExistsError(
            f"{folder} already holds shards, such as {there[0].name}. Give an empty folder."
        )
    written = {"softmax_weight": centers}
    if momentum is not None:
        written["softmax_weight_mom"] = momentum
    for name, whole in written.items():
        flat = whole.detach().cpu().flatten(0, -2)
        for rank, shard in enumerate(flat.split(sizes(len(flat), ranks))):
            rows = shard.clone()  # torch would write the whole storage of a view
            if momentum is None:
                _put({"state_dict_softmax_fc": {"weight": rows}}, folder, f"checkpoint_gpu_{rank}")
            else:
                _put(rows, folder, f"rank_{rank}_{name}")


def _put(value: object, folder: Path, name: str) -> None:
    """Write one file under another name, and rename it into place."""
    partial = folder / f"{name}.partial"
    torch.save(value, partial)
    partial.replace(folder / f"{name}.pt")


def save_centers(path: Path | str, centers: Float[Tensor, "C *K D"]) -> None:
    """Write centers to one safetensors file: a tensor `centers` (C, K, D), its sizes as metadata.

    The file is written under another name and renamed into place, so that a complete one is never
    lost.

    Args:
        path: The file to write.
        centers: Centers (C, D) or (C, K, D).

    Raises:
        ValueError: The centers are a DTensor.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_centers(f"{folder}/centers.safetensors", torch.randn(5, 4))
        ...     load_centers(f"{folder}/centers.safetensors").shape
        torch.Size([5, 1, 4])
    """
    _refuse_part(centers)
    path = Path(path)
    C, K, D = len(centers), centers.shape[1] if centers.ndim == 3 else 1, centers.shape[-1]
    partial = path.with_name(f"{path.name}.partial")
    told = {"num_classes": str(C), "subcenters": str(K), "dim": str(D)}
    save_file(
        {"centers": centers.detach().cpu().reshape(C, K, D).contiguous()}, partial, metadata=told
    )
    partial.replace(path)


def load_centers(path: Path | str) -> Float[Tensor, "C K D"]:
    """Read what `save_centers` wrote: centers (C, K, D), on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, it holds no `centers`, or they are not of the sizes
            in its metadata.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of centers {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            names, told = list(file.keys()), file.metadata() or {}
            centers: Tensor | None = file.get_tensor("centers") if "centers" in names else None
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file: {error}. Write it with save_centers."
        ) from error
    if centers is None:
        raise ValueError(
            f"{path} holds no tensor `centers`, but {', '.join(names) or 'nothing'}. Write it with "
            "save_centers."
        )
    due = tuple(told.get(name) for name in ("num_classes", "subcenters", "dim"))
    if tuple(str(size) for size in centers.shape) != due:
        raise ValueError(
            f"{path} holds centers {tuple(centers.shape)}, but its metadata says (C, K, D) = "
            f"{due}: it was changed, or not by save_centers."
        )
    return centers


def _refuse_part(centers: Tensor) -> None:
    if hasattr(centers, "full_tensor"):
        raise ValueError(
            f"Of these {len(centers)} centers this rank holds a part. Give centers.full_tensor(), "
            "which all ranks call, on one of them."
        )
