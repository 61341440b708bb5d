"""Supervised contrastive loss: every other row of the anchor's class is a positive, every row of another class a negative.

For an anchor i with its positives P(i), A(i) all rows but i, cosines s and the temperature T, averaged outside or inside the logarithm,

    out:  loss_i = -1/|P| sum_{p in P} log( e^{s_ip/T} / sum_{a in A} e^{s_ia/T} ) = softplus(n_i - p_i) + p_i - mean_P s_ip/T,
    in:   loss_i = -log( 1/|P| sum_{p in P} e^{s_ip/T} / sum_{a in A} e^{s_ia/T} ) = softplus(n_i - p_i) + log |P|,

with p_i and n_i the logarithms of the sums over positives and over negatives, which are summed apart (kernels/split.py): a loss far smaller than
its logits keeps its digits. By Jensen "out" is never below "in"; with one positive both are InfoNCE. The sum over P of cosines is the product
with the class's sum of rows, so nothing but the blocks of the walk is quadratic in the rows.

Source: Khosla et al. 2020, eqs. 2 (out) and 3 (in).
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from marginlab import ranks
from marginlab.kernels import BUDGET, split_logsumexp
from marginlab.losses.faults import check_labels
from marginlab.losses.pair import check_word, directions, widened
from marginlab.settings import describe

Variant = Literal["out", "in"]
Reduction = Literal["mean", "sum", "none"]


def sup_con(
    embeddings: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    *,
    temperature: float | Float[Tensor, ""] = 0.1,
    variant: Variant = "out",
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
    budget: int = BUDGET,
) -> Float[Tensor, "*anchors"]:
    """Supervised contrastive loss, over the rows of all ranks.

    Parameters
    ----------
    embeddings: this rank's rows, also none (0, D). Two views of each image are `torch.cat((z1, z2))` with `labels.repeat(2)`. They are
        L2-normalised here; a row shorter than 1e-12 has no direction: its cosine with everything is 0 and it gets no gradient.
    labels: the class of each row, any whole number, as an integer tensor.
    temperature: divides the cosines; a tensor without dimensions may learn.
    variant: "out", the average over positives outside the logarithm (the paper's better one), or "in".
    reduction: "mean" over the anchors of all ranks, "sum" over them, both the same number on every rank; "none": the losses of this rank's
        rows (B,). A row without another of its class is a negative to others, but no anchor: it is not counted, and its loss is 0 with "none".
    group: process group; None is the default one, or one rank.
    grads: gradients are those of the global loss times the number of ranks ("mean", for DDP and FSDP, which average) or exactly those ("sum").
    budget: bytes of the block of similarities that is held.

    Raises
    ------
    ValueError: shapes that differ, a temperature that is not positive, an unknown word, or a global batch in which no two rows share a label.
    TypeError: embeddings that are not floating point, or labels that are not a tensor of integers.

    >>> sup_con(torch.eye(4), torch.tensor([0, 0, 0, 1]), temperature=0.5)  # three anchors, all cosines 0: log 3
    tensor(1.0986)

    """
    check(float(temperature.detach()) if isinstance(temperature, Tensor) else temperature, variant, reduction, grads)
    fixed = None if isinstance(temperature, Tensor) else temperature  # a tensor is not waited for
    alike = {"temperature": fixed, "settings": (variant, reduction, grads)}
    x, held = ranks.accepted(
        lambda: _checked(embeddings, labels), embeddings, group, what="SupCon", **alike
    )
    with torch.autocast(embeddings.device.type, enabled=False):
        x = directions(x)
        first = sum(held[: ranks.rank(group)])
        y, classes = ranks.gather(x, group), ranks.gather(labels.long(), group)
        order = classes.argsort(stable=True)
        y, classes = y[order], classes[order]  # the columns of a class are neighbours
        start, stop = torch.searchsorted(classes, labels.long()), torch.searchsorted(classes, labels.long(), right=True)
        positives = stop - start - 1
        _, number, size = torch.unique_consecutive(classes, return_inverse=True, return_counts=True)
        anchors = int(size[size > 1].sum())
        if anchors == 0:
            raise ValueError(
                f"No two rows of the global batch of {len(y)} share a label, so none has a positive. Give at least two rows of a class, "
                "such as two views of each image."
            )
        rows = labels.argsort(stable=True)
        rows = rows[positives[rows] > 0]
        place = order.argsort()[first + rows]
        scale = 1 / temperature
        inside, outside = split_logsumexp(x[rows], y, start[rows], stop[rows], place, scale=scale, budget=budget).unbind(1)
        count = positives[rows]
        losses = F.softplus(outside - inside, threshold=40.0)  # torch's threshold of 20 leaves an error of 2e-9
        if variant == "in":
            losses = losses + count.to(x).log()
        else:
            sums = y.new_zeros(len(size), y.shape[1]).index_add(0, number, y)
            mean = (x[rows] * (sums[number[place]] - x[rows])).sum(1) / count * scale
            losses = losses + torch.where(count == 1, 0.0, inside - mean)  # of one positive they are equal, but for their rounding
        if reduction == "none":
            return x.new_zeros(len(x)).index_copy(0, rows, losses)
        return ranks.total(losses.sum() / (anchors if reduction == "mean" else 1), group, grads)


def _checked(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The embeddings of this rank in the precision of the sums; raises what is wrong with them or the labels."""
    if embeddings.ndim != 2 or embeddings.shape[1] == 0 or labels.shape != embeddings.shape[:1]:
        raise ValueError(f"Embeddings are a matrix (B, D) with one label for each row, not {tuple(embeddings.shape)} and {tuple(labels.shape)}.")
    check_labels(labels, embeddings.device)
    return widened(embeddings, torch.promote_types(embeddings.dtype, torch.float32))


def check(temperature: float, variant: str, reduction: str, grads: str) -> None:
    """Refuse what the loss cannot be made of (ValueError)."""
    if not temperature > 0:
        raise ValueError(f"A temperature is positive, such as 0.1, not {temperature}.")
    check_word("variant", variant, ("out", "in"))
    check_word("reduction", reduction, ("mean", "sum", "none"))
    check_word("grads", grads, ("mean", "sum"))


class SupCon(nn.Module):
    """`sup_con` with its settings: `SupCon(temperature=0.1)(embeddings, labels)`. See there for what they mean.

    >>> SupCon(0.5)(torch.eye(4), torch.tensor([0, 0, 0, 1]))
    tensor(1.0986)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        variant: Variant = "out",
        reduction: Reduction = "mean",
        group: dist.ProcessGroup | None = None,
        grads: ranks.Gradients = "mean",
        budget: int = BUDGET,
    ):
        super().__init__()
        check(temperature, variant, reduction, grads)
        self.temperature, self.variant, self.reduction = temperature, variant, reduction
        self.group, self.grads, self.budget = group, grads, budget

    def forward(self, embeddings: Float[Tensor, "B D"], labels: Int[Tensor, " B"]) -> Float[Tensor, "*anchors"]:
        """The loss of embeddings (B, D) with their labels (B,)."""
        return sup_con(
            embeddings,
            labels,
            temperature=self.temperature,
            variant=self.variant,
            reduction=self.reduction,
            group=self.group,
            grads=self.grads,
            budget=self.budget,
        )

    def __repr__(self) -> str:
        settings = ("temperature", "variant", "reduction", "grads", "budget")
        return describe("SupCon", **{name: getattr(self, name) for name in settings})
