"""Checkpoints: folders of torch.distributed.checkpoint with their recipe, complete or absent.

    RUN/recipe.toml
    RUN/checkpoints/step-00000240/      the tensors (.distcp), recipe.toml, progress.json, checksums

A folder is written under another name, step-00000240.partial, and renamed into place. Once a step
of training has gone on from the new checkpoint, `prune` removes the older ones, also under such a
name. So there is always a complete checkpoint, and every folder with the name of a step is
complete. A step that exists already is refused: it is neither overwritten nor taken for the same.

Rank 0 writes the parameters and buffers that all ranks have, with its own values. A value that is
not finite is not written, since training could not continue from it.

Before anything is loaded, the folder is checked against itself (`contents`: step, ranks, checksums
of its files), against the recipe of the run, and against the method (`belonging`: names and shapes
of its tensors, which include the classes, sub-centers and dimensions of class centers). So nothing
is loaded by half.
"""

import contextlib
import json
import shutil
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from marginlab import ranks, settings
from marginlab.losses.classifier import Classifier
from marginlab.methods import Method
from marginlab.train import contents
from marginlab.train.belonging import of_method, of_recipe, sketch
from marginlab.train.contents import put as put_text
from marginlab.train.finite import check_finite
from marginlab.train.optimizer_state import named, put, saved_as
from marginlab.train.recipe import Recipe

Optimizers = Sequence[torch.optim.Optimizer]


def save(
    folder: Path | str,
    recipe: Recipe,
    method: Method,
    optimizers: Optimizers = (),
    *,
    step: int,
    classes: Sequence[str],
    progress: dict[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of a step, as `fit` does, from a loop of your own; all ranks call it.

    `load` gives the method back from it and `restore` resumes from it. `prune` removes the
    checkpoints before it when that is wanted. Values that all ranks have are written as rank 0 has
    them.

    Args:
        folder: The run folder. Checkpoints stand in its `checkpoints/`.
        recipe: The recipe that makes the method: `load` calls its `make_method`.
        method: The method that is trained.
        optimizers: The optimizers of its parameters, in the order in which `restore` is given them.
        step: The number of steps taken, which names the checkpoint.
        classes: Names of the classes of the data, in the order of their labels. Without them, a
            checkpoint of a method with class centers can be restored but not loaded.
        progress: What the loop itself must know to resume, as JSON.

    Returns:
        The folder of the checkpoint.

    Raises:
        FileExistsError: The folder has a checkpoint of this step already, which stays.
        FloatingPointError: A parameter, buffer or optimizer state is not finite. Nothing is
            written.
        OSError: The checkpoint cannot be written. The one before stays.
        ValueError: The step is negative, or there are more or fewer names than the method has
            classes.
        TypeError: The progress is not JSON.

    Example:
        >>> import tempfile
        >>> recipe = Recipe(backbone="Backbone('resnet18', stem='strided', width=0.125)")
        >>> method = recipe.make_method()
        >>> optimizers = method.optimizers(recipe.make_optimizer())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     place = save(folder, recipe, method, optimizers, step=7, classes=("cat", "dog"))
        ...     place.name, load(folder).classes
        ('step-00000007', ('cat', 'dog'))
    """
    if step < 0:
        raise ValueError(f"A checkpoint is of step 0 or a later one, not {step}.")
    for name, part in method.named_modules() if classes else ():
        if isinstance(part, Classifier) and part.num_classes != len(classes):
            raise ValueError(
                f"{name} has {part.num_classes} classes, and {len(classes)} names are given: a "
                "checkpoint of both could not be loaded. Give a name for each class."
            )
    check_finite(method, optimizers, step, latest(Path(folder)))
    return write(folder, recipe, method, optimizers, step=step, classes=classes, progress=progress)


def write(
    folder: Path | str,
    recipe: Recipe,
    method: Method,
    optimizers: Optimizers,
    *,
    step: int,
    classes: Sequence[str],
    progress: dict[str, Any] | None,
) -> Path:
    """Write a checkpoint of values that were found finite; otherwise as `save`."""
    place = Path(folder) / "checkpoints" / f"step-{step:08d}"
    partial = place.with_name(f"{place.name}.partial")
    told = {"format": contents.FORMAT, "step": step, "ranks": ranks.size()}
    text = json.dumps({**(progress or {}), **told, "classes": list(classes)})

    def make_room() -> None:
        if place.exists():
            raise FileExistsError(
                f"{place} is there already, and stays as it is. Save each step once; for another "
                "run choose another folder, or remove this one."
            )
        shutil.rmtree(partial, ignore_errors=True)

    ranks.broadcast_from_first(make_room)
    planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)  # else each rank writes a part
    state = _state(method, optimizers)
    with _quiet():
        try:
            save_state(state, checkpoint_id=partial, planner=planner, no_dist=ranks.size() == 1)
        except CheckpointException as error:  # a BaseException
            _interrupted(error)
            raise OSError(
                f"The checkpoint {place} could not be written: {_cause(error)}. The one before "
                "stays."
            ) from error
    own = {file.name: contents.digest(file) for file in partial.glob(f"__{ranks.rank()}_*.distcp")}
    sums = {name: said for part in ranks.all_gather_object(own) for name, said in part.items()}

    def publish() -> None:
        put_text(partial / "recipe.toml", settings.to_toml(recipe))
        put_text(partial / "progress.json", text)
        contents.write_sums(partial, sums)
        partial.rename(place)

    ranks.broadcast_from_first(publish)
    return place


def prune(folder: Path | str) -> None:
    """Remove all checkpoints of a run folder but the newest; all ranks call it."""

    def remove() -> None:
        last = latest(Path(folder))
        for old in last.parent.glob("step-*") if last is not None else ():
            name = old.name.removeprefix("step-").removesuffix(".partial")
            if old != last and name.isdigit():  # a folder of another name is the user's own
                gone = old if old.suffix == ".partial" else old.rename(f"{old}.partial")
                shutil.rmtree(gone, ignore_errors=True)

    ranks.broadcast_from_first(remove)


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run folder, or None."""
    found = whole(folder)
    return found[-1] if found else None


def whole(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run folder, oldest first."""
    found = [
        (int(number), place)
        for place in (folder / "checkpoints").glob("step-*")
        if (number := place.name.removeprefix("step-")).isdecimal()
        and (place / "progress.json").exists()
    ]
    return [place for _, place in sorted(found)]


def restore(
    checkpoint: Path | str,
    method: Method,
    optimizers: Optimizers = (),
    *,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Load a checkpoint into the method and its optimizers; all ranks call it.

    Args:
        checkpoint: A checkpoint, or the run folder, of which the newest checkpoint is taken.
        method: A method of the shapes that were saved.
        optimizers: The optimizers of its parameters, as they were given to `save`.
        recipe: The recipe that the checkpoint must have. None does not compare.

    Returns:
        The progress that was given to `save`, with `step`, `ranks` and `classes`.

    Raises:
        FileNotFoundError: There is no complete checkpoint.
        ValueError: The checkpoint is changed or cut short (the message names the file), or of
            another recipe (it names the setting) or method (it names the tensor).
    """
    error: Exception | None = None
    said = dict[str, Any]()
    checkpoint = Path(checkpoint)
    try:  # each rank reads a part of the files for their checksums
        checkpoint = _found(checkpoint)
        progress, places = contents.whole(checkpoint, part=ranks.rank(), parts=ranks.size())
        said = {"step": progress["step"], "checksums": contents.mark(checkpoint)}
        if recipe is not None:
            of_recipe(checkpoint, recipe)
        of_method(checkpoint, places.state_dict_metadata, method)
    except Exception as raised:  # of any kind: the other ranks would wait
        error = raised
    device = next((p.device for p in method.parameters()), torch.device("cpu"))
    ranks.raise_together(0, error, device=device, what="restore", refused="its checkpoint", **said)
    state = {"method": method.state_dict(), **saved_as(places, checkpoint, method, optimizers)}
    _load(state, checkpoint, alone=ranks.size() == 1)
    method.load_state_dict(state["method"])
    method.classes = tuple(progress.get("classes", ()))
    for number, optimizer in enumerate(optimizers):
        put(method, optimizer, state[f"optimizer{number}"])
    return progress


def _found(path: Path) -> Path:
    """Return the checkpoint that a path names: itself, or the newest of a run folder."""
    checkpoint = path if (path / "progress.json").exists() else latest(path)
    if checkpoint is None:
        raise FileNotFoundError(
            f"{path} holds no whole checkpoint. Give the folder that `fit` was given, or one of "
            "its checkpoints/step-*."
        )
    return checkpoint


def _cause(error: BaseException) -> str:
    """Return the first line of a rank's first error."""
    failures = getattr(error, "failures", None) or {}
    own = next((each[0] for each in failures.values()), error)
    return str(own).split("\n")[0] or type(own).__name__


def _interrupted(error: CheckpointException) -> None:
    """Raise KeyboardInterrupt if Ctrl-C is behind an error.

    torch collects Ctrl-C as it does the errors of ranks, or fails again because of it.
    """
    for each, _ in error.failures.values():
        cause: BaseException | None = each
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            cause = cause.__cause__ or cause.__context__


def _load(state: dict[str, Any], checkpoint: Path, *, alone: bool) -> None:
    with _quiet():
        try:
            reader, planner = contents.Reader(checkpoint), contents.Planner()
            load_state(state, storage_reader=reader, planner=planner, no_dist=alone)
        except CheckpointException as error:  # a BaseException
            _interrupted(error)
            raise ValueError(f"{checkpoint} cannot be loaded: {_cause(error)}.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warning that it saves in a single process.

    Without a process group torch warns of this even where a single process is what it was asked
    for.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled", category=UserWarning
        )
        yield


def _state(method: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    return {
        "method": method.state_dict(),
        **{
            f"optimizer{number}": named(method, optimizer)
            for number, optimizer in enumerate(optimizers)
        },
    }


def load(
    path: Path | str, device: torch.device | str = "cpu", *, code: Collection[str] = ()
) -> Method:
    """Load a trained method, in evaluation mode, from a run folder or one of its checkpoints.

    `load("runs/mine").encode(images)` returns the backbone features (B, D) of images (B, 3, H, W)
    in [0, 1], or uint8. `load("runs/mine").classes` holds the names of the classes it was trained
    on. The folder is read as data, see docs/trust.md.

    Args:
        path: The folder that `fit` was given, or one of its `checkpoints/step-*`.
        device: Where the method is put.
        code: Modules with methods, backbones or operations of your own that the folder's recipe may
            name. They are imported. Modules that this process has named before may be left out.

    Returns:
        The method, with `classes` as names.

    Raises:
        FileNotFoundError: There is no complete checkpoint.
        ValueError: A checkpoint was damaged or changed. The message names the file.
        SettingsError: The recipe names code that is not in `code`. Nothing was imported.
    """
    checkpoint = _found(Path(path))
    progress, places = contents.whole(checkpoint)
    classes = tuple(progress.get("classes", ()))
    number = len(classes) or progress.get("num_classes", 2)  # older ones hold a number or nothing
    with settings.as_data(code=code):
        recipe = settings.read(Recipe, checkpoint / "recipe.toml")
        if there := sketch(recipe, number):  # checked before any memory is allocated
            of_method(checkpoint, places.state_dict_metadata, there)
        method = recipe.make_method(number)
    of_method(checkpoint, places.state_dict_metadata, method)
    state = {"method": method.state_dict()}
    _load(state, checkpoint, alone=True)
    method.load_state_dict(state["method"])
    method.classes = classes
    # as in training: same bits
    method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method.eval()
