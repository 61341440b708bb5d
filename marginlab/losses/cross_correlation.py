"""Cross-correlation loss (Barlow Twins).

Every feature agrees with itself across the views, and with no other.

With both views standardised feature by feature over the global batch of N rows, z' = (z - mean) /
deviation, and C = Z1'^T Z2' / N,

    loss = sum_i (1 - C_ii)^2 + w sum_{i != j} C_ij^2.

Statistics of the batch: the mean, and the standard deviation with `correction` 0 (divided by N, so
that C_ii = 1 and the loss is 0 for equal, decorrelated views; so does the batch normalisation of
Zbontar et al.'s code) or 1 (divided by N - 1, as in Huang et al.'s: C_ii is then at most (N - 1) /
N).

C is held where it fits the budget; beyond (D above 2,896 in float32), the squares off its diagonal
are summed block by block.

Sources: Zbontar et al. 2021, eqs. 1 and 2; (1 - w) L1 + w L2 of Huang et al. 2023, section 4.2,
    with L1 the diagonal part.
"""

from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from marginlab import ranks
from marginlab.kernels import BUDGET, off_diagonal_squares
from marginlab.kernels.function import unlowered
from marginlab.kernels.product import product
from marginlab.losses.pair import BatchLoss, Empty, check_word, nothing, wide_of_all
from marginlab.statistics import in_range

Gradients = Literal["mean", "sum", "published"]


def cross_correlation(
    z1: Float[Tensor, "B D"],
    z2: Float[Tensor, "B D"],
    *,
    off_diagonal_weight: float = 5e-3,
    correction: int = 0,
    group: dist.ProcessGroup | None = None,
    grads: Gradients = "mean",
    empty: Empty = "zero",
    budget: int = BUDGET,
) -> Float[Tensor, ""]:
    """Cross-correlation loss of two views, over the rows of all ranks.

    Every rank gets the same number. A feature that is constant over the batch, to 16 units of
    rounding of its mean, has no correlation. It counts as 0 with every feature (so it adds 1 to the
    loss by its diagonal) and gets no gradient.

    Args:
        z1, z2: This rank's embeddings of the two views, (B, D). Row i of both is from one image. A
            rank may have no rows (0, D).
        off_diagonal_weight: w.
        correction: 0, deviations of the batch itself, or 1, unbiased ones.
        group: Process group; None means the default group, or one rank.
        grads: "mean": gradients are those of the global loss times the number of ranks, for DDP and
            FSDP, which average. "sum": exactly those of the global loss. "published": as in the
            code of Zbontar et al. That code sums C over the ranks outside of autograd, so that each
            rank has the gradient of its own rows, and DDP's average is the exact gradient divided
            by the number of ranks: the same numbers as "sum". LARS hides the factor for weights,
            which it rescales, but not for biases and norms. Published learning rates for biases and
            norms include the factor.
        empty: Loss of a global batch in which nothing can be compared, such as one row. "zero": 0
            with zero gradient, so that the run goes on. "raise": ValueError.
        budget: Bytes up to which C is held whole; with more features its blocks are of this size,
            and there is no second derivative and no forward mode.

    Raises:
        ValueError: Shapes that differ, a negative weight, or a correction that is not 0 or 1.
        TypeError: Embeddings that are not floating point.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> cross_correlation(z, 3 * z + 5), cross_correlation(z, -z)
        (tensor(0.), tensor(8.))
    """
    check(off_diagonal_weight, correction, grads)
    weights = (off_diagonal_weight, correction)
    alike = {"settings": weights, "grads": grads, "empty": empty}
    z1, z2, rows_per_rank = wide_of_all(z1, z2, group, "CrossCorrelation", **alike)
    with unlowered(z1):
        contract: ranks.Gradients = "sum" if grads == "published" else grads
        n, width = sum(rows_per_rank), z1.shape[1]
        if n < 2:
            return nothing(
                empty,
                f"Features are standardised over the global batch: one of {n} has no deviation. "
                "Give at least two rows.",
                z1,
                z2,
            )
        z = torch.stack((z1, z2))
        # Two passes: squares of uncentred features would lose the deviation of a feature whose mean
        # is large. The origin is a constant; what the batch's mean is off from it is taken away
        # below, with gradient, so the result depends on the origin in no derivative, only in its
        # rounding. Each moment goes through one sum over the ranks, and all that follows is the
        # same on every rank, as the gradient of `total` asks. Each feature is first divided by the
        # power of two of its largest entry: correlations do not see it, squares of long rows stay
        # finite, and those of their gradients do not vanish.
        given = z.detach()
        ends = (
            torch.maximum(given.amax(1), -given.amin(1)) if len(z1) else given.new_zeros(2, width)
        )
        ends = ranks.all_gather_stack(ends, group).amax(0)[:, None]
        z, power = in_range(z, ends)
        ends = ends * power
        z = z * torch.where(ends > 0, ends, 1.0).log2().floor().neg().exp2()
        origin = ranks.all_reduce(z.detach().sum(1), group) / n
        z = z - origin[:, None]
        fits = width * width * z.element_size() <= budget
        shared = product(z[0].T, z[1]) if fits else (z[0] * z[1]).sum(0)[None]
        moments = ranks.all_reduce(torch.cat((shared, z.sum(1), z.square().sum(1))), group) / n
        shared, shift, square = moments[:-4], moments[-4:-2], moments[-2:]
        variance = square - shift.square()
        alive = variance > (16 * torch.finfo(z.dtype).eps * origin).square()
        # twice, or the slope of the branch not taken makes NaN
        inverse = torch.where(alive, torch.where(alive, variance, 1.0).rsqrt(), 0.0)
        inverse = inverse * ((n - correction) / n) ** 0.5
        if fits:
            c = (shared - torch.outer(shift[0], shift[1])) * inverse[0, :, None] * inverse[1]
            diagonal = c.diagonal()
            # exact zeros; the difference of two sums of squares would cancel
            squares = (c - torch.diag(diagonal)).square().sum()
        else:
            diagonal = (shared[0] - shift[0] * shift[1]) * inverse[0] * inverse[1]
            means, scales = (shift[0], shift[1]), (inverse[0], inverse[1])
            squares = off_diagonal_squares(
                z[0], z[1], means, scales, rows=n, group=group, budget=budget
            )
        loss: Tensor = (1 - diagonal).square().sum() + off_diagonal_weight * squares
        return ranks.with_gradients(loss, group, contract)


def check(off_diagonal_weight: float, correction: int, grads: str) -> None:
    """Check the settings of the loss; raise ValueError for an invalid one."""
    if not off_diagonal_weight >= 0:
        raise ValueError(
            "The weight of the off-diagonal terms is not negative, such as 0.005, not "
            f"{off_diagonal_weight}."
        )
    if correction not in (0, 1):
        raise ValueError(
            f"The correction of the deviation is 0 (divide by N) or 1 (by N - 1), not {correction}."
        )
    check_word("grads", grads, ("mean", "sum", "published"))


class CrossCorrelation(BatchLoss):
    """Module form of `cross_correlation`: `CrossCorrelation(off_diagonal_weight=5e-3)(z1, z2)`.

    See `cross_correlation` for the settings.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> CrossCorrelation()(z, -z)
        tensor(8.)
    """

    names = ("off_diagonal_weight", "correction", "grads", "empty", "budget")

    def __init__(
        self,
        off_diagonal_weight: float = 5e-3,
        correction: int = 0,
        group: dist.ProcessGroup | None = None,
        grads: Gradients = "mean",
        empty: Empty = "zero",
        budget: int = BUDGET,
    ):
        super().__init__(group, grads, empty, budget)
        check(off_diagonal_weight, correction, grads)
        self.off_diagonal_weight, self.correction = off_diagonal_weight, correction

    def forward(self, z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """Return the loss of two views (B, D)."""
        return cross_correlation(z1, z2, **self.arguments)
