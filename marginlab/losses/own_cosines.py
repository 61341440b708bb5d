"""Cosines between embeddings and the sub-centers of their own classes.

    cos_bk = x_b . w_{y_b k} / (|x_b| |w_{y_b k}|)

They say which sub-center an image is nearest to, and how far it is from each: what purification
asks of a trained classifier. Only the (b, K, D) centers of a block of rows are held.

On several ranks with class-sharded centers, each rank computes the cosines of the rows whose
classes it has, and the ranks add them up. All other ranks add zeros, so the sum is exact.

Source: Deng et al. 2022 (ArcFace, TPAMI), section 3.2.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from marginlab import ranks
from marginlab.kernels.directions import unit
from marginlab.losses.faults import Faults, check_shapes
from marginlab.losses.gathered_batch import validate_batch_together

BUDGET = 2**26  # bytes of the centers of a block of rows, in float64


def local_cosines(
    embeddings: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    centers: Float[Tensor, "C K D"],
    *,
    ignore_index: int | None = -100,
    budget: int | None = None,
) -> Float[Tensor, "B K"]:
    """Return the cosines of rows, where the centers of all classes are here.

    Args:
        embeddings: (B, D).
        labels: (B,) in 0..C-1.
        centers: (C, K, D).
        ignore_index: The label of rows whose cosines are 0.
        budget: Bytes of the centers of a block of rows.

    Raises:
        TypeError, ValueError: Embeddings or labels that do not fit, are not finite, or are no
            classes.
    """
    labels, valid = _checked(embeddings, labels, centers, len(centers), ignore_index)
    return _cosines(embeddings, labels, centers, valid, budget or BUDGET)


def sharded_cosines(
    embeddings: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    centers: Float[Tensor, "C K D"],
    *,
    part: slice,
    num_classes: int,
    ignore_index: int | None,
    budget: int | None,
    group: dist.ProcessGroup | None,
) -> Float[Tensor, "B K"]:
    """Return the cosines of this rank's rows, where each rank has the centers of some classes.

    Every rank calls it, also one without rows. If one rank rejects its rows, all raise.

    Args:
        embeddings: This rank's rows.
        labels: Their classes, which any rank may have.
        centers: The centers of this rank's classes.
        part: Numbers of these classes.
        num_classes: The classes of all ranks.
        ignore_index: As in `local_cosines`.
        budget: As in `local_cosines`.
        group: The ranks.
    """
    labels, _, rows_per_rank = validate_batch_together(
        lambda rows, own: _checked(rows, own, centers, num_classes, ignore_index),
        lambda: {"method": "cosines", "classes": num_classes, "subcenters": centers.shape[1]},
        embeddings,
        labels,
        None,
        group=group,
        device=centers.device,
    )
    rows = ranks.all_gather(embeddings, group, rows=rows_per_rank)
    labels = ranks.all_gather(labels, group, rows=rows_per_rank)
    here = (labels >= part.start) & (labels < part.stop)
    found = _cosines(rows, labels - part.start, centers, here, budget or BUDGET)
    return ranks.local_rows(ranks.all_reduce(found, group), rows_per_rank, group)


def _checked(
    embeddings: Tensor, labels: Tensor, centers: Tensor, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Return the labels in int64 and a mask of the rows that are not ignored."""
    check_shapes(embeddings, labels, centers)
    labels = labels.long()
    valid = torch.ones_like(labels, dtype=torch.bool)
    if ignore_index is not None:
        valid = labels != ignore_index
    # read also where training reads nothing: a wrong label would read another class's centers
    Faults(num_classes, ignore_index, "now").before(embeddings, labels, valid)
    return labels, valid


def _cosines(
    embeddings: Tensor, rows_of: Tensor, centers: Tensor, here: Tensor, budget: int
) -> Tensor:
    """Return the cosines of the rows `here`, and 0 for the others, a block of rows at a time."""
    wide = torch.promote_types(embeddings.dtype, centers.dtype)
    wide = torch.promote_types(wide, torch.float32)
    K, D = centers.shape[1:]
    out = torch.zeros(len(embeddings), K, dtype=wide, device=embeddings.device)
    for rows in here.nonzero()[:, 0].split(max(1, budget // (8 * K * D))):
        near = unit(centers[rows_of[rows]])
        out[rows] = (unit(embeddings[rows])[:, None] * near).sum(2).to(wide)
    return out
