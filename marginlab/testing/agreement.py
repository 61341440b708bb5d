"""Two answers that a law says are equal, and the error that tells of a law that is broken."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: Relative, and absolute for numbers below 1: float64 sums in another order agree far better.
TOLERANCE = 1e-10


class Disagreement(AssertionError):  # noqa: N818
    """Two answers differ.

    Args:
        first, second: names of the two.
        one, two: the answers.
    """

    def __init__(self, first: str, one: Any, second: str, two: Any) -> None:
        super().__init__(f"{first}: {shown(one)}\n{second}: {shown(two)}")
        self.one = one
        self.two = two


class LawBroken(AssertionError):  # noqa: N818
    """A law that a loss or measure does not hold, and the smallest input that shows it.

    Args:
        subject: name of the loss or measure.
        law: name of the law, as in `laws=` and `leave_out=`.
        sentence: the law in words.
        example: the input, by name.
        finding: the two answers, or the error that was raised.

    Attributes:
        law: name of the law.
        example: the smallest input that hypothesis found, by name.
    """

    def __init__(
        self, subject: str, law: str, sentence: str, example: Mapping[str, Any], finding: str
    ) -> None:
        inputs = "".join(f"\n  {name} = {shown(value)}" for name, value in example.items())
        super().__init__(
            f'{subject} breaks the law "{law}": {sentence}\nSmallest input found:{inputs}\n'
            f"{finding}\nIf it is not meant to hold this law: leave_out=({law!r},)."
        )
        self.law = law
        self.example = dict(example)


def shown(value: Any) -> str:
    """A value on few lines: small tensors whole and with 17 digits, large ones by their shape."""
    if not isinstance(value, Tensor):
        return repr(value)
    if value.numel() > 200:
        return f"{value.dtype} {tuple(value.shape)}"
    return repr(value.detach().tolist())


def agree(
    first: str, one: Any, second: str, two: Any, tolerance: float = TOLERANCE, where: str = ""
) -> None:
    """Compare two answers, nested ones part by part.

    Numbers and tensors agree within the tolerance, relative and absolute; NaN agrees with NaN.
    Everything else agrees if it is equal.

    Args:
        first, second: names of the answers, for the error.
        one, two: tensors, numbers, or mappings, named tuples and sequences of them.
        tolerance: relative, and absolute below 1.
        where: name of the part, for the error.

    Raises:
        Disagreement: with the first part that differs.

    Example:
        >>> agree("whole", {"mean": 1.0}, "in two parts", {"mean": 1.5})
        Traceback (most recent call last):
        marginlab.testing.agreement.Disagreement: whole, mean: 1.0
        in two parts, mean: 1.5
    """
    one, two = (value._asdict() if hasattr(value, "_asdict") else value for value in (one, two))
    place = f", {where}" if where else ""
    error = Disagreement(first + place, one, second + place, two)
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.shape != two.shape or not torch.allclose(
            one.detach().to(torch.float64),
            two.detach().to(torch.float64),
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
        ):
            raise error
    elif isinstance(one, float) and isinstance(two, float):
        pair = torch.tensor([one, two], dtype=torch.float64)
        if not torch.allclose(pair[0], pair[1], rtol=tolerance, atol=tolerance, equal_nan=True):
            raise error
    elif isinstance(one, Mapping) and isinstance(two, Mapping):
        if one.keys() != two.keys():
            raise error
        for name in one:
            inner = f"{where}.{name}" if where else str(name)
            agree(first, one[name], second, two[name], tolerance, inner)
    elif isinstance(one, list | tuple) and isinstance(two, list | tuple):
        if len(one) != len(two):
            raise error
        for index, (a, b) in enumerate(zip(one, two, strict=True)):
            agree(first, a, second, b, tolerance, f"{where}[{index}]")
    elif one != two:
        raise error


def without(result: Any, names: Sequence[str]) -> Any:
    """A result without some of its fields, also without those of named tuples that it holds.

    Example:
        >>> without({"mean": 1.0, "order": [2, 1]}, ("order",))
        {'mean': 1.0}
    """
    if hasattr(result, "_asdict"):
        result = result._asdict()
    if isinstance(result, Mapping):
        return {key: without(value, names) for key, value in result.items() if key not in names}
    if isinstance(result, list | tuple):
        return [without(value, names) for value in result]
    return result
