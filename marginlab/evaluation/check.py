"""Checks of the inputs of every evaluation: arrays become tensors, or are refused.

They are refused before work starts. Features are also scaled to length 1:

    direction(x) = x / ||x||,     0 for x = 0
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marginlab.statistics import unit_vectors

Array = Tensor | np.ndarray
"""A tensor on any device, or a numpy array, which is read as a tensor on the CPU."""

_BLOCK = 1 << 22  # numbers that are widened to float64 at a time
_NAMED = 5  # most values that a message names; of a million absent classes it names the first


def as_tensor(name: str, array: Any) -> Tensor:
    """Read a tensor or a numpy array of numbers as a tensor.

    Raises:
        ValueError: It is neither, or the array's type has no torch counterpart, such as text.
    """
    if isinstance(array, Tensor):
        return array.detach()
    if not isinstance(array, np.ndarray):
        kind = type(array).__name__
        raise ValueError(
            f"The {name} are a tensor or a numpy array, not a {kind}: torch.tensor(...)."
        )
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        remedy = "Number text by numpy.unique(..., return_inverse=True); take float64 at most."
        raise ValueError(f"The {name} hold {array.dtype} {array.shape}, and not numbers. {remedy}")
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def check_features(
    name: str, features: Any, shape: str = "(N, D)", dim: int | None = None
) -> Tensor:
    """Read features and refuse those that are empty, of another shape or not finite.

    Args:
        name: Name of the features in a message.
        features: A tensor or an array.
        shape: The shape that they must have, as a message gives it.
        dim: Dimension of a feature; any if None.

    Returns:
        The features as a tensor, without gradient.

    Raises:
        ValueError: They do not fit; the message describes them.
    """
    found = as_tensor(name, features)
    given = f"{found.dtype} {tuple(found.shape)}"
    ndim = shape.count(",") + 1
    if found.ndim < 2 or not len(found) or not found.is_floating_point():
        raise ValueError(
            f"The {name} are at least one row of floating-point features {shape}, not {given}."
        )
    if found.ndim != ndim:
        remedy = "One view an image is features[:, None]." if ndim == 3 else "Pool or flatten them."
        raise ValueError(f"The {name} are of shape {shape}, not {given}. {remedy}")
    if dim is not None and found.shape[-1] != dim:
        due = shape.replace("D", str(dim))
        raise ValueError(
            f"The {name} are of shape {due}, like the features that they are held against, not "
            f"{given}. Encode both by one encoder."
        )
    finite = torch.cat([some.isfinite().flatten(1).all(1) for some in found.split(_rows(found))])
    if not bool(finite.all()):
        row, count = int(finite.int().argmin()), int((~finite).sum())
        raise ValueError(
            f"The {name} {tuple(found.shape)} hold values that are not finite (NaN or infinity) in "
            f"{count} rows, first in row {row}. Look for what made them, or leave these rows out."
        )
    return found


def check_labels(
    name: str, labels: Any, features: Tensor, num_classes: int | None = None
) -> Tensor:
    """Read the labels of checked features as int64 on their device; refuse those that do not fit.

    Raises:
        ValueError: They are not one integer a row, or lie outside 0 to `num_classes` - 1.
    """
    found = as_tensor(f"labels of the {name}", labels)
    integer = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if found.shape != features.shape[:1] or not integer:
        n, given = len(features), f"{found.dtype} {tuple(found.shape)}"
        remedy = "" if integer else " Whole numbers become integers by .long()."
        raise ValueError(
            f"The {name} have {n} rows, so their labels are {n} integers, not {given}.{remedy}"
        )
    wide = found.to(features.device, torch.int64)
    low, high = int(wide.min()), int(wide.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        last = "..." if num_classes is None else num_classes - 1
        raise ValueError(
            f"The labels of the {name} run from {low} to {high}, outside 0 to {last}. Number the "
            "classes from 0, as labels.unique(return_inverse=True)[1] does."
        )
    return wide


def check_pair(
    name: str,
    features: Any,
    labels: Any,
    num_classes: int | None = None,
    shape: str = "(N, D)",
    dim: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Read features and their labels: `check_features` and `check_labels` under one name."""
    found = check_features(name, features, shape, dim)
    return found, check_labels(name, labels, found, num_classes)


def directions(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Return features (..., D) scaled to length 1; those of length 0 stay 0.

    They are computed in float64, which is held for a block of rows.
    """
    out = torch.empty(features.shape, dtype=dtype, device=features.device)
    rows = _rows(features)
    for into, some in zip(out.split(rows), features.split(rows), strict=True):
        into.copy_(unit_vectors(some.double()))
    return out


def named(values: Collection[Any]) -> str:
    """Return the first few of some values as text, and how many more there are.

    Example:
        >>> named(range(3)), named(range(1000))
        ('[0, 1, 2]', '[0, 1, 2, 3, 4] and 995 more')
    """
    first = [value for value, _ in zip(values, range(_NAMED), strict=False)]
    more = len(values) - len(first)
    return f"{first} and {more} more" if more else f"{first}"


def _rows(features: Tensor) -> int:
    """Return the number of rows whose numbers make a block."""
    return max(1, _BLOCK // max(1, features[0].numel()))
