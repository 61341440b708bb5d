"""Lipschitz constants of a network's operations: a table from their names to their formulas.

A formula takes an operation with its arguments, of which some are bounds (`Gain`) of values that
depend on the network's input, and gives the bound of the result, or None where the constant is not
known.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from marginlab.measures.lipschitz.convolution_norm import convolution_norm, each, windows


class Gain(float):
    """Bound on the distance between a node's values, per unit distance of the network's inputs.

    A value that is not a Gain does not depend on the input.
    """


def constant_of(node: Node, args: Any, kwargs: Any) -> float:
    """Return the bound of an operation's result, from the bounds of its arguments.

    Raises:
        ValueError: The operation is not in the table, at least not with these arguments.
    """
    rule = _RULES.get(str(node.target).removeprefix("aten."), _KIN.get(str(node.target)))
    constant = None if rule is None else rule(node, args, kwargs)
    if constant is None:
        raise ValueError(
            f"The Lipschitz constant of {node.target} in layer {layer_of(node)!r} is not known, at "
            f"least not with these arguments: {', '.join(map(str, node.args))}. Bound the network "
            "up to there, or measure from below with jacobian_norms."
        )
    return constant


def layer_of(node: Node) -> str:
    """Return the name of the layer that an operation is part of, or else that of the operation."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path or node.name


def _shape(node: Any) -> Sequence[int]:
    shape: Sequence[int] = node.meta["val"].shape
    return shape


def _spread(node: Node, place: int) -> float:
    """Return the factor by which broadcasting an argument to the result enlarges its norm."""
    source = node.args[place]
    return (
        math.sqrt(math.prod(_shape(node)) / math.prod(_shape(source)))
        if isinstance(source, Node)
        else 1.0
    )


def _keeps(constant: float = 1.0) -> Callable[[Node, Any, Any], float | None]:
    return lambda node, args, kwargs: (
        float(args[0]) * constant if isinstance(args[0], Gain) else None
    )


def _cast(node: Node, args: Any, kwargs: Any) -> float | None:
    return float(args[0]) if node.meta["val"].dtype.is_floating_point else None


def _padded(node: Node, args: Any, kwargs: Any) -> float | None:
    return float(args[0]) if (args[2] if len(args) > 2 else "constant") == "constant" else None


def _sum(node: Node, args: Any, kwargs: Any) -> float:
    factors = (1.0, abs(float(kwargs.get("alpha", 1))))
    return sum(
        factors[i] * _spread(node, i) * value
        for i, value in enumerate(args[:2])
        if isinstance(value, Gain)
    )


def _scaled(node: Node, args: Any, kwargs: Any) -> float | None:
    """Return the constant of a product with a constant, or of a division by one."""
    place = 0 if isinstance(args[0], Gain) else 1
    other = args[1 - place]
    if isinstance(other, Gain) or (place == 1 and "div" in str(node.target)):
        return None
    other = torch.as_tensor(other).double()
    return (
        float(args[place])
        * _spread(node, place)
        * float((1 / other if "div" in str(node.target) else other).abs().max())
    )


def _joined(node: Node, args: Any, kwargs: Any) -> float:
    return math.sqrt(sum(value**2 for value in args[0] if isinstance(value, Gain)))


def _matrix(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().double(), 2))


def _linear(node: Node, args: Any, kwargs: Any) -> float | None:
    return (
        float(args[0]) * _matrix(args[1])
        if isinstance(args[0], Gain) and isinstance(args[1], Tensor) and args[1].ndim == 2
        else None
    )


def _convolution(node: Node, args: Any, kwargs: Any) -> float | None:
    if not isinstance(args[0], Gain) or not isinstance(args[1], Tensor):
        return None
    given = dict(zip(("stride", "padding", "dilation", "groups"), args[3:], strict=False))
    given.pop("padding", None)  # zeros are not part of the input, however many there are
    return float(args[0]) * convolution_norm(args[1], _shape(node.args[0])[2:], **given)


def _batch_norm(node: Node, args: Any, kwargs: Any) -> float:
    weight, variance = (1.0 if args[1] is None else args[1].double()), args[4].double()
    return float(args[0]) * float((weight / (variance + args[-1]).sqrt()).abs().max())


def _standardised(node: Node, args: Any, kwargs: Any) -> float | None:
    """Return the constant of group or layer normalisation.

    The derivative is (I - mean - x x^T / n) / sqrt(var + eps) with x standardised, a contraction
    divided by a length.
    """
    weight = args[2] if len(args) > 2 else None
    eps = args[4] if len(args) > 4 else 1e-5
    return (
        float(args[0]) * (1.0 if weight is None else float(weight.abs().max())) / math.sqrt(eps)
        if eps > 0
        else None
    )


def _max_pool(node: Node, args: Any, kwargs: Any) -> float:
    """Return the constant of max pooling.

    A pixel is the largest in at most as many windows as hold it, and
    |max x - max y| <= max |x - y|.
    """
    dims = len(_shape(node.args[0])) - 2
    width, dilation = each(args[1], dims), each(args[4] if len(args) > 4 else 1, dims)
    stride = each(args[2], dims) if len(args) > 2 and args[2] else width
    return float(args[0]) * math.sqrt(math.prod(map(windows, width, stride, dilation)))


def _average_pool(node: Node, args: Any, kwargs: Any) -> float | None:
    """Return the constant of average pooling.

    ||A||^2 <= (largest row sum = 1) (largest column sum = windows of a pixel / pixels of a window).
    """
    dims = len(_shape(node.args[0])) - 2
    width = each(args[1], dims)
    stride = each(args[2], dims) if len(args) > 2 and args[2] else width
    if len(args) > 3 and (
        any(each(args[3], dims)) or any(args[4:5]) or any(value is not None for value in args[6:7])
    ):
        return None  # windows cut at the border divide by fewer pixels
    return float(args[0]) * math.sqrt(math.prod(map(windows, width, stride)) / math.prod(width))


def _adaptive_pool(node: Node, args: Any, kwargs: Any) -> float | None:
    into = _shape(node.args[0])[2:], _shape(node)[2:]
    if any(n % m for n, m in zip(*into, strict=True)):
        return None
    return float(args[0]) * math.sqrt(math.prod(into[1]) / math.prod(into[0]))


def _mean(node: Node, args: Any, kwargs: Any) -> float:
    return float(args[0]) * math.sqrt(math.prod(_shape(node)) / math.prod(_shape(node.args[0])))


_ONE = _keeps()
_RULES: dict[str, Callable[[Node, Any, Any], float | None]] = {
    **dict.fromkeys(("add.Tensor", "sub.Tensor"), _sum),
    **dict.fromkeys(("mul.Tensor", "div.Tensor", "mul.Scalar", "div.Scalar"), _scaled),
    **dict.fromkeys(("cat.default", "stack.default"), _joined),
    **dict.fromkeys(("linear.default", "mm.default", "matmul.default"), _linear),
    **dict.fromkeys(
        (f"conv{d}d.{how}" for d in (1, 2, 3) for how in ("default", "padding")), _convolution
    ),
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    **dict.fromkeys(("group_norm.default", "layer_norm.default"), _standardised),
    **dict.fromkeys(
        ("max_pool1d.default", "max_pool2d.default", "max_pool2d_with_indices.default"), _max_pool
    ),
    **dict.fromkeys(("avg_pool1d.default", "avg_pool2d.default"), _average_pool),
    **dict.fromkeys(("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default"), _adaptive_pool),
    "mean.dim": _mean,
    **dict.fromkeys(
        (
            "relu.default",
            "relu6.default",
            "hardtanh.default",
            "tanh.default",
            "softplus.default",
            "neg.default",
            "abs.default",
        ),
        _ONE,
    ),
    "sigmoid.default": _keeps(0.25),
    "gelu.default": _keeps(1.13),  # its steepest slope is 1.1290 (that of its tanh form 1.1291)
    "silu.default": _keeps(1.1),  # 1.0998
    "leaky_relu.default": lambda node, args, kwargs: (
        args[0] * max(1.0, abs(args[1]) if len(args) > 1 else 0.01)
    ),
    **dict.fromkeys(
        (
            "view.default",
            "reshape.default",
            "flatten.using_ints",
            "permute.default",
            "transpose.int",
            "split.Tensor",
        ),
        _ONE,
    ),
    **dict.fromkeys(
        (
            "squeeze.dims",
            "squeeze.dim",
            "unsqueeze.default",
            "slice.Tensor",
            "select.int",
            "_unsafe_view.default",
        ),
        _ONE,
    ),
    **dict.fromkeys(
        (
            "clone.default",
            "contiguous.default",
            "alias.default",
            "detach.default",
            "_assert_tensor_metadata.default",
        ),
        _ONE,
    ),
    **dict.fromkeys(("_to_copy.default", "to.dtype"), _cast),
    **dict.fromkeys(("pad.default", "constant_pad_nd.default"), _padded),
    "dropout.default": lambda node, args, kwargs: None if args[2] else args[0],
}
_KIN = {"<built-in function getitem>": _cast}  # one of several results; indices have no constant
