"""Checks of the arguments that blockwise sums over a matrix share."""

from torch import Tensor


def check_matrices(x: Tensor, y: Tensor) -> None:
    """Refuse rows and columns that are no matrices of one width and dtype.

    Raises:
        ValueError: They are not.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.dtype != y.dtype:
        raise ValueError(
            f"Rows and columns are matrices of one width and dtype, not {tuple(x.shape)} {x.dtype} "
            f"and {tuple(y.shape)} {y.dtype}."
        )


def check_excluded(x: Tensor, exclude: Tensor | None) -> None:
    """Refuse excluded columns that are not some for each row of x.

    Raises:
        ValueError: They are not (B, E).
    """
    if exclude is not None and (exclude.ndim != 2 or len(exclude) != len(x)):
        raise ValueError(
            f"Excluded columns are a (B, E) matrix with one row for each of the {len(x)} rows of "
            f"x, not {tuple(exclude.shape)}."
        )


def check_intervals(x: Tensor, first: Tensor, stop: Tensor, left_out: Tensor) -> None:
    """Refuse intervals of columns, and left out columns, that are not one for each row of x.

    Raises:
        ValueError: They are not.
    """
    if not len(first) == len(stop) == len(left_out) == len(x):
        raise ValueError(
            f"Each of the {len(x)} rows has one interval and one column that it leaves out, not "
            f"{len(first)}, {len(stop)} and {len(left_out)}."
        )
