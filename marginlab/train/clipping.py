"""Clipping by the gradient's norm, over the parameters of all ranks together."""

import torch
from torch import Tensor

from marginlab import ranks
from marginlab.losses import PartialFC
from marginlab.methods import Method


def clip(method: Method, most: float) -> None:
    """Scale the dense gradients down so that their common norm is at most `most`.

    The norm is over all dense gradients, with those of all ranks' class centers. Gradients of
    sampled class centers stay as they are.
    """
    dense = [p for p in method.parameters() if p.grad is not None and not p.grad.is_sparse]
    heads = [
        part
        for part in method.modules()
        if isinstance(part, PartialFC) and (part.sample_rate == 1 or part.dense_grad)
    ]
    spread = {head.centers for head in heads} if ranks.size() > 1 else set[Tensor]()
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in dense if p.grad is not None and p not in spread]
    )
    if spread:
        squares = [p.grad.square().sum() for p in dense if p.grad is not None and p in spread]
        norm = (norm.square() + ranks.all_reduce(sum(squares, norm.new_zeros(())))).sqrt()
    torch.nn.utils.clip_grads_with_norm_(dense, most, norm)
