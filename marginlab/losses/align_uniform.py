"""Alignment and uniformity on the unit sphere.

Alignment draws the views of an image together. Uniformity spreads the images as by a repelling
potential.

    loss = a E |x - y|^alpha + u (U(x) + U(y)) / 2,
    U(x) = log( 1/(N (N - 1)) sum_{i != j} exp(-t |x_i - x_j|^2) ),

with x and y the directions of the two views. The uniform law on the sphere minimises U. For
directions, -t |x_i - x_j|^2 = 2 t x_i . x_j - 2 t. U is therefore a softmax sum at the temperature
1/(2 t), and it is computed over blocks like that of InfoNCE.

Source: Wang and Isola 2020, section 4.1, and their code (pairs i < j of each view by itself, the
    mean of both).
"""

import math

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from marginlab import ranks
from marginlab.kernels import BUDGET, logsumexp, symmetric_logsumexp
from marginlab.kernels.function import unlowered
from marginlab.losses.pair import BatchLoss, Empty, check_word, directions, nothing, wide_of_all


def align_uniform(
    z1: Float[Tensor, "B D"],
    z2: Float[Tensor, "B D"],
    *,
    alignment_weight: float = 1.0,
    uniformity_weight: float = 1.0,
    alpha: float = 2.0,
    t: float = 2.0,
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
    empty: Empty = "zero",
    budget: int = BUDGET,
) -> Float[Tensor, ""]:
    """Alignment plus uniformity of two views, over the rows of all ranks.

    Every rank gets the same number. The loss is twice differentiable. Where two views coincide, the
    derivatives of |x - y|^alpha are 0. Forward mode is not supported: for a Hessian, use
    torch.func.jacrev(torch.func.grad(loss)), not torch.func.hessian.

    Args:
        z1, z2: This rank's embeddings of the two views, (B, D). Row i of both is from one image. A
            rank may have no rows (0, D). The rows are L2-normalised here. A row shorter than 1e-12
            has no direction. It counts as at distance 1 from its other view and sqrt 2 from other
            images, and gets no gradient.
        alignment_weight, uniformity_weight: a and u.
        alpha: Power of the distance between the views, at least 1.
        t: Steepness of the potential.
        group: Process group; None means the default group, or one rank.
        grads: "mean": gradients are those of the global loss times the number of ranks, for DDP and
            FSDP, which average. "sum": exactly those of the global loss.
        empty: Loss of a global batch in which nothing can be compared, such as one row. "zero": 0
            with zero gradient, so that the run goes on. "raise": ValueError.
        budget: Bytes of the block of similarities to hold.

    Raises:
        ValueError: Shapes that differ, a negative weight, alpha below 1, t not positive, or an
            unknown word.
        TypeError: Embeddings that are not floating point.

    Example:
        >>> z = torch.eye(4)
        >>> # all pairs at sqrt 2: U = -4; then views at distance 2
        >>> align_uniform(z, z), align_uniform(z, -z)
        (tensor(-4.), tensor(0.))
    """
    check(alignment_weight, uniformity_weight, alpha, t, grads)
    given = (alignment_weight, uniformity_weight, alpha, t)
    z1, z2, rows_per_rank = wide_of_all(
        z1, z2, group, "AlignUniform", grads=grads, settings=given, empty=empty
    )
    with unlowered(z1):
        x = torch.stack((directions(z1), directions(z2)), 1)
        n, first = sum(rows_per_rank), sum(rows_per_rank[: ranks.rank(group)])
        if n < 2:
            return nothing(
                empty,
                f"Uniformity is of pairs of images: a global batch of {n} has none. Give at least "
                "two rows.",
                z1,
                z2,
            )
        y = ranks.all_gather(x, group)
        itself = torch.arange(first, first + len(x), device=x.device)[:, None]
        if ranks.size(group) == 1:
            sums = [
                symmetric_logsumexp(view, scale=2 * t, exclude=itself, bound=2 * t, budget=budget)
                for view in x.unbind(1)
            ]
        else:
            sums = [
                logsumexp(*pair, scale=2 * t, exclude=itself, budget=budget)
                for pair in zip(x.unbind(1), y.unbind(1), strict=True)
            ]
        potential = torch.stack(sums, 1)  # (B, 2)
        # The largest of all ranks is a constant: the sum over the rows is taken relative to it, and
        # it is given back after the logarithm
        largest = ranks.all_gather(potential.detach(), group).amax(0)
        distance = _power_of_length(x[:, 0] - x[:, 1], alpha)
        totals = ranks.all_reduce(
            torch.cat((distance.sum()[None], (potential - largest).exp().sum(0))), group
        )
        uniformity = (totals[1:].log() + largest).mean() - 2 * t - math.log(n * (n - 1))
        loss = alignment_weight * totals[0] / n + uniformity_weight * uniformity
        return ranks.with_gradients(loss, group, grads)


def _power_of_length(d: Tensor, alpha: float) -> Tensor:
    """Return |d|^alpha of each row, with zero derivatives at d = 0.

    This also holds where the second derivative is infinite.
    """
    if alpha == 2:
        return d.square().sum(1)
    zero = (d == 0).all(1)
    length: Tensor = torch.linalg.vector_norm(d.masked_fill(zero[:, None], 1.0), dim=1)
    return length.pow(alpha).masked_fill(zero, 0.0)


def check(
    alignment_weight: float, uniformity_weight: float, alpha: float, t: float, grads: str
) -> None:
    """Check the settings of the loss; raise ValueError for an invalid one."""
    for name, weight in (
        ("alignment_weight", alignment_weight),
        ("uniformity_weight", uniformity_weight),
    ):
        if not weight >= 0:
            raise ValueError(f"{name} is not negative, such as 1.0, not {weight}.")
    if not alpha >= 1:
        raise ValueError(
            "The power alpha of a distance is at least 1 (below, its slope at 0 is infinite), "
            f"such as 2.0, not {alpha}."
        )
    if not t > 0:
        raise ValueError(f"The steepness t of the potential is positive, such as 2.0, not {t}.")
    check_word("grads", grads, ("mean", "sum"))


class AlignUniform(BatchLoss):
    """Module form of `align_uniform`: `AlignUniform(uniformity_weight=1.0)(z1, z2)`.

    See `align_uniform` for the settings.

    Example:
        >>> AlignUniform()(torch.eye(4), torch.eye(4))
        tensor(-4.)
    """

    names = ("alignment_weight", "uniformity_weight", "alpha", "t", "grads", "empty", "budget")

    def __init__(
        self,
        alignment_weight: float = 1.0,
        uniformity_weight: float = 1.0,
        alpha: float = 2.0,
        t: float = 2.0,
        group: dist.ProcessGroup | None = None,
        grads: ranks.Gradients = "mean",
        empty: Empty = "zero",
        budget: int = BUDGET,
    ):
        super().__init__(group, grads, empty, budget)
        check(alignment_weight, uniformity_weight, alpha, t, grads)
        self.alignment_weight, self.uniformity_weight, self.alpha, self.t = (
            alignment_weight,
            uniformity_weight,
            alpha,
            t,
        )

    def forward(self, z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """Return the loss of two views (B, D)."""
        return align_uniform(z1, z2, **self.arguments)
