"""Check of the values from which a training can continue: all finite, on all ranks."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from marginlab import ranks
from marginlab.train.optimizer_state import named


def check_finite(
    method: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    kept: Path | None,
) -> None:
    """Refuse weights, buffers and optimizer state that are not finite, on every rank if on one.

    Args:
        method: The module whose weights and buffers are checked.
        optimizers: The optimizers whose state is checked.
        step: The step, for the message.
        kept: The last checkpoint, for the message.

    Raises:
        FloatingPointError: A value is not finite. The message names the first.
    """
    values = {name: ranks.to_local(value) for name, value in method.state_dict().items()}
    for optimizer in optimizers:
        for name, held in named(method, optimizer)["state"].items():
            own = {f"{key} of {name}": ranks.to_local(value) for key, value in held.items()}
            values |= own
    floats = {
        name: value
        for name, value in values.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel()
    }
    bounds = [torch.stack(value.detach().aminmax()).double() for value in floats.values()]
    finite = [bool(each.isfinite().all()) for each in torch.stack([b.cpu() for b in bounds])]
    bad = [name for name, good in zip(floats, finite, strict=True) if not good]
    found = [
        (name, rank)
        for rank, names in enumerate(ranks.all_gather_object(bad[:1]))
        for name in names
    ]
    if found:
        raise FloatingPointError(
            f"After step {step}, {found[0][0]} on rank {found[0][1]} holds numbers that are not "
            "finite, and no checkpoint of it is written. A smaller learning rate may help, or "
            f"recipe.clip; {f'{kept} is kept.' if kept else 'no checkpoint was written yet.'} (A "
            "constant buffer that is not finite is registered with persistent=False.)"
        )
