"""The functions of a tile's pointwise part: torch's operations, compiled ones, or Triton's."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from marginlab.kernels.tiles import Columns, Rows, Sums, backward_tile, forward_tile

Pointwise = tuple[Callable[..., Sums], Callable[..., Tensor]]


def pointwise(columns: Columns, rows: Rows) -> Pointwise:
    """Return the forward and the backward function of a tile.

    They are compiled ones (made once and kept), Triton's in the plain case on CUDA, or torch's
    operations otherwise.
    """
    if columns.settings.compiled:
        return _compiled()
    if (
        columns.weight.device.type == "cuda"
        and plain(columns, rows)
        and importlib.util.find_spec("triton") is not None
    ):
        # here, because it loads Triton
        from marginlab.kernels import triton_tile

        if triton_tile.runs(columns.weight.device):
            return triton_tile.forward_tile, triton_tile.backward_tile
    return forward_tile, backward_tile


def plain(columns: Columns, rows: Rows) -> bool:
    """Return whether a tile's logits are its float32 cosines with only the own class left out.

    The cosines may be lifted.
    """
    settings = columns.settings
    changed = (
        columns.K > 1
        or settings.interclass_filter is not None
        or settings.label_smoothing > 0
        or rows.hardness is not None
        or rows.exclude is not None
    )
    return columns.wide == torch.float32 and not changed


_COMPILED: list[Pointwise] = []


def _compiled() -> Pointwise:
    if not _COMPILED:
        _COMPILED.append(
            (torch.compile(forward_tile, dynamic=True), torch.compile(backward_tile, dynamic=True))
        )
    return _COMPILED[0]
