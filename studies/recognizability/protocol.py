"""Images of the judgement: a gallery at full resolution, and probes of fewer rows of pixels.

    gallery   the first image of each identity, as it is
    probes    its next images, each brought down to every number of rows and back to its size

Identities are of a split that is not trained on: "unseen" has other classes; "test", where a set
has no such split, has other images of the classes of training.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from marginlab import data
from marginlab.augment import LowResolution
from marginlab.rng import Key
from marginlab.settings import SettingsError


@dataclass(frozen=True)
class Protocol:
    """Choice of images, and numbers of the judgement."""

    split: str = "test"
    """Split of the data that is judged."""
    identities: int = 10
    """Judged identities, chosen by a fixed seed; 0 takes all that have enough images."""
    probes: int = 8
    """Probe images of each identity, beside its gallery image."""
    probed: tuple[int, ...] = (32, 16, 12, 8, 6)
    """Rows of pixels of probes."""
    rows: tuple[int, ...] = (32, 16, 12, 8, 6, 4, 3)
    """Rows of pixels at which the cluster and the index are measured."""
    known: int = 400
    """Test images of trained classes whose index is measured, and images of the clustered pool."""
    unmated: float = 0.25
    """Part of the identities that the gallery of the open set leaves out."""
    fnmrs: tuple[float, ...] = (0.1, 0.3)
    """False non-match rates before any pair is discarded."""
    limits: tuple[float, ...] = (0.3, 0.95)
    """Largest shares of discarded pairs."""
    passes: int = 50
    """Dropout masks of SER-FIQ."""
    attended: int = 12
    """Rows of pixels at which attention is measured, beside all rows."""
    steps: int = 6
    """Steps of deletion and insertion curves."""
    replicates: int = 200
    """Draws of identities behind an interval."""


class People(NamedTuple):
    """Identities of the judgement.

    Attributes:
        gallery: (I, 3, H, W) bytes, one image of each identity.
        images: (I, P, 3, H, W) bytes, its other images.
        digest: Of the set that they are from.
    """

    gallery: Tensor
    images: Tensor
    digest: str


class Probes(NamedTuple):
    """Degraded images (M, 3, H, W) in [0, 1], with the identity and the rows of pixels of each."""

    images: Tensor
    identity: Tensor
    rows: Tensor


def choose(protocol: Protocol, spec: str, size: int) -> People:
    """Choose the identities of the judgement.

    Raises:
        SettingsError: Fewer than four identities have enough images.
    """
    found = data.load(spec, protocol.split, size=size)
    order = found.labels.argsort(stable=True)
    count = torch.bincount(found.labels)
    start = count.cumsum(0) - count
    each = 1 + protocol.probes
    enough = (count >= each).nonzero()[:, 0]
    if len(enough) < 4:
        raise SettingsError(
            f"{len(enough)} identities of {spec}, split {protocol.split}, have {each} images. Ask "
            "for fewer probes."
        )
    mixed = Key(0).named("judged identities").permutation(len(enough))
    kept = enough[mixed[: protocol.identities or None].sort().values]
    rows = order[start[kept][:, None] + torch.arange(each)]
    images = found.images[rows.flatten()].unflatten(0, (-1, each))
    return People(images[:, 0], images[:, 1:], found.digest())


def degraded(images: Tensor, rows: int) -> Tensor:
    """Return images (N, 3, H, W), bytes or in [0, 1], in [0, 1] with so many rows of pixels."""
    pixels = images / 255 if images.dtype == torch.uint8 else images
    operation = LowResolution(rows=(rows, rows))
    drawn = operation.draw(Key(0).at(torch.arange(len(images))), tuple(images.shape[2:]))
    return operation.apply(pixels, drawn)


def probes_of(people: People, rows: tuple[int, ...]) -> Probes:
    """Return every image of every identity at all numbers of rows."""
    P = people.images.shape[1]
    flat = people.images.flatten(0, 1)
    identity = torch.arange(len(people.images)).repeat_interleave(P)
    return Probes(
        torch.cat([degraded(flat, r) for r in rows]),
        identity.repeat(len(rows)),
        torch.tensor(rows).repeat_interleave(len(flat)),
    )


def half_covered(images: Tensor) -> tuple[Tensor, Tensor]:
    """Cover half of each image by grey: left, right, top and bottom in turn.

    Returns:
        The images (N, 3, H, W), and which pixels (N, H, W) stay visible.
    """
    N, _, H, W = images.shape
    visible = torch.ones(N, H, W, dtype=torch.bool)
    visible[0::4, :, : W // 2] = False
    visible[1::4, :, W - W // 2 :] = False
    visible[2::4, : H // 2] = False
    visible[3::4, H - H // 2 :] = False
    return torch.where(visible[:, None], images, 0.5), visible
