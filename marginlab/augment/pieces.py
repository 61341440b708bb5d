"""Pieces of a batch: which views go through the operations together, and in which threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def in_threads(work: Callable[[Tensor], None], pieces: list[Tensor], device: torch.device) -> None:
    """Work on pieces; on a CPU in as many threads as torch uses, each with a piece of its own.

    The operations are many and short. Torch by itself shares each of them among threads, with a
    barrier after each. Where other processes want the same cores, threads wait at barriers most of
    the time: on 2 busy cores 142 views a second instead of 10,000 (letter d).
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(pieces) < 2:
        for piece in pieces:
            work(piece)
        return
    # torch counts threads for each thread that calls it, and remembers the last number for new ones
    try:
        with ThreadPoolExecutor(
            min(threads, len(pieces)), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            for _ in pool.map(work, pieces):
                pass
    finally:
        torch.set_num_threads(threads)


def map_fields(
    function: Callable[[Tensor], Tensor], fields: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Apply a function to every field of a NamedTuple of tensors."""
    return type(fields)(*(function(field) for field in fields))


def similar_pieces(fields: list[Tensor], total: int, rows: int) -> list[Tensor]:
    """Split places into pieces of at most `rows`, with views of equal orders and coins together.

    Operations then regroup little or nothing. Pixels do not depend on the pieces, for every
    operation treats each image by itself.
    """
    discrete = [field for field in fields if not field.is_floating_point()]
    if total <= rows or not discrete:
        return list(torch.arange(total).split(rows)) if total else []
    orders, coins = (
        torch.zeros_like(discrete[0], dtype=torch.int64),
        torch.zeros_like(discrete[0], dtype=torch.int64),
    )
    for field in discrete:
        if field.dtype == torch.bool:
            coins = coins * 2 + field
        else:
            orders = orders * 64 + field
    return list((orders * 64 + coins).argsort(stable=True).split(rows))
