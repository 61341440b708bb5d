"""Checkpoints: folders of torch.distributed.checkpoint that carry their recipe, written whole or not at all.

    RUN/recipe.toml
    RUN/checkpoints/step-00000240/      the tensors (.distcp), recipe.toml, progress.json
A folder is written under another name, step-00000240.partial, and renamed into place; the one before is removed only then, and under such a name
too. So there is always a whole one, and what has the name of a step is whole. A step that is there already is not written again: one step of one
run is always the same.

Before anything is loaded the folder is held against itself (step, ranks, files and their lengths) and against the method (names and shapes of its
tensors, the classes, sub-centers and dimensions of class centers among them), so that nothing is half loaded. A byte that changed in place is not
noticed.
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from marginlab import ranks, settings
from marginlab.losses import PartialFC
from marginlab.methods import Method
from marginlab.train.centers import resized
from marginlab.train.optimizer_state import named, put, saved_as
from marginlab.train.recipe import Recipe

REMEDY = "Remove it, and train again or take an older copy."


def save(folder: Path, recipe: Recipe, method: Method, optimizers: list[torch.optim.Optimizer], step: int, progress: dict[str, Any]) -> Path:
    """Write the checkpoint of a step (all ranks call it); `progress` is JSON: what the loop itself must know to go on.

    Raises OSError when it cannot be written; the one before stays.
    """
    place = folder / "checkpoints" / f"step-{step:08d}"
    partial = place.with_name(f"{place.name}.partial")

    def there() -> bool:
        if place.exists():  # as when the signal to end comes in the last step of an epoch
            return True
        shutil.rmtree(partial, ignore_errors=True)
        return False

    if ranks.first(there):
        return place
    with _quiet():
        try:
            save_state(_state(method, optimizers), checkpoint_id=partial, no_dist=ranks.size() == 1)
        except CheckpointException as error:  # no Exception
            _interrupted(error)
            raise OSError(f"The checkpoint {place} could not be written: {_cause(error)}. The one before stays.") from error

    def publish() -> None:
        _put(partial / "recipe.toml", settings.to_toml(recipe))
        _put(partial / "progress.json", json.dumps({"step": step, "ranks": ranks.size(), **progress}))
        partial.rename(place)
        for old in place.parent.glob("step-*"):  # what has another name is somebody's own
            if old != place and old.name.removeprefix("step-").removesuffix(".partial").isdigit():
                shutil.rmtree(old if old.suffix == ".partial" else old.rename(f"{old}.partial"), ignore_errors=True)

    ranks.first(publish)
    return place


def _put(file: Path, text: str) -> None:
    """Write a file, on the disk before what follows, as torch does with the tensors."""
    with file.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder."""
    found = sorted(p for p in (folder / "checkpoints").glob("step-*") if p.suffix != ".partial" and (p / "progress.json").exists())
    return found[-1] if found else None


def restore(checkpoint: Path, method: Method, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Load a checkpoint into the method and its optimizers; returns the loop's progress.

    Raises ValueError when the checkpoint is not whole, or is another method's.
    """
    progress = checked(checkpoint, method)
    state = {"method": method.state_dict(), **saved_as(checkpoint, method, optimizers)}
    _load(state, checkpoint, alone=ranks.size() == 1)
    method.load_state_dict(state["method"])
    for number, optimizer in enumerate(optimizers):
        put(method, optimizer, state[f"optimizer{number}"])
    return progress


def checked(checkpoint: Path, method: nn.Module) -> dict[str, Any]:
    """The progress of a checkpoint that is whole, and of this method (ValueError otherwise)."""
    progress: dict[str, Any] = _read(checkpoint, lambda: json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
    metadata: Metadata = _read(checkpoint, FileSystemReader(checkpoint).read_metadata)
    named = checkpoint.name.removeprefix("step-")
    if named.isdigit() and int(named) != progress.get("step"):
        raise ValueError(f"{checkpoint} says that it is of step {progress.get('step')}: it was renamed or changed. {REMEDY}")
    ends = dict[str, int]()
    for place in (metadata.storage_data or {}).values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for file, end in ends.items():
        size = (checkpoint / file).stat().st_size if (checkpoint / file).exists() else 0
        if size < end:
            raise ValueError(f"{checkpoint / file} has {size} of {end} bytes: it is missing or cut short. {REMEDY}")
    writers = len({file.split("_")[2] for file in ends})  # they are called __RANK_NUMBER.distcp
    if writers > progress.get("ranks", writers):
        raise ValueError(f"{checkpoint} holds files of {writers} ranks, but {progress['ranks']} wrote it: two checkpoints are mixed. {REMEDY}")
    for name, value in method.state_dict().items():
        held = metadata.state_dict_metadata.get(f"method.{name}")
        shape = tuple(held.size) if isinstance(held, TensorStorageMetadata) else None
        if isinstance(value, Tensor) and shape != tuple(value.shape):
            what = "does not hold it" if held is None else f"holds {shape}"
            raise ValueError(
                f"{checkpoint} is of another method, or of data with other classes: here {name} is {tuple(value.shape)}, and it {what}. "
                "Choose another folder, or the recipe and data that it was trained with."
            )
    return progress


def _read(checkpoint: Path, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # of JSON, of pickle, of the disk
        raise ValueError(f"{checkpoint} cannot be read: {_cause(error)}. {REMEDY}") from error


def _cause(error: BaseException) -> str:
    """The first error of a rank, in its words."""
    failures = getattr(error, "failures", None) or {}
    own = next((each[0] for each in failures.values()), error)
    return str(own).split("\n")[0] or type(own).__name__


def _interrupted(error: CheckpointException) -> None:
    """Raise the Ctrl-C that is behind an error: torch collects it as it does the errors of ranks, or fails of it once more."""
    for each, _ in error.failures.values():
        cause: BaseException | None = each
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            cause = cause.__cause__ or cause.__context__


def _load(state: dict[str, Any], checkpoint: Path, *, alone: bool) -> None:
    with _quiet():
        try:
            load_state(state, checkpoint_id=checkpoint, no_dist=alone)
        except CheckpointException as error:  # no Exception
            _interrupted(error)
            raise ValueError(f"{checkpoint} cannot be loaded: {_cause(error)}.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a group torch warns that it saves in a single process, also where that is what it was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _state(method: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    return {"method": method.state_dict(), **{f"optimizer{number}": named(method, optimizer) for number, optimizer in enumerate(optimizers)}}


def start(method: Method, path: Path | str) -> None:
    """Give a method the weights of another run's; class centers (and sub-centers) of more or fewer classes are `resized`. All ranks call it.

    Raises FileNotFoundError and ValueError as `load`, and ValueError when the two are of other shapes.
    """
    old, own = ranks.whole(load(path).state_dict()), method.state_dict()
    for name, part in method.named_modules():
        key = f"{name}.centers"
        if isinstance(part, PartialFC) and key in old and old[key].shape[1:] == own[key].shape[1:]:
            old[key] = resized(old[key], part.num_classes, seed=part.seed)
    ours, theirs = ({name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)} for state in (own, old))
    if odd := [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]:
        raise ValueError(
            f"The weights of {path} do not fit: {odd[0]} is {theirs.get(odd[0], 'absent')} there, {ours.get(odd[0], 'absent')} here. "
            "Start from a run with the same backbone and method."
        )
    method.load_state_dict(old)


def load(path: Path | str, device: torch.device | str = "cpu") -> Method:
    """Give a trained method back, in evaluation mode, from a run folder or one of its checkpoints.

    `load("runs/mine").encode(images)` are the backbone features (B, D) of images (B, 3, H, W) in [0, 1].

    Raises FileNotFoundError when there is no whole checkpoint, ValueError when one was damaged.
    """
    path = Path(path)
    checkpoint = path if (path / "progress.json").exists() else latest(path)
    if checkpoint is None:
        raise FileNotFoundError(f"{path} holds no whole checkpoint. Give the folder that `fit` was given, or one of its checkpoints/step-*.")
    progress = _read(checkpoint, lambda: json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
    classes = progress.get("num_classes", 2)  # older checkpoints do not say, nor do their methods ask
    method = settings.read(Recipe, checkpoint / "recipe.toml").make_method(classes)
    checked(checkpoint, method)
    state = {"method": method.state_dict()}
    _load(state, checkpoint, alone=True)
    method.load_state_dict(state["method"])
    return method.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]  # as in training: same bits
