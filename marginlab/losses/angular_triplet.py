"""The triplet loss on angles, with the hardest positive and negative of the batch for each row.

    L = 1/A sum_a max(0, theta(x_a, x_p) + m - theta(x_a, x_n))
    p = the row of a's class at the largest angle,   n = the row of another class at the smallest

A are the rows that have both, over all ranks. Rows are gathered from all ranks, so a rank's row may
have its positive on another. The two are found a block of rows at a time, without gradient; then
only two angles for each row carry one.

Sources: Deng et al. 2022 (ArcFace, TPAMI), section 3.1, for the angle and m = 0.35. It does not say
which triplets are taken; the hardest of a batch are those of Hermans et al. 2017.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from marginlab import ranks
from marginlab.kernels import BUDGET
from marginlab.kernels.function import unlowered
from marginlab.losses.angular_terms import AngularTerm, angles, check_rows, check_term
from marginlab.losses.pair import directions, nothing
from marginlab.settings import describe

_ENTRY = 4  # numbers that are held for a cosine while the hardest are found


def angular_triplet(
    embeddings: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    *,
    margin: float = 0.35,
    weight: float = 1.0,
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
    budget: int = BUDGET,
) -> Float[Tensor, ""]:
    """Return the triplet loss on angles, over the rows of all ranks.

    Every rank gets the same number. It is 0 where no row has both a positive and a negative.

    Args:
        embeddings: This rank's rows (B, D), also none; they are L2-normalised here.
        labels: Their classes (B,).
        margin: m, in radians.
        weight: Factor on the loss.
        group: Process group; None means the default group, or one rank.
        grads: "mean": gradients are those of the global loss times the number of ranks, for DDP and
            FSDP, which average. "sum": exactly those of the global loss.
        budget: Bytes of the block of cosines to hold.

    Raises:
        ValueError: Shapes that do not fit, a margin outside [0, pi), a weight that is not positive.
        TypeError: Embeddings that are not floating point, or labels that are no integers.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> angular_triplet(x, torch.tensor([0, 0, 1]), margin=0.5)  # (pi/2 - pi, pi/2 - pi/2) + m
        tensor(0.2500)
    """
    check_term(weight, grads)
    check_margin(margin)
    _, counts = ranks.validate_together(
        lambda: check_rows(embeddings, labels), embeddings, group, what="AngularTriplet",
        grads=grads, margin=margin, weight=weight,
    )  # fmt: skip
    if sum(counts) == 0:
        return nothing("zero", "", embeddings)
    with unlowered(embeddings):
        x = directions(embeddings)
        y = ranks.all_gather(x, group, rows=counts)
        own = labels.long()
        all_labels = ranks.all_gather(own, group, rows=counts)
        first = sum(counts[: ranks.rank(group)])
        positive, negative, counted = _hardest(x, y, own, all_labels, first, budget)
        near, far = (angles((x * y[index]).sum(1)) for index in (positive, negative))
        hinge = (near + margin - far).clamp_min(0).masked_fill(~counted, 0.0).sum()
        number = ranks.all_reduce(counted.sum().to(hinge.dtype), group)
        loss = weight * ranks.all_reduce(hinge, group) / number.clamp_min(1)
        return ranks.with_gradients(loss, group, grads)


@torch.no_grad()
def _hardest(
    x: Tensor, y: Tensor, own: Tensor, labels: Tensor, first: int, budget: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each row the indices of its positive and negative, and whether it has both."""
    step = max(1, budget // (_ENTRY * x.element_size() * max(1, len(y))))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    places = torch.arange(first, first + len(x), device=x.device)
    for rows, classes, place in zip(
        x.split(step), own.split(step), places.split(step), strict=True
    ):
        cosines = rows @ y.T
        same = classes[:, None] == labels
        itself = place[:, None] == torch.arange(len(y), device=x.device)
        positive = cosines.masked_fill(~same | itself, torch.inf).min(1)
        negative = cosines.masked_fill(same, -torch.inf).max(1)
        both = positive.values.isfinite() & negative.values.isfinite()
        found.append((positive.indices, negative.indices, both))
    positives, negatives, counted = (torch.cat(part) for part in zip(*found, strict=True))
    return positives, negatives, counted


def check_margin(margin: float) -> None:
    """Check the margin; raise ValueError for an invalid one."""
    if not 0 <= margin < torch.pi:
        raise ValueError(
            f"The margin of a triplet is an angle in radians, in [0, pi), such as 0.35, not "
            f"{margin}."
        )


class AngularTriplet(AngularTerm):
    """Module form of `angular_triplet`: `AngularTriplet(0.35)(embeddings, labels)`.

    As a term of a classifier it looks at embeddings only.

    Args:
        margin: m, in radians.
        weight, group, grads: As in `angular_triplet`.

    Example:
        >>> AngularTriplet(margin=0.5)(torch.eye(2), torch.tensor([0, 1]))  # without a positive
        tensor(0.)
    """

    def __init__(
        self,
        margin: float = 0.35,
        weight: float = 1.0,
        group: dist.ProcessGroup | None = None,
        grads: ranks.Gradients = "mean",
    ):
        super().__init__(weight, group, grads)
        check_margin(margin)
        self.margin = float(margin)

    def forward(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int[Tensor, " B"],
        centers: Float[Tensor, "C D"] | None = None,
        *,
        sharded: bool = False,
    ) -> Float[Tensor, ""]:
        """Return the loss; centers are not looked at."""
        return angular_triplet(
            embeddings, labels, margin=self.margin, weight=self.weight, group=self.group,
            grads=self.grads,
        )  # fmt: skip

    def __repr__(self) -> str:
        return describe("AngularTriplet", margin=self.margin, weight=self.weight, grads=self.grads)
