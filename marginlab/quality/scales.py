"""Scores on a common scale of whole numbers from 0 to 100, as ISO/IEC 29794 reports them.

    100 / (1 + exp(-(score - center) / width)),   rounded

The order of scores stays. Published scales: MagFace's length with center 23 and width 2.6 (the
reference software OFIQ), SER-FIQ with center 0.88 and width 1/130. For another score take the
quantiles of images of known quality.

Sources: OFIQ, its "unified quality score"; Terhörst et al. 2020, the code.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def iso_scale(scores: Float[Tensor, " N"], center: float, width: float) -> Int64[Tensor, " N"]:
    """Return scores as whole numbers from 0 to 100.

    Args:
        scores: (N,) scores, higher for better.
        center: The score that becomes 50.
        width: A score of center + width becomes 73.

    Raises:
        ValueError: The width is not positive.

    Example:
        >>> iso_scale(torch.tensor([10.0, 23.0, 25.6, 40.0]), center=23.0, width=2.6)
        tensor([  1,  50,  73, 100])
    """
    if not width > 0:
        raise ValueError(f"The width of a scale is positive, not {width}.")
    return (100 * torch.sigmoid((scores.double() - center) / width)).round().long()
