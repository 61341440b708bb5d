"""Blockwise sums as functions of autograd: first and second derivatives, torch.func, torch.compile.

A kernel is a small frozen object with three methods: the value of its sums, their first
derivatives, and the derivatives of those along tangents. Each method becomes an autograd function.
Its forward pass sees plain tensors and may work in place on one block, so no method has to be
differentiable itself. Autocast lowers none of them, wherever backward is called. Third derivatives
and forward mode are refused: for a Hessian, use torch.func.jacrev(torch.func.grad(f)). Under
`torch.func.vmap` the parts of a batch are computed one by one.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

Point: TypeAlias = tuple[Tensor, Tensor, Tensor]  # x (B, D), y (M, D), scale ()
Needs: TypeAlias = tuple[bool, bool, bool]  # which of the three want a derivative
Saved: TypeAlias = tuple[Tensor, Tensor]  # the sums, and another tensor that the slopes need


@runtime_checkable
class Kernel(Protocol):
    """Sums over the columns y of a matrix, for each row x; `index` says which columns go where."""

    def value(self, point: Point, index: Tensor | None) -> Saved:
        """Walk forward; return the sums, and the values that the derivatives need."""

    def slopes(
        self, grad: Tensor, point: Point, index: Tensor | None, saved: Saved, needs: Needs
    ) -> Point:
        """Return derivatives with respect to x, y and scale; any scalar where none is needed."""

    def curvature(
        self, tangents: Point, grad: Tensor, point: Point, index: Tensor | None, saved: Saved
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return derivatives of <tangents, slopes> with respect to grad, x, y and scale."""


def blockwise(
    kernel: Kernel, x: Tensor, y: Tensor, scale: Tensor, index: Tensor | None = None
) -> Tensor:
    """Return the sums of a kernel, twice differentiable in x, y and scale."""
    y = y.view_as(y) if y is x else y  # torch.compile takes no tensor twice
    # torch.compile traces no function with a jvp, not even with one that refuses
    function = _Value if torch.compiler.is_compiling() else _Refusing
    out: Tensor = function.apply(x, y, scale, index, kernel)[0]
    return out


def unlowered(x: Tensor) -> AbstractContextManager[Any]:
    """Turn autocast off: it would compute products in bf16, whose spacing near 60 is 0.25."""
    if not torch.amp.is_autocast_available(x.device.type):  # such as meta
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def readable(x: Tensor) -> bool:
    """Return whether reading a number of x is free: no device waits, no trace breaks.

    No transform of torch.func breaks either.
    """
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # no public way to ask
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not wrapped(x)


def one_by_one(
    function: type[torch.autograd.Function], info: Any, dims: tuple[Any, ...], arguments: Any
) -> Any:
    """Apply the function to each part of the batch: the rule of vmap."""
    parts = [
        function.apply(
            *(
                a.select(d, i) if isinstance(a, Tensor) and d is not None else a
                for a, d in zip(arguments, dims, strict=True)
            )
        )
        for i in range(info.batch_size)
    ]
    if isinstance(parts[0], Tensor):
        return torch.stack(parts), 0
    return tuple(torch.stack(same) for same in zip(*parts, strict=True)), (0,) * len(parts[0])


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, y: Tensor, scale: Tensor, index: Tensor | None, kernel: Kernel) -> Saved:
        with unlowered(x):
            return kernel.value((x, y, scale), index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Saved) -> None:
        *tensors, ctx.kernel = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        needs = tuple(ctx.needs_input_grad[:3])
        slopes = _Slopes.apply(grad, *ctx.saved_tensors, (ctx.kernel, needs))
        x, y, scale = (s if n else None for s, n in zip(slopes, needs, strict=True))
        return x, y, scale, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return one_by_one(_Value, info, in_dims, arguments)


class _Refusing(_Value):
    """The sums, with an error in words for derivatives by forward mode."""

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            "A blockwise sum has no forward mode (torch.func.jvp, jacfwd, hessian): take a Hessian "
            "by torch.func.jacrev(torch.func.grad(loss)), a directional derivative from "
            "torch.func.grad."
        )


class _Slopes(torch.autograd.Function):
    @staticmethod
    def forward(
        grad: Tensor,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        index: Tensor | None,
        out: Tensor,
        extra: Tensor,
        wanted: tuple[Kernel, Needs],
    ) -> Point:
        kernel, needs = wanted
        with unlowered(x):
            return kernel.slopes(grad, (x, y, scale), index, (out, extra), needs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Point) -> None:
        *tensors, (ctx.kernel, ctx.needs) = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, y, scale, index, out, extra = ctx.saved_tensors
        along = [
            tangent if need else torch.zeros_like(at)
            for tangent, at, need in zip(tangents, (x, y, scale), ctx.needs, strict=True)
        ]
        turned = _Curvature.apply(ctx.kernel, *along, grad, x, y, scale, index, out, extra)
        return (*turned, None, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return one_by_one(_Slopes, info, in_dims, arguments)


class _Curvature(torch.autograd.Function):
    @staticmethod
    def forward(kernel: Kernel, *tensors: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, c, e, grad, x, y, scale, index, out, extra = tensors
        with unlowered(x):
            return kernel.curvature((a, c, e), grad, (x, y, scale), index, (out, extra))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "A blockwise sum has first and second derivatives, no third: call backward or grad of "
            "its second one without create_graph=True."
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return one_by_one(_Curvature, info, in_dims, arguments)
