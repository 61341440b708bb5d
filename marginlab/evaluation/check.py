"""What every evaluation refuses before it starts: features and labels that do not belong together."""

from torch import Tensor


def check_pair(name: str, features: Tensor, labels: Tensor, num_classes: int | None = None) -> int:
    """Refuse features that are empty or not finite, or labels that do not fit them; return the number of classes."""
    if features.ndim < 2 or not len(features) or not features.is_floating_point():
        raise ValueError(f"The {name} are at least one row of floating-point features, not {features.dtype} {tuple(features.shape)}.")
    if not bool(features.isfinite().all()):
        raise ValueError(f"The {name} {tuple(features.shape)} hold values that are not finite (NaN or infinity). Look for what made them.")
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        given = f"{labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"The {name} have {len(features)} rows, so their labels are {len(features)} integers, not {given}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        raise ValueError(f"The labels of the {name} run from {low} to {high}, outside 0 to {'...' if num_classes is None else num_classes - 1}.")
    return high + 1 if num_classes is None else num_classes
