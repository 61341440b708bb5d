"""A value in the autograd graph whose derivative is given, not derived.

    d value / d x = slope

Autograd may differentiate the slope in turn.
"""

from typing import Any

import torch
from torch import Tensor


class WithSlope(torch.autograd.Function):
    """A value with a given slope as its derivative by x; autograd may differentiate the slope."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.save_for_forward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, grad, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor, value: Tensor, _: Any) -> Tensor:
        slope: Tensor = ctx.saved_tensors[0]
        return value + x * slope
