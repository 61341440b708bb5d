"""What every loss on two views asks of its inputs: two matrices of one shape, in float32 or wider,
and words that it knows.

Embeddings come in the precision of the backbone (bf16 under autocast); losses take exponentials,
squares and sums of them, in which 8 bits would be lost, so they are widened once, here.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from marginlab import ranks
from marginlab.kernels.function import readable
from marginlab.settings import nearest
from marginlab.statistics import unit_vectors

Empty = Literal["zero", "raise"]
SHORTEST = 1e-12  # a row shorter than this has no direction


def wide(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """The two views in float32, or in float64 where one of them is.

    Raises:
        ValueError: not two matrices (B, D) of one shape and with at least one feature.
        TypeError: not floating point.
    """
    if z1.ndim != 2 or z1.shape != z2.shape or z1.shape[1] == 0:
        raise ValueError(
            f"Two views are two matrices (B, D) of one shape, row i of both from one "
            f"image, not {tuple(z1.shape)} and {tuple(z2.shape)}. "
            "Views (B, 2, D) are taken apart by views.unbind(1)."
        )
    dtype = torch.promote_types(torch.promote_types(z1.dtype, z2.dtype), torch.float32)
    return widened(z1, dtype), widened(z2, dtype)


def wide_of_all(
    z1: Tensor, z2: Tensor, group: dist.ProcessGroup | None, what: str, **alike: Any
) -> tuple[Tensor, Tensor, list[int]]:
    """`wide`, and the number of rows of each rank; what one rank refuses all refuse.

    So they do where ranks call another loss than `what`, with views of another make, or with other
    settings `alike`, for a collective that the ranks enter with different tensors may hang, or give
    wrong numbers.
    """
    other = {"second view": z2.dtype, **alike}
    views, held = ranks.accepted(lambda: wide(z1, z2), z1, group, what=what, **other)
    return *views, held


def widened(z: Tensor, dtype: torch.dtype) -> Tensor:
    """Embeddings in the precision of the sums; TypeError for what is not floating point."""
    if not z.is_floating_point():
        raise TypeError(
            f"Embeddings are floating point, not {z.dtype}. Were labels given in their place?"
        )
    return z.to(dtype)


def directions(z: Tensor) -> Tensor:
    """Rows of length 1. A row shorter than 1e-12 has no direction: zero, without gradient."""
    return unit_vectors(z, shortest=SHORTEST)


def nothing(
    empty: Empty, sentence: str, *inputs: float | Tensor | None, anchors: int | None = None
) -> Tensor:
    """Loss of a batch in which nothing can be compared: 0 with zero gradient, or ValueError.

    Every tensor that the loss would have differentiated is connected to it: its gradient is zero
    and not missing, which DistributedDataParallel would wait for.

    Args:
        empty: "zero" or "raise".
        sentence: the error's words.
        inputs: all inputs of the loss, the views first; numbers and None do not count.
        anchors: this many zeros, or one.
    """
    check_word("empty", empty, ("zero", "raise"))
    if empty == "raise":
        raise ValueError(f"{sentence} With empty='zero' its loss is 0 and has no gradient.")
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    # Sums of no entries: entries times 0 are NaN where they are not finite
    parts = [x.flatten()[:0].sum().to(tensors[0].dtype) for x in tensors]
    zero = torch.stack(parts).sum()
    return zero if anchors is None else zero.expand(anchors)


def number(x: float | Tensor) -> float | None:
    """The number, where reading it holds up neither a device nor a trace."""
    if not isinstance(x, Tensor):
        return x
    return float(x.detach()) if readable(x) else None


def check_word(what: str, word: str, known: Sequence[str]) -> None:
    """Refuse an unknown word for a choice, with the nearest known one."""
    if word not in known:
        raise ValueError(f"{what} is not {word!r}: {nearest(word, known)}")
