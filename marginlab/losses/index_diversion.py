"""Index diversion: hard images are moved away from the indices of unrecognizable ones.

    div_i = (xi^_i - mu) / sigma,     L_ID = mean over i of max(0, tau - div_i)

xi^ is the predicted recognizability index. mu and sigma are the mean and the sample deviation of
the indices s_k of K unrecognizable images, without gradient. Only images with xi^ below mu + tau
sigma pay. Source: Chai et al. 2023 (CVPR), eq. 5 to 7.

The paper does not say how s_k comes about, since an unrecognizable image has no class. So there are
three kinds:

    "predicted"   xi^ of unrecognizable images by the present network
    "prior"       standard normal numbers, as in deviation networks (Pang et al. 2019)
    "labelled"    the index by its formula, of labelled images that were ruined

A head that still says one number for all has sigma = 0, hence the floor. A constant added to all
xi^ lowers the loss with "prior", but not with "predicted" once mu is renewed.

Beside it stand the two other terms of the paper's total loss, each a mean over the rows of all
ranks, with its target held constant:

    L_1   = smooth-L1(xi^, xi) with a knee at 0.75
    L_MSE = |v' - v_a|^2, v' the unit embedding without its part along u, v_a the attended one
"""

import warnings
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from marginlab import ranks
from marginlab.kernels.function import readable
from marginlab.rng import Key
from marginlab.statistics import remove_direction

Kind = Literal["predicted", "prior", "labelled"]
KINDS = ("predicted", "prior", "labelled")
INSTANCES = 5000
"""Number K of unrecognizable images in the paper."""


def index_diversion(
    predicted: Float[Tensor, " B"],
    mean: Float[Tensor, ""],
    deviation: Float[Tensor, ""],
    *,
    tau: float = 3.0,
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
) -> Float[Tensor, ""]:
    """Return the index diversion loss: the mean over all ranks' rows of max(0, tau - div).

    Args:
        predicted: Predicted indices.
        mean, deviation: Of the indices of unrecognizable images; no gradient reaches them.
        tau: Deviations from the mean beyond which an image pays nothing.
        group: The ranks with the rows.
        grads: "mean" multiplies gradients by the number of ranks, for DDP, which averages; "sum"
            does not.

    Raises:
        ValueError: The deviation is not positive (on a CPU), indices are not (B,), or no rank has
            a row. If one rank rejects its input, all raise.

    Example:
        >>> x = torch.tensor([0.35, 0.6])
        >>> index_diversion(x, torch.tensor(0.2), torch.tensor(0.1))
        tensor(0.7500)
    """
    mean, deviation = mean.detach(), deviation.detach()

    def check() -> Tensor:
        _check_rows("Predicted indices", predicted)
        if readable(deviation) and not float(deviation) > 0:
            raise ValueError(f"A deviation of indices is positive, not {float(deviation):g}.")
        return _wide(predicted)

    wide, rows_per_rank = ranks.validate_together(
        check, predicted, group, what="index_diversion", tau=tau, grads=grads
    )
    apart = (wide - mean.to(wide)) / deviation.to(wide)
    return _mean((tau - apart).clamp(min=0), rows_per_rank, group, grads)


def index_regression(
    predicted: Float[Tensor, " B"],
    index: Float[Tensor, " B"],
    *,
    knee: float = 0.75,
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
) -> Float[Tensor, ""]:
    """Return smooth-L1 of predicted indices against true ones, which get no gradient.

    Args:
        predicted, index: Predicted and true indices.
        knee: The error at which the loss turns from a parabola, e^2 / (2 knee), to a line.
        group, grads: As in `index_diversion`.

    Raises:
        ValueError: Indices are not (B,) and alike in shape, or no rank has a row. If one rank
            rejects its input, all raise.

    Example:
        >>> index_regression(torch.tensor([1.3, 2.15]), torch.ones(2), knee=0.75)
        tensor(0.4175)
    """

    def check() -> Tensor:
        _check_rows("Predicted indices", predicted)
        if index.shape != predicted.shape:
            raise ValueError(
                f"True indices have the shape of the predicted ones, {tuple(predicted.shape)}, not "
                f"{tuple(index.shape)}."
            )
        return _wide(predicted)

    wide, rows_per_rank = ranks.validate_together(
        check, predicted, group, what="index_regression", knee=knee, grads=grads
    )
    losses = F.smooth_l1_loss(wide, index.detach().to(wide), beta=knee, reduction="none")
    return _mean(losses, rows_per_rank, group, grads)


def attention_target(
    attended: Float[Tensor, "B D"],
    embeddings: Float[Tensor, "B D"],
    center: Float[Tensor, " D"],
    *,
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
) -> Float[Tensor, ""]:
    """Return the squared distance of attended embeddings from those without the part along u.

    Args:
        attended: v_a.
        embeddings: v, which gets no gradient.
        center: u, the center of unrecognizable images, which gets none either.
        group, grads: As in `index_diversion`.

    Raises:
        ValueError: Shapes that do not fit, or no rank has a row. If one rank rejects its input, all
            raise.

    Example:
        >>> attended = torch.tensor([[0.6, 1.0]])
        >>> attention_target(attended, torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 1.0]))
        tensor(1.)
    """

    def check() -> tuple[Tensor, Tensor]:
        if attended.shape != embeddings.shape:
            raise ValueError(
                f"Attended embeddings have the shape of the embeddings, {tuple(embeddings.shape)}, "
                f"not {tuple(attended.shape)}."
            )
        if center.shape != embeddings.shape[1:]:
            raise ValueError(
                f"A center of embeddings {tuple(embeddings.shape)} is "
                f"{tuple(embeddings.shape[1:])}, not {tuple(center.shape)}."
            )
        return _wide(attended), remove_direction(embeddings.detach(), center.detach())

    (wide, target), rows_per_rank = ranks.validate_together(
        check, attended, group, what="attention_target", grads=grads
    )
    losses = (wide - target.to(wide)).square().sum(1)
    return _mean(losses, rows_per_rank, group, grads)


class IndexDiversion(nn.Module):
    """The index diversion loss with the statistics of unrecognizable images, which are buffers.

    Before the first `renew` the loss is 0 for the kinds "predicted" and "labelled".

    Args:
        kind: "predicted", "prior" or "labelled" (see above): the meaning of what `renew` is given.
        tau: Deviations from the mean beyond which an image pays nothing. The paper's value is
            unknown.
        floor: Least deviation.
        seed: Seed of the normal numbers of "prior".
        group: The ranks with the rows.
        grads: As in `index_diversion`.

    Raises:
        ValueError: An unknown kind, or tau or the floor is not positive.

    Example:
        >>> loss = IndexDiversion("predicted", tau=3.0)
        >>> loss.renew(torch.tensor([0.1, 0.2, 0.3]))
        >>> float(loss.mean), float(loss.deviation)  # doctest: +ELLIPSIS
        (0.2000..., 0.1000...)
        >>> loss(torch.tensor([0.35, 0.6]))
        tensor(0.7500)
    """

    mean: Tensor
    deviation: Tensor
    known: Tensor

    def __init__(
        self,
        kind: Kind = "predicted",
        tau: float = 3.0,
        *,
        floor: float = 0.05,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
        grads: ranks.Gradients = "mean",
    ):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(map(repr, KINDS))}, not {kind!r}.")
        if not tau > 0 or not floor > 0:
            raise ValueError(f"tau and floor are positive, such as 3 and 0.05, not {tau}, {floor}.")
        self.kind, self.tau, self.floor = kind, tau, floor
        self.group, self.grads = group, grads
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("known", torch.zeros((), dtype=torch.long))
        if kind == "prior":
            self._keep(Key(seed).named("prior index").at(torch.arange(INSTANCES)).normal())

    @torch.no_grad()
    def renew(self, indices: Float[Tensor, " K"]) -> None:
        """Take mean and deviation of the indices of unrecognizable images, alike on every rank.

        Args:
            indices: (K,) of all ranks together, K at least 2.

        Raises:
            ValueError: The kind is "prior", or the indices are not (K,) finite numbers, K >= 2.
        """
        if self.kind == "prior":
            raise ValueError("The statistics of kind 'prior' are fixed; make one of another kind.")
        if indices.ndim != 1 or len(indices) < 2 or not bool(indices.isfinite().all()):
            raise ValueError(
                f"Indices of unrecognizable images are at least 2 finite numbers (K,), not "
                f"{tuple(indices.shape)} with {int((~indices.isfinite()).sum())} others."
            )
        self._keep(indices)

    def _keep(self, indices: Tensor) -> None:
        wide = indices.double()
        self.mean.copy_(wide.mean())
        self.deviation.copy_(wide.std().clamp(min=self.floor))
        self.known.fill_(1)

    def pressure(self, weight: float, regression: float) -> float:
        """Return weight / (regression deviation), and warn above 1.

        For an image that pays, the gradient with respect to its index is that of the regression,
        at most `regression`, less weight / deviation. Above 1 the regression cannot hold the index:
        all hard images are driven to mu + tau sigma, and their order is lost.

        Args:
            weight: Weight of this loss in the total.
            regression: Weight of the regression.
        """
        found = weight / (regression * float(self.deviation)) if regression > 0 else float("inf")
        if found > 1 and weight > 0:
            warnings.warn(
                f"Index diversion of weight {weight:g} presses {found:.2f} times as hard as the "
                f"regression of weight {regression:g} can hold, at a deviation of "
                f"{float(self.deviation):.3g}. Take a weight of at most "
                f"{regression * float(self.deviation) / 5:.2g}.",
                stacklevel=2,
            )
        return found if weight > 0 else 0.0

    def forward(self, predicted: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return the loss of predicted indices."""
        loss = index_diversion(
            predicted,
            self.mean,
            self.deviation,
            tau=self.tau,
            group=self.group,
            grads=self.grads,
        )
        return torch.where(self.known > 0, loss, 0 * loss)

    def extra_repr(self) -> str:
        """Describe the settings."""
        return f"{self.kind!r}, tau={self.tau}, floor={self.floor}"


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_rows(name: str, x: Tensor) -> None:
    if x.ndim != 1 or not x.is_floating_point():
        raise ValueError(f"{name} are (B,) floating-point numbers, not {x.dtype} {tuple(x.shape)}.")


def _mean(
    losses: Tensor,
    rows_per_rank: list[int],
    group: dist.ProcessGroup | None,
    grads: ranks.Gradients,
) -> Tensor:
    """Return the mean over the rows of all ranks."""
    rows = sum(rows_per_rank)
    if rows == 0:
        raise ValueError("A mean over no row on any rank is no loss: give at least one.")
    return ranks.all_reduce(losses.sum() / rows, group, grads=grads)
