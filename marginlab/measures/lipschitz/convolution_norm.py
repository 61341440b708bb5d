"""Upper bound on the spectral norm of a convolution, the smaller of two.

    by Fourier coefficients   max over frequencies of the spectral norm of (out, in)
    by windows                ||kernel as a matrix (out, in k k)|| sqrt(windows that hold a pixel)

A convolution with zero padding on an image of n pixels a side is part of a circular convolution on
n + k - 1. The norm of the latter is the largest of the spectral norms of the kernel's Fourier
coefficients (Sedghi, Gupta and Long, ICLR 2019). It is an upper bound at any stride and padding,
tight but for the border.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.kernels import BUDGET


def convolution_norm(
    weight: Float[Tensor, "out in *k"],
    size: Sequence[int],
    *,
    stride: Sequence[int] | int = 1,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
    budget: int = BUDGET,
) -> float:
    """Return an upper bound on the spectral norm of a convolution with any zero padding.

    It is the smaller of the two bounds of this file.

    Args:
        weight: The kernel.
        size: Size of the inputs.
        stride: Stride of the convolution.
        dilation: Dilation of the convolution.
        groups: Groups of channels.
        budget: Bytes of a block of Fourier coefficients.

    Example:
        A mean over 3 x 3 pixels.

        >>> round(convolution_norm(torch.full((1, 1, 3, 3), 1 / 9), (8, 8)), 6)
        1.0
    """
    kernel = weight.detach().double()
    out, inner, *k = kernel.shape
    strides, dilations = each(stride, len(k)), each(dilation, len(k))
    matrices = kernel.reshape(groups, out // groups, inner * math.prod(k))
    by_windows = float(torch.linalg.matrix_norm(matrices, 2).max()) * math.sqrt(
        math.prod(map(windows, k, strides, dilations))
    )
    grid = [n + d * (width - 1) for n, d, width in zip(size, dilations, k, strict=True)]
    if any(d > 1 for d in dilations):
        spread = kernel.new_zeros(
            out, inner, *(d * (width - 1) + 1 for d, width in zip(dilations, k, strict=True))
        )
        spread[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = kernel
        kernel = spread
    squared = 0.0
    for group in kernel.view(groups, out // groups, *kernel.shape[1:]):
        waves = (
            torch.fft.rfftn(group, s=grid, dim=tuple(range(2, 2 + len(k))))
            .flatten(2)
            .permute(2, 0, 1)
        )
        if waves.shape[1] < waves.shape[2]:
            waves = waves.mT
        for part in waves.split(max(budget // (48 * waves[0].numel()), 1)):
            squared = max(squared, float(torch.linalg.eigvalsh(part.mH @ part)[:, -1].max()))
    return min(by_windows, math.sqrt(squared))


def each(value: Sequence[int] | int, dims: int) -> list[int]:
    """Return the value for each of `dims` axes."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def windows(width: int, stride: int, dilation: int = 1) -> int:
    """Return the most windows of a filter that hold the same pixel, along one axis."""
    return max(sum((i * dilation - r) % stride == 0 for i in range(width)) for r in range(stride))
