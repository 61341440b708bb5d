"""Contrastive loss of two towers at several nested widths, with label smoothing.

Row i of z1 (an image) and row i of z2 (its text) are a pair among the N rows of the global batch.
At the width m, cosines are those of the first m features, divided by the temperature T:

    z_ijm = cos(z1_i[:m], z2_j[:m]) / T
    loss = mean over m and i of  CE_epsilon(z_i.m, i) / 2 + CE_epsilon(z_.im, i) / 2,
    CE_epsilon(z, i) = log sum_j e^{z_j} - (1 - epsilon) z_i - (epsilon / N) sum_j z_j
                     = softplus(log sum_{j != i} e^{z_j} - z_i) + epsilon (z_i - mean_j z_j).

The mean of an anchor's logits is one product with the mean direction of the other side, so label
smoothing costs no pass over the matrix. The N x N similarities are never held. On one rank all
widths and both sides come from one product (`marginlab.kernels.nested`).

Sources: Radford et al. 2021 (CLIP), fig. 3; label smoothing: Szegedy et al. 2016, section 7; nested
widths: Kusupati et al. 2022 (Matryoshka representation learning), eq. 1, with equal weights.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from marginlab import ranks
from marginlab.kernels.function import unlowered
from marginlab.kernels.nested import nested_logsumexp
from marginlab.kernels.walk import BUDGET
from marginlab.losses.pair import (
    Empty,
    TemperedLoss,
    check_word,
    directions,
    nothing,
    number,
    wide_of_all,
)


def two_towers(
    z1: Float[Tensor, "B D"],
    z2: Float[Tensor, "B D"],
    *,
    temperature: float | Float[Tensor, ""] = 0.07,
    label_smoothing: float = 0.0,
    widths: Sequence[int] | None = None,
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
    empty: Empty = "zero",
    budget: int = BUDGET,
) -> Float[Tensor, ""]:
    """Return the loss of two towers, the mean over both sides and all widths.

    It is differentiable once.

    Args:
        z1, z2: This rank's embeddings of the two towers, (B, D). Row i of both is a pair. A row
            shorter than 1e-12 has no direction, nor has a prefix shorter than 1e-12 of its row: its
            cosine with everything is 0, and it gets no gradient.
        temperature: Divides the cosines. A tensor without dimensions may learn; its gradient then
            needs the same averaging over ranks as any parameter's.
        label_smoothing: epsilon in [0, 1): the part of the target that is spread over all N
            candidates, the pair included.
        widths: Nested widths, rising, such as (64, 128, 256, 512); None: D alone.
        group: Process group; None means the default group, or one rank.
        grads: "mean": gradients are those of the global loss times the number of ranks, for DDP and
            FSDP, which average. "sum": exactly those of the global loss.
        empty: Loss of a global batch of fewer than two rows. "zero": 0 with zero gradient. "raise":
            ValueError.
        budget: Bytes of the blocks to hold.

    Raises:
        ValueError: Shapes that differ, a setting out of range, or widths that do not rise to at
            most D; if one rank rejects its input, all raise.
        TypeError: Embeddings that are not floating point.
        RuntimeError: A second derivative is asked for.

    Example:
        >>> z = torch.eye(4)
        >>> two_towers(z, z, temperature=0.5)  # log(1 + 3 / e^2)
        tensor(0.3408)
    """
    _check(number(temperature), label_smoothing, grads)
    chosen = None if widths is None else tuple(widths)
    alike: dict[str, object] = {"widths": chosen, "settings": (label_smoothing, grads, empty)}
    if not isinstance(temperature, Tensor):
        alike["temperature"] = temperature
    (z1, z2), rows_per_rank = _checked(z1, z2, chosen, group, alike)
    chosen = (z1.shape[1],) if chosen is None else chosen
    n, first = sum(rows_per_rank), sum(rows_per_rank[: ranks.rank(group)])
    if n < 2:
        return nothing(
            empty,
            f"Two towers find a row's pair among others: a global batch of {n} has no others. Give "
            "at least two rows.",
            z1,
            z2,
            temperature,
        )
    with unlowered(z1):
        scale = 1 / torch.as_tensor(temperature, dtype=z1.dtype, device=z1.device)
        z1, z2 = directions(torch.cat((z1, z2))).chunk(2)  # squares of features stay in range
        # one collective for both towers
        y1, y2 = ranks.all_gather(torch.stack((z1, z2), 1), group).unbind(1)
        own = torch.arange(first, first + len(z1), device=z1.device)
        if ranks.size(group) == 1:
            far = nested_logsumexp(z1, z2, own, widths=chosen, scale=scale, budget=budget)
        else:  # the sums of this rank's rows need all columns, on either side
            far = (
                nested_logsumexp(z1, y2, own, widths=chosen, scale=scale, budget=budget)[0],
                nested_logsumexp(z2, y1, own, widths=chosen, scale=scale, budget=budget)[0],
            )
        total = z1.new_zeros(())
        for k, m in enumerate(chosen):
            x1, x2 = directions(z1[:, :m]), directions(z2[:, :m])
            near = (x1 * x2).sum(1) * scale
            for side, x, y in ((far[0], x1, y2), (far[1], x2, y1)):
                losses = F.softplus(side[k] - near, threshold=40.0)
                if label_smoothing > 0:
                    mean = (x * directions(y[:, :m]).mean(0)).sum(1) * scale
                    losses = losses + label_smoothing * (near - mean)
                total = total + losses.sum()
        return ranks.all_reduce(total / (2 * n * len(chosen)), group, grads)


def _check(temperature: float | None, label_smoothing: float, grads: str) -> None:
    if temperature is not None and not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"A temperature is positive, such as 0.07, not {temperature}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing lies in [0, 1), not at {label_smoothing}.")
    check_word("grads", grads, ("mean", "sum"))


def _checked(
    z1: Tensor,
    z2: Tensor,
    widths: tuple[int, ...] | None,
    group: dist.ProcessGroup | None,
    alike: dict[str, object],
) -> tuple[tuple[Tensor, Tensor], list[int]]:
    """Return this rank's batch in the precision of the sums; if one rank rejects its, all raise."""
    *views, rows_per_rank = wide_of_all(z1, z2, group, "TwoTowers", **alike)
    D = views[0].shape[1]
    if widths is not None and not (
        widths
        and all(a < b for a, b in zip((0, *widths), widths, strict=False))
        and widths[-1] <= D
    ):
        raise ValueError(
            f"Widths rise from at least 1 to at most the {D} features, such as "
            f"({max(D // 2, 1)}, {D}), not {widths}."
        )
    return (views[0], views[1]), rows_per_rank


class TwoTowers(TemperedLoss):
    """Module form of `two_towers`: `TwoTowers(0.07, widths=(64, 512))(z1, z2)`.

    See `two_towers` for the settings. With `learnable=True` the temperature is learned, as in
    `InfoNCE`.

    Example:
        >>> z = torch.eye(4)
        >>> TwoTowers(0.5)(z, z)
        tensor(0.3408)
        >>> TwoTowers(0.07, learnable=True, widths=(2, 4)).temperature
        tensor(0.0700, grad_fn=<ExpBackward0>)
    """

    names = ("temperature", "label_smoothing", "widths", "grads", "empty", "budget")

    def __init__(
        self,
        temperature: float = 0.07,
        label_smoothing: float = 0.0,
        widths: Sequence[int] | None = None,
        learnable: bool = False,
        group: dist.ProcessGroup | None = None,
        grads: ranks.Gradients = "mean",
        empty: Empty = "zero",
        budget: int = BUDGET,
    ):
        _check(temperature, label_smoothing, grads)
        super().__init__(temperature, learnable, group, grads, empty, budget)
        self.label_smoothing = label_smoothing
        self.widths = None if widths is None else tuple(widths)

    def forward(self, z1: Float[Tensor, "B D"], z2: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """Return the loss of the embeddings (B, D) of two towers."""
        return two_towers(z1, z2, **self.arguments)
