"""Spectral contrastive loss: large products of positives, and small squares of all other products.

    loss = -2/N sum_i x_i . y_i + 1/(N (N - 1)) sum_{i != j} (x_i . y_j)^2,

an unbiased estimate of -2 E f(x) . f(x+) + E (f(x) . f(x'))^2, whose minimum factorises the matrix
of the augmentation graph. Over all pairs the squares are a product of two (D, D) matrices, sum_ij
(x_i . y_j)^2 = <sum_i x_i x_i^T, sum_j y_j y_j^T>, from which the pairs i = j are taken away:
nothing of N x N, and over ranks only sums. At perfect alignment it is |M - I|^2 - D, the
cross-correlation loss of weight 1 without centring.

Sources: HaoChen, Wei, Gaidon and Ma 2021 (population form and its estimate from a batch); the link
    to cross-correlation follows from |M|^2 - 2 tr M.
"""

from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from marginlab import ranks
from marginlab.kernels.function import unlowered
from marginlab.kernels.product import product
from marginlab.losses.pair import Empty, check_word, nothing, wide_of_all
from marginlab.settings import describe

Negatives = Literal["other_view", "both_views"]


def spectral_contrastive(
    z1: Float[Tensor, "B D"],
    z2: Float[Tensor, "B D"],
    *,
    negatives: Negatives = "other_view",
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
    empty: Empty = "zero",
) -> Float[Tensor, ""]:
    """Spectral contrastive loss of two views, over the rows of all ranks.

    Every rank gets the same number. Two (D, D) matrices are held.

    Args:
        z1, z2: This rank's embeddings of the two views, (B, D). Row i of both is from one image. A
            rank may have no rows (0, D). The rows are not normalised: the loss sets their length
            itself. Zero rows give the loss 0, equal rows of length r give r^4 - 2 r^2. With
            "other_view" only products of the two views enter. In float32, products beyond some
            1e18, whose squares are too large for it, make inf or NaN. With "both_views", entries
            beyond 1e9 do.
        negatives: "other_view", as published: squares of z1 against z2. "both_views": the mean of
            the four squares of two images' views, of the same expectation and less variance.
        group: Process group; None means the default group, or one rank.
        grads: "mean": gradients are those of the global loss times the number of ranks, for DDP and
            FSDP, which average. "sum": exactly those of the global loss.
        empty: Loss of a global batch in which nothing can be compared, such as one row. "zero": 0
            with zero gradient, so that the run goes on. "raise": ValueError.

    Raises:
        ValueError: Shapes that differ, or an unknown word.
        TypeError: Embeddings that are not floating point.

    Example:
        >>> z = torch.eye(4)
        >>> spectral_contrastive(z, z), spectral_contrastive(z, z.roll(1, 0))
        (tensor(-2.), tensor(0.3333))
    """
    check(negatives, grads)
    words = {"negatives": negatives, "grads": grads, "empty": empty}
    z1, z2, rows_per_rank = wide_of_all(z1, z2, group, "SpectralContrastive", **words)
    with unlowered(z1):
        n, width = sum(rows_per_rank), z1.shape[1]
        if n < 2:
            return nothing(
                empty,
                f"The spectral loss compares an image with others: a global batch of {n} has none. "
                "Give at least two rows.",
                z1,
                z2,
            )
        if negatives == "other_view":
            z1, z2 = _balanced(z1, z2, group)
        z = torch.stack((z1, z2))
        positive = (z1 * z2).sum(1)
        with_itself = positive.square()
        if negatives == "both_views":
            with_itself = (2 * with_itself + z.square().sum(2).square().sum(0)) / 4
        # One sum over the ranks, and all that follows is the same on every rank, as the gradient of
        # `total` asks
        parts = ranks.all_reduce(
            torch.cat((product(z.mT, z).flatten(), positive.sum()[None], with_itself.sum()[None])),
            group,
        )
        one, two = parts[:-2].view(2, width, width)
        squares = (one * two).sum() if negatives == "other_view" else (one + two).square().sum() / 4
        loss: Tensor = (squares - parts[-1]) / (n * (n - 1)) - 2 * parts[-2] / n
        return ranks.with_gradients(loss, group, grads)


def _balanced(z1: Tensor, z2: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Scale one view by a power of two, and the other by its inverse, to balance their entries.

    The loss sees only their products, and none of these changes. But squares of a long view
    overflow, and those of a short one vanish, before they are multiplied.
    """
    views = torch.stack((z1, z2)).detach().flatten(1)
    ends = views.abs().amax(1) if len(z1) else views.new_zeros(2)
    ends = ranks.all_gather_stack(ends, group).amax(0)
    # Of a view of zeros nothing is known: it goes where the other one has entries near 1
    there = ends.isfinite() & (ends > 0)
    one, two = torch.where(there, ends, 1.0).log2().unbind()
    # the largest of which both powers are numbers
    most = 126 if z1.dtype == torch.float32 else 1022
    power = torch.where(there.all(), (two - one) / 2, two - one).round().clamp(-most, most)
    return z1 * power.exp2(), z2 * (-power).exp2()


def check(negatives: str, grads: str) -> None:
    """Check the settings of the loss; raise ValueError for an invalid one."""
    check_word("negatives", negatives, ("other_view", "both_views"))
    check_word("grads", grads, ("mean", "sum"))


class SpectralContrastive(nn.Module):
    """Module form of `spectral_contrastive`: `SpectralContrastive()(z1, z2)`.

    See `spectral_contrastive` for the settings.

    Example:
        >>> SpectralContrastive()(torch.eye(4), torch.eye(4))
        tensor(-2.)
    """

    def __init__(
        self,
        negatives: Negatives = "other_view",
        group: dist.ProcessGroup | None = None,
        grads: ranks.Gradients = "mean",
        empty: Empty = "zero",
    ):
        super().__init__()
        check_word("empty", empty, ("zero", "raise"))
        check(negatives, grads)
        self.negatives, self.group, self.grads = negatives, group, grads
        self.empty = empty

    def forward(self, z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """Return the loss of two views (B, D)."""
        return spectral_contrastive(
            z1, z2, negatives=self.negatives, group=self.group, grads=self.grads, empty=self.empty
        )

    def __repr__(self) -> str:
        return describe(
            "SpectralContrastive", negatives=self.negatives, grads=self.grads, empty=self.empty
        )
