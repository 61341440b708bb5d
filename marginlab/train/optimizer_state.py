"""Optimizer states for checkpoints that N ranks save and M ranks load.

States are keyed by the names of parameters, and shards are DTensors.

torch's `get_optimizer_state_dict` writes the same names, but has two faults here. It steps an
optimizer without state by a gradient of zeros. For a row-sparse one this costs as much as all
classes, and more memory than it should ever hold. And it saves the state of a shard as if every
rank had the same.

A parameter is a shard when the module's state dict shows it as a DTensor (`PartialFC.centers` on
several ranks). The state that the optimizer keeps for each of its rows (momentum, second moments,
step counts) is then cut in the same way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from marginlab import ranks


def named(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state dict: parameters by name, the state of shards as DTensors."""
    names, held, whole = _names(module, optimizer), optimizer.state_dict(), module.state_dict()
    groups = [
        {**group, "params": [names[number] for number in group["params"]]}
        for group in held["param_groups"]
    ]
    state = {
        names[number]: {
            key: ranks.shard_like(value, whole[names[number]]) for key, value in values.items()
        }
        for number, values in held["state"].items()
    }
    return {"state": state, "param_groups": groups}


def put(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `named` returned, on this or another number of ranks, into the optimizer."""
    numbers = {name: number for number, name in enumerate(_names(module, optimizer))}
    groups = [
        {**group, "params": [numbers[name] for name in group["params"]]}
        for group in state["param_groups"]
    ]
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        if "first_row" in own:  # says where this rank's shard begins, and is no part of the run
            group["first_row"] = own["first_row"]
    values = {
        numbers[name]: {key: ranks.to_local(value) for key, value in held.items()}
        for name, held in state["state"].items()
    }
    optimizer.load_state_dict({"state": values, "param_groups": groups})


def saved_as(
    places: Metadata,
    checkpoint: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> dict[str, Any]:
    """Return empty optimizer states of the shapes and types that a checkpoint holds, to be filled.

    An optimizer that has not stepped has no state of its own.

    Raises:
        ValueError: The checkpoint holds state of a parameter that the module does not have.
    """
    found = {
        f"optimizer{number}": {**named(module, optimizer), "state": {}}
        for number, optimizer in enumerate(optimizers)
    }
    whole = module.state_dict()
    # such as ("optimizer0", "state", "head.0.weight", "momentum_buffer")
    for key, place in places.planner_data.items():
        if place[0] in found and place[1] == "state":
            if place[2] not in whole:
                raise ValueError(
                    f"{checkpoint} holds optimizer state of {place[2]!r}, which this method does "
                    "not have. Is it another recipe's?"
                )
            found[place[0]]["state"].setdefault(place[2], {})[place[3]] = _empty(
                places.state_dict_metadata[key], whole[place[2]]
            )
    return found


def _names(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names in the module of an optimizer's parameters.

    Their order is that in which the optimizer's state dict numbers them.
    """
    known = {parameter: name for name, parameter in module.named_parameters()}
    return [known[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _empty(saved: Any, like: Tensor) -> Tensor | None:
    """Return a tensor to load into, or None for a value that is not a tensor.

    A value of the parameter's shape gets the parameter's layout in memory. A value with the
    parameter's rows is cut as the parameter is.
    """
    if not isinstance(saved, TensorStorageMetadata):
        return None
    part = ranks.to_local(like)
    if saved.size == like.shape:
        empty: Tensor = ranks.shard_like(
            torch.empty_like(part, dtype=saved.properties.dtype, requires_grad=False), like
        )
        return empty
    if part is not like and saved.size[:1] == like.shape[:1]:
        rows: Tensor = ranks.shard_like(
            torch.empty(
                len(part), *saved.size[1:], dtype=saved.properties.dtype, device=part.device
            ),
            like,
        )
        return rows
    # torch keeps a single count on the CPU
    return torch.empty(
        saved.size, dtype=saved.properties.dtype, device=part.device if saved.size else "cpu"
    )
