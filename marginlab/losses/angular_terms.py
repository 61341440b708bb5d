"""Terms on angles that are added to a margin softmax: classes drawn together and pushed apart.

    intra   w/B sum_i theta(x_i, W_{y_i}) / pi
    inter  -w/B sum_i 1/(C - 1) sum_{j != y_i} theta(W_{y_i}, W_j) / pi
    theta(a, b) = arccos(a . b / (|a| |b|))

The intra term draws an embedding to the center of its class. The inter term pushes the centers of
the batch's classes away from all others. Neither knows of the softmax that it is added to.

The derivative of arccos at a cosine of 1 is infinite. The sine is therefore at least 1e-3 in
float32 (1e-6 in float64): an angle below 0.06 degrees counts as that much, almost without gradient.

Source: Deng et al. 2022 (ArcFace, TPAMI), eq. 5 and 6.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from marginlab import ranks
from marginlab.kernels import BUDGET
from marginlab.kernels.function import unlowered
from marginlab.losses.pair import check_word, directions, nothing
from marginlab.margins.combined import SMALLEST_SINE
from marginlab.settings import describe

_ENTRY = 6  # numbers that are held for an angle between the passes of a block


def intra_class(
    embeddings: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    centers: Float[Tensor, "C D"],
    *,
    weight: float = 1.0,
    sharded: bool = False,
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
) -> Float[Tensor, ""]:
    """Return the mean angle of the rows to the centers of their classes, in half turns.

    Every rank gets the mean over the rows of all ranks.

    Args:
        embeddings: This rank's rows (B, D), also none; they are L2-normalised here.
        labels: Their classes, (B,) in 0..C-1.
        centers: (C, D), all centers on every rank; with `sharded` this rank's part of them.
        weight: w.
        sharded: Each rank holds the centers of its own classes, in the order of the ranks. Their
            gradient is then that of the global loss.
        group: Process group; None means the default group, or one rank.
        grads: "mean": gradients of the rows (and of centers that every rank holds) are those of the
            global loss times the number of ranks, for DDP and FSDP, which average. "sum": exactly
            those of the global loss.

    Raises:
        ValueError: Shapes that do not fit, a label that is no class, a weight that is not positive.
        TypeError: Embeddings that are not floating point, or labels that are no integers.

    Example:
        >>> intra_class(torch.eye(2), torch.tensor([0, 1]), torch.eye(2).flip(0))
        tensor(0.5000)
    """
    check_term(weight, grads)
    classes = _classes(centers, sharded, group)
    x, labels, n = _rows(embeddings, labels, centers, classes, sharded, group, grads, "IntraClass")
    if n == 0:
        return nothing("zero", "", embeddings, centers)
    with unlowered(x):
        first = _first(classes, sharded, group)
        here = ((labels >= first) & (labels < first + len(centers))).nonzero()[:, 0]
        own = directions(centers[labels[here] - first]).to(x)
        total = angles((directions(x[here]) * own).sum(1)).sum()
        return _mean(total, n * math.pi / weight, sharded, group, grads)


def inter_class(
    embeddings: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    centers: Float[Tensor, "C D"],
    *,
    weight: float = 1.0,
    sharded: bool = False,
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
    budget: int = BUDGET,
) -> Float[Tensor, ""]:
    """Return minus the mean angle from the centers of the rows' classes to all others.

    The angle is in half turns. Embeddings get no gradient. Above the budget the angles are made in
    blocks, and made again in the backward pass. A batch of no rows, or one class, gives 0.

    Args:
        embeddings: This rank's rows (B, D), of which only the number counts.
        labels, centers, weight, sharded, group, grads: As in `intra_class`.
        budget: Bytes of angles to hold.

    Raises:
        ValueError, TypeError: As `intra_class`.

    Example:
        >>> inter_class(torch.eye(2), torch.tensor([0, 1]), torch.eye(2))
        tensor(-0.5000)
    """
    check_term(weight, grads)
    classes = _classes(centers, sharded, group)
    x, labels, n = _rows(embeddings, labels, centers, classes, sharded, group, grads, "InterClass")
    C = sum(classes)
    if n == 0 or C < 2:
        return nothing("zero", "", embeddings, centers)
    with unlowered(x):
        first = _first(classes, sharded, group)
        distinct, counts = labels.unique(return_counts=True)
        units = directions(centers).to(x)
        here = (distinct >= first) & (distinct < first + len(centers))
        rows = torch.zeros(len(distinct), x.shape[1], dtype=units.dtype, device=units.device)
        rows = rows.index_put((here.nonzero()[:, 0],), units[distinct[here] - first])
        if sharded:  # the centers of the batch's classes, from the ranks that have them
            rows = ranks.all_reduce_statistic(rows, group)
        step = max(1, budget // (_ENTRY * rows.element_size() * max(1, len(units))))
        total = x.flatten()[:0].sum()  # of no entries: 0, and connected to the rows
        for block, own, times in zip(
            rows.split(step), (distinct - first).split(step), counts.split(step), strict=True
        ):
            if len(rows) <= step:
                total = total + _away(block, units, own, times)
            else:
                total = total + checkpoint(_away, block, units, own, times, use_reentrant=False)
        return _mean(-total, n * (C - 1) * math.pi / weight, sharded, group, grads)


def angles(cosine: Tensor) -> Tensor:
    """Return arccos of cosines in radians, whose derivative is finite at 1 and -1."""
    cosine = cosine.clamp(-1, 1)
    least = SMALLEST_SINE[cosine.dtype] ** 2
    return torch.atan2(((1 - cosine) * (1 + cosine)).clamp_min(least).sqrt(), cosine)


def check_term(weight: float, grads: str) -> None:
    """Check the settings of a term; raise ValueError for an invalid one."""
    if not 0 < weight < math.inf:
        raise ValueError(f"The weight of a term is positive, such as 1.0, not {weight}.")
    check_word("grads", grads, ("mean", "sum"))


def check_rows(embeddings: Tensor, labels: Tensor) -> None:
    """Check that rows and labels fit.

    Raises:
        ValueError: Other shapes than (B, D) and (B,).
        TypeError: Rows that are not floating point, or labels that are no integers.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"Embeddings are (B, D) with labels (B,), not {tuple(embeddings.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if not embeddings.is_floating_point() or labels.is_floating_point():
        raise TypeError(
            f"Embeddings are floating point and labels integers, not {embeddings.dtype} and "
            f"{labels.dtype}."
        )


def _away(rows: Tensor, units: Tensor, own: Tensor, times: Tensor) -> Tensor:
    """Return the sum of the angles of rows to all units but their own, each counted so often."""
    columns = torch.arange(len(units), device=units.device)
    apart = angles(rows @ units.T).masked_fill(own[:, None] == columns, 0.0)
    return (apart.sum(1) * times).sum()


def _classes(centers: Tensor, sharded: bool, group: dist.ProcessGroup | None) -> list[int]:
    """Return the number of centers of each rank, or of all where each rank holds all."""
    n = len(centers) if centers.ndim == 2 else 0
    return ranks.rows_per_rank(n, group, centers.device) if sharded else [n]


def _first(classes: list[int], sharded: bool, group: dist.ProcessGroup | None) -> int:
    return sum(classes[: ranks.rank(group)]) if sharded else 0


def _rows(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    classes: list[int],
    sharded: bool,
    group: dist.ProcessGroup | None,
    grads: str,
    what: str,
) -> tuple[Tensor, Tensor, int]:
    """Return the rows to take angles of, in a wide type, their labels, and the rows of all ranks.

    With sharded centers they are the rows of all ranks.
    """

    def check() -> None:
        check_rows(embeddings, labels)
        if not centers.is_floating_point():
            raise TypeError(f"Centers are floating point, not {centers.dtype}: call .float().")
        if centers.ndim != 2 or centers.shape[1] != embeddings.shape[1]:
            raise ValueError(
                f"Centers are (C, D) with D = {embeddings.shape[1]}, not {tuple(centers.shape)}. "
                "A term has one center for each class: take centers[:, 0] of (C, 1, D)."
            )
        wrong = (labels < 0) | (labels >= sum(classes))
        if bool(wrong.any()):
            raise ValueError(
                f"Label {int(labels[wrong][0])} is no class: there are {sum(classes)}, numbered "
                "from 0."
            )

    _, counts = ranks.validate_together(
        check, embeddings, group, what=what, grads=grads, sharded=sharded, classes=sum(classes)
    )
    labels = labels.long()
    kind = torch.promote_types(torch.promote_types(embeddings.dtype, centers.dtype), torch.float32)
    x = embeddings.to(kind)
    if sharded and len(counts) > 1:
        factor = float(len(counts)) if grads == "mean" else 1.0
        x = ranks.all_gather(x, group, rows=counts, factor=factor)
        labels = ranks.all_gather(labels, group, rows=counts)
    return x, labels, sum(counts)


def _mean(
    total: Tensor,
    n: float,
    sharded: bool,
    group: dist.ProcessGroup | None,
    grads: ranks.Gradients,
) -> Tensor:
    """Return the sum over ranks divided by n; the factor of "mean" is in gathered rows already."""
    loss = ranks.all_reduce(total, group) / n
    return loss if sharded else ranks.with_gradients(loss, group, grads)


class AngularTerm(nn.Module, ABC):
    """A term that a classifier adds to its loss: `MarginClassifier(terms=("IntraClass()",))`.

    Args:
        weight: Factor on the term.
        group: Process group; None means the default group, or one rank.
        grads: "mean" or "sum", as in `intra_class`.
    """

    def __init__(
        self,
        weight: float = 1.0,
        group: dist.ProcessGroup | None = None,
        grads: ranks.Gradients = "mean",
    ):
        super().__init__()
        check_term(weight, grads)
        self.weight, self.group = float(weight), group
        self.grads: ranks.Gradients = grads

    @abstractmethod
    def forward(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int[Tensor, " B"],
        centers: Float[Tensor, "C D"] | None = None,
        *,
        sharded: bool = False,
    ) -> Float[Tensor, ""]:
        """Return the weighted term; arguments are those of `intra_class`."""

    def __repr__(self) -> str:
        return describe(type(self).__name__, weight=self.weight, grads=self.grads)


class CenterTerm(AngularTerm):
    """A term on class centers: the module form of `function`, with the settings of its base."""

    function: ClassVar[Callable[..., Tensor]]

    def forward(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int[Tensor, " B"],
        centers: Float[Tensor, "C D"] | None = None,
        *,
        sharded: bool = False,
    ) -> Float[Tensor, ""]:
        """Return the weighted term of embeddings (B, D) with labels (B,) and centers (C, D).

        Raises:
            ValueError: No centers are given, or as `intra_class`.
            TypeError: As `intra_class`.
        """
        if centers is None:
            raise ValueError(
                f"{type(self).__name__} is of class centers: call it with centers (C, D)."
            )
        shared = {"weight": self.weight, "group": self.group, "grads": self.grads}
        return self.function(embeddings, labels, centers, sharded=sharded, **shared)


class IntraClass(CenterTerm):
    """Module form of `intra_class`: `IntraClass()(embeddings, labels, centers)`.

    Example:
        >>> IntraClass(weight=2.0)(torch.eye(2), torch.tensor([0, 1]), torch.eye(2).flip(0))
        tensor(1.)
    """

    function = staticmethod(intra_class)


class InterClass(CenterTerm):
    """Module form of `inter_class`: `InterClass()(embeddings, labels, centers)`.

    Example:
        >>> InterClass(weight=2.0)(torch.eye(2), torch.tensor([0, 1]), torch.eye(2))
        tensor(-1.)
    """

    function = staticmethod(inter_class)
