"""VICReg: invariance, variance and covariance of two views.

Views of an image become equal (invariance), every feature is spread (variance), and no two features
are alike (covariance). Variance and covariance are of each view by itself.

    loss = l |z1 - z2|^2 / (N D) + m (v(z1) + v(z2)) / 2 + n (c(z1) + c(z2)),
    v(z) = 1/D sum_j max(0, gamma - sqrt(Var_j + eps)),   c(z) = 1/D sum_{i != j} Cov_ij^2,

with unbiased variances and covariances over the global batch of N rows. This is the published code,
to whose weights 25, 25 and 1 belong the mean over the features in the first term and the half in
the second; the paper's equations have neither, so their weights l and m are ours times 1/D and 1/2.

Both (D, D) covariances are held where they fit the budget; beyond (D above 2,048 in float32), their
squares are summed block by block.

Source: Bardes, Ponce and LeCun 2022, eqs. 1 to 6, and the published code for the constants.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from marginlab import ranks
from marginlab.kernels import BUDGET, off_diagonal_squares
from marginlab.kernels.function import unlowered
from marginlab.kernels.product import product
from marginlab.losses.pair import BatchLoss, Empty, check_word, nothing, wide_of_all


def vicreg(
    z1: Float[Tensor, "B D"],
    z2: Float[Tensor, "B D"],
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-4,
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
    empty: Empty = "zero",
    budget: int = BUDGET,
) -> Float[Tensor, ""]:
    """VICReg of two views, over the rows of all ranks.

    Every rank gets the same number.

    Args:
        z1, z2: This rank's embeddings of the two views, (B, D). Row i of both is from one image. A
            rank may have no rows (0, D). Rows that are all equal give the variance term alone,
            variance_weight * max(0, gamma - sqrt(eps)). The rows are not normalised. The loss grows
            with their fourth power, so float32 entries beyond some 1e9 make it inf or NaN.
        invariance_weight, variance_weight, covariance_weight: l, m and n.
        gamma: Target of every feature's standard deviation.
        eps: Added to variances before the root, whose slope at 0 would be infinite.
        group: Process group; None means the default group, or one rank.
        grads: "mean": gradients are those of the global loss times the number of ranks, for DDP and
            FSDP, which average. "sum": exactly those of the global loss.
        empty: Loss of a global batch in which nothing can be compared, such as one row. "zero": 0
            with zero gradient, so that the run goes on. "raise": ValueError.
        budget: Bytes up to which the covariances are held whole; with more features their blocks
            are of this size, and there is no second derivative and no forward mode.

    Raises:
        ValueError: Shapes that differ, a negative weight or gamma, eps not positive, or an unknown
            word.
        TypeError: Embeddings that are not floating point.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> # spread and decorrelated; then 25 times a squared difference of 4
        >>> vicreg(z, z), vicreg(z, -z)
        (tensor(0.), tensor(100.))
    """
    check(invariance_weight, variance_weight, covariance_weight, gamma, eps, grads)
    given = (invariance_weight, variance_weight, covariance_weight, gamma, eps)
    z1, z2, rows_per_rank = wide_of_all(
        z1, z2, group, "VICReg", settings=given, grads=grads, empty=empty
    )
    with unlowered(z1):
        n, width = sum(rows_per_rank), z1.shape[1]
        if n < 2:
            return nothing(
                empty,
                f"VICReg takes variances over the global batch: one of {n} has none. Give at least "
                "two rows.",
                z1,
                z2,
            )
        z = torch.stack((z1, z2))
        # As in cross_correlation.py: a constant origin keeps the digits of features far from 0, and
        # each moment goes through one sum over the ranks
        z = z - ranks.all_reduce(z.detach().sum(1), group)[:, None] / n
        alone = width == 1  # no pair of features: nothing to overflow either
        fits = not alone and 2 * width * width * z.element_size() <= budget
        shared = product(z.mT, z).flatten(0, 1) if fits else z[0][:0]
        difference = (z1 - z2).square().sum(0)[None]
        moments = (
            ranks.all_reduce(torch.cat((shared, z.sum(1), z.square().sum(1), difference)), group)
            / n
        )
        shift, square, difference = moments[-5:-3], moments[-3:-1], moments[-1]
        unbiased = n / (n - 1)
        deviation = ((square - shift.square()).clamp_min(0) * unbiased + eps).sqrt()
        spread = (gamma - deviation).clamp_min(0).mean()  # over the features of both views
        if alone:
            alike = shift.new_zeros(())
        elif fits:
            covariance = (
                moments[:-5].view(2, width, width) - shift[:, :, None] * shift[:, None]
            ) * unbiased
            alike = (
                (covariance - torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))).square().sum()
            )
        else:
            scales = (torch.full_like(shift[0], unbiased), torch.ones_like(shift[0]))
            alike = torch.stack(
                [
                    off_diagonal_squares(
                        view, view, (m, m), scales, rows=n, half=True, group=group, budget=budget
                    )
                    for view, m in zip(z, shift, strict=True)
                ]
            ).sum()
        loss: Tensor = (
            invariance_weight * difference.mean()
            + variance_weight * spread
            + covariance_weight * alike / width
        )
        return ranks.with_gradients(loss, group, grads)


def check(
    invariance_weight: float,
    variance_weight: float,
    covariance_weight: float,
    gamma: float,
    eps: float,
    grads: str,
) -> None:
    """Check the settings of the loss; raise ValueError for an invalid one."""
    weights = {
        "invariance_weight": invariance_weight,
        "variance_weight": variance_weight,
        "covariance_weight": covariance_weight,
        "gamma": gamma,
    }
    for name, value in weights.items():
        if not value >= 0:
            raise ValueError(f"{name} is not negative, such as 1.0, not {value}.")
    if not eps > 0:
        raise ValueError(
            f"eps is added to variances before the root and is positive, such as 1e-4, not {eps}."
        )
    check_word("grads", grads, ("mean", "sum"))


class VICReg(BatchLoss):
    """Module form of `vicreg`: `VICReg()(z1, z2)`; see there for the settings.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> VICReg()(z, -z)
        tensor(100.)
    """

    names = (
        "invariance_weight",
        "variance_weight",
        "covariance_weight",
        "gamma",
        "eps",
        "grads",
        "empty",
        "budget",
    )

    def __init__(
        self,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        gamma: float = 1.0,
        eps: float = 1e-4,
        group: dist.ProcessGroup | None = None,
        grads: ranks.Gradients = "mean",
        empty: Empty = "zero",
        budget: int = BUDGET,
    ):
        super().__init__(group, grads, empty, budget)
        check(invariance_weight, variance_weight, covariance_weight, gamma, eps, grads)
        self.invariance_weight, self.variance_weight, self.covariance_weight = (
            invariance_weight,
            variance_weight,
            covariance_weight,
        )
        self.gamma, self.eps = gamma, eps

    def forward(self, z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """Return the loss of two views (B, D)."""
        return vicreg(z1, z2, **self.arguments)
