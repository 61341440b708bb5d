"""A classifier that owns class centers (C, K, D): its settings, its checks, and its loss.

The loss is over all or some of the classes.

The loss of a batch is the weighted mean of its rows' losses, sum_i w_i loss_i / sum_i w_i, with w_i
the weight of row i's class (1 without class weights) and 0 where the label says to ignore the row;
over all rows of all ranks.
"""

import hashlib
import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from marginlab import ranks
from marginlab.kernels.margin_problem import Over, Shares
from marginlab.kernels.margin_softmax import margin_cross_entropy
from marginlab.kernels.tiles import unit
from marginlab.losses.centers import draw_
from marginlab.losses.faults import Faults, Validate, check_shapes, check_tensor
from marginlab.losses.pair import check_word
from marginlab.margins import ArcFace, Margin
from marginlab.recomputation import recomputing, transformed

Reduction = Literal["mean", "sum", "none"]


class Classifier(nn.Module):
    """Class centers (C, K, D) under a margin: the base of `MarginSoftmax` and `PartialFC`.

    `MarginSoftmax` documents the settings.
    """

    class_weights: Tensor | None
    part: slice  # of the classes, whose centers this rank has
    _counted: Tensor | None = None  # which rows of the last batch count; None: all
    target_cosines: Tensor | None = None
    """Cosines between the rows of the last batch and the nearest centers of their classes.

    They are detached, and 0 for ignored rows. `PartialFC` holds those of all ranks.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        margin: Margin | None = None,
        scale: float = 64.0,
        subcenters: int = 1,
        *,
        class_weights: Float[Tensor, " C"] | None = None,
        label_smoothing: float = 0.0,
        interclass_filter: float | None = None,
        interclass_masks: bool = False,
        ignore_index: int | None = -100,
        reduction: Reduction = "mean",
        operands: torch.dtype | None = None,
        budget: int | None = None,
        compiled: bool = False,
        validate: Validate | None = None,
        group: dist.ProcessGroup | None = None,
        grads: ranks.Gradients = "mean",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, value in (("num_classes", num_classes), ("dim", dim), ("subcenters", subcenters)):
            if value < 1:
                raise ValueError(f"{name} is at least 1, not {value}.")
        margin = ArcFace(0.5) if margin is None else margin
        check_settings(
            margin, scale, label_smoothing, interclass_filter, reduction, budget, operands
        )
        check_classes(num_classes, ignore_index, class_weights)
        check_word("grads", grads, ("mean", "sum"))
        if validate is not None:
            check_word("validate", validate, ("now", "deferred", "never"))
        self.num_classes, self.dim, self.subcenters = num_classes, dim, subcenters
        self.margin, self.scale, self.label_smoothing = margin, float(scale), label_smoothing
        self.interclass_filter, self.interclass_masks, self.ignore_index = (
            interclass_filter,
            interclass_masks,
            ignore_index,
        )
        self.reduction, self.operands, self.budget, self.compiled = (
            reduction,
            operands,
            budget,
            compiled,
        )
        self.group, self.grads, self.seed = group, grads, seed
        self.faults = Faults(num_classes, ignore_index, validate)
        self.register_buffer(
            "class_weights", None if class_weights is None else class_weights.detach().clone()
        )
        self._weighed: tuple[Tensor, int] | None = None  # weights that were read, in which version
        self._weights = ""
        self.part = self._part()
        own = torch.empty(
            self.part.stop - self.part.start, subcenters, dim, device=device, dtype=dtype
        )
        self.centers = nn.Parameter(draw_(own, seed=seed, first=self.part.start))

    def _part(self) -> slice:
        return slice(0, self.num_classes)

    @torch.no_grad()
    def load_centers(self, centers: Float[Tensor, "... D"]) -> None:
        """Replace the present centers by these.

        A DTensor is gathered first; all of its ranks must take part.

        Args:
            centers: (C K, D), class-major (class c owns rows c K to c K + K - 1), or (C, K, D).

        Raises:
            ValueError: The centers are of another number or width.
        """
        C, K, D = self.num_classes, self.subcenters, self.dim
        check_tensor(
            "Centers", centers, f"({C * K}, {D}) or ({C}, {K}, {D}) floating point numbers"
        )
        if tuple(centers.shape) not in ((C * K, D), (C, K, D)):
            raise ValueError(
                f"{C} classes with {K} centers each want ({C * K}, {D}) or ({C}, {K}, {D}) "
                f"centers, not {tuple(centers.shape)}."
            )
        if (together := getattr(centers, "full_tensor", None)) is not None:
            centers = together()
        self.centers.copy_(centers.view(C, K, D)[self.part])

    @torch.no_grad()
    def logits(self, embeddings: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scaled cosines with every class, without margin, for evaluation: s max_k cos.

        The result is (B, C), so give few rows at a time.
        """
        check_shapes(embeddings, None, self.centers)
        wide = wide_of(embeddings, self.centers)
        directions = unit(embeddings).to(wide)
        cosines = [
            torch.einsum("bd,ckd->bck", directions, unit(block).to(wide)).amax(2)
            for block in self.centers.split(1 << 14)
        ]
        return torch.cat(cosines, 1) * self.scale

    def _checked(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the labels in int64, and a mask of the rows that count (None: all).

        Raise for invalid inputs, or for a fault of the batch before.
        """
        self.faults.raise_deferred()
        check_shapes(embeddings, labels, self.centers)
        labels = labels.long()
        valid = None if self.ignore_index is None else labels != self.ignore_index
        self.faults.before(embeddings, labels, valid)
        return labels, valid

    def _loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        column: Tensor,
        valid: Tensor | None,
        *,
        classes: Tensor | None = None,
        lift: Tensor | None = None,
        exclude: Tensor | None = None,
        dense_grad: bool = False,
        spread: bool = False,
        margin: Margin | None = None,
        whole: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a checked batch, given each row's own column.

        Args:
            spread: The rows are those of all ranks, over this rank's classes.
            margin: Replaces the classifier's own margin.
            whole: The total weight that the mean divides by, where the batch is a part of a larger
                one.
        """
        loss, cosine = weighted_loss(
            embeddings,
            self.centers,
            labels,
            column,
            valid,
            self.margin if margin is None else margin,
            scale=self.scale,
            classes=classes,
            lift=lift,
            exclude=exclude,
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
            interclass_filter=self.interclass_filter,
            interclass_masks=self.interclass_masks,
            reduction=self.reduction,
            operands=self.operands,
            budget=self.budget,
            compiled=self.compiled,
            dense_grad=dense_grad,
            over=Over(self.group, classes=spread),
            whole=whole,
            grads=self.grads,
            first=self.part.start,
        )
        if not recomputing():  # a pass that is run again may be that of an earlier batch
            self.target_cosines, self._counted = cosine, valid
        # a value of the trace is none of the module
        if torch.compiler.is_exporting() or transformed():
            self.target_cosines = self._counted = None
        self.faults.after(embeddings, labels, valid, loss)
        return loss

    def _settings(self) -> dict[str, Any]:
        """Settings that all ranks must share, by name; otherwise a collective hangs or errs."""
        names = ["num_classes", "dim", "subcenters", "margin", "scale", "label_smoothing"]
        names += ["interclass_filter", "interclass_masks", "ignore_index", "reduction", "grads"]
        weights = self.class_weights
        if weights is not None:  # read once, not at every step
            seen = self._weighed
            if seen is None or seen[0] is not weights or seen[1] != weights._version:
                self._weighed, self._weights = (weights, weights._version), _said(weights)
        made = {name: getattr(self, name) for name in names}
        return made | {"dtype of centers": self.centers.dtype, "class_weights": self._weights}

    @property
    def target_angle(self) -> Float[Tensor, ""] | None:
        """Mean angle in degrees between the last batch's rows and their classes' nearest centers.

        The angle has no margin and no gradient. The mean is over the rows that count (in
        `PartialFC`, over those of all ranks). It is NaN where no row counts, and None before the
        first batch. It begins near 90 and falls; an angle that stays above 88 after warm-up means
        that nothing is learned. The result is a tensor on the device. Only reading it waits for the
        device, so read it no more often than you show it.

        Example:
            >>> from marginlab.losses import MarginSoftmax
            >>> head = MarginSoftmax(3, 2)
            >>> head.load_centers(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
            >>> loss = head(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([1, -100]))
            >>> head.target_angle
            tensor(90.)
        """
        if self.target_cosines is None:
            return None
        angles = torch.rad2deg(self.target_cosines.clamp(-1, 1).acos())
        if self._counted is None:
            return angles.mean()
        return angles.masked_fill(~self._counted, 0.0).sum() / self._counted.sum()

    def reset_parameters(self) -> None:
        """Draw the centers again: after `to_empty`, if the classifier was made on "meta"."""
        draw_(self.centers, seed=self.seed, first=self.part.start)

    def extra_repr(self) -> str:
        """Describe the sizes and the scale."""
        return (
            f"num_classes={self.num_classes}, dim={self.dim}, scale={self.scale}, "
            f"subcenters={self.subcenters}"
        )


def _said(weights: Tensor) -> str:
    """Return the first weights and a digest of all: a short text that ranks compare."""
    here = weights.double().cpu().contiguous()
    first = ", ".join(f"{weight:g}" for weight in here[:4].tolist())
    more = "" if len(here) <= 4 else ", ..."
    digest = hashlib.blake2b(here.numpy().tobytes(), digest_size=8).hexdigest()
    return f"[{first}{more}] with digest {digest}"


def check_settings(
    margin: Margin,
    scale: float,
    label_smoothing: float,
    interclass_filter: float | None,
    reduction: str,
    budget: int | None,
    operands: torch.dtype | None,
) -> None:
    """Check the settings of a loss.

    Raises:
        ValueError: A setting is invalid.
        TypeError: The margin is not a `Margin`.
    """
    if not isinstance(margin, Margin):
        raise TypeError(
            f"A margin is an object of marginlab.margins, such as ArcFace(0.5), not {margin!r}."
        )
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"A scale is positive and finite, such as 64.0, not {scale}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing lies in [0, 1), not at {label_smoothing}.")
    if interclass_filter is not None and not -1 <= interclass_filter <= 1:
        raise ValueError(
            f"interclass_filter is a cosine, in [-1, 1], such as 0.4, not {interclass_filter}."
        )
    check_word("reduction", reduction, ("mean", "sum", "none"))
    if budget is not None and budget <= 0:
        raise ValueError(f"A budget is a positive number of bytes, not {budget}.")
    if operands not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"operands are torch.float32, bfloat16 or float16, or None for the dtype of "
            f"the centers, not {operands}."
        )


def check_classes(num_classes: int, ignore_index: int | None, class_weights: Tensor | None) -> None:
    """Check ignore_index and the class weights.

    Raises:
        ValueError: ignore_index is a class, or the weights do not fit the number of classes.
    """
    if ignore_index is not None and 0 <= ignore_index < num_classes:
        raise ValueError(
            f"ignore_index is the number of no class, such as -100: {ignore_index} is one "
            f"of 0..{num_classes - 1}."
        )
    if class_weights is None:
        return
    check_tensor("Class weights", class_weights, f"({num_classes},) floating point numbers")
    if class_weights.shape != (num_classes,):
        raise ValueError(
            f"Class weights are ({num_classes},), one for each class, not "
            f"{tuple(class_weights.shape)}."
        )
    if not class_weights.is_meta and not bool(
        ((class_weights >= 0) & class_weights.isfinite()).all()
    ):
        raise ValueError(
            "Class weights are finite and not negative, and one is not. A class with "
            "weight 0 is not learned from."
        )


def excluded(exclude: Int[Tensor, "B E"] | None, rows: int) -> Int[Tensor, "B E"] | None:
    """Check the class numbers that each row leaves out, and return them in int64."""
    if exclude is None:
        return None
    check_tensor("Excluded classes", exclude, f"({rows}, E) integers")
    if (
        exclude.ndim != 2
        or len(exclude) != rows
        or exclude.is_floating_point()
        or exclude.is_complex()
        or exclude.dtype == torch.bool
    ):
        raise ValueError(
            f"Excluded classes are ({rows}, E) integers, one row for each embedding, not "
            f"{tuple(exclude.shape)} of {exclude.dtype}."
        )
    return exclude.long()


def row_weights(
    labels: Tensor, valid: Tensor | None, class_weights: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return the weight of each row: that of its class, or 0 where the row is ignored."""
    weights = (
        torch.ones(len(labels), dtype=dtype, device=labels.device)
        if valid is None
        else valid.to(dtype)
    )
    return (
        weights
        if class_weights is None
        else weights * class_weights.to(weights)[labels.clamp(0, len(class_weights) - 1)]
    )


def wide_of(embeddings: Tensor, centers: Tensor) -> torch.dtype:
    """Return the dtype of the sums: float32, or float64 where an operand is."""
    return torch.promote_types(torch.promote_types(embeddings.dtype, centers.dtype), torch.float32)


def weighted_loss(
    embeddings: Float[Tensor, "B D"],
    centers: Float[Tensor, "C K D"],
    labels: Int[Tensor, " B"],
    column: Int[Tensor, " B"],
    valid: Bool[Tensor, " B"] | None,
    margin: Margin,
    *,
    scale: float,
    classes: Int[Tensor, " n"] | None,
    lift: Float[Tensor, " n"] | None,
    exclude: Int[Tensor, "B E"] | None,
    class_weights: Float[Tensor, " C"] | None,
    label_smoothing: float,
    interclass_filter: float | None,
    interclass_masks: bool,
    reduction: Reduction,
    operands: torch.dtype | None,
    budget: int | None,
    compiled: bool,
    dense_grad: bool,
    over: Over,
    grads: ranks.Gradients,
    whole: Tensor | None = None,
    first: int = 0,
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, " B"]]:
    """Return the reduced loss and the target cosines, given each row's own column.

    Nothing is checked. `first` is the first class of `centers`.
    """
    wide = wide_of(embeddings, centers)
    weights = row_weights(labels, valid, class_weights, wide)
    shares = None
    factor = weights
    # every column has its weight: the kernel takes them in
    if class_weights is not None and label_smoothing > 0:
        columns = class_weights.to(weights)[first : first + len(centers)]
        shares = Shares(weights, columns if classes is None else columns[classes])
        factor = row_weights(labels, valid, None, wide)
    share = None if reduction == "none" else factor
    if reduction == "mean":  # a batch in which no row counts has a loss of 0, not 0/0
        if whole is None:
            whole = weights.sum() if over.classes else ranks.total(weights.sum(), over.group)
        share = factor / whole.to(wide).clamp_min(torch.finfo(wide).tiny)
    loss, cosine = margin_cross_entropy(
        embeddings,
        centers,
        column,
        margin,
        scale=scale,
        classes=classes,
        lift=lift,
        exclude=exclude,
        valid=valid,
        share=share,
        shares=shares,
        smoothing=label_smoothing,
        interclass=interclass_filter,
        masks=interclass_masks,
        operands=operands,
        budget=budget,
        compiled=compiled,
        dense_grad=dense_grad,
        over=over,
    )
    if share is None:
        return loss * factor, cosine
    return loss if over.classes else ranks.total(loss, over.group, grads), cosine
