"""The delete-a-group jackknife with groups of unequal size.

    pseudo_g = n / m_g estimate - (n / m_g - 1) estimate without group g
    variance = 1/G sum over g of (pseudo_g - mean)^2 / (n / m_g - 1)

Busing, Meijer and van der Leeden, Statistics and Computing 9, 1999. Group g holds m_g of the n
images, and `mean` is the jackknife's estimate.
"""

import torch
from torch import Tensor


def jackknife_variance(left_out: list[Tensor], estimate: Tensor, n: Tensor, m: Tensor) -> Tensor:
    """Return the jackknife variance of an estimate; NaN for fewer than 2 groups.

    Args:
        left_out: The estimates with each group left out.
        estimate: The estimate from all images.
        n: Number of images, (C,).
        m: Number of images of each group, (C, G).
    """
    groups = (m > 0).sum(1).double()
    sizes = list(m.T)
    filled = [size > 0 for size in sizes]
    mean = groups * estimate - sum(
        torch.where(here, (1 - size / n) * value, 0.0)
        for value, size, here in zip(left_out, sizes, filled, strict=True)
    )
    total = torch.zeros_like(estimate)
    for value, size, here in zip(left_out, sizes, filled, strict=True):
        share = n / size
        pseudo = share * estimate - (share - 1) * value
        total = total + torch.where(here, (pseudo - mean).square() / (share - 1), 0.0)
    return torch.where(groups > 1, total / groups, torch.nan)
