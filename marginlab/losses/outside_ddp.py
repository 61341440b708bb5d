"""Keeping the centers of a PartialFC, which every rank has of its own, out of DDP."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from marginlab.losses.partial_fc import PartialFC


def outside_ddp(module: nn.Module) -> None:
    """Keep the centers of every PartialFC inside a module out of DistributedDataParallel.

    Call it before wrapping the module.

    Each rank has other centers, whose gradients are whole already; DDP would average them.

    Example:
        >>> outside_ddp(nn.Sequential(nn.Linear(4, 4), PartialFC(10, 4)))
    """
    names = [
        f"{name}.centers".removeprefix(".")
        for name, part in module.named_modules()
        if isinstance(part, PartialFC)
    ]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
