"""Checkpoints: folders of torch.distributed.checkpoint that carry their recipe, written whole or not at all.

    RUN/recipe.toml
    RUN/checkpoints/step-00000240/      the tensors (.distcp), recipe.toml, progress.json
A folder is written under another name and renamed into place; the one before is removed only then, so there is always a whole one.
"""

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from marginlab import ranks, settings
from marginlab.methods import Method
from marginlab.train.recipe import Recipe


def save(folder: Path, recipe: Recipe, method: Method, optimizers: list[torch.optim.Optimizer], step: int, progress: dict[str, Any]) -> Path:
    """Write the checkpoint of a step (all ranks call it); `progress` is JSON: what the loop itself must know to go on."""
    place = folder / "checkpoints" / f"step-{step:08d}"
    partial = place.with_name(f"{place.name}.partial")
    ranks.first(lambda: shutil.rmtree(partial, ignore_errors=True))
    with _quiet():
        save_state(_state(method, optimizers), checkpoint_id=partial, no_dist=ranks.size() == 1)

    def publish() -> None:
        (partial / "recipe.toml").write_text(settings.to_toml(recipe), encoding="utf-8")
        (partial / "progress.json").write_text(json.dumps({"step": step, **progress}), encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
        for old in place.parent.iterdir():
            if old != place:
                shutil.rmtree(old, ignore_errors=True)

    ranks.first(publish)
    return place


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder."""
    found = sorted(p for p in (folder / "checkpoints").glob("step-*") if p.suffix != ".partial" and (p / "progress.json").exists())
    return found[-1] if found else None


def restore(checkpoint: Path, method: Method, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Load a checkpoint into the method and its optimizers; returns the loop's progress."""
    state = {"method": method.state_dict(), **_saved_as(checkpoint, method, optimizers)}
    with _quiet():
        load_state(state, checkpoint_id=checkpoint, no_dist=ranks.size() == 1)
    method.load_state_dict(state["method"])
    for number, optimizer in enumerate(optimizers):
        _put(method, optimizer, state[f"optimizer{number}"])
    progress: dict[str, Any] = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
    return progress


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a group torch warns that it saves in a single process, also where that is what it was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _state(method: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    return {"method": method.state_dict(), **{f"optimizer{number}": _named(method, optimizer) for number, optimizer in enumerate(optimizers)}}


def _names(method: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names in the method of an optimizer's parameters, in the order in which its state dict numbers them."""
    known = {parameter: name for name, parameter in method.named_parameters()}
    return [known[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _named(method: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state dict with the names of parameters for their numbers.

    As torch's `get_optimizer_state_dict` writes it; but that steps an optimizer without state by a gradient of zeros, which costs a row-sparse one
    as much as all classes and more than it should ever hold.
    """
    names, held = _names(method, optimizer), optimizer.state_dict()
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in held["param_groups"]]
    return {"state": {names[number]: values for number, values in held["state"].items()}, "param_groups": groups}


def _put(method: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of `_named`."""
    numbers = {name: number for number, name in enumerate(_names(method, optimizer))}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    optimizer.load_state_dict({"state": {numbers[name]: values for name, values in state["state"].items()}, "param_groups": groups})


def _saved_as(checkpoint: Path, method: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Optimizer states of the shapes and types that a checkpoint holds, to be filled: an optimizer that has not stepped has none of its own."""
    found = {f"optimizer{number}": {**_named(method, optimizer), "state": {}} for number, optimizer in enumerate(optimizers)}
    parameters = dict(method.named_parameters())
    metadata = FileSystemReader(checkpoint).read_metadata()
    for key, place in metadata.planner_data.items():  # such as ("optimizer0", "state", "head.0.weight", "momentum_buffer")
        if place[0] in found and place[1] == "state":
            saved, like = metadata.state_dict_metadata[key], parameters[place[2]]
            value: Tensor | None = None  # what is no tensor
            if isinstance(saved, TensorStorageMetadata):
                dtype = saved.properties.dtype
                if saved.size == like.shape:
                    value = torch.empty_like(like, dtype=dtype, requires_grad=False)
                else:  # counts: torch keeps a single one on the CPU
                    value = torch.empty(saved.size, dtype=dtype, device=like.device if saved.size else "cpu")
            found[place[0]]["state"].setdefault(place[2], {})[place[3]] = value
    return found


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
