"""Supervised contrastive loss (SupCon).

Every other row of the anchor's class is a positive, every row of another class a negative. For an
anchor i with its positives P(i), A(i) all rows but i, cosines s and the temperature T, the average
over positives is outside or inside the logarithm:

    out:  loss_i = -1/|P| sum_{p in P} log( e^{s_ip/T} / sum_{a in A} e^{s_ia/T} )
                 = softplus(n_i - p_i) + p_i - mean_P s_ip/T,
    in:   loss_i = -log( 1/|P| sum_{p in P} e^{s_ip/T} / sum_{a in A} e^{s_ia/T} )
                 = softplus(n_i - p_i) + log |P|,

with p_i and n_i the logarithms of the sums over positives and over negatives. These are summed
apart (kernels/split.py), so a loss far smaller than its logits keeps its digits. By Jensen "out" is
never below "in"; with one positive both are InfoNCE. The sum over P of cosines is the product with
the class's sum of rows. Nothing but the blocks of the walk is therefore quadratic in the rows.

Source: Khosla et al. 2020, eqs. 2 (out) and 3 (in).
"""

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from marginlab import ranks
from marginlab.kernels import BUDGET, split_logsumexp
from marginlab.kernels.function import unlowered
from marginlab.losses.faults import check_labels
from marginlab.losses.pair import BatchLoss, Empty, check_word, directions, nothing, number, widened

Variant = Literal["out", "in"]
Reduction = Literal["mean", "sum", "none"]


LAST = torch.iinfo(torch.int64).max  # the label of ignored columns, which are sorted to the end


class References(NamedTuple):
    """The other side of a supervised loss: embeddings (M, D) of this rank and their labels (M,)."""

    embeddings: Tensor
    labels: Tensor


def sup_con(
    embeddings: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    *,
    temperature: float | Float[Tensor, ""] = 0.1,
    variant: Variant = "out",
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
    references: References | None = None,
    ignore_index: int | None = None,
    base_temperature: float | None = None,
    empty: Empty = "zero",
    budget: int = BUDGET,
) -> Float[Tensor, "*anchors"]:
    """Supervised contrastive loss, over the rows of all ranks.

    The loss is twice differentiable. Forward mode is not supported: for a Hessian, use
    torch.func.jacrev(torch.func.grad(loss)), not torch.func.hessian.

    Args:
        embeddings: This rank's rows (B, D); a rank may have none (0, D). Two views of each image
            are `torch.cat((z1, z2))` with `labels.repeat(2)`. The rows are L2-normalised here. A
            row shorter than 1e-12 has no direction: its cosine with everything is 0, and it gets no
            gradient.
        labels: The class of each row, any whole number, as an integer tensor.
        temperature: Divides the cosines; a tensor without dimensions may learn.
        variant: "out", the average over positives outside the logarithm (the paper's better one),
            or "in".
        reduction: "mean" over the anchors of all ranks, "sum" over them, both the same number on
            every rank. "none": the losses of this rank's rows (B,). A row without another of its
            class is a negative of other rows, but not an anchor. It is not counted, and with "none"
            its loss is 0.
        group: Process group; None means the default group, or one rank.
        grads: "mean": gradients are those of the global loss times the number of ranks, for DDP and
            FSDP, which average. "sum": exactly those of the global loss.
        references: Rows that take the place of the batch as positives and negatives, such as a
            bank's. Each rank gives its own part, also (0, D). The batch itself is not among its
            references.
        ignore_index: Rows of this label are ignored on either side, also with NaN.
        base_temperature: Multiply by temperature / base_temperature, as the published code does
            with 0.07: a factor of 1 at T = 0.07, of 10/7 at 0.1 and of 50/7 at 0.5, in loss and
            gradient.
        empty: Loss of a global batch in which no row has a positive. "zero": 0 with zero gradient,
            so that the run goes on. "raise": ValueError, which waits for a GPU.
        budget: Bytes of the block of similarities to hold.

    Raises:
        ValueError: Shapes that differ, a temperature that is not positive, or an unknown word.
        TypeError: Embeddings that are not floating point, or labels that are not a tensor of
            integers.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1])
        >>> sup_con(torch.eye(4), labels, temperature=0.5)  # three anchors, all cosines 0: log 3
        tensor(1.0986)
    """
    check(number(temperature), variant, reduction, grads)
    fixed = None if isinstance(temperature, Tensor) else temperature  # a tensor is not waited for
    settings = (variant, reduction, grads, references is None, ignore_index, base_temperature)
    x, rows_per_rank = ranks.validate_together(
        lambda: _checked(embeddings, labels, references),
        embeddings,
        group,
        what="SupCon",
        temperature=fixed,
        settings=settings,
        empty=empty,
    )
    with unlowered(x):
        x = directions(_present(x, labels, ignore_index))
        if references is None:
            y, classes = ranks.all_gather(x, group), ranks.all_gather(labels.long(), group)
        else:
            other = widened(references.embeddings, x.dtype)
            other = directions(_present(other, references.labels, ignore_index))
            y = ranks.all_gather(other, group)
            classes = ranks.all_gather(references.labels.long(), group)
        every = classes if references is None else ranks.all_gather(labels.long(), group)
        if ignore_index is not None:
            classes = classes.masked_fill(classes == ignore_index, LAST)
        order = classes.argsort(stable=True)
        y, classes = y[order], classes[order]  # the columns of a class are neighbours
        itself = int(references is None)  # one column of the class is the row
        start, stop = _interval(classes, labels.long())
        positives = _positives(classes, labels.long(), itself, ignore_index)
        anchors = (_positives(classes, every, itself, ignore_index) > 0).sum()
        if len(y) == 0 or (empty == "raise" and not bool(anchors)):
            return nothing(
                empty,
                f"No two rows of the global batch of {len(every)} share a label, so none has a "
                "positive. Give at least two rows of a class, such as two views of each image.",
                x,
                y,
                temperature,
                anchors=len(x) if reduction == "none" else None,
            )
        rows = labels.argsort(stable=True)
        first = sum(rows_per_rank[: ranks.rank(group)])
        outside_all = torch.full_like(rows, -1)
        place = order.argsort()[first + rows] if references is None else outside_all
        scale = 1 / temperature
        end = None if ignore_index is None else (classes != LAST).sum()
        near = x[rows]
        intervals = (start[rows], stop[rows], place)
        sums = split_logsumexp(near, y, *intervals, end=end, scale=scale, budget=budget)
        inside, outside = sums.unbind(1)
        count = positives[rows]
        anchor = count > 0  # other rows have a loss of 0; selecting would wait for the device
        # torch's threshold of 20 leaves an error of 2e-9
        gap = torch.where(anchor, outside - inside, 0.0)
        losses = F.softplus(gap, threshold=40.0)
        if variant == "in":
            losses = losses + count.clamp_min(1).to(x).log()
        else:
            segment = torch.cat((classes.new_zeros(1), (classes[1:] != classes[:-1]).cumsum(0)))
            sums = torch.zeros_like(y).index_add(0, segment, y)
            of_class = sums[segment[start[rows].clamp_max(len(y) - 1)]] - itself * near
            mean = (near * of_class).sum(1) / count.clamp_min(1) * scale
            # Of one positive they are equal, but for their rounding
            losses = losses + torch.where(count > 1, inside - mean, 0.0)
        losses = torch.where(anchor, losses, 0.0)
        if base_temperature is not None:
            losses = losses * (temperature / base_temperature)
        if reduction == "none":
            return x.new_zeros(len(x)).index_copy(0, rows, losses)
        part = losses.sum() / (anchors.clamp_min(1) if reduction == "mean" else 1)
        return ranks.all_reduce(part, group, grads)


def _present(x: Tensor, labels: Tensor, ignore_index: int | None) -> Tensor:
    """The rows, those of the ignored label as zero: a NaN in one is NaN in sums also times 0."""
    return x if ignore_index is None else x.masked_fill((labels == ignore_index)[:, None], 0.0)


def _interval(classes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of each label among sorted classes: the first, and the one after the last."""
    start = torch.searchsorted(classes, labels)
    return start, torch.searchsorted(classes, labels, right=True)


def _positives(classes: Tensor, labels: Tensor, itself: int, ignore_index: int | None) -> Tensor:
    """The number of positives of each label's row; 0 for an ignored one."""
    start, stop = _interval(classes, labels)
    count = (stop - start - itself).clamp_min(0)
    return count if ignore_index is None else count.masked_fill(labels == ignore_index, 0)


def _checked(embeddings: Tensor, labels: Tensor, references: References | None) -> Tensor:
    """Return this rank's embeddings in the precision of the sums; raise if the batch is invalid."""
    for z, of in ((embeddings, labels), *([references] if references is not None else [])):
        if z.ndim != 2 or z.shape[1] == 0 or of.shape != z.shape[:1]:
            raise ValueError(
                f"Embeddings are a matrix (B, D) with one label for each row, not {tuple(z.shape)} "
                f"and {tuple(of.shape)}."
            )
        check_labels(of, z.device)
        widened(z[:0], torch.float32)
    if references is not None and references.embeddings.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"References are a matrix (M, {embeddings.shape[1]}), as wide as the embeddings, not "
            f"{tuple(references.embeddings.shape)}."
        )
    return widened(embeddings, torch.promote_types(embeddings.dtype, torch.float32))


def check(temperature: float | None, variant: str, reduction: str, grads: str) -> None:
    """Check the settings of the loss; raise ValueError for an invalid one."""
    if temperature is not None and not temperature > 0:
        raise ValueError(f"A temperature is positive, such as 0.1, not {temperature}.")
    check_word("variant", variant, ("out", "in"))
    check_word("reduction", reduction, ("mean", "sum", "none"))
    check_word("grads", grads, ("mean", "sum"))


class SupCon(BatchLoss):
    """Module form of `sup_con`: `SupCon(temperature=0.1)(embeddings, labels)`.

    See `sup_con` for the settings.

    Example:
        >>> SupCon(0.5)(torch.eye(4), torch.tensor([0, 0, 0, 1]))
        tensor(1.0986)
    """

    names = (
        "temperature",
        "variant",
        "reduction",
        "grads",
        "ignore_index",
        "base_temperature",
        "empty",
        "budget",
    )

    def __init__(
        self,
        temperature: float = 0.1,
        variant: Variant = "out",
        reduction: Reduction = "mean",
        group: dist.ProcessGroup | None = None,
        grads: ranks.Gradients = "mean",
        ignore_index: int | None = None,
        base_temperature: float | None = None,
        empty: Empty = "zero",
        budget: int = BUDGET,
    ):
        super().__init__(group, grads, empty, budget)
        check(temperature, variant, reduction, grads)
        self.temperature, self.variant, self.reduction = temperature, variant, reduction
        self.ignore_index, self.base_temperature = ignore_index, base_temperature

    def forward(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int[Tensor, " B"],
        references: References | None = None,
    ) -> Float[Tensor, "*anchors"]:
        """Return the loss of embeddings (B, D) with labels (B,), among themselves or references."""
        return sup_con(embeddings, labels, references=references, **self.arguments)
