"""The settings of a measure as eight numbers, by which measures of other settings are refused."""

import hashlib
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def digest(made: Any) -> Int[Tensor, "8"]:
    """Return eight small numbers, the first of them 1, that tell settings apart.

    They are small so that no relative tolerance of a comparison takes two of them for equal.
    """
    hashed = hashlib.blake2b(repr(_plain(made)).encode(), digest_size=7).digest()
    return torch.tensor([1, *hashed])


def _plain(value: Any) -> Any:
    """Return settings in a form that has equal `repr` exactly where the settings are equal."""
    if isinstance(value, Tensor):
        wide = value.detach().double().cpu().contiguous()
        return tuple(value.shape), hashlib.blake2b(wide.numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return [(name, _plain(part)) for name, part in value.items()]
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def same_settings(digests: Int[Tensor, "ranks 8"]) -> Int[Tensor, "8"]:
    """Reduce `settings_digest` over ranks or merged measures: 0 where nothing was measured.

    Raises:
        ValueError: The nonzero digests differ.
    """
    if len({tuple(row) for row in digests.tolist() if any(row)}) > 1:
        raise ValueError(
            "Measures with different settings cannot be joined: make all parts, and those of all "
            "ranks, with the same arguments (classes, weights, centers and anchors too)."
        )
    return digests.amax(0)
