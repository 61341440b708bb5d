"""Concentration with more views, and after a search for nearer views; the anchor form."""

from typing import Any

import numpy as np
import torch

from marginlab.augment import Augmentation, sharpen
from marginlab.measures import AnchorConcentration, ConcentrationResult, choose_anchors

from .blocks import VIEW_SEED, Block, Measured, across_classes, measure_block
from .estimates import NODES


def in_depth(
    measured: Measured, augmentation: Augmentation, block: Block, delta: float
) -> dict[str, Any]:
    """Return the curve in V on the first images of the block, continued by a search.

    The search is over the augmentation's parameters.
    """
    C = len(block.images.classes)
    n = min(measured.deep_per_class, len(block.images) // C)
    images = Block(block.images.blocks(n, 1)[0], 0)
    V = measured.deep_views
    levels = (*(level for level in (2, 4, 8, 16, 32, 64, 128, 256) if level < V), V)
    found = measure_block(images, augmentation, levels)
    kept: dict[str, Any] = {"n": n, "levels": list(levels)}
    for name in ("within", "control"):
        kept[name] = [_sides(getattr(found, name), delta, level) for level in levels]
    few = min(measured.sharpened, n)
    if few >= 2:
        kept["sharpened"] = {"n": few}
        for name in ("within", "control"):
            part = getattr(found, name).split(few)[0]
            kept["sharpened"][f"{name}_by_level"] = [_sides(part, delta, level) for level in levels]
            nearer, ratio = _sharpened(part, images, augmentation)
            kept["sharpened"][name] = _sides(nearer, delta)
            kept["sharpened"][f"{name}_ratio"] = ratio
    return kept


def _sides(found: ConcentrationResult, delta: float, level: int | None = None) -> list[float]:
    low, high = found.sigma(delta, level, reduce="mean", nodes=NODES)
    return [1 - high, 1 - low]


def _sharpened(
    found: ConcentrationResult, block: Block, augmentation: Augmentation
) -> tuple[ConcentrationResult, float]:
    """Sharpen the result: lower every d_A of the most views by a search from the best sampled pair.

    The mean ratio of distances is returned, too.
    """
    pixels, at = block.images.images, len(found.levels) - 1
    n = int(found.n[0])
    i, j = torch.triu_indices(n, n, 1)
    rows = [torch.cat([images[place] for images in found.images]) for place in (i, j)]
    realised = torch.cat([views[at, i, j] for views in found.views]).long().unbind(1)
    size = (pixels.shape[2], pixels.shape[3])
    starts = [
        augmentation.drawn(row + block.first, view, size=size, seed=VIEW_SEED, identity=True)
        for row, view in zip(rows, realised, strict=True)
    ]
    nearer = sharpen(augmentation, pixels[rows[0]], pixels[rows[1]], *starts).distance.split(len(i))
    matrices, ratios = [], []
    for d_A, distance in zip(found.d_A, nearer, strict=True):
        matrix = torch.zeros_like(d_A[at])
        # redrawn alone, a start may differ in the last bit
        matrix[i, j] = torch.minimum(distance, d_A[at, i, j])
        matrices.append((matrix + matrix.T)[None])
        ratios.append((matrix.sum() / d_A[at].sum().clamp(min=1e-12)).item())
    return found._replace(
        d_A=tuple(matrices), views=tuple(v[at:] for v in found.views), levels=found.levels[at:]
    ), float(np.mean(ratios))


def anchor_form(
    measured: Measured, augmentation: Augmentation, parts: list[Block], deltas: Any
) -> dict[str, Any]:
    """Return the anchor form; nothing with one block.

    Points are chosen for delta on the first block, and members are counted among the images of the
    other blocks.
    """
    if len(parts) < 2:
        return {}
    rows, kept = torch.arange(len(parts[0].images)), dict[str, Any]()
    first = parts[0].views(augmentation, rows, measured.views)
    for name, labels in (
        ("within", parts[0].images.labels),
        ("control", across_classes(parts[0].images.labels)),
    ):
        chosen = choose_anchors(first, labels, measured.delta * float(deltas[-1]))
        measure = AnchorConcentration(chosen, sync_on_compute=False)
        for part in parts[1:]:
            own = part.images.labels
            held_out = own if name == "within" else across_classes(own)
            for some in rows.split(256):
                measure.update(part.views(augmentation, some, measured.views), held_out[some])
        found = measure.compute()
        curve = found.curve(deltas, reduce="mean")
        sides = ("high", 1 - curve.lower), ("low", 1 - curve.upper), ("value", 1 - curve.sigma)
        kept[name] = {side: values.tolist() for side, values in sides}
        kept["n"] = int(found.n.min())
    return kept
