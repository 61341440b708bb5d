"""Checkpoints: folders of torch.distributed.checkpoint that carry their recipe, written whole or not at all.

    RUN/recipe.toml
    RUN/checkpoints/step-00000240/      the tensors (.distcp), recipe.toml, progress.json
A folder is written under another name, step-00000240.partial, and renamed into place; the one before is removed only then, and under such a name
too. So there is always a whole one, and what has the name of a step is whole. A step that is there already is not written again: one step of one
run is always the same.
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from marginlab import ranks, settings
from marginlab.methods import Method
from marginlab.train.optimizer_state import named, put, saved_as
from marginlab.train.recipe import Recipe


def save(folder: Path, recipe: Recipe, method: Method, optimizers: list[torch.optim.Optimizer], step: int, progress: dict[str, Any]) -> Path:
    """Write the checkpoint of a step (all ranks call it); `progress` is JSON: what the loop itself must know to go on."""
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
        save_state(_state(method, optimizers), checkpoint_id=partial, no_dist=ranks.size() == 1)

    def publish() -> None:
        _put(partial / "recipe.toml", settings.to_toml(recipe))
        _put(partial / "progress.json", json.dumps({"step": step, **progress}))
        partial.rename(place)
        for old in place.parent.iterdir():
            if old != place:
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
    """Load a checkpoint into the method and its optimizers; returns the loop's progress."""
    state = {"method": method.state_dict(), **saved_as(checkpoint, method, optimizers)}
    with _quiet():
        load_state(state, checkpoint_id=checkpoint, no_dist=ranks.size() == 1)
    method.load_state_dict(state["method"])
    for number, optimizer in enumerate(optimizers):
        put(method, optimizer, state[f"optimizer{number}"])
    progress: dict[str, Any] = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
    return progress


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a group torch warns that it saves in a single process, also where that is what it was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _state(method: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    return {"method": method.state_dict(), **{f"optimizer{number}": named(method, optimizer) for number, optimizer in enumerate(optimizers)}}


def load(path: Path | str, device: torch.device | str = "cpu") -> Method:
    """Give a trained method back, in evaluation mode, from a run folder or one of its checkpoints.

    `load("runs/mine").encode(images)` are the backbone features (B, D) of images (B, 3, H, W) in [0, 1].

    Raises FileNotFoundError when there is no whole checkpoint.
    """
    path = Path(path)
    checkpoint = path if (path / "progress.json").exists() else latest(path)
    if checkpoint is None:
        raise FileNotFoundError(f"{path} holds no whole checkpoint. Give the folder that `fit` was given, or one of its checkpoints/step-*.")
    progress = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
    classes = progress.get("num_classes", 2)  # older checkpoints do not say, nor do their methods ask
    method = settings.read(Recipe, checkpoint / "recipe.toml").make_method(classes)
    state = {"method": method.state_dict()}
    with _quiet():
        load_state(state, checkpoint_id=checkpoint, no_dist=True)
    method.load_state_dict(state["method"])
    return method.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]  # as in training: same bits
