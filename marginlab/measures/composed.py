"""Arithmetic on the results of measures, number by number, as torchmetrics has it for metrics.

    2 * Uniformity()                     a metric whose value is a dict: each number doubled
    Alignment()["L_align"] / other       a metric whose value is one number

A result is a NamedTuple of arrays, numbers and words. Its numbers are the fields that are single
floating-point values. They are what is computed with, plotted and logged: a dict from the name of a
field to a tensor without dimensions.
"""

import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.metric import CompositionalMetric

from marginlab.statistics.intervals import normal_interval

OPERATORS = (
    *(
        f"__{side}{name}__"
        for name in ("add", "and", "floordiv", "matmul", "mod", "mul", "or")
        for side in ("", "r")
    ),
    *(f"__{side}{name}__" for name in ("pow", "sub", "truediv", "xor") for side in ("", "r")),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
    *("__abs__", "__inv__", "__invert__", "__neg__", "__pos__"),
)


def numbers(result: Any) -> dict[str, Tensor]:
    """Return the single floating-point numbers of a result by name, as tensors without dimensions.

    A dict is passed on.

    Raises:
        ValueError: The result is neither a dict nor a named tuple.

    Example:
        >>> from marginlab.measures import Uniformity
        >>> found = numbers(Uniformity()(torch.eye(3)[:, None]))
        >>> {name: round(float(value), 3) for name, value in found.items()}
        {'L_unif': -4.0, 'standard_error': 0.0}
    """
    if isinstance(result, dict):
        return result
    if not hasattr(result, "_asdict"):
        raise ValueError(f"The result of a measure is a named tuple, not {type(result).__name__}.")
    found = {}
    for name, value in result._asdict().items():
        if isinstance(value, float):
            found[name] = torch.tensor(value, dtype=torch.float64)
        elif isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point():
            found[name] = value
    return found


def with_intervals(
    result: Any, intervals: Collection[str]
) -> dict[str, tuple[float, float, float]]:
    """Return the numbers of a result without its errors: each with its 95 % interval.

    Args:
        result: The result of a measure.
        intervals: Numbers that have an interval, as in `Measure.intervals`. It comes from
            `error_x`, or from `standard_error` if the result names no other number. The ends of
            other numbers are NaN.

    Returns:
        Value, lower and upper end by name.

    Example:
        >>> from marginlab.measures import Uniformity
        >>> measure = Uniformity()
        >>> with_intervals(measure(torch.eye(3)[:, None].double()), measure.intervals)
        {'L_unif': (-4.0, -4.0, -4.0)}
    """
    found = {name: float(value) for name, value in numbers(result).items()}
    alone = found.pop("standard_error", math.nan)
    values = {name: value for name, value in found.items() if not name.startswith("error_")}
    if len(values) > 1:
        alone = math.nan
    errors = {
        name: found.get(f"error_{name}", alone) if name in intervals else math.nan
        for name in values
    }
    return {name: (value, *normal_interval(value, errors[name])) for name, value in values.items()}


def number(result: Any, name: str) -> Tensor:
    """Return one of the numbers of a result.

    Raises:
        KeyError: The result has no number of this name.
    """
    found = numbers(result)
    if name not in found:
        raise KeyError(f"The result has no number {name!r}, but {', '.join(found)}.")
    return found[name]


def each(operator: Callable[..., Any], *sides: Any) -> Any:
    """Apply the operator to each number that all results name.

    Plain numbers and tensors are used as they are.

    Raises:
        ValueError: The results have no number in common.
    """
    wide = [
        side if isinstance(side, Tensor | float | int) or side is None else numbers(side)
        for side in sides
    ]
    named = [side for side in wide if isinstance(side, dict)]
    if not named:
        return operator(*wide)
    names = [name for name in named[0] if all(name in other for other in named)]
    if not names:
        having = " and ".join(", ".join(side) or "none" for side in named)
        raise ValueError(
            f"The results have no number in common: they have {having}. Name one of each, as in "
            "measure['L_align']."
        )
    return {
        name: operator(*(side[name] if isinstance(side, dict) else side for side in wide))
        for name in names
    }


class Composed(CompositionalMetric):  # type: ignore[misc]  # torchmetrics is not followed
    """A metric made of measures by arithmetic; its value is a dict of numbers, or one number."""

    def __getitem__(self, name: str) -> "Composed":
        """Return one of the numbers, as a metric."""
        return Composed(functools.partial(number, name=name), self, None)

    def __repr__(self) -> str:
        """Return the operation and its operands."""
        operation: Any = self.op
        if isinstance(operation, functools.partial):
            operation = (*operation.args, *operation.keywords.values())[0]
        named = getattr(operation, "__name__", repr(operation))
        return f"{type(self).__name__}({named}, {self.metric_a!r}, {self.metric_b!r})"

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the numbers, or those of several values over time; needs matplotlib."""
        return self._plot(val, ax)


def compose(name: str) -> Callable[..., Composed]:
    """Return the operator of this name from torchmetrics' metrics, applied number by number."""
    of_metric = getattr(Metric, name)

    @functools.wraps(of_metric)
    def composed(self: Metric, *others: Any) -> Composed:
        made = of_metric(self, *others)
        return Composed(functools.partial(each, made.op), made.metric_a, made.metric_b)

    return composed


for _name in OPERATORS:
    setattr(Composed, _name, compose(_name))
