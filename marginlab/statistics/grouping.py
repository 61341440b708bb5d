"""Rows grouped by a number that each of them carries, such as its class.

index_i = #{ j < i : g_j = g_i }
"""

import torch
from jaxtyping import Int, Int64
from torch import Tensor


def index_within_group(groups: Int[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """Return the number of earlier rows in the group of each row.

    Args:
        groups: The group of each row, any whole number.

    Example:
        >>> index_within_group(torch.tensor([7, 3, 7, 7, 3]))
        tensor([0, 0, 1, 2, 1])
    """
    ordered, order = groups.sort(stable=True)
    index = torch.empty_like(order)
    index[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(
        ordered, ordered
    )
    return index
