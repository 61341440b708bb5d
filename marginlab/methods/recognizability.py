"""Fine-tuning on images of low resolution, with a score of how recognizable each image is.

    v  = embedding,   F = last feature map,   u = center of unrecognizable images
    L  = L_cls + regression L_1 + diversion L_ID + attention L_MSE

    L_1     smooth-L1 of the predicted index xi^(F) against the index xi(v, class centers, u)
    L_ID    max(0, tau - (xi^ - mu) / sigma), mu and sigma of unrecognizable images
    L_MSE   |v' - v_a(F)|^2,  v' = v - <v, u> u of the unit embedding, v_a the attended one

xi, v', u, mu and sigma are constants: no gradient reaches them. Otherwise L_1 would move the class
centers to shrink its error. Through xi^ and v_a gradients reach the heads and the backbone.

Unrecognizable images are training images that an operation has ruined. u is taken before the first
step, from the network that the recipe starts from; mu and sigma are renewed once an epoch. All of
it is in the checkpoint. Index diversion begins with the second epoch, because the head that it
moves says nothing before.

The first of the paper's two stages is a recipe with `MarginClassifier`, on images of high
resolution. The second is a recipe with `Recognizability` of the same margin classifier, whose
`start` is the run of the first, and whose augmentation degrades images.

Source: Chai et al. 2023 (CVPR). The weights of the terms, tau and the dropout are ours; the paper's
are not known.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from marginlab import augment, ranks, settings
from marginlab.augment.operation import Operation
from marginlab.data import ImageSet
from marginlab.encoding import evaluating
from marginlab.kernels.function import readable
from marginlab.losses.functional import attention_target, index_regression
from marginlab.losses.index_diversion import INSTANCES, IndexDiversion, Kind
from marginlab.measures import UnrecognizableBank
from marginlab.measures.functional import recognizability_distances, recognizability_index
from marginlab.methods.margin_classifier import MarginClassifier
from marginlab.models import Backbone, PerceptibilityAttention, QualityHead
from marginlab.rng import Key
from marginlab.settings import describe

_BATCH = 256  # images that are encoded at a time between epochs


class Recognizability(MarginClassifier):
    """A margin classifier, a quality head and perceptibility attention, trained together.

    Besides `loss`, `loss()` returns `target_angle` and, without their weights, the terms
    `classification`, `index_regression`, `index_diversion` and `attention`; and
    `unrecognizable_cosine`, the mean cosine of embeddings with u. That cosine says what diversion
    does: a constant added to all predicted indices lowers L_ID, but does not move it.

    Args:
        backbone: The backbone, which has a feature map.
        num_classes: C. Training passes it, and a recipe does not name it.
        image_size: Side of the images, which decides the size of the flattened map.
        regression: Weight of L_1.
        diversion: Weight of L_ID. Keep it below a fifth of regression times sigma; beyond sigma it
            warns.
        attention: Weight of L_MSE.
        tau: As in `marginlab.losses.IndexDiversion`.
        statistics: "predicted", "prior" or "labelled": what mu and sigma are of, see
            `marginlab.losses.index_diversion`.
        clamp: Largest index xi; 0 does not clamp. Few classes want 5 to 10.
        ruin: The operation that makes training images unrecognizable, in call notation.
        instances: Number K of unrecognizable images of an epoch, at most all training images.
        tight: Least resultant of the unrecognizable embeddings before the first step.
        renew_center: Renew u at each epoch, and not only mu and sigma.
        dropout: Of the quality head.
        classifier: Settings of `MarginClassifier`: margin, scale, subcenters, sample_rate, log_q,
            dim, label_smoothing, interclass_filter.

    Raises:
        SettingsError: The margin or the ruin cannot be made.
        ValueError: A weight is negative, or another value is refused.

    Example:
        >>> backbone = Backbone("resnet18", stem="strided", width=0.125)
        >>> method = Recognizability(backbone, 4, image_size=16, dim=8, scale=16.0)
        >>> images = torch.randint(256, (12, 3, 16, 16), dtype=torch.uint8)
        >>> method.begin_epoch(0, ImageSet(images, torch.arange(12) % 4, tuple("abcd"), "noise"))
        >>> said = method.loss(images[:4, None] / 255, torch.arange(4))
        >>> sorted(said)[:3], method.eval().quality(images).shape
        (['attention', 'classification', 'index_diversion'], torch.Size([12]))
    """

    n_views: int = 1
    drawn_anew: ClassVar[tuple[str, ...]] = ("quality_head.", "attend.", "diverted.", "center")

    center: Tensor
    center_resultant: Tensor
    center_epoch: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        image_size: int = 32,
        regression: float = 1.0,
        diversion: float = 0.02,
        attention: float = 1.0,
        tau: float = 3.0,
        statistics: Kind = "predicted",
        clamp: float = 0.0,
        ruin: str = "LowResolution(rows=(3, 3))",
        instances: int = INSTANCES,
        tight: float = 0.5,
        renew_center: bool = False,
        dropout: float = 0.4,
        **classifier: Any,
    ):
        super().__init__(backbone, num_classes, **classifier)
        for name, value in (
            ("regression", regression),
            ("diversion", diversion),
            ("attention", attention),
            ("clamp", clamp),
        ):
            if not value >= 0:
                raise ValueError(f"{name} is not negative, but {value}.")
        if instances < 2 or image_size < 1:
            raise ValueError(
                f"instances is at least 2 and image_size at least 1, not {instances} and "
                f"{image_size}."
            )
        self.image_size, self.regression, self.diversion = image_size, regression, diversion
        self.attention, self.clamp, self.ruin, self.instances = attention, clamp, ruin, instances
        self.tight, self.renew_center = tight, renew_center
        self.operation: Operation = settings.make(ruin, augment, Operation)
        with evaluating(backbone), torch.no_grad():
            first = next(backbone.parameters(), torch.zeros(()))
            maps = backbone.feature_map(first.new_zeros(1, 3, image_size, image_size))
        channels, size = maps.shape[1], (maps.shape[2], maps.shape[3])
        embedding = self.dim or backbone.dim
        self.quality_head = QualityHead(channels, size, dropout)
        self.attend = PerceptibilityAttention(channels, size, embedding)
        self.diverted = IndexDiversion(statistics, tau, seed=self.classifier.seed)
        self.register_buffer("center", torch.zeros(embedding))
        self.register_buffer("center_resultant", torch.zeros(()))
        self.register_buffer("center_epoch", torch.full((), -1, dtype=torch.long))

    def loss(
        self, views: Float[Tensor, "B V 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the total loss over all views of all images, and its terms.

        Raises:
            ValueError: In training mode, before the first `begin_epoch`.
        """
        if self.training and readable(self.center_epoch) and int(self.center_epoch) < 0:
            raise ValueError(
                "Recognizability has no center of unrecognizable images yet: call "
                "begin_epoch(epoch, images) before the first step of an epoch, as `fit` does."
            )
        labels = labels.repeat_interleave(views.shape[1])
        maps, features = self.backbone.map_and_features(views.flatten(0, 1))
        embeddings = self.project(features)
        classification = self.classifier(embeddings, labels)
        angle = self.classifier.target_angle
        assert angle is not None
        predicted = self.quality_head(maps)
        index, away = self._index(embeddings, labels)
        terms = {
            "index_regression": index_regression(predicted, index),
            "index_diversion": self._diversion(predicted),
            "attention": attention_target(self.attend(maps), embeddings, self.center),
        }
        weights = (self.regression, self.diversion, self.attention)
        total = classification + sum(
            weight * term for weight, term in zip(weights, terms.values(), strict=True)
        )
        # their number is summed on the device: to read it, the host would wait
        near = torch.stack([(1 - away).sum(), away.new_full((), len(away))])
        cosine, rows = ranks.all_reduce(near).unbind()
        return {
            "loss": total,
            "target_angle": angle,
            "classification": classification.detach(),
            **{name: term.detach() for name, term in terms.items()},
            "unrecognizable_cosine": cosine / rows,
        }

    def quality(
        self, images: Float[Tensor, "B 3 H W"] | UInt8[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        """Return predicted recognizability indices of images; higher is better.

        Call `eval()` first: in training mode the head drops a part of the map.

        Raises:
            TypeError, ValueError: Images that `encode` refuses.
        """
        predicted: Tensor = self.quality_head(self.backbone.feature_map(self.floating(images)))
        return predicted

    def heat_map(
        self, images: Float[Tensor, "B 3 H W"] | UInt8[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B H W"]:
        """Return the spatial attention of images, between 0 and 1, at their size.

        Raises:
            TypeError, ValueError: Images that `encode` refuses.
        """
        maps = self.backbone.feature_map(self.floating(images))
        return self.attend.heat_map(maps, (images.shape[2], images.shape[3]))

    @torch.no_grad()
    def begin_epoch(self, epoch: int, images: ImageSet) -> None:
        """Renew u (before the first step, or always) and the statistics of unrecognizable images.

        Raises:
            ValueError: The embeddings of the ruined images do not share a direction. Or an image
                cannot be read on some rank; then every rank raises.
        """
        first = epoch == 0 or int(self.center_epoch) < 0
        renew_center = first or self.renew_center
        if renew_center or self.diverted.kind != "prior":
            self._renew(epoch, images, center=renew_center, tight=self.tight if first else 0.0)
        self.center_epoch.fill_(epoch)
        if self.diversion:
            self.diverted.pressure(self.diversion, self.regression)

    def _renew(self, epoch: int, images: ImageSet, *, center: bool, tight: float) -> None:
        """Read this epoch's ruined images; renew the statistics, and u if `center` is true."""
        rows, labels = self._chosen(epoch, images)
        error: Exception | None = None
        predicted, embeddings = self.center[:0], self.center[None, :][:0]
        try:
            predicted, embeddings = self._read(rows, epoch, images)
        except Exception as raised:  # of any kind: the other ranks would wait
            error = raised
        device = self.center.device
        rows_per_rank = ranks.raise_together(
            len(predicted), error, device=device, refused="its images"
        )
        predicted = ranks.all_gather(predicted, rows=rows_per_rank)
        everything = ranks.all_gather(embeddings, rows=rows_per_rank)
        # gathered in the order of ranks, so u and the statistics are alike on all
        if center:
            bank = UnrecognizableBank.from_degraded(everything, tight=tight)
            self.center.copy_(bank.centers[0])
            self.center_resultant.copy_(bank.resultants[0])
        if self.diverted.kind == "predicted":
            self.diverted.renew(predicted)
        elif self.diverted.kind == "labelled":
            index, _ = self._index(embeddings, labels)
            self.diverted.renew(ranks.all_gather(index))

    @property
    def undivided(self) -> str:
        """Reason why a batch cannot be taken in parts."""
        return (
            "three terms of Recognizability are means over a batch, and its classifier's parts add "
            "up to one. Take accumulate = 1."
        )

    def _index(
        self, embeddings: Float[Tensor, "B D"], labels: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Return the index of each row and its distance to u, without gradient."""
        found = recognizability_distances(
            embeddings.detach(),
            labels,
            self.classifier.centers.detach(),
            self.center[None],
            first_class=self.classifier.part.start,
            group=self.classifier.group,
        )
        return recognizability_index(*found, clamp=self.clamp or None), found.unrecognizable

    def _diversion(self, predicted: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return L_ID, which is 0 in the first epoch."""
        loss: Tensor = self.diverted(predicted)
        return torch.where(self.center_epoch > 0, loss, 0 * loss)

    def _chosen(self, epoch: int, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Draw this rank's part of the images to be ruined in an epoch, and their labels."""
        key = Key(self.classifier.seed).named("unrecognizable", epoch)
        rows = key.permutation(len(images))[: self.instances].sort().values
        rows = rows[ranks.rank_slice(len(rows))]
        return rows, images.labels[rows.to(images.labels.device)].to(self.center.device)

    def _read(self, rows: Tensor, epoch: int, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Return predicted indices and embeddings of ruined images, in evaluation mode."""
        device = self.center.device
        predicted, embeddings = [self.center[:0]], [self.center[None, :][:0]]
        with evaluating(self.backbone, self.head, self.quality_head):
            for part in rows.split(_BATCH):
                pixels = self.floating(images.images[part].to(device))
                size = (pixels.shape[2], pixels.shape[3])
                key = Key(self.classifier.seed).named("ruin", epoch).at(part)
                ruined = self.operation.apply(pixels, self.operation.draw(key, size))
                found, features = self.backbone.map_and_features(ruined)
                predicted.append(self.quality_head(found).to(self.center))
                embeddings.append(self.project(features).to(self.center))
        return torch.cat(predicted), torch.cat(embeddings)

    def __repr__(self) -> str:
        own = {
            name: getattr(self, name)
            for name in ("image_size", "regression", "diversion", "attention")
        }
        more = {
            name: getattr(self, name)
            for name in ("clamp", "ruin", "instances", "tight", "renew_center")
        }
        base = super().__repr__().removeprefix("MarginClassifier(").removesuffix(")")
        said = describe(
            "Recognizability",
            **own,
            tau=self.diverted.tau,
            statistics=self.diverted.kind,
            **more,
            dropout=self.quality_head.dropout.p,
        )
        return f"{said.removesuffix(')')}, {base})"
