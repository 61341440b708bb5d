"""Class centers for another number of classes: the old ones kept, new ones drawn."""

from jaxtyping import Float
from torch import Tensor

from marginlab.losses.centers import draw_


def resized(
    centers: Float[Tensor, "C *K D"], num_classes: int, seed: int
) -> Float[Tensor, "C2 *K D"]:
    """Return the centers for another number of classes: the old ones kept, new ones drawn.

    The new centers are drawn as a new classifier with this seed draws them at these places. Fewer
    classes keep the first centers. The result is a copy, of the same type and on the same device.

    Args:
        centers: Centers (C, D) or (C, K, D).
        num_classes: Number of classes of the result.
        seed: Seed of the new centers.

    Raises:
        ValueError: `num_classes` is below 1.

    Example:
        >>> centers = torch.ones(3, 2, 4)
        >>> more = resized(centers, 5, seed=0)
        >>> more.shape, bool((more[:3] == 1).all()), torch.equal(resized(more, 3, seed=0), centers)
        (torch.Size([5, 2, 4]), True, True)
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is at least 1, not {num_classes}.")
    old = min(len(centers), num_classes)
    out = centers.new_empty(num_classes, *centers.shape[1:])
    out[:old] = centers.detach()[:old]
    new = out[old:]
    draw_(new if new.ndim == 3 else new[:, None], seed=seed, first=old)
    return out
