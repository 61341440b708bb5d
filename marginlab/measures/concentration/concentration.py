"""Concentration of augmented data: how much of a class lies within an augmented distance delta.

    d_A(x_1, x_2)  = min over views of both || x_1' - x_2' ||
    sigma_k(delta) = (largest set of class-k images with all d_A <= delta) / (images of class k)
    sigma(delta)   = min over classes k of sigma_k(delta)

Huang et al., ICLR 2023, eq. 1 and Definition 1 (they give no estimator). The set is a largest
clique of the graph d_A <= delta. It is bounded from below by a greedy clique and from above by a
colouring and a matching (graphs.py), or found (cliques.py).

Two things are one-sided by nature, and results say so. The minimum over sampled views is at least
d_A. And the clique is that of the sampled graph, not of the population. So the estimand is named by
(n, V), the number of images of a class and of views of an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.measures.concentration.augmented_distance import augmented_distances, spread_of
from marginlab.measures.concentration.controls import between_classes, null_groups
from marginlab.measures.concentration.sigma import ConcentrationResult
from marginlab.measures.concentration.sigma_curve import Deltas
from marginlab.measures.measure import Measure, check_labels, constant, rows
from marginlab.statistics import index_within_group, unit_vectors

# fewest distances between classes that a median is over, even if the budget is used up
_FEWEST = 2**16
_MATRIX = 8 + 4  # bytes of one d_A (float64) and of its two realising views (int16)


class Concentration(Measure):
    """The (sigma, delta) concentration of augmented images.

    It takes labels (N,) and views (N, V, 3, H, W) in [0, 1], or the views' features (N, V, D).
    Features give the concentration in the space of an encoder, with delta in its units. Compare
    augmentations on the same images, the same seeds of views, and the same V: sigma changes with
    all of them.

    Under a process group every rank receives the views of all ranks when it computes, so the budget
    holds on each rank for all of them.

    Args:
        levels: Increasing numbers of views; at level l only the first l views of an image count. By
            default all views. The bounds of a level use those of the others (fewer views: smaller
            cliques; more views: larger ones), so they are monotone.
        deltas: Where `curve` is taken by default; None is 61 values from 0 to the largest d_A.
        budget: Bytes of the views held and of all d_A matrices. Beyond it every class keeps only
            its first images, equally many of each, and the result says `subsampled=True`.
        max_images: Most images of a class that are held.
        controls: Also measure `control`, groups of the same sizes drawn across the classes, and
            `between`, the distances between images of different classes. The latter cost as many
            times the classes' own distances as there are classes. Controls need at least two
            classes. The group of an image depends on the order of arrival within its class.
        normalize: Scale features to length 1 first.
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: Pixels lie outside [0, 1], values are not finite, there is one view without
            levels=(1,), the shape differs from before, labels are negative, a class has one image,
            or controls are asked for with one class.

    Example:
        Six grey images, both views alike. The closest two differ by 0.2 * sqrt(48).

        >>> measure = Concentration(levels=(1, 2))
        >>> views = torch.linspace(0, 1, 6)[:, None, None, None, None].expand(6, 2, 3, 4, 4)
        >>> measure.update(views, torch.tensor([0, 0, 0, 1, 1, 1]))
        >>> result = measure.compute()
        >>> round(result.closest(1)[0].distance, 4), result.sigma(delta=1.4)
        (1.3856, (0.6666666666666666, 0.6666666666666666))
    """

    views: list[Tensor]
    label: list[Tensor]
    kept: list[Tensor]
    shape: Tensor

    def __init__(
        self,
        levels: Sequence[int] | None = None,
        deltas: Deltas | None = None,
        *,
        budget: int = 2**30,
        max_images: int | None = None,
        controls: bool = False,
        normalize: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if levels is not None and (
            not levels or any(low >= high for low, high in zip((0, *levels), levels, strict=False))
        ):
            raise ValueError(
                f"levels are numbers of views that increase from 1, not {tuple(levels)}."
            )
        if budget <= 0 or (max_images is not None and max_images < 2):
            raise ValueError(
                "Concentration needs a positive budget and at least 2 images a class, not "
                f"budget={budget}, max_images={max_images}."
            )
        self.levels = None if levels is None else tuple(levels)
        self.deltas = (
            None if deltas is None else torch.as_tensor(deltas, dtype=torch.float64).reshape(-1)
        )
        self.budget, self.max_images, self.controls, self.normalize = (
            budget,
            max_images,
            controls,
            normalize,
        )
        # views of the images held; labels of all images seen, and whether they are held
        for name in ("views", "label", "kept"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("shape", default=torch.zeros(4, dtype=torch.int64), dist_reduce_fx=constant)

    def update(
        self, views: Float[Tensor, "N V 3 H W"] | Float[Tensor, "N V D"], labels: Int[Tensor, " N"]
    ) -> None:
        """Take V views of N more images, or the features of these views, and the images' labels.

        Views are copied.
        """
        self._check(views, labels)
        if not len(views):
            return
        self.shape = torch.tensor(_shape(views), device=self.shape.device)
        before = rows(self.label, labels.new_zeros(0, dtype=torch.int64))
        after = torch.cat([before, labels.long()])
        place = index_within_group(after)
        held = place < self._most(after, views.element_size())
        old = rows(self.kept, torch.zeros_like(before, dtype=torch.bool))
        # with a new class, or the budget reached, earlier images are dropped too
        if bool((old & ~held[: len(before)]).any()):
            masks = held[: len(before)][old].split([len(part) for part in self.views])
            self.views[:] = [part[mask] for part, mask in zip(self.views, masks, strict=True)]
        fresh = views.detach()[held[len(before) :]]
        self.views.append(unit_vectors(fresh).to(fresh.dtype) if self.normalize else fresh)
        self.label[:], self.kept[:] = [after], [held]

    def _check(self, views: Tensor, labels: Tensor) -> None:
        pixels = views.ndim == 5 and views.shape[2] == 3
        if not (pixels or views.ndim == 3) or not views.is_floating_point():
            raise ValueError(
                "views are floating-point numbers of shape (N, V, 3, H, W), or features (N, V, "
                f"D), not {views.dtype} {tuple(views.shape)}."
            )
        if 0 in views.shape[2:]:
            raise ValueError(
                f"views of shape {tuple(views.shape)} have nothing to compare in them."
            )
        if pixels and self.normalize:
            raise ValueError(
                "normalize=True is for features (N, V, D), but these are pixels of shape "
                f"{tuple(views.shape)}: leave it off."
            )
        check_labels(labels, len(views))
        V = views.shape[1]
        if V < 2 and self.levels != (1,):
            raise ValueError(
                f"views of shape {tuple(views.shape)} hold {V} view of an image, but d_A is a "
                "minimum over views: give at least 2. Plain distances between images are asked "
                "for by levels=(1,)."
            )
        if self.levels is not None and self.levels[-1] > V:
            raise ValueError(
                f"levels = {self.levels} ask for {self.levels[-1]} views of an image, but these "
                f"have {V}."
            )
        if bool(self.shape.any()) and self.shape.tolist() != _shape(views):
            names, before = (
                "(V, 3, H, W)" if pixels else "(V, D)",
                tuple(number for number in self.shape.tolist() if number),
            )
            raise ValueError(
                f"These views are of shape {names} = {tuple(views.shape[1:])}, those before of "
                f"{before}."
            )
        if not pixels and not bool(views.isfinite().all()):
            raise ValueError(
                f"features of shape {tuple(views.shape)} hold values that are not finite (NaN or "
                "infinity). Look for what made them."
            )
        if pixels and views.numel():
            low, high = (float(bound) for bound in views.aminmax())
            if not 0 <= low <= high <= 1:  # NaN compares false
                raise ValueError(
                    f"views lie in [0, 1], but these range from {low:g} to {high:g} (nan: not "
                    "finite). Give pixels before mean and deviation."
                )

    def _bytes(self, size: int) -> tuple[float, float]:
        """Return the bytes of an image, and of a pair of images of a class.

        `size` is the bytes of one number of an image.
        """
        matrices = (1 if self.levels is None else len(self.levels)) * (2 if self.controls else 1)
        return float(self.shape[self.shape > 0].prod()) * size, float(_MATRIX * matrices)

    def _most(self, labels: Tensor, size: int) -> int:
        """Return the number of images a class may keep.

        It is all of them, or an equal share of the budget once the images seen would exceed it.
        """
        counts = labels.unique(return_counts=True)[1]
        most = (
            int(counts.max())
            if self.max_images is None
            else min(int(counts.max()), self.max_images)
        )
        counts = counts.clamp(max=most).double()
        image, pair = self._bytes(size)
        if float((image * counts + pair * counts.square()).sum()) <= self.budget:
            return most
        share = self.budget / len(counts)
        # image n + pair n^2 = share
        return min(most, int(2 * share / (image + (image * image + 4 * pair * share) ** 0.5)))

    def compute(self) -> ConcentrationResult:
        """Return the result, over all ranks under a process group."""
        labels = rows(self.label, self.shape.new_zeros(0))
        if not len(labels):
            raise ValueError(
                "Concentration has seen no image yet: call update(views, labels) first; views are "
                "(N, V, 3, H, W), features (N, V, D)."
            )
        kept, views = (
            rows(self.kept, torch.zeros_like(labels, dtype=torch.bool)),
            rows(self.views, torch.zeros(0, device=labels.device)),
        )
        classes, seen = labels.unique(return_counts=True)
        if int(seen.min()) < 2:
            alone = classes[seen < 2].tolist()
            raise ValueError(
                f"Classes {alone} have one image each, and concentration is about pairs: give at "
                "least 2, or leave these classes out."
            )
        if self.controls and len(classes) < 2:
            raise ValueError(
                f"Controls are about several classes, but there is class {int(classes[0])} alone: "
                "give more, or ask for controls=False."
            )
        most = self._most(labels, views.element_size())
        if most < 2:
            raise ValueError(
                f"A budget of {self.budget} bytes leaves {most} image(s) for each of "
                f"{len(classes)} classes with {int(self.shape[0])} views of shape "
                f"{tuple(number for number in self.shape[1:].tolist() if number)}: raise the "
                "budget or give fewer views."
            )
        held = kept & (index_within_group(labels) < most)
        images, views = held.nonzero()[:, 0], views[held[kept]]
        own = labels[images]
        groups = tuple((own == label).nonzero()[:, 0] for label in classes)
        subsampled = len(images) < len(labels)
        left_out = (
            f" Subsampled: the first images of each class, {len(images)} of {len(labels)} in all."
            if subsampled
            else ""
        )
        spread = spread_of(views)

        def measured(groups: Sequence[Tensor], names: Tensor, meaning: str) -> ConcentrationResult:
            V, n = (
                int(self.shape[0]),
                torch.tensor([len(group) for group in groups], device=labels.device),
            )
            minima = [augmented_distances(views[group], self.levels) for group in groups]
            size = (
                str(int(n.min()))
                if int(n.min()) == int(n.max())
                else f"{int(n.min())} to {int(n.max())}"
            )
            return ConcentrationResult(
                classes=names,
                d_A=tuple(m.distance for m in minima),
                views=tuple(m.views for m in minima),
                images=tuple(images[group] for group in groups),
                n=n,
                seen=seen,
                levels=self.levels or (V,),
                V=V,
                deltas=self.deltas,
                spread=spread,
                subsampled=subsampled,
                meaning=(
                    f"{meaning}d_A is a minimum over {V} sampled views of an image: an UPPER "
                    "estimate of the minimum over all views, falling with V. The estimand is "
                    f"named by (n, V) = ({size}, {V}): sigma is bounded from both sides for the "
                    "graph of these n images a class; the bounds hold for its largest clique, "
                    "which changes with n and V, and not for the sigma of the population."
                    + left_out
                ),
            )

        result = measured(groups, classes, "")
        if not self.controls:
            return result
        names = classes.tolist()
        control = measured(
            null_groups(groups, names),
            torch.arange(len(classes), device=classes.device),
            "Null control: groups across the classes. ",
        )
        image, pair = self._bytes(views.element_size())
        left = (self.budget - len(images) * image - pair * float(result.n.square().sum())) / (
            8 * len(result.levels)
        )
        between = between_classes(views, groups, names, result.levels, most=max(int(left), _FEWEST))
        said = (
            ""
            if between.sampled == between.pairs
            else f" The median between classes is over {between.sampled} of {between.pairs} pairs."
        )
        return result._replace(control=control, between=between, meaning=result.meaning + said)


def _shape(views: Tensor) -> list[int]:
    """Return the shape of an image's views, as the four numbers of a state.

    They are (V, 3, H, W) for pixels and (V, D, 0, 0) for features.
    """
    return [*views.shape[1:], 0, 0][:4]
