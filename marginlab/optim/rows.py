"""Rows of parameters and of their state: read, written, and visited a block at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

# numbers of a parameter in hand at once: 1 MiB of float32, so that the passes over it stay in a
# CPU's cache
BLOCK = 1 << 18
BLOCK_CUDA = 1 << 25  # and 128 MiB on a GPU, where each pass is a launch

Rows = slice | Tensor  # neighbouring rows as a slice, others as their indices


def matrix_of(t: Tensor) -> Tensor:
    """Return a view (C, D) of a parameter or of its state; a number is one row."""
    rows = t.shape[0] if t.ndim else 1
    return t.view(rows, t.numel() // max(1, rows))


def read(table: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
    """Return rows of a table in this dtype."""
    return (table[rows] if isinstance(rows, slice) else table.index_select(0, rows)).to(dtype)


def write(table: Tensor, rows: Rows, new: Tensor) -> None:
    """Write rows of a table."""
    new = new.to(table.dtype)
    if not isinstance(rows, slice):
        table.index_copy_(0, rows, new)
    elif new.data_ptr() != table[rows].data_ptr():  # else the rows were moved where they lie
        table[rows] = new


def block_size(matrix: Tensor) -> int:
    """Return how many numbers of a matrix are in hand at once."""
    return BLOCK_CUDA if matrix.device.type == "cuda" else BLOCK


def blocks(
    gradient: Tensor, matrix: Tensor, whole: bool, wide: torch.dtype
) -> Iterator[tuple[Rows, Tensor]]:
    """Yield the rows to visit with their gradients (n, D), a block at a time.

    The rows are those of the gradient, or with `whole` all rows of the matrix.
    """
    C, D = matrix.shape
    size = max(1, block_size(matrix) // max(1, D))
    every = (
        [slice(start, min(start + size, C)) for start in range(0, C, size)]
        if whole or not gradient.is_sparse
        else []
    )
    if not gradient.is_sparse:
        gradient = gradient.reshape(C, D)
        yield from ((rows, gradient[rows].to(wide)) for rows in every)
        return
    index, values = gradient._indices()[0], gradient._values()
    # autograd forgets that a gradient was coalesced; looking at the rows is far cheaper than
    # sorting the values once more. Repeated rows add up in float32
    if not gradient.is_coalesced() and not bool((index[1:] > index[:-1]).all()):
        gradient = torch.sparse_coo_tensor(
            index[None], values.to(wide), gradient.shape, check_invariants=False
        ).coalesce()
        index, values = gradient.indices()[0], gradient.values()
    values = values.reshape(len(index), D)
    if not whole:
        yield from (
            (rows, part.to(wide))
            for rows, part in zip(index.split(size), values.split(size), strict=True)
            if len(rows)
        )
        return
    ends = torch.searchsorted(
        index, torch.tensor([rows.stop for rows in every], device=index.device, dtype=index.dtype)
    ).tolist()
    for rows, start, end in zip(every, [0, *ends], ends, strict=False):
        dense = values.new_zeros((rows.stop - rows.start, D), dtype=wide)
        dense[index[start:end] - rows.start] = values[start:end].to(wide)
        yield rows, dense
