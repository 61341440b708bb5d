"""Partial FC: the margin softmax over a sample of the classes, with the classes sharded over ranks.

The sample holds the batch's own classes and a fresh uniform sample of the others.

    loss_i = -log( e^{t_i} / (e^{t_i} + sum_{j in S, j != y_i} e^{s cos theta_ij}) ),
    t_i = s psi(cos theta_i),    S contains P,    |S| = max(|P|, floor(r C))

P are the distinct labels of the global batch. The rest of S is uniform without replacement. Of the
C centers, only those of S are read and get a gradient (row-sparse).

With `log_q` the logits of the negatives in S are raised, so that their sum is an unbiased estimate
of the sum over all classes outside P (`marginlab.losses.draw`).

Each of N ranks holds the centers of its own classes (`marginlab.losses.shards`), and sees the rows
of all ranks. S is drawn from (seed, step, labels), alike on every rank, so the loss does not depend
on N. A step exchanges the embeddings and labels, one packed (max, sum, target cosine) for each row,
and the embeddings' gradient. The gradient of the centers stays on its rank.

Sources: An et al. 2022 (Partial FC, CVPR), section 3; An et al. 2021 (arXiv 2010.05222).
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab import ranks
from marginlab.kernels.margin_batch import MarginBatch
from marginlab.kernels.margin_settings import wide_dtype
from marginlab.losses.classifier import Classifier, setting
from marginlab.losses.draw import Draw, draw_classes, masked_labels
from marginlab.losses.gathered_batch import GatheredBatch, validate_batch_together
from marginlab.losses.sampling import columns
from marginlab.losses.shards import local_centers, local_classes
from marginlab.losses.weighted_loss import row_weights
from marginlab.losses.window import Part, Window, check_divisible
from marginlab.margins import Margin
from marginlab.recomputation import Calls, recomputing


class PartialFC(Classifier):
    """`MarginSoftmax` over sampled classes in training, and over all classes in evaluation.

    It runs on one process or many. Under torch.utils.checkpoint the pass that is run again takes
    the sample of its step. Drawing a sample waits for the labels. The draw and the exchange between
    ranks stay outside a compiled graph. With sample_rate=1 on one rank the head compiles with
    fullgraph=True, otherwise without. There and in evaluation mode it can be exported. On one rank,
    second derivatives and torch.func work as in `MarginSoftmax`; with create_graph=True the
    gradient of the centers is dense.

    Args:
        sample_rate: r in [0, 1]; 1 is `MarginSoftmax`, 0 takes the batch's own classes only. If the
            batch has more than r C classes, exactly those are taken.
        log_q: Correct the sum for the sampling.
        dense_grad: Make the gradient of the centers dense, zero where nothing was sampled, for the
            optimizers of torch. Otherwise it is sparse, for `marginlab.optim.LazySGD` and
            `LazyAdamW`, which touch the sampled rows only.
        seed: Seed of the initial centers and of the samples. A sample is a function of (seed, step,
            labels); `step` counts the batches of training and is part of the state dict.
        group: The ranks over which rows and classes are spread; None: the default group, or one
            rank. `centers` are this rank's part, (C_k, K, D); their gradient is that of the global
            loss. Keep the head outside DDP and FSDP, or see `outside_ddp`.
        grads: "mean": gradients of the embeddings are those of the global loss times the number of
            ranks, for DDP and FSDP, which average. "sum": exactly those of the global loss.
        num_classes, dim, margin, scale, subcenters and all others: as in `MarginSoftmax`.

    Raises:
        ValueError, TypeError: As `MarginSoftmax`; if one rank rejects its input, all raise.
        RuntimeError: A forward pass inside a backward pass that is not a rerun of an earlier one.
        RuntimeError: `load_state_dict` of centers of another number of classes; see
            `marginlab.losses.resized`.

    Example:
        >>> from marginlab.margins import ArcFace
        >>> head = PartialFC(1000, 16, margin=ArcFace(0.5), sample_rate=0.1)
        >>> head(torch.randn(8, 16), torch.arange(8)).backward()
        >>> # 100 of the 1,000 classes, the 8 among them
        >>> head.centers.grad.coalesce().indices().shape
        torch.Size([1, 100])
    """

    sharded: ClassVar[bool] = True
    dense_grad = setting("dense_grad")

    def __init__(
        self,
        num_classes: int,
        dim: int,
        margin: Margin | None = None,
        scale: float = 64.0,
        subcenters: int = 1,
        *,
        sample_rate: float = 0.1,
        log_q: bool = False,
        dense_grad: bool = False,
        **settings: Any,
    ):
        if not 0 <= sample_rate <= 1:
            raise ValueError(
                f"A sample rate is a part of the classes, in [0, 1], not {sample_rate}."
            )
        super().__init__(num_classes, dim, margin, scale, subcenters, **settings)
        self.sample_rate, self.log_q = sample_rate, log_q
        self.settings = replace(self.settings, dense_grad=dense_grad)
        # 0.29 of 100 classes are 29, though 0.29 * 100 falls short of it
        self.size = math.floor(sample_rate * num_classes + 1e-6)
        self.step = 0
        self._window: Window | None = None
        self._calls = Calls[Part]()

    def _part(self) -> slice:
        return local_classes(self.num_classes, self.group)

    def forward(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int[Tensor, " B"],
        exclude: Int[Tensor, "B E"] | None = None,
    ) -> Float[Tensor, "*rows"]:
        """Return the loss of this rank's embeddings with their labels.

        Args:
            embeddings: (B, D).
            labels: (B,), in 0..C-1.
            exclude: (B, E), classes that each row leaves out (a known twin; -1 for none).
        """
        gathered = self._gathered(embeddings, labels, exclude)
        part = self._part_of_step(gathered)
        if part.step is None:
            loss = self._all_classes_loss(gathered, part)
        else:
            loss = self._sampled_loss(gathered, part, self._draw(part))
        if self.reduction == "none":
            return ranks.local_rows(loss, gathered.rows_per_rank, self.group)
        return loss

    def _part_of_step(self, batch: GatheredBatch) -> Part:
        """Take a new step; a pass that is run again takes that of the first pass."""
        rows = (batch.labels, batch.embeddings)
        samples = self.training and self.sample_rate < 1
        if recomputing() and (samples or self._window is not None or self._calls.noted(rows)):
            return self._calls.recall(rows)
        if self._window is not None:
            part = self._window.part(batch.labels, batch.rows_per_rank)
        elif samples:
            part = Part(self._next_step(), batch.labels, batch.valid)
        else:
            part = Part(None, batch.labels, batch.valid)
            if not self._calls:  # no sampled pass that this one, run again, could be taken for
                return part
        self._calls.note(
            rows, part._replace(labels=part.labels.clone()) if self._window is None else part
        )
        return part

    def _next_step(self) -> int:
        self.step += 1
        return self.step - 1

    @contextlib.contextmanager
    def window(
        self, labels: Int[Tensor, " B"], *, statistics: Literal["previous"] | None = None
    ) -> Iterator[None]:
        """Accumulate one step over several forward and backward passes.

        Write `with head.window(all_labels): for ...: head(part, labels).backward()`.

        The gradients add up to those of one batch of all the rows. The sample is drawn once, for
        all labels, and the mean is over all rows. Give the parts in the order of `labels`, and on
        every rank the same number of parts (a part may be empty).

        Args:
            labels: All labels of this rank's rows in this window.
            statistics: "previous" for a margin whose averages a batch moves before it is used
                (AdaFace, CurricularFace): all parts use those of earlier steps, and the whole batch
                moves them once, when the window closes.

        Raises:
            ValueError: Such a margin without statistics="previous", one that needs all rows at once
                (ElasticFace with plus), reduction="none", rows that are not those announced, a
                window inside a window.

        Example:
            >>> head = PartialFC(100, 8, sample_rate=0.2)
            >>> embeddings, labels = torch.randn(6, 8), torch.arange(6)
            >>> with head.window(labels):
            ...     for part in (slice(0, 3), slice(3, 6)):
            ...         head(embeddings[part], labels[part]).backward()
        """
        if self._window is not None:
            raise ValueError("A window is open already: close it before the next begins.")
        check_divisible(self.margin, self.reduction, statistics)
        no_embeddings = self.centers.new_zeros(len(labels), self.dim)
        labels, _, rows_per_rank = self._validated(no_embeddings, labels, None)
        labels = ranks.all_gather(labels, self.group, rows=rows_per_rank)
        valid = self.settings.valid(labels)
        weights = row_weights(labels, valid, self.class_weights, torch.float64)
        step = self._next_step() if self.training and self.sample_rate < 1 else None
        self._window = Window(labels, valid, rows_per_rank, weights.sum(), step, self.margin)
        try:
            yield
            self._window.close()
        finally:
            self._window = None

    def _validated(
        self, embeddings: Tensor, labels: Tensor, exclude: Tensor | None
    ) -> tuple[Tensor, Tensor | None, list[int]]:
        """Validate this rank's batch; if any rank rejects, all raise."""
        return validate_batch_together(
            self._checked,
            self._alike,
            embeddings,
            labels,
            exclude,
            group=self.group,
            device=self.centers.device,
        )

    def _alike(self) -> dict[str, Any]:
        """Settings that all ranks must share for their sum to be one loss."""
        names = ("sample_rate", "log_q", "seed", "step", "training")
        return super()._alike() | {name: getattr(self, name) for name in names}

    def _gathered(
        self, embeddings: Tensor, labels: Tensor, exclude: Tensor | None
    ) -> GatheredBatch:
        """Gather the rows of all ranks."""
        labels, exclude, rows = self._validated(embeddings, labels, exclude)
        averaged = self.grads == "mean" and self.reduction != "none"
        factor = float(len(rows)) if averaged else 1.0
        embeddings = ranks.all_gather(embeddings, self.group, rows=rows, factor=factor)
        labels = ranks.all_gather(labels, self.group, rows=rows)
        if exclude is not None:
            exclude = ranks.all_gather(exclude, self.group, rows=rows)
        return GatheredBatch(embeddings, labels, self.settings.valid(labels), exclude, rows)

    def _all_classes_loss(self, gathered: GatheredBatch, part: Part) -> Tensor:
        """Return the loss over all classes."""
        spread = len(gathered.rows_per_rank) > 1
        target = gathered.labels - self.part.start
        batch = MarginBatch(
            target.masked_fill(target >= len(self.centers), -1) if spread else target,
            valid=gathered.valid,
            exclude=None if gathered.exclude is None else gathered.exclude - self.part.start,
        )
        return self._part_loss(gathered, part, batch)

    def _sampled_loss(self, gathered: GatheredBatch, part: Part, draw: Draw) -> Tensor:
        """Return the loss over the sampled classes."""
        classes, lift = draw
        if len(gathered.rows_per_rank) > 1:
            low, high = torch.searchsorted(
                classes, torch.tensor([self.part.start, self.part.stop], device=classes.device)
            ).tolist()
            classes, lift = classes[low:high], None if lift is None else lift[low:high]
        labels = masked_labels(gathered.labels, gathered.valid, self.num_classes)
        batch = MarginBatch(
            columns(classes, labels),
            valid=gathered.valid,
            exclude=None if gathered.exclude is None else columns(classes, gathered.exclude),
            classes=classes - self.part.start,
            lift=None if lift is None else lift.to(wide_dtype(gathered.embeddings, self.centers)),
        )
        return self._part_loss(gathered, part, batch)

    def _part_loss(self, gathered: GatheredBatch, part: Part, batch: MarginBatch) -> Tensor:
        """Return the loss of the rows of all ranks, under the margin and total weight of a part."""
        return self._loss(
            gathered.embeddings,
            gathered.labels,
            batch,
            spread=len(gathered.rows_per_rank) > 1,
            margin=part.margin,
            total_weight=part.total_weight,
        )

    def _draw(self, part: Part) -> Draw:
        """Draw the sample of a step, alike on every rank."""
        assert part.step is not None
        return draw_classes(
            masked_labels(part.labels, part.valid, self.num_classes),
            self.num_classes,
            self.size,
            seed=self.seed,
            step=part.step,
            log_q=self.log_q,
        )

    @torch.no_grad()
    def logits(self, embeddings: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scaled cosines with every class, without margin, for evaluation.

        On several ranks, all give the same embeddings and get all classes.
        """
        return ranks.all_gather(super().logits(embeddings).T.contiguous(), self.group).T

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if ranks.size(self.group) > 1:
            key = f"{prefix}centers"
            destination[key] = ranks.shard(destination[key], self.num_classes, self.group)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        key = f"{prefix}centers"
        if key in state_dict:
            found, error = local_centers(state_dict[key], key, self.num_classes, self.part)
            if error:
                errors.append(error)
            found = self.centers.detach() if found is None else found
            state_dict = {**state_dict, key: found}
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )

    def get_extra_state(self) -> Tensor:
        """Return the number of batches that were sampled for."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of batches that were sampled for."""
        self.step = int(ranks.to_local(state))

    def extra_repr(self) -> str:
        """Describe the sizes, the scale and the rate."""
        return f"{super().extra_repr()}, sample_rate={self.sample_rate}"
