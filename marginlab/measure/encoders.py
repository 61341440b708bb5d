"""Encoders that are measured, by the name that the command is given.

timm:NAME    a model of timm with its published weights, behind its own normalisation
RUN          the folder of a training, or one of its checkpoints: backbone, and projector
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from marginlab.encoding import Encoder
from marginlab.settings import SettingsError, nearest

TIMM = "timm:"


def encoders(
    name: str, weights: Path | None = None, *, untrained: bool = False
) -> dict[str, Encoder]:
    """Return the encoders that a name stands for, by the name of their space.

    Args:
        name: `timm:NAME`, or a run's folder.
        weights: A safetensors file of a timm model's weights, in place of a download.
        untrained: Take a timm model with random weights, as a control.

    Raises:
        SettingsError: No such model, or weights for a run.
        OSError, ValueError: Weights that are not there, cannot be downloaded or do not fit; a
            folder without a checkpoint.
    """
    if name.startswith(TIMM):
        return {"backbone": of_timm(name.removeprefix(TIMM), weights, untrained=untrained)}
    if weights is not None or untrained:
        raise SettingsError(
            f"A run has weights of its own: --weights and --untrained are for {TIMM}NAME."
        )
    if not Path(name).is_dir():
        raise SettingsError(
            f"{name!r} is no FEATURES.npz, no {TIMM}NAME and no folder of a run. Give one of them."
        )
    from marginlab.train import load

    method: Any = load(name)
    found: dict[str, Encoder] = {"backbone": method}
    if isinstance(getattr(method, "projector", None), nn.Module):
        found["projector"] = _projected(method)
    return found


def _projected(method: Any) -> Callable[[Tensor], Tensor]:
    def project(images: Tensor) -> Tensor:
        embeddings: Tensor = method.project(method.encode(images))
        return embeddings

    return project


class Normalised(nn.Module):
    """A network behind the normalisation of its images.

    Args:
        net: The network, of images of mean 0.
        mean: Means of the channels in [0, 1].
        std: Their standard deviations.
    """

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) of images (B, 3, H, W) in [0, 1]."""
        features: Tensor = self.net((images - self.mean) / self.std)
        return features


def of_timm(name: str, weights: Path | None, *, untrained: bool = False) -> Normalised:
    """Make a model of timm without its classifier; see `encoders`."""
    import timm

    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise SettingsError(f"timm has no model {name!r}: {nearest(name, known)}")
    options: dict[str, Any] = {}
    if weights is not None:
        if weights.suffix != ".safetensors" or not weights.is_file():
            raise SettingsError(
                f"--weights is a file NAME.safetensors that is there, not {weights}."
            )
        options["pretrained_cfg_overlay"] = {"file": str(weights)}
    try:
        net = timm.create_model(name, pretrained=not untrained, num_classes=0, **options)
    except Exception as error:  # as many kinds as there are ways to download
        raise OSError(
            f"The weights of {name} cannot be had: {error}. Give --weights FILE.safetensors, or "
            "--untrained for random ones."
        ) from error
    config = timm.data.resolve_model_data_config(net)
    return Normalised(net.eval(), config["mean"], config["std"])
