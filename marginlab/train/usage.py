"""How a classifier uses its sub-centers: the share of each, and how many are dead.

    nearest_i         = argmax_k cos(x_i, w_{y_i k})                    over images i
    share_r           mean over classes of the share of its images at its r-th most used sub-center
    dead_subcenters   share of the sub-centers to which no image of the class is nearest

Classes without an image here are left out. A class of fewer images than sub-centers has dead ones
in any case. The shares are those of images of the monitor's bank, whose embeddings it has already.

Source: Deng et al. 2022 (ArcFace, TPAMI), section 3.2 and figure 7.
"""

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from marginlab import ranks
from marginlab.losses import MarginSoftmax, PartialFC
from marginlab.train.rows import Row

_ROWS = 2048  # embeddings that the ranks exchange at a time


def subcenter_usage(
    head: MarginSoftmax | PartialFC,
    embeddings: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    epoch: int,
) -> list[Row]:
    """Return rows of the use of sub-centers: `subcenter_share` at 1 to K, and `dead_subcenters`.

    The share at 1 is that of the dominant sub-center.

    Args:
        head: The classifier. On several ranks all call this; a rank may give no rows.
        embeddings: This rank's images, as the classifier sees them.
        labels: Their classes; a negative one is left out.
        epoch: The epoch of the rows.

    Example:
        >>> head = MarginSoftmax(2, 2, subcenters=2)
        >>> head.load_centers(torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]))
        >>> x = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [0.0, 1.0]])
        >>> rows = subcenter_usage(head, x, torch.tensor([0, 0, 1, 1]), epoch=0)
        >>> [(row.at, row.value) for row in rows]  # the last are the dead ones
        [('1', 0.75), ('2', 0.25), ('', 0.25)]
    """
    votes = subcenter_votes(head, embeddings, labels)
    images = votes.sum(1)
    present = images > 0
    n = int(images.sum())
    if not n:
        return []
    used = votes[present].sort(1, descending=True).values
    shares = (used.double() / images[present, None]).mean(0).tolist()
    dead = float((used == 0).double().mean())
    return [
        *(
            Row(epoch, "", "subcenter_share", f"{k + 1}", shares[k], n=n)
            for k in range(len(shares))
        ),
        Row(epoch, "", "dead_subcenters", "", dead, n=n),
    ]


def subcenter_votes(
    head: MarginSoftmax | PartialFC, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"]
) -> Int64[Tensor, "C K"]:
    """Return how many images of each class each of its sub-centers is nearest to, over all ranks.

    Args:
        head, embeddings, labels: As in `subcenter_usage`.
    """
    C, K = head.num_classes, head.subcenters
    most = max(ranks.rows_per_rank(len(embeddings), head.group, embeddings.device))
    votes = torch.zeros(C * K, dtype=torch.int64, device=embeddings.device)
    for first in range(0, most, _ROWS):
        own = labels[first : first + _ROWS]
        nearest = head.cosines(embeddings[first : first + _ROWS], own).argmax(1)
        counted = own >= 0
        votes += torch.bincount((own * K + nearest)[counted], minlength=C * K)
    return ranks.all_reduce(votes, head.group).view(C, K)
