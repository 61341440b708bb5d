"""Arithmetic on the results of measures, number by number, as torchmetrics has it for metrics.

    2 * Uniformity()                     a metric whose value is a dict: each number doubled
    Alignment()["L_align"] / other       a metric whose value is one number

A result is a NamedTuple of arrays, numbers and words. Its numbers are the fields that are single
floating-point values. They are what is computed with, plotted and logged: a dict from the name of a
field to a tensor without dimensions.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.metric import CompositionalMetric

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
