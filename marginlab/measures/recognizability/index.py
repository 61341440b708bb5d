"""The recognizability index: how well an image can be told from others and from the unrecognizable.

    dP  = 1 - cos(v, w_y)                    the own class
    dN  = 1 - max over c != y of cos(v, w_c) the nearest other class, of all C
    dUI = 1 - cos(v, u)                      unrecognizable images
    xi  = dUI dN / (dP + eps)

v is an embedding, w_c a class center (of several sub-centers the nearest), u the center of
embeddings of unrecognizable images. There is no margin. dN > dP exactly where the nearest class is
the right one, so xi > dUI is a correct classification. xi has no upper bound: on faces it is about
3 for easy images and 0 for unrecognizable ones, on few classes 30 and more.

Source: Chai et al. 2023 (CVPR), eq. 1 to 4. Several centers u, of which the nearest counts, are an
extension.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from marginlab import ranks
from marginlab.kernels import BUDGET
from marginlab.kernels.function import readable
from marginlab.measures.recognizability.bank import UnrecognizableBank
from marginlab.statistics import unit_vectors

EPS = 1e-7
_ROWS = 4096  # rows whose cosines are made at once


class RecognizabilityDistances(NamedTuple):
    """Distances 1 - cosine, between 0 and 2, to the own class, the nearest other one, and u."""

    own: Float[Tensor, " B"]
    negative: Float[Tensor, " B"]
    unrecognizable: Float[Tensor, " B"]


def recognizability_index(
    own: Float[Tensor, " B"],
    negative: Float[Tensor, " B"],
    unrecognizable: Float[Tensor, " B"],
    *,
    eps: float = EPS,
    clamp: float | None = None,
) -> Float[Tensor, " B"]:
    """Return the index from the three distances, in float32 or wider.

    Args:
        own, negative, unrecognizable: dP, dN and dUI.
        eps: Is added to the denominator.
        clamp: Largest index. Few classes, whose dP falls to .02 in training, want 5 to 10.

    Raises:
        ValueError: eps is not positive, or `clamp` is not.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> recognizability_index(0.2 * one, 0.7 * one, 0.9 * one)
        tensor([3.1500], dtype=torch.float64)
    """
    _check_settings(eps, clamp)
    wide = torch.promote_types(own.dtype, torch.float32)
    index = unrecognizable.to(wide) * negative.to(wide) / (own.to(wide) + eps)
    return index if clamp is None else index.clamp(max=clamp)


@torch.no_grad()
def recognizability_distances(
    embeddings: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    centers: Float[Tensor, "C *K D"],
    unrecognizable: Float[Tensor, "U D"],
    *,
    first_class: int | None = None,
    group: dist.ProcessGroup | None = None,
    budget: int = BUDGET,
) -> RecognizabilityDistances:
    """Return the three distances of each row, without gradient, in float32 or wider.

    Args:
        embeddings: (B, D) of any length.
        labels: (B,), in 0..C-1 over all ranks.
        centers: (C, D), or (C, K, D) with K sub-centers of each class.
        unrecognizable: (U, D) centers of unrecognizable images; the nearest counts.
        first_class: The centers are this rank's shard, which begins with the class of this number.
            All ranks call, each with its rows. None: the centers are those of all classes.
        group: The ranks that hold the shards.
        budget: Bytes of a block of cosines and centers.

    Raises:
        ValueError: Shapes do not fit, there are fewer than two classes, or (on a CPU) a label is
            outside the classes. If one rank of several rejects its rows, all raise.

    Example:
        >>> x = torch.tensor([[1.0, 0.0, 0.0]])
        >>> u = torch.tensor([[0.0, 0.0, 1.0]])
        >>> recognizability_distances(x, torch.tensor([0]), torch.eye(3)[:2], u).negative
        tensor([1.])
    """
    centers = centers if centers.ndim == 3 else centers.unsqueeze(1)
    rows_per_rank: list[int] | None = None
    if first_class is not None and ranks.size(group) > 1:
        classes = sum(ranks.rows_per_rank(len(centers), group, embeddings.device))
        _, rows_per_rank = ranks.validate_together(
            lambda: _check(embeddings, labels, centers, unrecognizable, classes),
            embeddings,
            group,
            what="recognizability_distances",
        )
    else:
        _check(embeddings, labels, centers, unrecognizable, len(centers))
    wide = torch.promote_types(torch.promote_types(embeddings.dtype, centers.dtype), torch.float32)
    rows = unit_vectors(embeddings.to(wide))
    far = (rows @ unit_vectors(unrecognizable.to(wide)).T).amax(1)
    places = labels.long()
    if rows_per_rank is not None:
        rows = ranks.all_gather(rows, group, rows=rows_per_rank)
        places = ranks.all_gather(places, group, rows=rows_per_rank)
    own, negative = _largest(rows, places - (first_class or 0), centers, budget)
    if rows_per_rank is not None:
        both = ranks.all_gather_stack(torch.stack([own, negative], 1), group).amax(0)
        own, negative = ranks.local_rows(both, rows_per_rank, group).unbind(1)
    return RecognizabilityDistances(1 - own, 1 - negative, 1 - far)


@dataclass(frozen=True, eq=False)
class RecognizabilityIndex:
    """The recognizability index of labelled embeddings, in float32 or wider, without gradient.

    Args:
        centers: Class centers (C, D), or (C, K, D) with sub-centers. Of a `PartialFC` on several
            ranks, its shard, with `first_class`.
        bank: The unrecognizable images.
        eps: Is added to the denominator.
        clamp: Largest index; None does not clamp.
        first_class: Number of the first class of this rank's shard, such as
            `head.part.start`; all ranks then call together. None: the centers are of all classes.
        group: The ranks that hold the shards.
        budget: Bytes of a block of cosines and centers.

    Raises:
        ValueError: As in `recognizability_distances` and `recognizability_index`.

    Example:
        >>> ruined = torch.tensor([[0.0, 0.1, 1.0], [0.0, 0.0, 1.0]])
        >>> bank = UnrecognizableBank.from_degraded(ruined)
        >>> index = RecognizabilityIndex(torch.eye(3)[:2], bank)
        >>> easy, hard = torch.tensor([1.0, 0.1, 0.2]), torch.tensor([0.1, 0.1, 1.0])
        >>> found = index(torch.stack([easy, hard]), torch.tensor([0, 0]))
        >>> bool(found[0] > 10), bool(found[1] < 0.1)
        (True, True)
    """

    centers: Float[Tensor, "C *K D"]
    bank: UnrecognizableBank
    eps: float = EPS
    clamp: float | None = None
    first_class: int | None = None
    group: dist.ProcessGroup | None = None
    budget: int = BUDGET

    def __post_init__(self) -> None:
        _check_settings(self.eps, self.clamp)

    def __call__(
        self, embeddings: Float[Tensor, "B D"], labels: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Return the index of each row."""
        distances = recognizability_distances(
            embeddings,
            labels,
            self.centers,
            self.bank.centers.to(embeddings.device),
            first_class=self.first_class,
            group=self.group,
            budget=self.budget,
        )
        return recognizability_index(*distances, eps=self.eps, clamp=self.clamp)


def _largest(
    rows: Float[Tensor, "B D"],
    places: Int[Tensor, " B"],
    centers: Float[Tensor, "C K D"],
    budget: int,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Return cosines with the own class and the nearest other one.

    They are -inf where these centers have no such class. Places outside 0..C-1 are classes of other
    shards.
    """
    C, K, D = centers.shape
    own, negative = (rows.new_full((len(rows),), -torch.inf) for _ in range(2))
    high = min(_ROWS, max(1, len(rows)))
    step = max(1, budget // (2 * rows.element_size() * K * (high + 2 * D)))
    for first in range(0, C, step):
        block = unit_vectors(centers[first : first + step].to(rows.dtype)).flatten(0, 1)
        for begin in range(0, len(rows), high):
            part = slice(begin, begin + high)
            cosines = (rows[part] @ block.T).unflatten(1, (-1, K)).amax(2)
            classes = torch.arange(first, first + cosines.shape[1], device=rows.device)
            mine = places[part, None] == classes
            own[part] = own[part].maximum(cosines.masked_fill(~mine, -torch.inf).amax(1))
            negative[part] = negative[part].maximum(cosines.masked_fill(mine, -torch.inf).amax(1))
    return own, negative


def _check_settings(eps: float, clamp: float | None) -> None:
    if not eps > 0 or (clamp is not None and not clamp > 0):
        raise ValueError(f"eps and clamp are positive, such as 1e-7 and 10, not {eps} and {clamp}.")


def _check(
    embeddings: Tensor, labels: Tensor, centers: Tensor, unrecognizable: Tensor, classes: int
) -> None:
    D = centers.shape[-1]
    if embeddings.ndim != 2 or embeddings.shape[1] != D or unrecognizable.shape[1:] != (D,):
        raise ValueError(
            f"Embeddings, class centers and centers of unrecognizable images are of one dimension, "
            f"not {tuple(embeddings.shape)}, {tuple(centers.shape)} and "
            f"{tuple(unrecognizable.shape)}. Encode all by one network."
        )
    if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"{len(embeddings)} embeddings need as many whole labels, not {labels.dtype} "
            f"{tuple(labels.shape)}."
        )
    if classes < 2:
        raise ValueError(f"The nearest other class needs at least 2 classes, not {classes}.")
    if readable(labels) and len(labels):
        low, high = (int(bound) for bound in labels.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(
                f"Labels run from 0 to {classes - 1}, but these hold {low} to {high}. Leave out "
                "rows that have no class."
            )
