"""Upper bound on a network's Lipschitz constant, from the norms of its layers.

    Lip(g after f)  <=  Lip(g) Lip(f)
    Lip(f + g)      <=  Lip(f) + Lip(g)
    Lip([f, g])     <=  sqrt( Lip(f)^2 + Lip(g)^2 )

Norms are multiplied along the network's paths and added where paths meet. All are l2 norms, from
one input to one output (Szegedy et al., ICLR 2014, section 4.3; Gouk et al., Machine Learning 110,
2021). The network is traced. So residual connections are sums, whatever the class of the module,
and an operation that is not in the table of layer_constants.py is refused by its name. A linear
layer has the norm of its matrix; convolution_norm.py has that of a convolution.

The bound is a certificate and not an estimate. It assumes that the worst directions of all layers
meet, so it grows with depth where the largest quotient seen (lipschitz.py) does not.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from marginlab.measures.lipschitz.convolution_norm import convolution_norm as convolution_norm
from marginlab.measures.lipschitz.layer_constants import Gain, constant_of, layer_of

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
            "A network in training mode is no function of one image: batch normalisation sees the "
            "others. Call .eval() first."
        )
    results, layers = _walk(model, images[:1])
    size = " x ".join(map(str, images.shape[1:]))
    return LipschitzBound(
        math.hypot(*results) * _ROUNDING,
        layers,
        f"An upper bound on ||f(x) - f(y)|| / ||x - y|| over all x and y of size {size}, f the "
        "network's own output, not normalised. It multiplies norms of layers as if their worst "
        "directions met, so it grows with depth, and is no estimate.",
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
        spec.arg.name: Gain(1.0) if spec.target is None else known[spec.target]
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
            results = [result if isinstance(result, Gain) else 0.0 for result in args[0]]
            continue
        incoming = [
            float(values[source])
            for source in node.all_input_nodes
            if isinstance(values[source], Gain)
        ]
        if not incoming:
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
            continue
        constant = constant_of(node, args, kwargs)
        values[node] = Gain(constant)
        if constant != max(incoming):
            share = constant / max(incoming) if max(incoming) else math.nan
            layers.append(
                LayerBound(
                    layer_of(node), str(node.target).removeprefix("aten.").split(".")[0], share
                )
            )
    return results, tuple(layers)
