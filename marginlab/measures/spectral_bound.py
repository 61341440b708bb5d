"""Upper bound on a network's Lipschitz constant, from the norms of its layers.

    Lip(g after f)  <=  Lip(g) Lip(f)
    Lip(f + g)      <=  Lip(f) + Lip(g)
    Lip([f, g])     <=  sqrt( Lip(f)^2 + Lip(g)^2 )

Norms are multiplied along the network's paths and added where paths meet. All are l2 norms, from
one input to one output (Szegedy et al., ICLR 2014, section 4.3; Gouk et al., Machine Learning 110,
2021). The network is traced. So residual connections are sums, whatever the class of the module,
and an operation that is not in the table below is refused by its name.

A linear layer has the norm of its matrix. A convolution with zero padding on an image of n pixels a
side is part of a circular convolution on n + k - 1. The norm of the latter is the largest of the
spectral norms of the kernel's Fourier coefficients (Sedghi, Gupta and Long, ICLR 2019). It is an
upper bound at any stride and padding, tight but for the border. Another bound is
||kernel as a matrix (out, in k k)|| sqrt(windows that hold one pixel). The smaller is taken.

The bound is a certificate and not an estimate. It assumes that the worst directions of all layers
meet, so it grows with depth where the largest quotient seen (lipschitz.py) does not.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from marginlab.kernels import BUDGET

_ROUNDING = 1 + 1e-10  # allows for rounding of float64 norms, upwards


class LayerBound(NamedTuple):
    """Upper bound on the Lipschitz constant of one operation of a network.

    That of a sum is relative to the larger of its terms.
    """

    layer: str
    operation: str
    constant: float


class LipschitzBound(NamedTuple):
    """`upper`, an upper bound on the Lipschitz constant of the network, and its layers.

    `layers` are the operations whose constant is not 1, in order.
    """

    upper: float
    layers: tuple[LayerBound, ...]
    meaning: str


class _Gain(float):
    """Bound on the distance between a node's values, per unit distance of the network's inputs.

    A value that is not a _Gain does not depend on the input.
    """


def lipschitz_upper(model: nn.Module, images: Float[Tensor, "N *P"]) -> LipschitzBound:
    """Return the bound for a network in evaluation mode, at the size of the images.

    Known operations are linear layers and convolutions; batch, group and layer normalisation; ReLU
    and its kin; pooling; sums and differences; concatenation; products with constants; and
    operations that only move entries. Group and layer normalisation count 1 / sqrt(eps), their
    slope at a constant input, which makes the bound of any network useless. A ResNet-18 of full
    width takes half a minute on one core, because of its convolutions of 512 channels.

    Args:
        model: The network.
        images: Images of the size; their values do not matter.

    Raises:
        ValueError: The network is in training mode, or the constant of an operation is not known.
            The message gives its name and layer. Division by the length of a feature has no
            constant.
        Exception: `torch.export` cannot trace the network; its errors are passed on.

    Example:
        >>> first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
        >>> _ = first.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> _ = second.weight.data.copy_(torch.tensor([[0.0, 2.0]]))
        >>> net = nn.Sequential(first, nn.ReLU(), second).eval()
        >>> bound = lipschitz_upper(net, torch.zeros(1, 2))
        >>> round(bound.upper, 6)
        6.0
        >>> [(layer.layer, round(layer.constant, 6)) for layer in bound.layers]
        [('0', 3.0), ('2', 2.0)]
    """
    if model.training:
        raise ValueError(
            "A network in training mode is no function of one image: batch normalisation "
            "sees the others. Call .eval() first."
        )
    results, layers = _walk(model, images[:1])
    size = " x ".join(map(str, images.shape[1:]))
    return LipschitzBound(
        math.hypot(*results) * _ROUNDING,
        layers,
        f"An upper bound on ||f(x) - f(y)|| / ||x - y|| over all x and y of size {size}, f "
        f"the network's own output, not normalised. It multiplies "
        "norms of layers as if their worst directions met, so it grows with depth, and is "
        "no estimate.",
    )


def _walk(model: nn.Module, image: Tensor) -> tuple[list[float], tuple[LayerBound, ...]]:
    """Return the constants of all results of a network, and the bounds of its operations.

    It is one walk over the network's graph, decomposed so that no operation works in place.
    """
    program = torch.export.export(model, (image,), strict=False).run_decompositions({})
    known = {
        name: value.detach()
        for name, value in {**program.constants, **program.state_dict}.items()
        if isinstance(value, Tensor)
    }
    held: dict[str, Any] = {
        spec.arg.name: _Gain(1.0) if spec.target is None else known[spec.target]
        for spec in program.graph_signature.input_specs
    }
    values: dict[Node, Any] = {}
    layers: list[LayerBound] = []
    results: list[Any] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = held[node.name]
            continue
        args, kwargs = (
            map_arg(node.args, values.__getitem__),
            map_arg(node.kwargs, values.__getitem__),
        )
        if node.op == "output":
            results = [result if isinstance(result, _Gain) else 0.0 for result in args[0]]
            continue
        incoming = [
            float(values[source])
            for source in node.all_input_nodes
            if isinstance(values[source], _Gain)
        ]
        if not incoming:
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
            continue
        constant = _constant(node, args, kwargs)
        values[node] = _Gain(constant)
        if constant != max(incoming):
            share = constant / max(incoming) if max(incoming) else math.nan
            layers.append(
                LayerBound(
                    _layer(node), str(node.target).removeprefix("aten.").split(".")[0], share
                )
            )
    return results, tuple(layers)


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
    strides, dilations = _each(stride, len(k)), _each(dilation, len(k))
    matrices = kernel.reshape(groups, out // groups, inner * math.prod(k))
    by_windows = float(torch.linalg.matrix_norm(matrices, 2).max()) * math.sqrt(
        math.prod(map(_windows, k, strides, dilations))
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


def _each(value: Sequence[int] | int, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _windows(width: int, stride: int, dilation: int = 1) -> int:
    """Return the most windows of a filter that hold the same pixel, along one axis."""
    return max(sum((i * dilation - r) % stride == 0 for i in range(width)) for r in range(stride))


def _constant(node: Node, args: Any, kwargs: Any) -> float:
    rule = _RULES.get(str(node.target).removeprefix("aten."), _KIN.get(str(node.target)))
    constant = None if rule is None else rule(node, args, kwargs)
    if constant is None:
        raise ValueError(
            f"The Lipschitz constant of {node.target} in layer {_layer(node)!r} is not "
            f"known, at least not with these arguments: "
            f"{', '.join(map(str, node.args))}. Bound the network up to there, or measure "
            f"from below with jacobian_norms."
        )
    return constant


def _layer(node: Node) -> str:
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
        float(args[0]) * constant if isinstance(args[0], _Gain) else None
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
        if isinstance(value, _Gain)
    )


def _scaled(node: Node, args: Any, kwargs: Any) -> float | None:
    """Return the constant of a product with a constant, or of a division by one."""
    place = 0 if isinstance(args[0], _Gain) else 1
    other = args[1 - place]
    if isinstance(other, _Gain) or (place == 1 and "div" in str(node.target)):
        return None
    other = torch.as_tensor(other).double()
    return (
        float(args[place])
        * _spread(node, place)
        * float((1 / other if "div" in str(node.target) else other).abs().max())
    )


def _joined(node: Node, args: Any, kwargs: Any) -> float:
    return math.sqrt(sum(value**2 for value in args[0] if isinstance(value, _Gain)))


def _matrix(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().double(), 2))


def _linear(node: Node, args: Any, kwargs: Any) -> float | None:
    return (
        float(args[0]) * _matrix(args[1])
        if isinstance(args[0], _Gain) and isinstance(args[1], Tensor) and args[1].ndim == 2
        else None
    )


def _convolution(node: Node, args: Any, kwargs: Any) -> float | None:
    if not isinstance(args[0], _Gain) or not isinstance(args[1], Tensor):
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
    width, dilation = _each(args[1], dims), _each(args[4] if len(args) > 4 else 1, dims)
    stride = _each(args[2], dims) if len(args) > 2 and args[2] else width
    return float(args[0]) * math.sqrt(math.prod(map(_windows, width, stride, dilation)))


def _average_pool(node: Node, args: Any, kwargs: Any) -> float | None:
    """Return the constant of average pooling.

    ||A||^2 <= (largest row sum = 1) (largest column sum = windows of a pixel / pixels of a window).
    """
    dims = len(_shape(node.args[0])) - 2
    width = _each(args[1], dims)
    stride = _each(args[2], dims) if len(args) > 2 and args[2] else width
    if len(args) > 3 and (
        any(_each(args[3], dims)) or any(args[4:5]) or any(value is not None for value in args[6:7])
    ):
        return None  # windows cut at the border divide by fewer pixels
    return float(args[0]) * math.sqrt(math.prod(map(_windows, width, stride)) / math.prod(width))


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
