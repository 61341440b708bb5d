"""Checkpoints: folders of torch.distributed.checkpoint that carry their recipe, written whole or
not at all.

    RUN/recipe.toml
    RUN/checkpoints/step-00000240/      the tensors (.distcp), recipe.toml, progress.json, checksums
A folder is written under another name, step-00000240.partial, and renamed into place; the ones
before are removed by `prune`, under such a name too, once a step of training has gone on from the
new one. So there is always a whole one, and what has the name of a step is whole. A step that is
there already is neither written again nor taken for the same: that is refused.

Parameters and buffers that all ranks have are written by rank 0 as it has them. A value that is not
finite is not written: training could not go on from it.

Before anything is loaded the folder is held against itself (`contents`: step, ranks, checksums of
its files), against the recipe of the run, and against the method (names and shapes of its tensors,
the classes, sub-centers and dimensions of class centers among them), so that nothing is half
loaded.
"""

import contextlib
import dataclasses
import json
import shutil
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from marginlab import ranks, settings
from marginlab.losses.classifier import Classifier
from marginlab.methods import Method
from marginlab.train import contents
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
    """Write the checkpoint of a step, as `fit` does, from a loop of one's own; all ranks call it.

    `load` gives the method back from it, `restore` goes on from it, and `prune` removes the ones
    before it when that is wanted. What all ranks have is written as rank 0 has it.

    Args:
        folder: the run folder; checkpoints stand in its `checkpoints/`.
        recipe: what makes the method: `load` calls its `make_method`.
        method: the method that is trained.
        optimizers: of its parameters, in the order in which `restore` is given them.
        step: the number of steps taken, which names the checkpoint.
        classes: names of the classes of the data, in the order of their labels; without them a
            method with class centers is restored, and not loaded.
        progress: what the loop itself must know to go on, as JSON.

    Returns:
        The folder of the checkpoint.

    Raises:
        FileExistsError: the folder has a checkpoint of this step already; it stays.
        FloatingPointError: a parameter, buffer or optimizer state is not finite; nothing is
            written.
        OSError: it cannot be written; the one before stays.
        ValueError: a negative step, or names of more or fewer classes than the method has.
        TypeError: progress that is no JSON.

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
                f"{place} is there already, and stays as it is. Save each step once; for "
                f"another run "
                "choose another folder, or remove this one."
            )
        shutil.rmtree(partial, ignore_errors=True)

    ranks.first(make_room)
    planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)  # or each rank writes a part
    state = _state(method, optimizers)
    with _quiet():
        try:
            save_state(state, checkpoint_id=partial, planner=planner, no_dist=ranks.size() == 1)
        except CheckpointException as error:  # no Exception
            _interrupted(error)
            raise OSError(
                f"The checkpoint {place} could not be written: {_cause(error)}. The one "
                f"before stays."
            ) from error
    own = {file.name: contents.digest(file) for file in partial.glob(f"__{ranks.rank()}_*.distcp")}
    sums = {name: said for part in ranks.of_all(own) for name, said in part.items()}

    def publish() -> None:
        put_text(partial / "recipe.toml", settings.to_toml(recipe))
        put_text(partial / "progress.json", text)
        contents.write_sums(partial, sums)
        partial.rename(place)

    ranks.first(publish)
    return place


def prune(folder: Path | str) -> None:
    """Remove all checkpoints of a run folder but the newest; all ranks call it."""

    def remove() -> None:
        last = latest(Path(folder))
        for old in last.parent.glob("step-*") if last is not None else ():
            name = old.name.removeprefix("step-").removesuffix(".partial")
            if old != last and name.isdigit():  # what has another name is somebody's own
                gone = old if old.suffix == ".partial" else old.rename(f"{old}.partial")
                shutil.rmtree(gone, ignore_errors=True)

    ranks.first(remove)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder."""
    found = whole(folder)
    return found[-1] if found else None


def whole(folder: Path) -> list[Path]:
    """The whole checkpoints of a run folder, from the oldest."""
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
        checkpoint: a checkpoint, or the run folder, whose newest is taken.
        method: of the shapes that were saved.
        optimizers: of its parameters, as they were given to `save`.
        recipe: what the checkpoint is of; None does not compare.

    Returns:
        The progress that was given to `save`, with `step`, `ranks` and `classes`.

    Raises:
        FileNotFoundError: there is no whole checkpoint.
        ValueError: the checkpoint is changed or cut short (the message names the file), or of
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
            _of_recipe(checkpoint, recipe)
        _of_method(checkpoint, places.state_dict_metadata, method)
    except Exception as raised:  # of whatever kind: the others would wait
        error = raised
    device = next((p.device for p in method.parameters()), torch.device("cpu"))
    ranks.agreed(0, error, device=device, what="restore", refused="its checkpoint", **said)
    state = {"method": method.state_dict(), **saved_as(places, checkpoint, method, optimizers)}
    _load(state, checkpoint, alone=ranks.size() == 1)
    method.load_state_dict(state["method"])
    method.classes = tuple(progress.get("classes", ()))
    for number, optimizer in enumerate(optimizers):
        put(method, optimizer, state[f"optimizer{number}"])
    return progress


def _found(path: Path) -> Path:
    """The checkpoint that a path names: itself, or the newest of a run folder."""
    checkpoint = path if (path / "progress.json").exists() else latest(path)
    if checkpoint is None:
        raise FileNotFoundError(
            f"{path} holds no whole checkpoint. Give the folder that `fit` was given, or "
            f"one of its checkpoints/step-*."
        )
    return checkpoint


def _of_recipe(checkpoint: Path, recipe: Recipe) -> None:
    """Refuse a checkpoint of another recipe, also where all shapes are the same."""
    with settings.as_data():
        theirs = settings.read(Recipe, checkpoint / "recipe.toml")
    for field in dataclasses.fields(Recipe):
        before, now = getattr(theirs, field.name), getattr(recipe, field.name)
        if before != now:
            raise ValueError(
                f"{checkpoint / 'recipe.toml'} has {field.name} = {before!r}, and this run "
                f"{now!r}: "
                "it is the checkpoint of another run. Choose another folder, or put the run's own "
                "checkpoint back."
            )


def _of_method(checkpoint: Path, there: dict[str, Any], method: nn.Module) -> None:
    """Refuse a checkpoint whose tensors are not those of this method."""
    for name, value in method.state_dict().items():
        held = there.get(f"method.{name}")
        shape = tuple(held.size) if isinstance(held, TensorStorageMetadata) else None
        if isinstance(value, Tensor) and shape != tuple(value.shape):
            what = "does not hold it" if held is None else f"holds {shape}"
            raise ValueError(
                f"{checkpoint} is of another method, or of data with other classes: here "
                f"{name} is {tuple(value.shape)}, and it {what}. "
                "Choose another folder, or the recipe and data that it was trained with."
            )


def _sketch(recipe: Recipe, classes: int) -> Method | None:
    """The method without memory for its tensors; None if it cannot be made so (one's own code)."""
    try:
        with torch.device("meta"):
            return recipe.make_method(classes)
    except (RuntimeError, NotImplementedError):
        return None


def _cause(error: BaseException) -> str:
    """The first error of a rank, in its words."""
    failures = getattr(error, "failures", None) or {}
    own = next((each[0] for each in failures.values()), error)
    return str(own).split("\n")[0] or type(own).__name__


def _interrupted(error: CheckpointException) -> None:
    """Raise the Ctrl-C that is behind an error: torch collects it as it does the errors of ranks,
    or fails of it once more.
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
        except CheckpointException as error:  # no Exception
            _interrupted(error)
            raise ValueError(f"{checkpoint} cannot be loaded: {_cause(error)}.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a group torch warns that it saves in a single process, also where that is what it was
    asked for.
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
    """Give a trained method back, in evaluation mode, from a run folder or one of its checkpoints.

    `load("runs/mine").encode(images)` are the backbone features (B, D) of images (B, 3, H, W) in
    [0, 1], or uint8; `load("runs/mine").classes` are the names of the classes it was trained on.
    The folder is read as data, see docs/trust.md.

    Args:
        path: the folder that `fit` was given, or one of its `checkpoints/step-*`.
        device: where the method is put.
        code: modules with methods, backbones or operations of one's own that the folder's recipe
            may name; they are imported. Those that this process has named before need not be.

    Returns:
        The method, with `classes` as names.

    Raises:
        FileNotFoundError: there is no whole checkpoint.
        ValueError: one was damaged or changed; the message names the file.
        SettingsError: its recipe names code that is not in `code`; nothing was imported.
    """
    checkpoint = _found(Path(path))
    progress, places = contents.whole(checkpoint)
    classes = tuple(progress.get("classes", ()))
    number = len(classes) or progress.get("num_classes", 2)  # older ones hold no names, or none
    with settings.as_data(code=code):
        recipe = settings.read(Recipe, checkpoint / "recipe.toml")
        if there := _sketch(recipe, number):  # before any memory is taken for it
            _of_method(checkpoint, places.state_dict_metadata, there)
        method = recipe.make_method(number)
    _of_method(checkpoint, places.state_dict_metadata, method)
    state = {"method": method.state_dict()}
    _load(state, checkpoint, alone=True)
    method.load_state_dict(state["method"])
    method.classes = classes
    # as in training: same bits
    return method.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]
