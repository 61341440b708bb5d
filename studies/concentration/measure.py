"""Measurements of an augmentation: its concentration in pixels and in an encoder's features.

The encoder is trained with the augmentation. The estimand is named by (n, V): n images of each
class, V views of each, the image itself first. Images, blocks of images, the views' draws and the
deltas are the same for every augmentation, so that differences between augmentations are paired.
Every number comes with its null control: the same for groups of equal size drawn across classes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import marginlab.train
from marginlab import augment, settings
from marginlab.augment import Augmentation
from marginlab.encoding import encode_views
from marginlab.measures import Concentration, ConcentrationResult

from .blocks import BUDGET, VIEW_SEED, Block, Both, Measured, blocks, measure_block
from .estimates import Clean, Number, by_n, curves_of, over_blocks
from .search import anchor_form, in_depth


def concentrate(measured: Measured, *, folder: Path) -> dict[str, Any]:
    """Measure an augmentation's concentration in pixels.

    The result is curves, their control, convergence in V, and the anchor form; pictures go into the
    folder. Under torchrun each rank measures all of it, alike.
    """
    augmentation = settings.make(measured.augmentation, augment, augment.Augmentation)
    parts = blocks(measured)
    n = len(parts[0].images) // len(parts[0].images.classes)
    clean = Clean.of(parts[0].images.images[:, None].float() / 255, parts[0].images.labels)
    deltas, delta = np.linspace(0, clean.delta_max, 41), measured.delta * clean.delta_max
    found = [
        measure_block(part, augmentation, (measured.views,), between=part is parts[0])
        for part in parts
    ]
    rows = over_blocks(found, delta, clean, n)
    deep = in_depth(measured, augmentation, parts[0], delta)
    by_views = rows["one_minus_sigma_by_views"] = {}
    for level, values in zip(deep["levels"], deep["within"], strict=True):
        by_views[str(level)] = Number(values[1], *values, deep["n"])
    if "sharpened" in deep:
        few = deep["sharpened"]
        for name, (low, high) in (
            ("sharpened", few["within"]),
            ("sharpened_control", few["control"]),
            # of the images that are sharpened
            ("most_views", few["within_by_level"][-1]),
        ):
            rows["one_minus_sigma"][name] = Number(high, low, high, few["n"])
    anchored = anchor_form(measured, augmentation, parts, deltas)
    if anchored:
        at = int(np.argmin(np.abs(deltas - delta)))
        rows["one_minus_sigma"]["anchor_form"] = Number(
            *(anchored["within"][side][at] for side in ("value", "low", "high")), anchored["n"]
        )
    keep_pictures(parts[0], augmentation, found[0].within, measured.views, folder)
    return {
        "folder": folder.name,
        "n": n,
        "views": measured.views,
        "blocks": len(parts),
        "subsampled": any(result.within.subsampled for result in found),
        "deltas": deltas.tolist(),
        "delta_max": clean.delta_max,
        "curves": {
            which: curves_of([getattr(both, which) for both in found], deltas)
            for which in ("within", "control")
        },
        "by_n": {
            which: by_n([getattr(both, which) for both in found], delta)
            for which in ("within", "control")
        },
        "deep": deep,
        "anchored": anchored,
        "pairs": [
            {"class": parts[0].images.classes[p.label], "distance": p.distance}
            for p in found[0].within.closest(3)
        ],
        "rows": rows,
    }


def encoded(measured: Measured, training: str, *, folder: Path) -> dict[str, Any]:
    """Measure the concentration in the space of an encoder's L2-normalised backbone features.

    `training` is the folder, under once/, of its training.
    """
    method = marginlab.train.load(folder.parent / training / "run")
    augmentation = settings.make(measured.augmentation, augment, augment.Augmentation)
    part = blocks(measured)[0]
    n = len(part.images) // len(part.images.classes)

    def draw(images: Tensor, *, index: Tensor, n_views: int) -> Tensor:
        drawn = {"index": index + part.first, "n_views": n_views, "seed": VIEW_SEED}
        return augmentation.views(images.cpu(), identity=True, **drawn)

    V = measured.views
    encodings = encode_views(method, part.images.images, draw, V, batch=16 * V)
    features = normalize(encodings.float(), dim=-1).cpu()
    measure = Concentration(budget=BUDGET, controls=True, sync_on_compute=False)
    measure.update(features, part.images.labels)
    result, clean = measure.compute(), Clean.of(features[:, :1], part.images.labels)
    assert result.control is not None
    found = Both(result, result.control, result.between)
    # encoders spread their features differently: delta is in units of delta_max, their own
    share = np.linspace(0, 1, 41)
    curves = {
        which: curves_of([getattr(found, which)], share * clean.delta_max)
        for which in ("within", "control")
    }
    return {
        "deltas": share.tolist(),
        "curves": curves,
        "rows": over_blocks([found], measured.delta * clean.delta_max, clean, n),
    }


def keep_pictures(
    block: Block, augmentation: Augmentation, found: ConcentrationResult, n_views: int, folder: Path
) -> None:
    """Draw views of three images, and the pairs of images that come closest.

    A pair is shown as image, its nearest view, the other's nearest view, the other.
    """

    def bytes_of(images: Tensor) -> Any:
        return (images.movedim(-3, -1) * 255).round().byte().numpy()

    def alone(row: int) -> Tensor:
        return block.views(augmentation, torch.tensor([row]), n_views)[0]

    pairs = [
        torch.stack((a[0], a[p.u], b[p.v], b[0]))
        for p in found.closest(3)
        for a, b in ((alone(p.i), alone(p.j)),)
    ]
    views = block.views(augmentation, torch.arange(3), n_views)[:, :8]
    np.savez_compressed(
        folder / "pictures.npz", views=bytes_of(views), pairs=bytes_of(torch.stack(pairs))
    )
