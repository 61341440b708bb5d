"""A matrix product that autocast lowers in no derivative, wherever backward is called.

    C = A B,   dA = dC B^T,   dB = A^T dC,

each again such a product. Autocast is off where a loss takes its sums, but not where `backward` or
`grad` is called inside its context: there the products of the backward pass would be in bf16.
"""

from typing import Any

import torch
from torch import Tensor

from marginlab.kernels.function import unlowered


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two matrices, or of two batches of matrices of one size.

    Example:
        >>> product(torch.eye(2), torch.ones(2, 1)).shape
        torch.Size([2, 1])
    """
    if torch.compiler.is_compiling():  # the backward pass is traced with the forward pass, as it is
        return a @ b
    made: Tensor = _Product.apply(a, b)
    return made


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with unlowered(a):
            return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        for_a, for_b = ctx.needs_input_grad
        return product(grad, b.mT) if for_a else None, product(a.mT, grad) if for_b else None

    @staticmethod
    def jvp(ctx: Any, along_a: Tensor, along_b: Tensor) -> Tensor:
        a, b = ctx.saved_tensors
        return product(along_a, b) + product(a, along_b)
