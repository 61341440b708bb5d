"""Base class of the measures: a torchmetrics.Metric with five behaviours changed.

1. torchmetrics squeezes one-element tensors in a result, so one class or one threshold loses its
   dimension. Here results keep their shapes.
2. Its gathering fails when a rank has never been given a row, because an empty list has no shape
   and no dtype. Here an empty rank takes both from the other ranks.
3. It adds incompatible states. Here `constant` refuses them with a sentence, and `same_settings`
   refuses the states of measures with different settings.
4. A collection shares the states of metrics whose states are equal, whatever their settings. Here
   the settings are a state, so only metrics with equal settings share their states.
5. It casts sums together with a model, and treats a result as one tensor. Here sums stay float64,
   and the numbers of a result are what is computed with, plotted and logged.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from marginlab.measures.composed import OPERATORS, Composed, compose, number, numbers
from marginlab.measures.settings_digest import digest, same_settings
from marginlab.statistics import unit_vectors

LARGEST = 1e70  # its fourth power is a float64 number; moments are squared once more


class _Whole:
    """A result that torchmetrics passes on untouched, because it does not know this class."""

    def __init__(self, result: Any):
        self.result = result


class Measure(Metric):  # type: ignore[misc]  # torchmetrics is not followed by the type checker
    """A torchmetrics.Metric whose result keeps its shapes and whose ranks may be empty.

    Arithmetic, `plot`, `measure["L_align"]` and `measure.numbers()` act on the single numbers of a
    result (`marginlab.measures.composed`). Every public attribute that a subclass sets, and every
    buffer, is a setting. Measures whose settings differ are neither merged nor grouped.

    Args:
        kwargs: Keyword arguments of torchmetrics.Metric.
    """

    #: Numbers of the result for which the value +- 1.96 standard errors is a 95 % interval.
    intervals: tuple[str, ...] = ()
    full_state_update = False
    is_differentiable = False
    settings_digest: Tensor

    def __init__(self, **kwargs: Any):
        super().__init__(**({"dist_sync_fn": gather} | kwargs))
        self._result_dtype: torch.dtype | None = None
        none = torch.zeros(8, dtype=torch.int64)
        self.add_state("settings_digest", default=none, dist_reduce_fx=same_settings)
        self._not_settings = {*vars(self), *self._buffers}

    def _wrap_compute(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        result = functools.wraps(compute)(lambda: _Whole(cast(compute(), self._result_dtype)))
        whole = super()._wrap_compute(result)
        return functools.wraps(compute)(lambda: whole().result)

    def _wrap_update(self, update: Callable[..., None]) -> Callable[..., None]:
        wrapped: Callable[..., None] = super()._wrap_update(update)

        @functools.wraps(update)
        def stamped(*arguments: Any, **named: Any) -> None:
            if not bool(self.settings_digest.any()):
                made = digest((type(self).__qualname__, self._settings()))
                self.settings_digest = made.to(self.settings_digest.device)
            wrapped(*arguments, **named)

        return stamped

    def _settings(self) -> dict[str, Any]:
        made = vars(self) | dict(self._buffers)
        names = sorted(made.keys() - self._not_settings - self._defaults.keys())
        return {name: made[name] for name in names if not name.startswith("_")}

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()
    ) -> "Measure":
        def moved(x: Tensor) -> Tensor:
            """Move to the new device, keep the dtype: half-precision sums would be worthless."""
            there = fn(x)
            return there if there.dtype == x.dtype else x.to(there.device)

        self._computed = None  # a cached result lies where the states were
        this: Measure = super()._apply(moved, exclude_state)
        return this

    def set_dtype(self, dst_type: str | torch.dtype) -> "Measure":
        """Give results in this floating-point dtype; sums stay float64 whatever it is.

        Args:
            dst_type: Dtype of the results, or the name of a tensor type.

        Returns:
            This measure.

        Raises:
            ValueError: The dtype is not a floating-point one.
        """
        if isinstance(dst_type, str):
            dst_type = torch.zeros(0).type(dst_type).dtype
        if not dst_type.is_floating_point:
            raise ValueError(
                "Results of measures are floating-point numbers: give a dtype of such, not "
                f"{dst_type}."
            )
        self._result_dtype = self._dtype = dst_type
        self._computed = None
        return self

    def numbers(self) -> Composed:
        """Return a metric of this measure's numbers as a dict, for collections and loggers.

        Example:
            >>> from marginlab.measures import Uniformity
            >>> sorted(Uniformity().numbers()(torch.eye(3)[:, None]))
            ['L_unif', 'standard_error']
        """
        return Composed(numbers, self, None)

    def __getitem__(self, name: str) -> Composed:
        """Return one number of the result, as a metric."""
        return Composed(functools.partial(number, name=name), self, None)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the numbers of a result, or of a list of results over time.

        It needs matplotlib, as torchmetrics' plots do.

        Args:
            val: A result or a list of results; by default the result of `compute()`.
            ax: The matplotlib axes to draw on.
        """
        chosen = self.compute() if val is None else val
        over_time = isinstance(chosen, list)
        return self._plot([numbers(one) for one in chosen] if over_time else numbers(chosen), ax)


for _name in OPERATORS:
    setattr(Measure, _name, compose(_name))


def cast(result: Any, dtype: torch.dtype | None) -> Any:
    """Return the result with its floating-point tensors in this dtype; unchanged for None."""
    if dtype is None:
        return result
    if isinstance(result, Tensor):
        return result.to(dtype) if result.is_floating_point() else result
    if isinstance(result, tuple):
        parts = [cast(part, dtype) for part in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    return result


def gather(x: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Return the tensor of every rank, in rank order.

    Lengths may differ. An empty tensor takes its dtype and trailing shape from the other ranks.

    Args:
        x: This rank's tensor.
        group: The process group; None is the default group.

    Raises:
        ValueError: Nonempty ranks hold different trailing shapes or dtypes.
    """
    made: list[tuple[tuple[int, ...], torch.dtype]] = [((), x.dtype)] * dist.get_world_size(group)
    dist.all_gather_object(made, (tuple(x.shape), x.dtype), group=group)
    filled = [(shape, dtype) for shape, dtype in made if 0 not in shape]
    if not filled:
        return [x for _ in made]
    shape, dtype = filled[0]
    if any(other[1:] != shape[1:] or kind != dtype for other, kind in filled):
        raise ValueError(
            f"Ranks hold rows of different make, {filled}: give every rank the same number of "
            "views, the same sizes and one dtype."
        )
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


def result_of(measure: Measure, *batch: Tensor) -> Any:
    """Return the result of a new measure on one batch, on the batch's device."""
    measure = measure.to(batch[0].device)
    measure.update(*batch)
    return measure.compute()


def rows(state: Tensor | Sequence[Tensor], empty: Tensor) -> Tensor:
    """Return the rows of a list state, before or after the reduction over ranks.

    Where there are none, return `empty`.
    """
    if isinstance(state, Tensor):
        return state if state.numel() else empty
    parts = [part for part in state if part.numel()]
    return torch.cat(parts) if parts else empty


def constant(values: Tensor) -> Tensor:
    """Reduce a state that all updates and ranks must share: (ranks, ...) -> (...).

    It is 0 where nothing was given.

    Raises:
        ValueError: Two ranks, or two merged measures, hold different values.
    """
    seen = {tuple(row) for row in values.flatten(1).tolist() if any(row)}
    if len(seen) > 1:
        raise ValueError(
            f"States of different make cannot be joined: {' and '.join(map(str, sorted(seen)))} "
            "(numbers of views, sizes)."
        )
    return values.amax(0)


def same_views(
    features: Tensor, before: Tensor, remedy: str = "give all images equally many."
) -> Tensor:
    """Return the number of views of features (N, V, D), as a state reduced by `constant`.

    Args:
        features: The features.
        before: The state so far, 0 where nothing was given.
        remedy: End of the sentence that refuses another number of views.

    Raises:
        ValueError: Earlier features had another number of views.
    """
    if int(before) not in (0, features.shape[1]):
        raise ValueError(
            f"features have {features.shape[1]} views, those before had {int(before)}: {remedy}"
        )
    return torch.full_like(before, features.shape[1])


def check_features(features: Tensor, fewest_views: int, dim: int | None = None) -> None:
    """Check that features are finite and of shape (N, V, D), with at least `fewest_views` views.

    D is `dim`, or any if that is None.

    Raises:
        ValueError: They are not.
    """
    if features.ndim != 3 or not features.is_floating_point():
        one = " One view of each image is features[:, None]." if features.ndim == 2 else ""
        raise ValueError(
            f"features are floating-point numbers of shape (N, V, D), not {features.dtype} "
            f"{tuple(features.shape)}.{one}"
        )
    if features.shape[2] == 0:
        raise ValueError(
            f"features of shape {tuple(features.shape)} have no dimension: look for what emptied "
            "them."
        )
    if features.shape[1] < fewest_views:
        raise ValueError(
            f"features of shape {tuple(features.shape)} have {features.shape[1]} view(s) of an "
            f"image, but at least {fewest_views} are needed. Encode more views."
        )
    if dim is not None and features.shape[2] != dim:
        raise ValueError(
            f"features of shape {tuple(features.shape)} have dimension {features.shape[2]}, but "
            f"dim={dim} was announced."
        )
    if not bool(features.isfinite().all()):
        raise ValueError(
            f"features of shape {tuple(features.shape)} hold values that are not finite (NaN or "
            "infinity). Look for what made them."
        )


def check_labels(labels: Tensor, n: int, num_classes: int | None = None) -> None:
    """Check that labels are n whole numbers from 0 (below `num_classes`, if it is given).

    Raises:
        ValueError: They are not.
    """
    if labels.shape != (n,) or labels.is_floating_point():
        raise ValueError(
            f"labels are whole numbers of shape ({n},), one an image, not {labels.dtype} "
            f"{tuple(labels.shape)}."
        )
    if n and (
        int(labels.min()) < 0 or (num_classes is not None and int(labels.max()) >= num_classes)
    ):
        end = "upwards" if num_classes is None else f"to {num_classes - 1}"
        raise ValueError(
            f"labels run from 0 {end}, but these hold {int(labels.min())} to {int(labels.max())}."
        )


def prepared(features: Tensor, normalize: bool) -> Tensor:
    """Return features in float64, scaled to length 1 if `normalize`.

    Raises:
        ValueError: Features that are not normalised hold values above LARGEST in size.
    """
    wide = features.detach().double()
    if normalize:
        return unit_vectors(wide)
    if bool((wide.abs() > LARGEST).any()):
        raise ValueError(
            f"features of shape {tuple(features.shape)} hold values above {LARGEST:g} in size, "
            "whose fourth powers are no float64 numbers. Scale them down, or give them length 1 "
            "(normalize)."
        )
    return wide
