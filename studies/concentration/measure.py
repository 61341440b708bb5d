"""Measurements of an augmentation: its concentration in pixels and in an encoder's features.

The encoder is trained with the augmentation. The estimand is named by (n, V): n images of each
class, V views of each, the image itself first. Images, blocks of images, the views' draws and the
deltas are the same for every augmentation, so that differences between augmentations are paired.
Every number comes with its null control: the same for groups of equal size drawn across classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor
from torch.nn.functional import normalize

import marginlab.train
from marginlab import augment, data, settings
from marginlab.augment import Augmentation, sharpen
from marginlab.data import ImageSet
from marginlab.encoding import encode_views
from marginlab.measures import (
    AnchorConcentration,
    Between,
    Concentration,
    ConcentrationResult,
    choose_anchors,
)

# of the views whose distances are measured: not those of any training seed in use
VIEW_SEED = 1_000_003
# bytes of views and distances held at a time; beyond it the measure takes fewer images, and says so
BUDGET = 2**33
NODES = 20_000  # of the search for a class's largest clique
NAN = float("nan")


@dataclass(frozen=True)
class Measured:
    """The settings of the study that decide the numbers of an augmentation."""

    data: str
    image_size: int
    augmentation: str
    per_class: int
    blocks: int
    views: int
    delta: float
    deep_views: int
    deep_per_class: int
    sharpened: int


# the measured numbers of an augmentation: rows[quantity][at]
Rows = dict[str, dict[str, "Number"]]


class Number(NamedTuple):
    """A value, its interval, and the number of images of a class on which it rests."""

    value: float
    low: float = NAN
    high: float = NAN
    n: int = 0


class Block(NamedTuple):
    """Images of all classes, equally many of each, and the number of the first.

    The numbers of the images name the draws of their views.
    """

    images: ImageSet
    first: int

    def views(self, augmentation: Augmentation, rows: Tensor, n_views: int) -> Tensor:
        """Views of some of the images, the image itself first."""
        return augmentation.views(
            self.images.images[rows],
            index=rows + self.first,
            n_views=n_views,
            seed=VIEW_SEED,
            identity=True,
        )


def blocks(measured: Measured) -> list[Block]:
    """Return the blocks of training images.

    Where the smallest class does not have as many images as asked for, there are fewer images of a
    class, then fewer blocks.
    """
    images = data.load(measured.data, "train", size=measured.image_size)
    smallest = int(torch.bincount(images.labels).min())
    n = min(measured.per_class, smallest)
    parts = images.blocks(n, max(1, min(measured.blocks, smallest // n)))
    return [Block(part, number * len(part)) for number, part in enumerate(parts)]


def concentrate(measured: Measured, *, folder: Path) -> dict[str, Any]:
    """Measure an augmentation's concentration in pixels.

    The result is curves, their control, convergence in V, and the anchor form; pictures go into the
    folder. Under torchrun each rank measures all of it, alike.
    """
    augmentation = settings.make(measured.augmentation, augment, augment.Augmentation)
    parts = blocks(measured)
    n = len(parts[0].images) // len(parts[0].images.classes)
    clean = _Clean.of(parts[0].images.images[:, None].float() / 255, parts[0].images.labels)
    deltas, delta = np.linspace(0, clean.delta_max, 41), measured.delta * clean.delta_max
    found = [
        _measure(part, augmentation, (measured.views,), between=part is parts[0]) for part in parts
    ]
    rows = _over_blocks(found, delta, clean, n)
    deep = _deep(measured, augmentation, parts[0], delta)
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
    anchored = _anchored(measured, augmentation, parts, deltas)
    if anchored:
        at = int(np.argmin(np.abs(deltas - delta)))
        rows["one_minus_sigma"]["anchor_form"] = Number(
            *(anchored["within"][side][at] for side in ("value", "low", "high")), anchored["n"]
        )
    _pictures(parts[0], augmentation, found[0].within, measured.views, folder)
    return {
        "folder": folder.name,
        "n": n,
        "views": measured.views,
        "blocks": len(parts),
        "subsampled": any(result.within.subsampled for result in found),
        "deltas": deltas.tolist(),
        "delta_max": clean.delta_max,
        "curves": {
            which: _curves([getattr(both, which) for both in found], deltas)
            for which in ("within", "control")
        },
        "by_n": {
            which: _by_n([getattr(both, which) for both in found], delta)
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
    result, clean = measure.compute(), _Clean.of(features[:, :1], part.images.labels)
    assert result.control is not None
    found = Both(result, result.control, result.between)
    # encoders spread their features differently: delta is in units of delta_max, their own
    share = np.linspace(0, 1, 41)
    curves = {
        which: _curves([getattr(found, which)], share * clean.delta_max)
        for which in ("within", "control")
    }
    return {
        "deltas": share.tolist(),
        "curves": curves,
        "rows": _over_blocks([found], measured.delta * clean.delta_max, clean, n),
    }


# --- parts ----------------------------------------------------------------------------------------


class Both(NamedTuple):
    """Concentration within the classes, and in groups drawn across them.

    Where asked for, it includes the part between the classes.
    """

    within: ConcentrationResult
    control: ConcentrationResult
    between: Between | None


def _measure(
    block: Block, augmentation: Augmentation, levels: tuple[int, ...], *, between: bool = False
) -> Both:
    labels = block.images.labels
    within, control = (
        Concentration(levels, budget=BUDGET, controls=wanted, sync_on_compute=False)
        for wanted in (between, False)
    )
    for rows in torch.arange(len(labels)).split(256):  # a measure copies what it is given
        views = block.views(augmentation, rows, levels[-1])
        within.update(views, labels[rows])
        control.update(views, _across(labels)[rows])
    found = within.compute()
    return Both(found, control.compute(), found.between)


class _Clean(NamedTuple):
    """Statistics of clean images: delta_max and their root mean square deviation from their mean.

    delta_max is the 90 % quantile of their distances within a class.
    """

    delta_max: float
    spread: float

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> "_Clean":
        measure = Concentration(levels=(1,), budget=BUDGET, sync_on_compute=False)
        measure.update(images, labels)
        found = measure.compute()
        return cls(
            float(
                np.quantile(np.concatenate([_upper(matrix) for matrix in found.distances()]), 0.9)
            ),
            found.spread,
        )


def _over_blocks(found: list[Both], delta: float, clean: _Clean, n: int) -> Rows:
    """Return the scalars of each block, and their means over blocks.

    A mean's low and high are its 95 % Student interval over blocks.
    """
    rows: Rows = {}

    def mean(quantity: str, at: str, values: list[float]) -> None:
        rows.setdefault(quantity, {})[at] = Number(float(np.mean(values)), *interval(values), n)

    sides = [both.within.sigma(delta, reduce="mean", nodes=NODES) for both in found]
    null = [both.control.sigma(delta, reduce="mean", nodes=NODES) for both in found]
    mean("one_minus_sigma", "", [1 - low for low, _ in sides])
    if len(found) > 1:
        rows["one_minus_sigma_by_block"] = {
            str(number): Number(1 - low, 1 - high, 1 - low, n)
            for number, (low, high) in enumerate(sides)
        }
    mean("one_minus_sigma", "worst_class", [1 - both.within.sigma(delta)[0] for both in found])
    mean("one_minus_sigma", "control", [1 - low for low, _ in null])
    mean(
        "one_minus_sigma",
        "control_minus_class",
        [low - across for (low, _), (across, _) in zip(sides, null, strict=True)],
    )
    for at, normalized in (("", False), ("normalized", True)):
        # the same for all augmentations
        limit = clean.delta_max / clean.spread if normalized else clean.delta_max
        mean(
            "area",
            at,
            [both.within.area(limit, points=41, normalized=normalized)[1] for both in found],
        )
        mean(
            "delta_at_half",
            at,
            [both.within.delta_at(0.5, normalized=normalized)[1] for both in found],
        )
    areas = [both.control.area(clean.delta_max, points=41)[1] for both in found]
    mean("area", "control", areas)
    mean("spread_of_views", "", [both.within.spread for both in found])
    mean("median_d_A", "within", [_median(both.within) for both in found])
    mean("smallest_d_A", "within", [both.within.closest(1)[0].distance for both in found])
    between = found[0].between  # nine times as many pairs as within: of one block only
    assert between is not None
    rows["median_d_A"]["between"] = Number(float(between.median[-1]), n=n)
    rows["smallest_d_A"]["between"] = Number(float(between.smallest[-1]), n=n)
    rows["delta_max"] = {"": Number(clean.delta_max, n=n)}
    return rows


def _median(found: ConcentrationResult) -> float:
    return float(np.median(np.concatenate([_upper(matrix) for matrix in found.distances()])))


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % Student interval of a mean; NaN for one value.

    >>> interval([1.0])
    (nan, nan)
    """
    if len(values) < 2:
        return NAN, NAN
    half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def _curves(found: list[Any], deltas: Any) -> dict[str, Any]:
    """Return 1 - sigma over delta, mean over classes.

    Both sides are of the first block, and the upper side of every block.
    """
    curves = [result.curve(deltas, reduce="mean") for result in found]
    return {
        "low": curves[0].lower.tolist(),
        "high": curves[0].upper.tolist(),
        "blocks": [curve.upper.tolist() for curve in curves],
    }


def _by_n(found: list[ConcentrationResult], delta: float) -> dict[str, list[float]]:
    """Return 1 - sigma of disjoint parts with fewer images of a class.

    It optimises over cliques, so it changes with n.
    """
    n = int(found[0].n.min())
    sizes = sorted({size for size in (n // 8, n // 4, n // 2, n) if size >= 2})
    return {
        str(size): [
            1 - part.sigma(delta, reduce="mean")[0]
            for result in found
            for part in result.split(size)
        ]
        for size in sizes
    }


def _deep(
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
    found = _measure(images, augmentation, levels)
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


def _anchored(
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
        ("control", _across(parts[0].images.labels)),
    ):
        chosen = choose_anchors(first, labels, measured.delta * float(deltas[-1]))
        measure = AnchorConcentration(chosen, sync_on_compute=False)
        for part in parts[1:]:
            held_out = part.images.labels if name == "within" else _across(part.images.labels)
            for some in rows.split(256):
                measure.update(part.views(augmentation, some, measured.views), held_out[some])
        found = measure.compute()
        curve = found.curve(deltas, reduce="mean")
        sides = ("high", 1 - curve.lower), ("low", 1 - curve.upper), ("value", 1 - curve.sigma)
        kept[name] = {side: values.tolist() for side, values in sides}
        kept["n"] = int(found.n.min())
    return kept


def _across(labels: Tensor) -> Tensor:
    """Draw groups across classes, as many and as large as these.

    The images of each class are dealt to the groups in turn.
    """
    place = torch.stack(
        [(labels == label).long().cumsum(0) - 1 for label in range(int(labels.max()) + 1)]
    ).gather(0, labels[None])[0]
    return (place + labels) % (int(labels.max()) + 1)


def _upper(matrix: Tensor) -> Any:
    return matrix[torch.triu_indices(len(matrix), len(matrix), 1).unbind()].numpy()


def _pictures(
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
