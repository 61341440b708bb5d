"""t-InfoNCE: InfoNCE with the heavy-tailed kernel of t-SNE instead of the exponential of a cosine.

    loss_a = -log( q_ap / (q_ap + sum_n q_an) ) = softplus( log sum_n q_an - log q_ap ),
    q_ij = 1 / (1 + |z_i - z_j|^2),

for an anchor a with its positive p; the negatives n are all other rows of both views. Distances are
those of the rows as they are, not of their directions, so embeddings of two features can be drawn
as they come. Distances are computed in float64. In float32, for rows of a length of 3e4, which
float16 holds, the rounding of squares is larger than the distances between the others, and squares
of rows beyond 1e19 are infinite. Like InfoNCE, the loss splits into an alignment, E log(1 + |z_a -
z_p|^2), and a divergence, E log of the sum over all candidates.

Sources: Hu et al. 2022 (t-InfoNCE); Boehm et al. 2023 (t-SimCNE); decomposition: Huang et al. 2023.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from marginlab import ranks
from marginlab.kernels import BUDGET, log_cauchy_sum
from marginlab.kernels.function import unlowered
from marginlab.losses.pair import BatchLoss, Empty, check_word, nothing, wide_of_all


def t_info_nce(
    z1: Float[Tensor, "B D"],
    z2: Float[Tensor, "B D"],
    *,
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
    empty: Empty = "zero",
    budget: int = BUDGET,
) -> Float[Tensor, ""]:
    """t-InfoNCE of two views: the mean over the 2N anchors of all ranks.

    Every rank gets the same number. The loss is twice differentiable. Forward mode is not
    supported: for a Hessian, use torch.func.jacrev(torch.func.grad(loss)), not torch.func.hessian.

    Args:
        z1, z2: This rank's embeddings of the two views, (B, D). Row i of both is from one image. A
            rank may have no rows (0, D). Rows that are all equal have the loss log(2N - 1) and no
            gradient.
        group: Process group; None means the default group, or one rank.
        grads: "mean": gradients are those of the global loss times the number of ranks, for DDP and
            FSDP, which average. "sum": exactly those of the global loss.
        empty: Loss of a global batch in which nothing can be compared, such as one row. "zero": 0
            with zero gradient, so that the run goes on. "raise": ValueError.
        budget: Bytes of the block of similarities to hold.

    Raises:
        ValueError: Shapes that differ, or an unknown word.
        TypeError: Embeddings that are not floating point.

    Example:
        >>> z = torch.tensor([[0.0, 0.0], [3.0, 4.0]])  # two negatives at distance 5
        >>> t_info_nce(z, z)  # log(1 + 2/26)
        tensor(0.0741)
    """
    check_word("grads", grads, ("mean", "sum"))
    z1, z2, rows_per_rank = wide_of_all(z1, z2, group, "TInfoNCE", grads=grads, empty=empty)
    with unlowered(z1):
        n, first = sum(rows_per_rank), sum(rows_per_rank[: ranks.rank(group)])
        if n < 2:
            return nothing(
                empty,
                f"t-InfoNCE finds a view among others: a global batch of {n} has no negatives. "
                "Give at least two rows.",
                z1,
                z2,
            )
        dtype, (z1, z2) = z1.dtype, (z1.double(), z2.double())
        columns = torch.cat(ranks.all_gather(torch.stack((z1, z2), 1), group).unbind(1))
        itself = torch.arange(first, first + len(z1), device=z1.device)
        # itself and its positive, for either view
        exclude = torch.stack((itself, itself + n), 1).repeat(2, 1)
        far = log_cauchy_sum(torch.cat((z1, z2)), columns, exclude=exclude, budget=budget)
        near = -(z1 - z2).square().sum(1).log1p().repeat(2)
        losses = F.softplus(far - near, threshold=40.0)
        return ranks.all_reduce(losses.sum() / (2 * n), group, grads).to(dtype)


class TInfoNCE(BatchLoss):
    """Module form of `t_info_nce`: `TInfoNCE()(z1, z2)`; see there for the settings.

    Example:
        >>> z = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> TInfoNCE()(z, z)
        tensor(0.0741)
    """

    names = ("grads", "empty", "budget")

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        grads: ranks.Gradients = "mean",
        empty: Empty = "zero",
        budget: int = BUDGET,
    ):
        super().__init__(group, grads, empty, budget)
        check_word("grads", grads, ("mean", "sum"))

    def forward(self, z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """Return the loss of two views (B, D)."""
        return t_info_nce(z1, z2, **self.arguments)
