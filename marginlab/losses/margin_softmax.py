"""Softmax cross-entropy over class centers with a margin on the target: ArcFace and its family,
over all classes.

    loss_i = -log( e^{s psi(cos theta_i)} / (e^{s psi(cos theta_i)} + sum_{j != y_i} e^{s cos theta_ij}) )
    cos theta_ij = max_k x_i . w_jk / (|x_i| |w_jk|),    cos theta_i = cos theta_{i y_i}

psi is the margin (`marginlab.margins`). Neither the (B, C) logits nor a normalised copy of the
centers is held above a byte budget.

Sources: Deng et al. 2022 (ArcFace, TPAMI), eq. 4 (the combined margin) and section 3.2
    (sub-centers).
"""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from marginlab import ranks
from marginlab.kernels.margin_problem import Over
from marginlab.losses.classifier import (
    Classifier,
    Reduction,
    check_classes,
    check_settings,
    excluded,
    weighted_loss,
)
from marginlab.losses.faults import Faults, check_shapes, check_tensor
from marginlab.margins import Margin


def margin_softmax(
    embeddings: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    centers: Float[Tensor, "C K D"] | Float[Tensor, "C D"],
    *,
    margin: Margin,
    scale: float = 64.0,
    exclude: Int[Tensor, "B E"] | None = None,
    class_weights: Float[Tensor, " C"] | None = None,
    label_smoothing: float = 0.0,
    interclass_filter: float | None = None,
    interclass_masks: bool = False,
    ignore_index: int | None = -100,
    reduction: Reduction = "mean",
    operands: torch.dtype | None = None,
    budget: int | None = None,
    compiled: bool = False,
    validate: bool = True,
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
) -> Float[Tensor, "*rows"]:
    """`MarginSoftmax` as a function of embeddings (B, D), labels (B,) and centers (C, K, D) or (C,
    D); see there for the settings.

    validate: read the tensors and refuse NaN, inf and wrong labels; on a GPU that waits for it.

    >>> from marginlab.margins import CosFace
    >>> margin_softmax(torch.eye(3), torch.arange(3), torch.eye(3), margin=CosFace(0.5), scale=2.0)  # log(1 + 2 e^-1)
    tensor(0.5514)
    """
    check_settings(margin, scale, label_smoothing, interclass_filter, reduction, budget, operands)
    check_tensor("Class centers", centers, "(C, D) or (C, K, D) floating point numbers")
    if not centers.is_floating_point():
        raise ValueError(f"Centers are floating-point numbers, not {centers.dtype}: call .float().")
    if centers.ndim not in (2, 3):
        raise ValueError(f"Class centers are (C, D) or (C, K, D), not {tuple(centers.shape)}.")
    check_shapes(embeddings, labels, centers)
    check_classes(len(centers), ignore_index, class_weights)
    labels = labels.long()
    valid = None if ignore_index is None else labels != ignore_index
    faults = Faults(len(centers), ignore_index, "now" if validate else "never")
    faults.before(embeddings, labels, valid)
    loss, _ = weighted_loss(
        embeddings,
        centers.unsqueeze(1) if centers.ndim == 2 else centers,
        labels,
        labels,
        valid,
        margin,
        scale=scale,
        classes=None,
        lift=None,
        exclude=excluded(exclude, len(labels)),
        class_weights=class_weights,
        label_smoothing=label_smoothing,
        interclass_filter=interclass_filter,
        interclass_masks=interclass_masks,
        reduction=reduction,
        operands=operands,
        budget=budget,
        compiled=compiled,
        dense_grad=False,
        over=Over(group),
        grads=grads,
    )
    faults.after(embeddings, labels, valid, loss)
    return loss


class MarginSoftmax(Classifier):
    """A classifier with one or more centers a class: `MarginSoftmax(num_classes, dim,
    margin=ArcFace(0.5))(embeddings, labels)`.

    Args:
        num_classes, dim: C and D.
        margin: an object of `marginlab.margins`; None is ArcFace(0.5).
        scale: s, 1/temperature: 64 for thousands of classes, less for few.
        subcenters: K centers for each class, of which the nearest counts. `centers` is a parameter
            (C, K, D).
        class_weights: (C,) weights of the rows by their class; the mean is over the sum of weights,
            as in torch's cross_entropy.
        label_smoothing: epsilon, spread evenly over all classes that a row has; with class weights
            each class's part has its weight, as there.
        interclass_filter: non-target cosines above it (0.4 in the published runs) are taken for two
            labels of one identity: they count as 0 and get no gradient; with interclass_masks=True
            they leave the sum.
        ignore_index: rows with this label count nowhere. None: every row counts.
        reduction: "mean" over the rows of all ranks, "sum", both the same number on every rank;
            "none": this rank's (B,).
        operands: dtype of the factors of the large products; None: that of the centers.
            torch.bfloat16 is several times faster; the target cosine and all sums stay float32. On
            a CPU the other cosines are also rounded to bfloat16, each by up to 2^-9 of itself.
            float64 inputs are computed in float64 whatever is said here.
        budget: bytes held between the passes or in a tile; None: 128 MiB, on CUDA 512 MiB.
        compiled: compile the pointwise part with torch.compile.
        validate: "now" refuses NaN, inf and wrong labels before work starts (default on a CPU);
            "deferred" raises them at the next call, so that a GPU need not be waited for (default
            there; the last batch of all is not checked); "never" leaves them to the caller, as a
            compiled graph and the transforms of torch.func do in any case.
        group: process group over which rows are spread, None: the default one, or one rank. Every
            rank holds all centers.
        grads: gradients are those of the global loss times the number of ranks ("mean", for DDP and
            FSDP, which average) or exactly those ("sum").
        seed: of the initial centers, N(0, 0.01^2).

    Raises:
        ValueError, TypeError: settings or inputs that cannot be; the message names them.
        RuntimeError: a second derivative, a transform of torch.func or an export above the budget;
            a margin with averages in training mode, in a transform that lets none be moved.

    Lengths do not count: of rows and centers only the direction does, at every length that the
    type holds, also with float16 operands. Below 1e-35 (of float64: 1e-300) a vector has no
    direction: its cosine with everything is 0, and it gets no gradient.

    First derivatives are made tile by tile. Second ones (create_graph=True) and the transforms of
    torch.func (grad, vmap, jacrev, hessian, per-sample gradients by functional_call) take a plain
    form that holds all (B, C K) products, and are refused above `budget`. Transforms over a batch
    want a margin without averages, or one in evaluation mode. It compiles with fullgraph=True and
    is exported; `backward` may be called again with retain_graph=True at any budget. Under
    torch.utils.checkpoint a margin's averages move once.

    >>> from marginlab.margins import ArcFace
    >>> head = MarginSoftmax(10, 4, margin=ArcFace(0.5), scale=16.0)
    >>> embeddings = torch.randn(8, 4, requires_grad=True)
    >>> head(embeddings, torch.arange(8)).backward()
    >>> head.logits(embeddings).shape
    torch.Size([8, 10])
    """

    _unmet = True
    """Whether the ranks have yet to compare their settings, which they do once."""

    def forward(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int[Tensor, " B"],
        exclude: Int[Tensor, "B E"] | None = None,
    ) -> Float[Tensor, "*rows"]:
        """The loss of embeddings with labels in 0..C-1; `exclude`: classes that each row leaves out
        (a known twin; -1 for none).
        """

        def check() -> tuple[Tensor, Tensor | None, Tensor | None]:
            checked, valid = self._checked(embeddings, labels)
            return checked, valid, excluded(exclude, len(checked))

        if self._unmet and ranks.size(self.group) > 1:
            said, group = self._settings(), self.group
            made, _ = ranks.accepted(check, embeddings, group, what="MarginSoftmax", **said)
            self._unmet = False
        else:
            made = check()
        own, valid, left_out = made
        return self._loss(embeddings, own, own, valid, exclude=left_out)
