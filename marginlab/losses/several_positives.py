"""InfoNCE of anchors with several positives.

The positives are the rows of the anchor's class, each against all rows of other classes.

With c_a = log sum_n e^{s_an/T} over the negatives of an anchor,

    loss_a = 1/|P| sum_{p in P} softplus(c_a - s_ap/T),    decoupled:  c_a - mean_P s_ap/T.

The columns are sorted by class, so the positives are an interval and c_a is the sum outside of it.
The number c_a is then appended to the anchor, and a 1 to every column, so that c_a - s_ap/T is one
product. Its softplus is summed over intervals in blocks. Nothing quadratic is held.

Source: Feeney and Hughes 2023 (SINCERE).
"""

import torch
from torch import Tensor

from marginlab.kernels import softplus_sum, split_logsumexp


def several_positives(
    x: Tensor,
    y: Tensor,
    labels: Tensor,
    classes: Tensor,
    itself: Tensor | None,
    scale: float | Tensor,
    decoupled: bool,
    budget: int,
) -> Tensor:
    """Return the loss of each anchor (B,), or 0 where it has no negative.

    Args:
        x: Anchors (B, D) of length 1, each with at least one positive.
        y: Columns (M + K, D) of all ranks, of length 1; the last K, which have no class, are
            negatives of every anchor.
        labels: Classes of the anchors (B,).
        classes: Classes of the first M columns (M,).
        itself: The column (B,) that is the anchor itself; None: the anchors are not among the
            columns.
        scale: 1/T.
        decoupled: Leave the positive out of the sum over candidates.
        budget: Bytes of a block.
    """
    order, rows = classes.argsort(stable=True), labels.argsort(stable=True)
    y, more, classes = y[order], y[len(order) :], classes[order]
    x, labels = x[rows], labels[rows]
    start = torch.searchsorted(classes, labels)
    stop = torch.searchsorted(classes, labels, right=True)
    place = torch.full_like(rows, -1) if itself is None else order.argsort()[itself[rows]]
    columns = torch.cat((y, more))
    far = split_logsumexp(x, columns, start, stop, place, scale=scale, budget=budget)[:, 1]
    compared = far > -torch.inf
    far = torch.where(compared, far, 0.0)
    count = (stop - start - int(itself is not None)).clamp_min(1).to(x)
    if decoupled:
        segment = torch.cat((classes.new_zeros(1), (classes[1:] != classes[:-1]).cumsum(0)))
        of_class = torch.zeros_like(y).index_add(0, segment, y)[segment[start]]
        of_class = of_class if itself is None else of_class - y[place]
        losses = far - (x * of_class).sum(1) / count * scale
    else:
        anchor = torch.cat((far[:, None], -scale * x), 1)
        column = torch.cat((torch.ones_like(y[:, :1]), y), 1)
        losses = softplus_sum(anchor, column, start, stop, place, budget=budget) / count
    losses = torch.where(compared, losses, 0.0)
    return torch.zeros_like(losses).index_copy(0, rows, losses)
