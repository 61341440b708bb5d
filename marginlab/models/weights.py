"""Published weights of face recognition, read as data and loaded by name.

    file                                       names
    insightface: model.pt, backbone.pth        conv1.weight ...: ours
                 checkpoint_gpu_0.pt           the same, under "state_dict_backbone"
    CVLface:     model.pt, model.safetensors   net.conv1.weight ..., or model.net.conv1.weight ...
                 ResNets of AdaFace            input_layer.0.weight, body.3.res_layer.1.weight ...
    AdaFace:     a checkpoint of Lightning     model.input_layer.0.weight ..., under "state_dict"

Every parameter of the backbone is in the file, and everything in the file has a place in the
backbone. Two things may differ: counts of batches, which no output depends on, and the learned
token of hidden patches, which a transformer without hiding has no use for.

Sources: insightface's `recognition/arcface_torch`; CVLface and AdaFace, names of their layers.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from marginlab.files import open_regular
from marginlab.files.untrusted import refusal
from marginlab.models.face import FaceBackbone
from marginlab.models.iresnet import UNITS, IResNet

Kind = TypeVar("Kind", bound=FaceBackbone)

PREFIXES = ("module.", "model.", "net.")  # of DistributedDataParallel, Lightning, and CVLface
COUNT = "num_batches_tracked"
SHOWN = 4  # names in an error
WITHIN = {
    f"{there}.{number}": here
    for there, names in (
        ("res_layer", ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")),
        ("shortcut_layer", ("downsample.0", "downsample.1")),
    )
    for number, here in enumerate(names)
}
AROUND = {
    "input_layer.0": "conv1",
    "input_layer.1": "bn1",
    "input_layer.2": "prelu",
    "output_layer.0": "bn2",
    "output_layer.3": "fc",
    "output_layer.4": "features",
}


def load_weights(
    backbone: Kind, source: Path | str | Mapping[str, Tensor], *, bgr: bool = False
) -> Kind:
    """Load published weights into a backbone, in place, and return it.

    Files are read as tensors and plain containers: no code of theirs is run. If anything does not
    fit, the backbone keeps its weights.

    Args:
        backbone: An `IResNet`, `MobileFaceNet` or `FaceViT` of the file's size.
        source: A file of torch or safetensors, or a state dict.
        bgr: The weights are of images with blue first, as AdaFace's. The first convolution is
            turned, so that the backbone takes red first, as everywhere here.

    Raises:
        OSError: There is no such file, or it is no regular file.
        ValueError: The file cannot be read as data, a name is missing or left over, or a shape
            differs. The message names the first few.

    Example:
        >>> from marginlab.models import MobileFaceNet
        >>> published = MobileFaceNet(image_size=16).net.state_dict()
        >>> backbone = load_weights(MobileFaceNet(image_size=16), published)
        >>> del published["conv_sep.layers.2.weight"]
        >>> load_weights(backbone, published)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: The state dict lacks conv_sep.layers.2.weight, which the backbone has. ...
    """
    told = "The state dict" if isinstance(source, Mapping) else str(source)
    given = source if isinstance(source, Mapping) else _read(Path(source))
    state = _state_dict(given, told)
    if isinstance(backbone, IResNet):
        state = _renamed(state, backbone, told)
    state = _fitting(state, backbone, told)
    if bgr:
        first = next(name for name in backbone.net.state_dict() if state[name].ndim == 4)
        state[first] = state[first].flip(1)
    backbone.net.load_state_dict(state)
    return backbone


def _read(path: Path) -> Any:
    """Read a file of torch or safetensors as data."""
    try:
        with open_regular(path) as stream:
            if path.suffix == ".safetensors":
                from safetensors.torch import load

                return load(stream.read())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of types that torch no longer writes
                return torch.load(stream, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch meets broken files with a dozen kinds of errors
        raise ValueError(
            f"{path} could not be read as tensors and plain containers: {refusal(error)}. If you "
            "trust it, load it yourself "
            "and give its state dict."
        ) from error


def _state_dict(given: Any, told: str) -> dict[str, Tensor]:
    """Find the backbone's tensors in what a file holds, without what stands before all names."""
    inner = given
    if isinstance(given, Mapping):
        inner = given.get("state_dict_backbone", given.get("state_dict", given))
    if not isinstance(inner, Mapping) or not inner:
        raise ValueError(f"{told} holds no state dict, but {type(inner).__name__}.")
    # the head of a checkpoint of Lightning is no part of the backbone
    state = {name: value for name, value in inner.items() if not str(name).startswith("head.")}
    odd = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise ValueError(
            f"{told} holds {odd!r}, which is no tensor but {type(state[odd]).__name__}. Give the "
            "state dict of the backbone alone."
        )
    found = True
    while found:
        found = False
        for prefix in PREFIXES:
            if state and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
                found = True
    return state


def _renamed(state: dict[str, Tensor], backbone: IResNet, told: str) -> dict[str, Tensor]:
    """Turn the names of AdaFace's and CVLface's ResNets into insightface's."""
    theirs = any(name.startswith(("input_layer.", "body.")) for name in state)
    if theirs and backbone.variant != "cvlface":
        raise ValueError(
            f"{told} holds a ResNet of CVLface or AdaFace. Make the backbone with "
            "variant='cvlface'."
        )
    if not theirs:
        return state
    places = [
        f"layer{stage}.{unit}"
        for stage, count in enumerate(UNITS[backbone.depth], start=1)
        for unit in range(count)
    ]
    renamed = {}
    for name, value in state.items():
        layer, _, leaf = name.rpartition(".")
        if (found := re.fullmatch(r"body\.(\d+)\.(.*)", layer)) and int(found[1]) < len(places):
            if (inner := WITHIN.get(found[2])) is not None:
                name = f"{places[int(found[1])]}.{inner}.{leaf}"
        elif layer in AROUND:
            name = f"{AROUND[layer]}.{leaf}"
        renamed[name] = value
    return renamed


def _fitting(state: dict[str, Tensor], backbone: FaceBackbone, told: str) -> dict[str, Tensor]:
    """Return tensors of exactly the backbone's names and shapes."""
    wanted = backbone.net.state_dict()
    state = dict(state)
    if "mask_token" not in wanted:
        state.pop("mask_token", None)
    for name, value in wanted.items():
        if name.endswith(COUNT):
            state.setdefault(name, torch.zeros_like(value, device="cpu"))
    remedy = f"Make the backbone of the file's kind and size; it is {backbone!r}."
    if missing := [name for name in wanted if name not in state]:
        raise ValueError(f"{told} lacks {_some(missing)}, which the backbone has. {remedy}")
    if extra := [name for name in state if name not in wanted]:
        raise ValueError(f"{told} holds {_some(extra)}, which the backbone lacks. {remedy}")
    for name, value in wanted.items():
        if state[name].shape != value.shape:
            raise ValueError(
                f"{told} holds {name} of shape {tuple(state[name].shape)}, which the backbone has "
                f"as {tuple(value.shape)}. {remedy}"
            )
    return state


def _some(names: list[str]) -> str:
    """Write the first few of some names."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
