"""The classes of each rank, and its centers in a saved state.

Rank k of N has the classes k ceil(C/N) to (k+1) ceil(C/N) - 1. torch.chunk cuts in the same way, so
DTensor's Shard(0) is the same.
"""

import torch.distributed as dist
from torch import Tensor

from marginlab import ranks


def local_classes(num_classes: int, group: dist.ProcessGroup | None) -> slice:
    """Return the classes whose centers this rank has."""
    per = -(-num_classes // ranks.size(group))
    start = min(ranks.rank(group) * per, num_classes)
    return slice(start, min(start + per, num_classes))


def local_centers(
    found: Tensor, key: str, num_classes: int, classes: slice
) -> tuple[Tensor | None, str]:
    """Return this rank's centers of a saved state, or None and the error."""
    if found.shape[:1] == (num_classes,):
        local = ranks.to_local(found)
        # of all classes, from one process or a file; or a shard of them
        return (found[classes] if local is found else local), ""
    # a shard of more or fewer classes may have as many rows as this rank's
    return None, (
        f"{key} is of {len(found) if found.ndim else 0} classes, not {num_classes}. "
        "marginlab.losses.resized gives the centers of another number of classes, the old ones "
        "kept."
    )
