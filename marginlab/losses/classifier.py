"""A classifier that owns class centers (C, K, D), and its loss over all or some of the classes.

`marginlab.losses.weighted_loss` defines the loss of a batch.
"""

import hashlib
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from marginlab import ranks
from marginlab.kernels.directions import unit
from marginlab.kernels.margin_batch import MarginBatch, Over
from marginlab.kernels.margin_settings import Reduction, wide_dtype
from marginlab.kernels.negligible import LeftOut
from marginlab.losses.centers import draw_
from marginlab.losses.classifier_settings import check_classes, settings_among
from marginlab.losses.faults import Faults, Validate, check_shapes, check_tensor
from marginlab.losses.own_cosines import local_cosines, sharded_cosines
from marginlab.losses.pair import check_word
from marginlab.losses.weighted_loss import weighted_loss
from marginlab.margins import ArcFace, Margin
from marginlab.recomputation import recomputing, transformed


def setting(name: str) -> property:
    """Make an attribute of a classifier that reads one of its settings, or replaces it."""

    def get(self: "Classifier") -> Any:
        return getattr(self.settings, name)

    def replaced(self: "Classifier", value: Any) -> None:
        self.settings = replace(self.settings, **{name: value})

    return property(get, replaced)


class Classifier(nn.Module):
    """Class centers (C, K, D) under a margin: the base of `MarginSoftmax` and `PartialFC`.

    `MarginSoftmax` documents the settings.
    """

    sharded: ClassVar[bool] = False  # whether the classes are spread over the ranks
    scale = setting("scale")
    label_smoothing = setting("label_smoothing")
    interclass_filter = setting("interclass_filter")
    interclass_masks = setting("interclass_masks")
    dispersion = setting("dispersion")
    ignore_index = setting("ignore_index")
    reduction = setting("reduction")
    grads = setting("grads")
    operands = setting("operands")
    budget = setting("budget")
    negligible = setting("negligible")
    compiled = setting("compiled")
    class_weights: Tensor | None
    part: slice  # of the classes, whose centers this rank has
    _counted: Tensor | None = None  # which rows of the last batch count; None: all
    target_cosines: Tensor | None = None
    """Cosines between the rows of the last batch and the nearest centers of their classes.

    They are detached, and 0 for ignored rows. `PartialFC` holds those of all ranks.
    """
    left_out: LeftOut | None = None
    """Rows of the last batch that the backward pass leaves out, with `negligible`; else None."""

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
        dispersion: float = 0.0,
        ignore_index: int | None = -100,
        reduction: Reduction = "mean",
        operands: torch.dtype | None = None,
        budget: int | None = None,
        negligible: float = 0.0,
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
        settings = settings_among(locals())
        check_classes(num_classes, ignore_index, class_weights)
        check_word("grads", grads, ("mean", "sum"))
        if validate is not None:
            check_word("validate", validate, ("now", "deferred", "never"))
        self.num_classes, self.dim, self.subcenters = num_classes, dim, subcenters
        self.settings = replace(settings, scale=float(scale))
        self.margin = settings.margin  # a module, whose state is saved and moved with this one's
        self.group, self.seed = group, seed
        self.faults = Faults(num_classes, ignore_index, validate)
        self.register_buffer(
            "class_weights", None if class_weights is None else class_weights.detach().clone()
        )
        self._weighed: tuple[Tensor, int] | None = None  # weights that were read, in which version
        self._weights = ""
        self.part = self._part()
        centers = torch.empty(
            self.part.stop - self.part.start, subcenters, dim, device=device, dtype=dtype
        )
        self.centers = nn.Parameter(draw_(centers, seed=seed, first=self.part.start))

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
        wide = wide_dtype(embeddings, self.centers)
        directions = unit(embeddings).to(wide)
        cosines = [
            torch.einsum("bd,ckd->bck", directions, unit(block).to(wide)).amax(2)
            for block in self.centers.split(1 << 14)
        ]
        return torch.cat(cosines, 1) * self.settings.scale

    @torch.no_grad()
    def cosines(
        self, embeddings: Float[Tensor, "B D"], labels: Int[Tensor, " B"]
    ) -> Float[Tensor, "B K"]:
        """Cosines of each row with the K centers of its own class, without margin or gradient.

        Ignored rows get 0. In `PartialFC` on several ranks, each gives its own rows.

        Raises:
            TypeError, ValueError: Embeddings or labels that do not fit, are not finite, or are no
                classes.

        Example:
            >>> from marginlab.losses import MarginSoftmax
            >>> head = MarginSoftmax(2, 2, subcenters=2)
            >>> head.load_centers(torch.tensor([[1.0, 0], [0, 1], [0, -1], [-1, 0]]))
            >>> head.cosines(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
            tensor([[ 1.,  0.],
                    [ 0., -1.]])
        """
        centers, ignored = self.centers.detach(), self.ignore_index
        if not self.sharded:
            return local_cosines(
                embeddings, labels, centers, ignore_index=ignored, budget=self.budget
            )
        return sharded_cosines(
            embeddings,
            labels,
            centers,
            part=self.part,
            num_classes=self.num_classes,
            ignore_index=ignored,
            budget=self.budget,
            group=self.group,
        )

    def _checked(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the labels in int64, and a mask of the rows that count (None: all).

        Raise for invalid inputs, or for a fault of the batch before.
        """
        self.faults.raise_deferred()
        check_shapes(embeddings, labels, self.centers)
        labels = labels.long()
        valid = self.settings.valid(labels)
        self.faults.before(embeddings, labels, valid)
        return labels, valid

    def _loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        batch: MarginBatch,
        *,
        spread: bool = False,
        margin: Margin | None = None,
        total_weight: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a checked batch.

        Args:
            embeddings: The rows.
            labels: Their classes.
            batch: Their columns among the centers.
            spread: The rows are those of all ranks, over this rank's classes.
            margin: Replaces the classifier's own margin.
            total_weight: The sum that the mean divides by, where the batch is a part of a larger
                one.
        """
        # the module's margin, which may have been replaced since the settings were made
        settings = replace(self.settings, margin=self.margin if margin is None else margin)
        over = Over(self.group, classes=spread, first=self.part.start)
        loss, cosine, left = weighted_loss(
            embeddings,
            self.centers,
            labels,
            batch,
            settings,
            over,
            self.class_weights,
            total_weight,
        )
        if not recomputing():  # a pass that is run again may be that of an earlier batch
            self.target_cosines, self._counted, self.left_out = cosine, batch.valid, left
        # a value of the trace is none of the module
        if torch.compiler.is_exporting() or transformed():
            self.target_cosines = self._counted = self.left_out = None
        self.faults.after(embeddings, labels, batch.valid, loss)
        return loss

    def _alike(self) -> dict[str, Any]:
        """Settings that all ranks must share, by name; otherwise a collective hangs or errs."""
        names = ["num_classes", "dim", "subcenters", "margin", "scale", "label_smoothing"]
        names += ["interclass_filter", "interclass_masks", "dispersion", "ignore_index"]
        names += ["reduction", "grads"]
        weights = self.class_weights
        if weights is not None:  # read once, not at every step
            seen = self._weighed
            if seen is None or seen[0] is not weights or seen[1] != weights._version:
                self._weighed, self._weights = (weights, weights._version), _digest(weights)
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


def _digest(weights: Tensor) -> str:
    """Return the first weights and a digest of all: a short text that ranks compare."""
    here = weights.double().cpu().contiguous()
    first = ", ".join(f"{weight:g}" for weight in here[:4].tolist())
    more = "" if len(here) <= 4 else ", ..."
    digest = hashlib.blake2b(here.numpy().tobytes(), digest_size=8).hexdigest()
    return f"[{first}{more}] with digest {digest}"
