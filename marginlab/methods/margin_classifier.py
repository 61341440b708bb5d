"""Training by a margin classifier: embeddings against the centers of all classes or of a sample.

Each embedding is that of one view of an image:

    embedding = BN(W backbone(view))
    loss      = margin softmax of cos(embedding, centers) on the label

A collapse to know of. Suppose that embeddings say nothing yet, and all lie at one angle t to all C
centers. Then a row costs log(1 + (C - 1) e^{s (cos t - psi)}). For ArcFace(m) the exponent is s sin
m at t = 90 degrees, where training begins, but s (1 - cos m) at 180 degrees: a quarter of it at m =
0.5. With the true gradient a target is pulled by the factor psi' = sin(t + m) / sin t, which is
below 1 for t > 90 degrees - m/2, while the other centers push with 1 in sum. So all embeddings are
driven away from all centers. Where classes are few, this comes sooner than they are told apart.
Batch normalisation does not prevent it: a few far rows balance the mean. On CIFAR-10, ArcFace(0.5)
at s = 16 ended at target angles of 171 degrees. With 964 classes of Omniglot it happened with seed
0, not with seed 1. With gradient="straight_through", as for CosFace, pull and push balance, and it
did not happen.

Sources: Deng et al. 2022 (ArcFace); with sample_rate < 1 An et al. 2022 (Partial FC).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from marginlab import losses, margins, ranks, settings
from marginlab.losses import PartialFC
from marginlab.methods.method import MakeOptimizer, Method
from marginlab.models import Backbone, EmbeddingLayer
from marginlab.settings import SettingsError, describe


class MarginClassifier(Method):
    """A backbone, an embedding layer D - dim, and class centers under a margin.

    Batch normalisation ends the embedding layer.

    On several ranks each rank has its part of the centers, at any sample rate. Initial centers and
    samples come from a seed that torch's generator draws, as the other weights do.

    Besides `loss`, `loss()` returns `target_angle`: the mean angle, in degrees, between embeddings
    and the (nearest) center of their class, without the margin. It begins near 90 and falls, to
    about 30 in published trainings of ArcFace.

    Args:
        backbone: The backbone, with features of dimension D.
        num_classes: C, the number of classes of the data. Training passes it, and a recipe does not
            name it.
        margin: A margin of marginlab.margins, or one of your own: an object, or its text in call
            notation, "ArcFace(0.5)" or "package.module:Mine(0.3)".
        scale: s of the softmax: 64 for thousands of classes; for tens 16 to 32 is enough.
        subcenters: K centers of each class, of which the nearest counts.
        sample_rate: Below 1, each step takes the batch's classes and others up to this part of all.
            The centers then have a row-sparse optimizer with the settings of the recipe's
            optimizer.
        log_q: Correct the sampled sum for the sampling.
        dim: Dimension of the embedding. 0 leaves the embedding layer out: the backbone's features
            are the embeddings, for backbones that end in such a layer (`IResNet` and its like).
        label_smoothing: As in `marginlab.losses.MarginSoftmax`.
        interclass_filter: As in `marginlab.losses.MarginSoftmax`.
        dispersion: As in `marginlab.losses.MarginSoftmax`.
        terms: Terms of marginlab.losses that are added to the loss, as objects or texts:
            ("IntraClass()", "InterClass(weight=0.5)", "AngularTriplet(0.35)"). They are of all
            classes and of one center a class.
        views: Views of an image in a batch; each is a row of its class.

    Raises:
        SettingsError: The margin or a term cannot be made.
        ValueError: `PartialFC` refuses a value, or terms are asked for with sampled classes or
            sub-centers.

    Example:
        >>> from marginlab.models import Backbone
        >>> backbone = Backbone("resnet18", stem="strided", width=0.25)
        >>> method = MarginClassifier(backbone, 10, margin="CosFace(0.35)", scale=32.0)
        >>> sorted(method.loss(torch.rand(4, 1, 3, 32, 32), torch.arange(4)))
        ['loss', 'target_angle']
    """

    n_views: int = 1

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        margin: settings.Choice[margins.Margin] = "ArcFace(0.5)",
        scale: float = 64.0,
        subcenters: int = 1,
        sample_rate: float = 1.0,
        log_q: bool = False,
        dim: int = 128,
        label_smoothing: float = 0.0,
        interclass_filter: float | None = None,
        dispersion: float = 0.0,
        terms: tuple[settings.Choice[losses.AngularTerm], ...] = (),
        views: int = 1,
    ):
        if views < 1:
            raise ValueError(f"An image has at least 1 view in a batch, not {views}.")
        if terms and (sample_rate < 1 or subcenters > 1):
            raise ValueError(
                "Terms are of all classes and of one center a class, not with sample_rate="
                f"{sample_rate} and subcenters={subcenters}. Take 1.0 and 1, or no terms."
            )
        head = EmbeddingLayer(backbone.dim, dim) if dim else nn.Identity()
        super().__init__(backbone, head)
        made = settings.make(margin, margins, margins.Margin)
        seed = int(torch.randint(2**31, ()))
        # `fit` checks the loss and data sets check their labels, so the classifier need not read
        # the tensors at every step
        kept: dict[str, Any] = {
            "label_smoothing": label_smoothing,
            "interclass_filter": interclass_filter,
            "dispersion": dispersion,
            "seed": seed,
            "validate": "never",
        }
        self.classifier = PartialFC(
            num_classes,
            dim or backbone.dim,
            made,
            scale,
            subcenters,
            sample_rate=sample_rate,
            log_q=log_q,
            **kept,
        )
        self.sample_rate, self.log_q, self.dim = float(sample_rate), log_q, dim
        self.n_views = views
        self.terms = nn.ModuleList(
            settings.make(term, losses, losses.AngularTerm) for term in terms
        )

    def loss(
        self, views: Float[Tensor, "B V 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the margin softmax over all views of all images, and the mean target angle."""
        embeddings = self.embed(views).flatten(0, 1)
        labels = labels.repeat_interleave(views.shape[1])
        loss = self.classifier(embeddings, labels)
        angle = self.classifier.target_angle
        assert angle is not None
        for term in self.terms:
            loss = loss + term(embeddings, labels, self.classifier.centers[:, 0], sharded=True)
        return {"loss": loss, "target_angle": angle}

    @torch.no_grad()
    def class_weights(self) -> Float[Tensor, "C K D"]:
        """Return the centers of all classes; on several ranks all call it."""
        head = self.classifier
        return ranks.all_gather(head.centers.detach(), head.group)

    @property
    def undivided(self) -> str:
        """Reason why the margin cannot take a batch in parts; empty if it can."""
        if len(self.terms):
            return "the terms of its loss are means over the rows of a whole batch. Leave them out."
        return self.classifier.margin.undivided

    @contextlib.contextmanager
    def window(self, labels: Int[Tensor, " B"]) -> Iterator[bool]:
        """Open a context in which the parts of a step are one batch, see `PartialFC.window`.

        Margins with averages use the averages of earlier steps.
        """
        with self.classifier.window(
            labels.repeat_interleave(self.n_views),
            statistics="previous" if self.classifier.margin.averages else None,
        ):
            yield True

    def optimizers(self, make: MakeOptimizer) -> list[torch.optim.Optimizer]:
        """Make one optimizer of all parameters, or two if classes are sampled.

        The two are one of backbone and embedding layer, and a row-sparse one of the centers.

        Raises:
            SettingsError: Classes are sampled, or centers are spread over ranks, and the chosen
                optimizer has no row-sparse twin (a method `lazy`). Such an optimizer looks at more
                of a parameter than a row, as LARS does at its length.
        """
        lazy = getattr(make, "lazy", None)
        if lazy is None and (self.sample_rate < 1 or ranks.size(self.classifier.group) > 1):
            sparse = f"sample_rate={self.sample_rate} gives the class centers row-sparse gradients"
            why = (
                sparse
                if self.sample_rate < 1
                else "On several ranks each has its part of the class centers"
            )
            raise SettingsError(
                f"{why}, for which {make!r} makes no optimizer. Take SGD(...) or AdamW(...), or "
                "one process and sample_rate=1.0."
            )
        if self.sample_rate == 1:
            return [make(self.parameters())]
        own = {id(parameter) for parameter in self.classifier.parameters()}
        shared = [parameter for parameter in self.parameters() if id(parameter) not in own]
        assert lazy is not None
        return [
            make(shared),
            lazy(self.classifier.parameters(), first_row=self.classifier.part.start),
        ]

    def __repr__(self) -> str:
        kept = self.classifier
        more: dict[str, Any] = {}
        if len(self.terms):
            more["terms"] = tuple(settings.named_repr(term) for term in self.terms)
        if self.n_views > 1:
            more["views"] = self.n_views
        return describe(
            "MarginClassifier",
            margin=settings.named_repr(kept.margin),
            scale=kept.scale,
            subcenters=kept.subcenters,
            sample_rate=self.sample_rate,
            log_q=self.log_q,
            dim=self.dim,
            label_smoothing=kept.label_smoothing,
            interclass_filter=kept.interclass_filter,
            dispersion=kept.dispersion,
            **more,
        )
