"""What the measures share: torchmetrics' states, merging and reduction over ranks, with three of its habits put right.

1. It squeezes one-element tensors in a result, so that one class or one threshold loses its dimension: results are kept whole here.
2. Its gathering fails when a rank has never been given a row, because an empty list has no shape and no dtype: here they come from the others.
3. It lets states of different make be added: `constant` refuses them with a sentence.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric


class _Whole:
    """A result that torchmetrics passes on untouched, because it does not know this class."""

    def __init__(self, result: Any):
        self.result = result


class Measure(Metric):  # type: ignore[misc]  # torchmetrics is not followed by the type checker
    """A torchmetrics.Metric whose result keeps its shapes and whose ranks may be empty. Takes torchmetrics' keyword arguments."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, **kwargs: Any):
        super().__init__(**({"dist_sync_fn": gather} | kwargs))

    def _wrap_compute(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        whole = super()._wrap_compute(functools.wraps(compute)(lambda: _Whole(compute())))
        return functools.wraps(compute)(lambda: whole().result)


def gather(x: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """The tensor of every rank, in their order; lengths may differ, and one without elements takes dtype and trailing shape of the others."""
    made: list[tuple[tuple[int, ...], torch.dtype]] = [((), x.dtype)] * dist.get_world_size(group)
    dist.all_gather_object(made, (tuple(x.shape), x.dtype), group=group)
    filled = [(shape, dtype) for shape, dtype in made if 0 not in shape]
    if not filled:
        return [x for _ in made]
    shape, dtype = filled[0]
    if any(other[1:] != shape[1:] or kind != dtype for other, kind in filled):
        raise ValueError(f"Ranks hold rows of different make, {filled}: give every rank the same number of views, the same sizes and one dtype.")
    if not shape:
        rows, x = [1] * len(made), x[None]
    else:
        rows = [0 if 0 in other else other[0] for other, _ in made]
    sent = torch.zeros((max(rows), *shape[1:]), dtype=dtype, device=x.device)
    if x.numel():
        sent[: len(x)] = x
    parts = [torch.empty_like(sent) for _ in made]
    dist.all_gather(parts, sent, group=group)
    return [part[:n] if shape else part[0] for part, n in zip(parts, rows, strict=True)]


def rows(state: Tensor | Sequence[Tensor], empty: Tensor) -> Tensor:
    """The rows of a list state, before or after the reduction over ranks; `empty` when there are none."""
    if isinstance(state, Tensor):
        return state if state.numel() else empty
    parts = [part for part in state if part.numel()]
    return torch.cat(parts) if parts else empty


def constant(values: Tensor) -> Tensor:
    """Reduction of a state that all updates and ranks must share, 0 where nothing was given: (ranks, ...) -> (...).

    Raises
    ------
    ValueError: two ranks, or two merged measures, hold different values.

    """
    seen = {tuple(row) for row in values.flatten(1).tolist() if any(row)}
    if len(seen) > 1:
        raise ValueError(f"States of different make cannot be joined: {' and '.join(map(str, sorted(seen)))} (numbers of views, sizes).")
    return values.amax(0)


def check_features(features: Tensor, fewest_views: int) -> None:
    """Refuse features that are no (N, V, D), not finite, or of too few views."""
    if features.ndim != 3 or not features.is_floating_point():
        raise ValueError(f"features are floating-point numbers of shape (N, V, D), not {features.dtype} {tuple(features.shape)}.")
    if features.shape[1] < fewest_views:
        raise ValueError(
            f"features of shape {tuple(features.shape)} have {features.shape[1]} view(s) of an image, but at least {fewest_views} are needed. "
            "Encode more views."
        )
    if not bool(features.isfinite().all()):
        raise ValueError(f"features of shape {tuple(features.shape)} hold values that are not finite (NaN or infinity). Look for what made them.")


def check_labels(labels: Tensor, n: int, num_classes: int | None = None) -> None:
    """Refuse labels that are no n whole numbers from 0 (below num_classes)."""
    if labels.shape != (n,) or labels.is_floating_point():
        raise ValueError(f"labels are whole numbers of shape ({n},), one an image, not {labels.dtype} {tuple(labels.shape)}.")
    if n and (int(labels.min()) < 0 or (num_classes is not None and int(labels.max()) >= num_classes)):
        end = "upwards" if num_classes is None else f"to {num_classes - 1}"
        raise ValueError(f"labels run from 0 {end}, but these hold {int(labels.min())} to {int(labels.max())}.")


def prepared(features: Tensor, normalize: bool) -> Tensor:
    """Float64 features, of length 1 if `normalize`."""
    wide = features.detach().double()
    return torch.nn.functional.normalize(wide, dim=-1) if normalize else wide
