"""InfoNCE between two views.

It is the cross-entropy of finding an anchor's other view among all other rows of the global batch.
For an anchor a with its positive p and its negatives n, with the cosine s and the temperature T,

    loss_a = -log( e^{s_ap/T} / (e^{s_ap/T} + sum_n e^{s_an/T}) )
           = softplus( log sum_n e^{s_an/T} - s_ap/T ).

The positive is left out of the running sum and enters once, at the end. A well-placed anchor has a
loss of the size of its negatives' share. A sum that already holds the far larger positive would
have rounded this share away. For the same reason the anchor itself (s = 1, always the largest) is
never summed and subtracted. Two variations, which may be joined:

    decoupled:  log sum_n e^{s_an/T} - s_ap/T, without the positive in the denominator;
                its gradient does not fade as the pair comes close;
    debiased:   with the share tau_plus of negatives that are of the anchor's own class,
                and M negatives, their sum is replaced by
                max( (sum_n e^{s_an/T} - M tau_plus e^{s_ap/T}) / (1 - tau_plus),  M e^{-1/T} ).

With labels, every row of the anchor's class is a positive p in P(a), and only rows of other classes
are negatives n. The anchor's loss is the mean over its positives, each against all negatives alone:

    loss_a = 1/|P| sum_{p in P} -log( e^{s_ap/T} / (e^{s_ap/T} + sum_n e^{s_an/T}) ).

SupCon has all positives in every denominator, so that they push each other away; here they do not.
With one label for each image both are the loss above.

Sources: van den Oord et al. 2018, eq. 4; NT-Xent ("both_views"): Chen et al. 2020 (SimCLR), eq. 1;
two towers ("other_view"): Radford et al. 2021 (CLIP), fig. 3; decoupled: Yeh et al. 2022 (DCL);
debiased: Chuang et al. 2020, with the positive itself as the one sample of its class; a queue as
the only negatives ("extra_only"): He et al. 2020 (MoCo), eq. 1; several positives: Feeney and
Hughes 2023 (SINCERE), who give this argument against SupCon's denominator; decomposition into
alignment and divergence: Huang et al. 2023, section 4.1.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from marginlab import ranks
from marginlab.kernels import BUDGET, logsumexp, symmetric_logsumexp
from marginlab.kernels.function import unlowered
from marginlab.losses.info_nce_checks import Negatives, Reduction, alone, check, checked
from marginlab.losses.pair import Empty, TemperedLoss, directions, nothing, number
from marginlab.losses.several_positives import several_positives


def info_nce(
    z1: Float[Tensor, "B D"],
    z2: Float[Tensor, "B D"],
    *,
    temperature: float | Float[Tensor, ""] = 0.5,
    negatives: Negatives = "both_views",
    extra_negatives: Float[Tensor, "M D"] | None = None,
    labels: Int[Tensor, " B"] | None = None,
    symmetric: bool = True,
    decoupled: bool = False,
    tau_plus: float = 0.0,
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
    empty: Empty = "zero",
    budget: int = BUDGET,
) -> Float[Tensor, "*anchors"]:
    """InfoNCE of two views, over the rows of all ranks.

    The loss is twice differentiable. Forward mode is not supported: for a Hessian, use
    torch.func.jacrev(torch.func.grad(loss)), not torch.func.hessian.

    Args:
        z1, z2: This rank's embeddings of the two views, (B, D). Row i of both is from one image. A
            rank may have no rows (0, D). The rows are L2-normalised here. A row shorter than 1e-12
            has no direction: its cosine with everything is 0, and it gets no gradient.
        temperature: Divides the cosines; 1/scale. A tensor without dimensions may learn; its
            gradient is this rank's part, like that of a weight.
        negatives: "both_views", NT-Xent: the 2N rows of both views are anchors, and each has the
            other 2N - 2 rows as negatives. "other_view", two towers: the anchors are z1 against the
            other N - 1 rows of z2, and z2 against those of z1. "extra_only", MoCo's form: the
            anchors are z1 with the positives z2, and the reverse, against the extra negatives
            alone. These must be given; while there are none yet, the loss is that of `empty`.
        extra_negatives: Rows that join every anchor's negatives, such as those of an
            `EmbeddingBank`. Each rank gives its own part, as of z1 and z2; a part may be (0, D).
            Either all ranks give one or none does.
        labels: The class of each image (B,), whole numbers. All rows of a class are each other's
            positives. Extra negatives, which have no label, stay negatives of all. If all rows are
            of one class and there are no extra negatives, nothing can be compared.
        symmetric: False keeps the anchors z1 only; not with "both_views".
        decoupled: Leave the positive out of the sum over candidates. The loss may then be negative.
        tau_plus: The share of negatives that are of the anchor's own class, in [0, 1), such as
            1/classes; 0 is the ordinary loss.
        reduction: "mean" over the anchors of all ranks, "sum" over them, both the same number on
            every rank. "none": the losses of this rank's anchors, first those of z1, then those of
            z2: (2B,), or (B,) if not symmetric. Bring them together with `ranks.all_reduce`.
        group: Process group; None means the default group, or one rank.
        grads: "mean": gradients are those of the global loss times the number of ranks, for DDP and
            FSDP, which average. "sum": exactly those of the global loss. With reduction "none" they
            are those of the sum over the ranks of whatever each rank computes from its losses.
        empty: Loss of a global batch in which nothing can be compared, such as one row. "zero": 0
            with zero gradient, so that the run goes on. "raise": ValueError.
        budget: Bytes of the block of similarities to hold.

    Raises:
        ValueError: Shapes that differ, a temperature that is not positive, a tau_plus outside [0,
            1), an unknown word; labels with tau_plus, which then has nothing to estimate, or with
            "extra_only"; "extra_only" without extra negatives.
        TypeError: Embeddings that are not floating point, or labels that are not a tensor of
            integers.

    Example:
        >>> z = torch.eye(4)
        >>> # log(1 + 6 / e^2): each anchor has its positive at 1 and six negatives at 0
        >>> info_nce(z, z, temperature=0.5)
        tensor(0.5944)
    """
    check(number(temperature), negatives, symmetric, tau_plus, reduction, grads)
    extra_make = None if extra_negatives is None else extra_negatives.dtype
    alike = {
        "second view": z2.dtype,
        "extra_negatives": extra_make,
        "labels": labels is not None,
        "temperature": None if isinstance(temperature, Tensor) else temperature,  # never waited for
        "settings": (negatives, symmetric, decoupled, tau_plus, reduction, grads),
        "empty": empty,
    }
    (z1, z2, extra), rows_per_rank = ranks.validate_together(
        lambda: checked(z1, z2, extra_negatives, labels, negatives, tau_plus),
        z1,
        group,
        what="InfoNCE",
        **alike,
    )
    with unlowered(z1):
        x = directions(torch.cat((z1, z2)))  # once: small batches feel the number of calls
        x1, x2 = x.view(2, len(z1), x.shape[1]).unbind()
        n, first = sum(rows_per_rank), sum(rows_per_rank[: ranks.rank(group)])
        more = x1[:0] if extra is None else ranks.all_gather(directions(extra), group)
        every = (
            None if labels is None else ranks.all_gather(labels.long(), group, rows=rows_per_rank)
        )
        if n == 0 or alone(n, more, negatives, every, empty):
            same = "" if every is None or n < 2 else ", all of one label,"
            return nothing(
                empty,
                f"InfoNCE finds a view among others: a global batch of {n}{same} has no negatives. "
                f"Give at least two rows{' of different labels' if same else ''} or "
                "extra_negatives.",
                z1,
                z2,
                extra,
                temperature,
                anchors=(2 if symmetric else 1) * len(z1) if reduction == "none" else None,
            )
        place = torch.arange(first, first + len(x1), device=x1.device)
        scale = 1 / temperature
        near = (x1 * x2).sum(1).repeat(2 if symmetric else 1) * scale
        y1, y2 = x1[:0], x2[:0]
        if negatives != "extra_only":
            # one collective for both views
            y1, y2 = ranks.all_gather(torch.stack((x1, x2), 1), group).unbind(1)
        # The anchors, the columns among which each is found, and the anchors' own columns
        sides = [(x1, y2), (x2, y1)][: 2 if symmetric else 1]
        if negatives == "both_views":
            sides = [(x, x if ranks.size(group) == 1 else torch.cat((y1, y2)))]
        if labels is not None and every is not None:
            itself: Tensor | None = None
            if negatives == "both_views":
                itself, labels, every = (
                    torch.cat((place, place + n)),
                    labels.repeat(2),
                    every.repeat(2),
                )
            settings = (scale, decoupled, budget)
            losses = torch.cat(
                [
                    several_positives(
                        a, torch.cat((b, more)), labels.long(), every, itself, *settings
                    )
                    for a, b in sides
                ]
            )
        else:
            if negatives == "both_views":
                # itself and its positive, for either view
                exclude: Tensor | None = torch.stack((place, place + n), 1).repeat(2, 1)
            else:
                exclude = place[:, None] if negatives == "other_view" else None
            if negatives == "both_views" and ranks.size(group) == 1 and extra is None:
                far = symmetric_logsumexp(
                    x, scale=scale, exclude=exclude, bound=number(scale), budget=budget
                )
            else:
                far = torch.cat(
                    [
                        logsumexp(
                            a, torch.cat((b, more)), scale=scale, exclude=exclude, budget=budget
                        )
                        for a, b in sides
                    ]
                )
            if tau_plus:
                of_batch = {"both_views": 2 * n - 2, "other_view": n - 1, "extra_only": 0}[
                    negatives
                ]
                far = _debiased(far, near, of_batch + len(more), scale, tau_plus)
            # From a threshold on softplus is taken for the identity: torch's 20 leaves an error of
            # 2e-9, 40 one of 4e-18
            losses = far - near if decoupled else F.softplus(far - near, threshold=40.0)
        if reduction == "none":
            return losses
        anchors = 2 * n if symmetric else n
        return ranks.all_reduce(
            losses.sum() / (anchors if reduction == "mean" else 1), group, grads
        )


def _debiased(
    far: Tensor, near: Tensor, negatives: int, scale: float | Tensor, tau_plus: float
) -> Tensor:
    """Return log max( (e^far - M tau e^near) / (1 - tau), M e^-scale ), all in logarithms."""
    # log of what is taken away, relative to the sum
    share = near + math.log(negatives * tau_plus) - far
    left = share < 0
    corrected = far + torch.where(left, share, -1.0).expm1().neg().log() - math.log1p(-tau_plus)
    floor = math.log(negatives) - scale
    return torch.where(left, corrected, -torch.inf).maximum(floor * torch.ones_like(far))


class InfoNCE(TemperedLoss):
    """Module form of `info_nce`: `InfoNCE(temperature=0.5)(z1, z2)`.

    See `info_nce` for the settings.

    With `learnable=True` the temperature starts at the given value and is learned. The parameter is
    `log_scale` = -log(temperature), which keeps the temperature positive. Radford et al. 2021 hold
    the scale below 100: `loss.log_scale.data.clamp_(max=math.log(100))` after each step.

    Example:
        >>> z = torch.eye(4)
        >>> InfoNCE(0.5)(z, z)
        tensor(0.5944)
        >>> loss = InfoNCE(0.07, negatives="other_view", learnable=True)
        >>> loss.temperature, [name for name, _ in loss.named_parameters()]
        (tensor(0.0700, grad_fn=<ExpBackward0>), ['log_scale'])
    """

    names = (
        "temperature",
        "negatives",
        "symmetric",
        "decoupled",
        "tau_plus",
        "reduction",
        "grads",
        "empty",
        "budget",
    )

    def __init__(
        self,
        temperature: float = 0.5,
        negatives: Negatives = "both_views",
        symmetric: bool = True,
        decoupled: bool = False,
        tau_plus: float = 0.0,
        learnable: bool = False,
        reduction: Reduction = "mean",
        group: dist.ProcessGroup | None = None,
        grads: ranks.Gradients = "mean",
        empty: Empty = "zero",
        budget: int = BUDGET,
    ):
        check(temperature, negatives, symmetric, tau_plus, reduction, grads)
        super().__init__(temperature, learnable, group, grads, empty, budget)
        self.negatives, self.symmetric = negatives, symmetric
        self.decoupled, self.tau_plus = decoupled, tau_plus
        self.reduction = reduction

    def forward(
        self,
        z1: Float[Tensor, "B D"],
        z2: Float[Tensor, "B D"],
        extra_negatives: Float[Tensor, "M D"] | None = None,
        labels: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "*anchors"]:
        """Return the loss of two views (B, D), with optional extra negatives (M, D) and labels."""
        return info_nce(z1, z2, extra_negatives=extra_negatives, labels=labels, **self.arguments)
