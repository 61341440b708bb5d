"""The batch of a classifier on several ranks: checked on each, and accepted or refused by all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from marginlab import ranks
from marginlab.losses.faults import excluded


class GatheredBatch(NamedTuple):
    """The rows of all ranks in their order, checked, and the number of rows of each rank."""

    embeddings: Tensor
    labels: Tensor
    valid: Tensor | None
    exclude: Tensor | None
    rows_per_rank: list[int]


def validate_batch_together(
    check: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]],
    alike: Callable[[], dict[str, Any]],
    embeddings: Tensor,
    labels: Tensor,
    exclude: Tensor | None,
    *,
    group: dist.ProcessGroup | None,
    device: torch.device,
) -> tuple[Tensor, Tensor | None, list[int]]:
    """Validate this rank's batch; if any rank rejects, all raise.

    Args:
        check: Returns the labels in int64 and a mask of the rows that count, or raises.
        alike: Returns the settings that all ranks must share, by name; called on several ranks
            only.
        embeddings, labels, exclude: This rank's rows.
        group: The ranks.
        device: Where the ranks exchange the counts of their rows.

    Returns:
        This rank's labels and excluded classes, and the number of rows of each rank.
    """
    error: Exception | None = None
    try:
        labels, _ = check(embeddings, labels)
        exclude = excluded(exclude, len(labels))
    except Exception as raised:  # of a full memory, too: the others would wait
        error = raised
    width = 0 if error is not None or exclude is None else exclude.shape[1]
    shared = alike() if ranks.size(group) > 1 else {}
    shared |= {"dtype": getattr(embeddings, "dtype", None), "columns of excluded classes": width}
    rows = 0 if error is not None else len(embeddings)
    rows_per_rank = ranks.raise_together(rows, error, group, device, what="PartialFC", **shared)
    return labels, exclude if width else None, rows_per_rank
