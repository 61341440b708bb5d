"""The k largest inner products of each row with a bank, without the matrix of all of them.

    top_k(x, y): for each row b the k largest x_b . y_m and their m, largest first

It is a running merge over column blocks: the k best so far and the k best of the next block give
the new k best.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels.walk import BUDGET, walk


class TopK(NamedTuple):
    """Largest inner products, in falling order, and the rows of the bank they belong to."""

    values: Float[Tensor, "B k"]
    indices: Int[Tensor, "B k"]


def top_k(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "M D"],
    k: int,
    *,
    exclude_self: bool = False,
    budget: int = BUDGET,
) -> TopK:
    """Find the k largest inner products of each row of x with the rows of y.

    Args:
        x, y: Rows and bank, of one dtype; half precision is computed in float32.
        k: Number of neighbours, at most the size of the bank.
        exclude_self: x are the first B rows of y, and a row is not its own neighbour.
        budget: Bytes of a block of inner products.

    Returns:
        `values` (B, k), falling, in float32 or float64, and `indices` (B, k). Of equal products the
        smaller index comes first, so the answer does not depend on the blocks, except where
        rounding tells equal products of different blocks apart.

    Raises:
        ValueError: k is not within 1 and the number of possible neighbours, or x cannot be the
            first rows of y.

    Example:
        >>> top_k(torch.eye(2), torch.tensor([[1.0, 0.0], [2.0, 1.0], [2.0, 3.0]]), k=2).indices
        tensor([[1, 2],
                [2, 1]])
    """
    (B, _), M = x.shape, len(y)
    if exclude_self and B > M:
        raise ValueError(
            f"With exclude_self, x is the first rows of y, but x has {B} rows and y has {M}. Give "
            "both the same rows."
        )
    if not 1 <= k <= M - exclude_self:
        raise ValueError(
            f"k = {k} neighbours cannot be found among {M - exclude_self}: choose k from 1 to "
            f"{M - exclude_self}."
        )
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, y = x.to(wide), y.to(wide)
    values = x.new_full((B, k), -torch.inf)
    indices = torch.full((B, k), M, dtype=torch.int64, device=x.device)
    for rows, columns in walk(B, M, entry=2 * x.element_size(), budget=budget):
        block = x[rows] @ y[columns].T
        if exclude_self:
            block.diagonal(rows.start - columns.start).fill_(-torch.inf)
        largest, where = _largest(block, min(k, block.shape[1]))
        merged = torch.cat([values[rows], largest], 1)
        # the k best so far have smaller indices, and both parts are sorted
        names = torch.cat([indices[rows], where + columns.start], 1)
        merged, order = merged.sort(dim=1, descending=True, stable=True)
        values[rows], indices[rows] = merged[:, :k], names.gather(1, order)[:, :k]
    return TopK(values, indices)


def _largest(block: Tensor, k: int) -> TopK:
    """Return the k largest entries of each row in falling order, of equal ones the first.

    torch.topk leaves the choice and the order of equal entries open.
    """
    values, indices = block.topk(k, dim=1)
    smallest = values[:, -1:]
    # rows in which some, but not all, of the equals are in
    cut = ((block == smallest).sum(1) > (values == smallest).sum(1)).nonzero()[:, 0]
    if len(cut):
        exact = block[cut].sort(dim=1, descending=True, stable=True)
        values[cut], indices[cut] = exact.values[:, :k], exact.indices[:, :k]
    indices, order = indices.sort(1)
    values, again = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return TopK(values, indices.gather(1, again))
