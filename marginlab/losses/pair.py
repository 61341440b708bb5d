"""Input checks and settings shared by the losses on two views.

The views are two matrices of one shape, in float32 or wider, and every word is a known one.

Embeddings come in the precision of the backbone (bf16 under autocast); losses take exponentials,
squares and sums of them, in which 8 bits would be lost, so they are widened once, here.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from marginlab import ranks
from marginlab.kernels.function import readable
from marginlab.settings import describe, nearest
from marginlab.statistics import unit_vectors

Empty = Literal["zero", "raise"]
SHORTEST = 1e-12  # a row shorter than this has no direction


def wide(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two views in float32, or in float64 where one of them is.

    Raises:
        ValueError: Not two matrices (B, D) of one shape and with at least one feature.
        TypeError: Not floating point.
    """
    if z1.ndim != 2 or z1.shape != z2.shape or z1.shape[1] == 0:
        raise ValueError(
            "Two views are two matrices (B, D) of one shape, row i of both from one image, not "
            f"{tuple(z1.shape)} and {tuple(z2.shape)}. Views (B, 2, D) are taken apart by "
            "views.unbind(1)."
        )
    dtype = torch.promote_types(torch.promote_types(z1.dtype, z2.dtype), torch.float32)
    return widened(z1, dtype), widened(z2, dtype)


def wide_of_all(
    z1: Tensor, z2: Tensor, group: dist.ProcessGroup | None, what: str, **alike: Any
) -> tuple[Tensor, Tensor, list[int]]:
    """Apply `wide` and count the rows of each rank; if one rank rejects its input, all raise.

    All raise as well if the ranks call a loss other than `what`, have views of another dtype, or
    differ in the settings `alike`. A collective that the ranks enter with different tensors may
    hang, or give wrong numbers.
    """
    other = {"second view": z2.dtype, **alike}
    views, rows_per_rank = ranks.validate_together(
        lambda: wide(z1, z2), z1, group, what=what, **other
    )
    return *views, rows_per_rank


def widened(z: Tensor, dtype: torch.dtype) -> Tensor:
    """Return embeddings in the precision of the sums; raise TypeError if not floating point."""
    if not z.is_floating_point():
        raise TypeError(
            f"Embeddings are floating point, not {z.dtype}. Were labels given in their place?"
        )
    return z.to(dtype)


def directions(z: Tensor) -> Tensor:
    """Return rows of length 1; a row shorter than 1e-12 becomes zero, without gradient."""
    return unit_vectors(z, shortest=SHORTEST)


def nothing(
    empty: Empty, sentence: str, *inputs: float | Tensor | None, anchors: int | None = None
) -> Tensor:
    """Loss of a batch in which nothing can be compared: 0 with zero gradient, or ValueError.

    Every tensor that the loss would have differentiated is connected to the result. Its gradient is
    therefore zero, not missing; DistributedDataParallel would wait for a missing one.

    Args:
        empty: "zero" or "raise".
        sentence: Text of the error.
        inputs: All inputs of the loss, the views first; numbers and None are skipped.
        anchors: Number of zeros to return; None returns one without dimensions.
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
    """Return the number, or None where reading it would hold up a device or a trace."""
    if not isinstance(x, Tensor):
        return x
    return float(x.detach()) if readable(x) else None


def check_word(what: str, word: str, known: Sequence[str]) -> None:
    """Check that a word is known; the error names the nearest known one."""
    if word not in known:
        raise ValueError(f"{what} is not {word!r}: {nearest(word, known)}")


class BatchLoss(nn.Module):
    """Module form of a loss over the rows of all ranks.

    A subclass lists its settings in `names` and sets an attribute for each. The function form takes
    them, and `repr` shows them.

    Args:
        group, grads, empty, budget: Settings of the function form, which documents them.
    """

    names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        grads: str,
        empty: Empty,
        budget: int,
    ):
        super().__init__()
        check_word("empty", empty, ("zero", "raise"))
        self.group, self.grads, self.empty, self.budget = group, grads, empty, budget

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the function form: the group, and the settings by their names."""
        return {"group": self.group} | {name: getattr(self, name) for name in self.names}

    def shown(self) -> dict[str, Any]:
        """Return the settings of the constructor that `repr` shows."""
        return {name: getattr(self, name) for name in self.names}

    def __repr__(self) -> str:
        return describe(type(self).__name__, **self.shown())


class TemperedLoss(BatchLoss):
    """A loss of cosines over a temperature, which is fixed, or learned as -log(temperature).

    Args:
        temperature: The temperature, or where it starts.
        learnable: Learn it.
        group, grads, empty, budget: As in `BatchLoss`.
    """

    def __init__(
        self,
        temperature: float,
        learnable: bool,
        group: dist.ProcessGroup | None,
        grads: str,
        empty: Empty,
        budget: int,
    ):
        super().__init__(group, grads, empty, budget)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature))) if learnable else None
        self.fixed = temperature

    @property
    def temperature(self) -> float | Tensor:
        """The temperature: a number, or a tensor with gradient if it learns."""
        return self.fixed if self.log_scale is None else (-self.log_scale).exp()

    def shown(self) -> dict[str, Any]:
        """Return the settings of the constructor, with the temperature of now as a number."""
        scale = self.log_scale
        learned = None if scale is None or scale.is_meta else scale.item()
        first = {
            "temperature": self.fixed if learned is None else math.exp(-learned),
            "learnable": scale is not None,
        }
        return first | {name: getattr(self, name) for name in self.names if name not in first}
