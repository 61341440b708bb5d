"""Softmax cross-entropy over all classes, with a margin on the target: ArcFace and its family.

    loss_i = -log( e^{t_i} / (e^{t_i} + sum_{j != y_i} e^{s cos theta_ij}) ),
    t_i = s psi(cos theta_i),    cos theta_i = cos theta_{i y_i},
    cos theta_ij = max_k x_i . w_jk / (|x_i| |w_jk|)

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
from marginlab.kernels.margin_batch import MarginBatch, Over
from marginlab.kernels.margin_settings import Reduction
from marginlab.losses.classifier import Classifier
from marginlab.losses.classifier_settings import check_classes, settings_among
from marginlab.losses.faults import Faults, check_shapes, check_tensor, excluded
from marginlab.losses.weighted_loss import weighted_loss
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
    dispersion: float = 0.0,
    ignore_index: int | None = -100,
    reduction: Reduction = "mean",
    operands: torch.dtype | None = None,
    budget: int | None = None,
    negligible: float = 0.0,
    compiled: bool = False,
    validate: bool = True,
    group: dist.ProcessGroup | None = None,
    grads: ranks.Gradients = "mean",
) -> Float[Tensor, "*rows"]:
    """Function form of `MarginSoftmax`, with the class centers as an argument.

    `MarginSoftmax` documents the other settings.

    Args:
        embeddings: (B, D).
        labels: (B,).
        centers: (C, K, D) or (C, D).
        validate: Read the tensors and refuse NaN, inf and wrong labels; on a GPU this waits for it.

    Example:
        >>> from marginlab.margins import CosFace
        >>> eye, margin = torch.eye(3), CosFace(0.5)
        >>> margin_softmax(eye, torch.arange(3), eye, margin=margin, scale=2.0)  # log(1 + 2 e^-1)
        tensor(0.5514)
    """
    settings = settings_among(locals())
    check_tensor("Class centers", centers, "(C, D) or (C, K, D) floating point numbers")
    if not centers.is_floating_point():
        raise ValueError(f"Centers are floating-point numbers, not {centers.dtype}: call .float().")
    if centers.ndim not in (2, 3):
        raise ValueError(f"Class centers are (C, D) or (C, K, D), not {tuple(centers.shape)}.")
    check_shapes(embeddings, labels, centers)
    check_classes(len(centers), ignore_index, class_weights)
    labels = labels.long()
    valid = settings.valid(labels)
    faults = Faults(len(centers), ignore_index, "now" if validate else "never")
    faults.before(embeddings, labels, valid)
    centers = centers.unsqueeze(1) if centers.ndim == 2 else centers
    batch = MarginBatch(labels, valid=valid, exclude=excluded(exclude, len(labels)))
    loss, *_ = weighted_loss(
        embeddings, centers, labels, batch, settings, Over(group), class_weights
    )
    faults.after(embeddings, labels, valid, loss)
    return loss


class MarginSoftmax(Classifier):
    """A classifier with one or more centers a class, over all classes.

    Call it as `MarginSoftmax(num_classes, dim, margin=ArcFace(0.5))(embeddings, labels)`. Only the
    directions of rows and centers count, never their lengths. This holds at every length that the
    type holds, also with float16 operands. Below 1e-35 (for float64: 1e-300) a vector has no
    direction: its cosine with everything is 0, and it gets no gradient.

    First derivatives are made tile by tile. Second derivatives (create_graph=True) and the
    transforms of torch.func (grad, vmap, jacrev, hessian, per-sample gradients by functional_call)
    take a plain form. It holds all (B, C K) products and is refused above `budget`. Transforms over
    a batch need a margin without averages, or one in evaluation mode. The module compiles with
    fullgraph=True and can be exported. With retain_graph=True, `backward` may be called again at
    any budget. Under torch.utils.checkpoint a margin's averages move once.

    Args:
        num_classes, dim: C and D.
        margin: An object of `marginlab.margins`; None is ArcFace(0.5).
        scale: s, 1/temperature: 64 for thousands of classes, less for few.
        subcenters: K centers for each class, of which the nearest counts. `centers` is a parameter
            (C, K, D).
        class_weights: (C,) weights of the rows by their class; the mean is over the sum of weights,
            as in torch's cross_entropy.
        label_smoothing: epsilon, spread evenly over all classes that a row has. With class weights
            each class's part has its weight, as in torch's cross_entropy.
        interclass_filter: Threshold of non-target cosines (0.4 in the published runs). Cosines
            above it are taken for two labels of one identity: they count as 0 and get no gradient.
            With interclass_masks=True they leave the sum.
        dispersion: Weight of a term that drives the sub-centers of a class apart, or together if it
            is negative (`marginlab.losses.dispersion`). Each row's loss has that of its class.
        ignore_index: Rows with this label count nowhere. None: every row counts.
        reduction: "mean" over the rows of all ranks, "sum", both the same number on every rank;
            "none": this rank's (B,).
        operands: Dtype of the factors of the large products; None: that of the centers.
            torch.bfloat16 is several times faster; the target cosine and all sums stay float32. On
            a CPU the other cosines are also rounded to bfloat16, each by up to 2^-9 of itself.
            float64 inputs are computed in float64 whatever is said here.
        budget: Bytes held between the passes or in a tile; None: 128 MiB, on CUDA 512 MiB.
        negligible: Leave rows that give less than this of their softmax to the other classes out
            of the backward pass, such as 1e-4; 0: none. Late in a training they are most rows.
            `left_out` then holds their number in the last batch, and a bound of what it changes. On
            CUDA each backward pass waits for the device.
        compiled: Compile the pointwise part with torch.compile.
        validate: "now" refuses NaN, inf and wrong labels before work starts (default on a CPU).
            "deferred" raises at the next call, so that nothing waits for a GPU (default there; the
            very last batch is not checked). "never" leaves the checks to the caller, as a compiled
            graph and the transforms of torch.func do in any case.
        group: Process group over which rows are spread; None means the default group, or one rank.
            Every rank holds all centers.
        grads: "mean": gradients are those of the global loss times the number of ranks, for DDP and
            FSDP, which average. "sum": exactly those of the global loss.
        seed: Seed of the initial centers, N(0, 0.01^2).

    Raises:
        ValueError, TypeError: Invalid settings or inputs; the message names them.
        RuntimeError: A second derivative, a transform of torch.func or an export above the budget;
            a margin with averages in training mode, in a transform that cannot update them.

    Example:
        >>> from marginlab.margins import ArcFace
        >>> head = MarginSoftmax(10, 4, margin=ArcFace(0.5), scale=16.0)
        >>> embeddings = torch.randn(8, 4, requires_grad=True)
        >>> head(embeddings, torch.arange(8)).backward()
        >>> head.logits(embeddings).shape
        torch.Size([8, 10])
    """

    _compared = False
    """True once the ranks have compared their settings."""

    def forward(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int[Tensor, " B"],
        exclude: Int[Tensor, "B E"] | None = None,
    ) -> Float[Tensor, "*rows"]:
        """Return the loss of embeddings with labels in 0..C-1.

        Args:
            embeddings: (B, D).
            labels: (B,), in 0..C-1.
            exclude: (B, E), classes that each row leaves out (a known twin; -1 for none).
        """

        def check() -> tuple[Tensor, Tensor | None, Tensor | None]:
            integers, valid = self._checked(embeddings, labels)
            return integers, valid, excluded(exclude, len(integers))

        if not self._compared and ranks.size(self.group) > 1:
            checked, _ = ranks.validate_together(
                check, embeddings, self.group, what="MarginSoftmax", **self._alike()
            )
            self._compared = True
        else:
            checked = check()
        labels, valid, exclude = checked
        batch = MarginBatch(labels, valid=valid, exclude=exclude)
        return self._loss(embeddings, labels, batch)
