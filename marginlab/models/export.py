"""Backbones as ONNX files, for runtimes without torch.

    images (B, 3, S, S) in [0, 1], float32, red first  ->  features (B, D), any B

The normalisation of the images is inside the file. Code that feeds such a file divides by 255 and
subtracts nothing.
"""

import importlib.util
import os
import tempfile
from pathlib import Path

import torch

from marginlab.models.backbone import Backbone

LIMIT = 2**31 - 2**24  # bytes of weights that one file of ONNX can hold, with room for the graph


def to_onnx(backbone: Backbone, path: Path | str, *, image_size: int | None = None) -> Path:
    """Write a backbone in evaluation mode as an ONNX file, and return the file's path.

    The input is called "images", the output "features". Weights of about 2 GB and more lie in a
    second file beside it, `NAME.data`. An earlier file of that name is replaced when the new one is
    whole.

    Args:
        backbone: Any backbone, on any device. It stays as it is.
        path: The file, such as "model.onnx".
        image_size: S, the side of the images. None takes the size the backbone is made for.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        OSError: The folder does not exist, or cannot be written to.
        ValueError: The backbone is made for no size, and none is given.

    Example:
        >>> from marginlab.models import IResNet
        >>> to_onnx(IResNet(50), "r50.onnx")  # doctest: +SKIP
        PosixPath('r50.onnx')
    """
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"Writing ONNX needs {name}: pip install 'marginlab[onnx]'.")
    place = Path(path)
    side = int(getattr(backbone, "image_size", 0)) if image_size is None else image_size
    if side < 1:
        raise ValueError(
            f"{backbone!r} is made for no size of images. Say to_onnx(..., image_size=112), or "
            "another size."
        )
    if not place.parent.is_dir():
        raise FileNotFoundError(f"{place.parent} is no folder to write {place.name} into.")
    parameter = next(backbone.parameters(), torch.empty(0))
    weights = sum(p.nbytes for p in (*backbone.parameters(), *backbone.buffers()))
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        # two rows: the exporter takes a batch of one for a constant
        example = torch.zeros(2, 3, side, side, device=parameter.device, dtype=parameter.dtype)
        with torch.no_grad():
            program = torch.onnx.export(
                backbone,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes={"images": {0: torch.export.Dim("B")}},
            )
    finally:
        for module, training in modes.items():
            module.training = training
    assert program is not None
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as folder:
        whole = Path(folder) / place.name
        program.save(whole, external_data=weights > LIMIT)
        for file in sorted(Path(folder).iterdir(), reverse=True):  # NAME.data before NAME
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            file.replace(place.parent / file.name)
    return place
