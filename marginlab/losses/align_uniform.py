"""Alignment and uniformity on the unit sphere: views of an image near each other, images spread as
by a repelling potential.

    loss = a E |x - y|^alpha + u (U(x) + U(y)) / 2,   U(x) = log( 1/(N (N - 1)) sum_{i != j} exp(-t |x_i - x_j|^2) ),

with x and y the directions of the two views. The law that minimises U is the uniform one on the
sphere. On directions -t |x_i - x_j|^2 = 2 t x_i . x_j - 2 t, so U is a softmax sum at the
temperature 1/(2 t), taken over blocks like that of InfoNCE.

Source: Wang and Isola 2020, section 4.1, and their code (pairs i < j of each view by itself, the
    mean of both).
"""

import math

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from marginlab import ranks
from marginlab.kernels import BUDGET, logsumexp, symmetric_logsumexp
from marginlab.kernels.function import unlowered
from marginlab.losses.pair import Empty, check_word, directions, nothing, wide_of_all
from marginlab.settings import describe


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
    """Alignment plus uniformity of two views, over the rows of all ranks; the same number on every
    rank.

    Twice differentiable; of two views that coincide the derivatives of |x - y|^alpha are 0. There
    is no forward mode: a Hessian is torch.func.jacrev(torch.func.grad(loss)), not
    torch.func.hessian.

    Args:
        z1, z2: this rank's embeddings of the two views, row i of both from one image; also none (0,
            D). They are L2-normalised here; a row shorter than 1e-12 has no direction: it counts as
            at distance 1 from its other view and sqrt 2 from other images, and gets no gradient.
        alignment_weight, uniformity_weight: a and u.
        alpha: power of the distance between the views, at least 1.
        t: steepness of the potential.
        group: process group; None is the default one, or one rank.
        grads: gradients are those of the global loss times the number of ranks ("mean", for DDP and
            FSDP, which average) or exactly those ("sum").
        empty: the loss of a global batch in which nothing can be compared, such as one row: "zero",
            0 with zero gradient, so that it ends no run; or "raise", ValueError.
        budget: bytes of the block of similarities that is held.

    Raises:
        ValueError: shapes that differ, a negative weight, alpha below 1, t not positive, or an
            unknown word.
        TypeError: embeddings that are not floating point.

    >>> z = torch.eye(4)
    >>> align_uniform(z, z), align_uniform(z, -z)  # all pairs at sqrt 2: U = -4; then views at distance 2
    (tensor(-4.), tensor(0.))
    """
    check(alignment_weight, uniformity_weight, alpha, t, grads)
    given = (alignment_weight, uniformity_weight, alpha, t)
    z1, z2, held = wide_of_all(
        z1, z2, group, "AlignUniform", grads=grads, settings=given, empty=empty
    )
    with unlowered(z1):
        x = torch.stack((directions(z1), directions(z2)), 1)
        n, first = sum(held), sum(held[: ranks.rank(group)])
        if n < 2:
            return nothing(
                empty,
                f"Uniformity is of pairs of images: a global batch of {n} has none. Give "
                f"at least two rows.",
                z1,
                z2,
            )
        y = ranks.gather(x, group)
        own = torch.arange(first, first + len(x), device=x.device)[:, None]
        if ranks.size(group) == 1:
            sums = [
                symmetric_logsumexp(view, scale=2 * t, exclude=own, bound=2 * t, budget=budget)
                for view in x.unbind(1)
            ]
        else:
            sums = [
                logsumexp(*pair, scale=2 * t, exclude=own, budget=budget)
                for pair in zip(x.unbind(1), y.unbind(1), strict=True)
            ]
        potential = torch.stack(sums, 1)  # (B, 2)
        # The largest of all ranks is a constant: the sum over the rows is taken relative to it, and
        # it is given back after the logarithm
        largest = ranks.gather(potential.detach(), group).amax(0)
        distance = _power_of_length(x[:, 0] - x[:, 1], alpha)
        totals = ranks.total(
            torch.cat((distance.sum()[None], (potential - largest).exp().sum(0))), group
        )
        uniformity = (totals[1:].log() + largest).mean() - 2 * t - math.log(n * (n - 1))
        loss = alignment_weight * totals[0] / n + uniformity_weight * uniformity
        return ranks.with_gradients(loss, group, grads)


def _power_of_length(d: Tensor, alpha: float) -> Tensor:
    """|d|^alpha of each row, with derivatives 0 at d = 0, also where the second one is infinite."""
    if alpha == 2:
        return d.square().sum(1)
    zero = (d == 0).all(1)
    length: Tensor = torch.linalg.vector_norm(d.masked_fill(zero[:, None], 1.0), dim=1)
    return length.pow(alpha).masked_fill(zero, 0.0)


def check(
    alignment_weight: float, uniformity_weight: float, alpha: float, t: float, grads: str
) -> None:
    """Refuse what the loss cannot be made of (ValueError)."""
    for name, weight in (
        ("alignment_weight", alignment_weight),
        ("uniformity_weight", uniformity_weight),
    ):
        if not weight >= 0:
            raise ValueError(f"{name} is not negative, such as 1.0, not {weight}.")
    if not alpha >= 1:
        raise ValueError(
            f"The power alpha of a distance is at least 1 (below, its slope at 0 is "
            f"infinite), such as 2.0, not {alpha}."
        )
    if not t > 0:
        raise ValueError(f"The steepness t of the potential is positive, such as 2.0, not {t}.")
    check_word("grads", grads, ("mean", "sum"))


class AlignUniform(nn.Module):
    """`align_uniform` with its settings: `AlignUniform(uniformity_weight=1.0)(z1, z2)`. See there
    for what they mean.

    >>> AlignUniform()(torch.eye(4), torch.eye(4))
    tensor(-4.)
    """

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
        super().__init__()
        check_word("empty", empty, ("zero", "raise"))
        check(alignment_weight, uniformity_weight, alpha, t, grads)
        self.alignment_weight, self.uniformity_weight, self.alpha, self.t = (
            alignment_weight,
            uniformity_weight,
            alpha,
            t,
        )
        self.group, self.grads, self.budget = group, grads, budget
        self.empty = empty

    def forward(self, z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """The loss of two views (B, D)."""
        return align_uniform(
            z1,
            z2,
            alignment_weight=self.alignment_weight,
            uniformity_weight=self.uniformity_weight,
            alpha=self.alpha,
            t=self.t,
            group=self.group,
            grads=self.grads,
            empty=self.empty,
            budget=self.budget,
        )

    def __repr__(self) -> str:
        settings = (
            "alignment_weight",
            "uniformity_weight",
            "alpha",
            "t",
            "grads",
            "empty",
            "budget",
        )
        return describe("AlignUniform", **{name: getattr(self, name) for name in settings})
