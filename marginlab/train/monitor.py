"""The monitor: the only place that measures during training.

It measures at epoch 0 (the untrained network), at every `every`-th epoch and at the last one. It
encodes clean and augmented images in evaluation mode, in float32. It measures L2-normalised
features (r = 1) of the spaces `backbone` and `projector`. The quantities of its rows:

    alignment, R_epsilon                 test images: E||f(x_1) - f(x_2)||^2; share of images
                                         whose views differ by more than epsilon (`at`)
    divergence_max, divergence_mean      largest and mean mu_k . mu_l over pairs of classes
    center_norm_min, delta_mu            smallest ||mu_k||; 1 - min_k ||mu_k||^2
    knn_error, nearest_center_error      clean test images against the training images (centers
                                         over their augmented views)
    linear_error                         a logistic regression on clean backbone features: first
                                         and last epoch only, and not for many classes
    certified, theorem_3_printed, ...    what the theory bounds (field `bounds`):
                                         `marginlab.train.theorems`
    Uniformity, NeuralCollapse, ...      what more measures say of the views of test images
                                         (field `measures`), `at` the field of their result
    verification_accuracy, tar_at_far    of pairs of images of classes that are not trained, where
                                         a set with a split `unseen` is named; `at` the FAR
    subcenter_share, dead_subcenters     of a classifier with sub-centers: `marginlab.train.usage`
    class_angle, target_angle_share      ArcFace's angles: `marginlab.train.class_angles`

Where there are many classes, alignment, divergence, lengths of centers and nearest_center_error are
those of `classes` of them, drawn by the seed. kNN and the linear probe know all classes.

Sources: Huang et al. 2023, sections 2 to 5; for the last two `marginlab.evaluation.verification`.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from marginlab import augment, measures, settings
from marginlab.augment import Augmentation
from marginlab.data import ImageSet
from marginlab.data import load as load_images
from marginlab.data.pixels import BUDGET
from marginlab.encoding import evaluating
from marginlab.evaluation import (
    knn_accuracy,
    linear_probe_accuracy,
    nearest_center_error,
    pairs,
    verify,
)
from marginlab.measures.measure import Measure
from marginlab.rng import Key
from marginlab.settings import SettingsError
from marginlab.train.features import (
    Encoder,
    Labelled,
    device_of,
    encode_images,
    encode_views,
    with_images,
)
from marginlab.train.rows import Row, geometry, measured, rate
from marginlab.train.theorems import certified, theorems


@dataclass(frozen=True)
class Monitor:
    """Settings of the measurements: what to measure, how often, on how many images.

    Args:
        every: Epochs between measurements. 0 measures the untrained and the trained network only.
        images: Class-balanced training and test images whose views are measured. At least two of
            each class are taken, where the data have them.
        views: Views of each of these images.
        bank: Training images for kNN and linear probe, and as many test images. 0 takes all.
        epsilons: Where the curve R_epsilon is recorded.
        seed: Seed of the choices of images, views, classes and pairs.
        probe_classes: The linear probe is left out where there are more classes, since a logistic
            regression of a thousand takes minutes.
        classes: Number of watched classes, where the data have more. 0 watches all. Every watched
            class has at least two images.
        verified: An image set, as `marginlab.data.load` names it, whose split `unseen` is verified
            ("omniglot-upright"). By default none is.
        verified_pairs: Pairs of its images for the accuracy.
        folds: Number of folds, of different classes, that these pairs form.
        far_pairs: Pairs for the true accept rate.
        fars: False accept rates at which the true accept rate is taken.
        measures: More measures of the views of the test images, as calls of `marginlab.measures`:
            ("Uniformity()", "NeuralCollapse()"). Or their classes, or `functools.partial` of them.
        bounds: Record what the theorems say of the test images, and what is certified from the
            training images, of them and of the test images.
        augmentation: Augmentation of the views that are measured, as an object or as a call of
            `marginlab.augment`. By default that of the training.
        k: Neighbours that vote in kNN. In a smaller bank all do.
        angles: Class-balanced training images, and images of `verified`, whose angles to their
            classes are measured: see `marginlab.train.class_angles`. 0 measures none.
        off: Measure nothing, at no epoch; see `none`.
    """

    every: int = 0
    images: int = 500
    views: int = 8
    bank: int = 0
    epsilons: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    seed: int = 0
    probe_classes: int = 200
    classes: int = 200
    verified: str = ""
    verified_pairs: int = 6000
    folds: int = 10
    far_pairs: int = 200_000
    fars: tuple[float, ...] = (0.01, 0.001)
    measures: tuple[settings.Choice[Measure], ...] = ()
    bounds: bool = False
    augmentation: settings.Choice[Augmentation] = ""
    k: int = 200
    angles: int = 0
    off: bool = False

    @classmethod
    def none(cls) -> "Monitor":
        """Return the monitor that measures nothing, where only the training is wanted.

        Example:
            >>> Monitor.none().due(0, epochs=10)
            False
        """
        return cls(off=True)

    def __post_init__(self) -> None:
        settings.check(self)
        fewest = {"every": 0, "images": 2, "views": 2, "seed": 0, "probe_classes": 0}
        fewest |= {"classes": 0, "folds": 2, "k": 1, "angles": 0}
        for name, least in fewest.items():
            if getattr(self, name) < least:
                raise SettingsError(
                    f"The monitor's {name} is at least {least}, not {getattr(self, name)}."
                )
        if self.bank < 0 or self.bank == 1:
            raise SettingsError(
                f"The monitor's bank is 0, which takes all images, or at least 2, not {self.bank}."
            )
        if self.classes == 1:
            raise SettingsError(
                "The monitor watches 0 classes, which means all, or at least 2, not 1: a "
                "divergence is between classes."
            )
        for name, unit in (("verified_pairs", 2 * self.folds), ("far_pairs", 2)):
            if getattr(self, name) < unit or getattr(self, name) % unit:
                raise SettingsError(
                    f"The monitor's {name} are half genuine, in equal folds: a multiple of {unit}, "
                    f"not {getattr(self, name)}."
                )
        for text in self.measures:
            self._measure(text, classes=2, dim=2)
        if self.augmentation:
            settings.make(self.augmentation, augment, Augmentation)
        if any(not 0 <= epsilon < math.inf for epsilon in self.epsilons):
            raise SettingsError(f"The monitor's epsilons are distances, not {self.epsilons}.")
        for far in self.fars:
            if not 0 < far < 1 or far * (self.far_pairs // 2) < 1 - 1e-9:
                raise SettingsError(
                    f"A FAR is in (0, 1), and takes 2 / FAR far_pairs or more: {far} of "
                    f"{self.far_pairs} makes no rate."
                )

    def due(self, epoch: int, epochs: int) -> bool:
        """Say whether to measure after this epoch."""
        return not self.off and (
            epoch in (0, epochs) or (self.every > 0 and epoch % self.every == 0)
        )

    def unseen(
        self,
        train: ImageSet,
        root: Path | str | None = None,
        size: int = 0,
        *,
        budget: int = BUDGET,
        workers: int | None = None,
    ) -> ImageSet | None:
        """Load the images whose pairs are verified, resized as those of the training.

        Returns:
            The images, or None where none are asked for.

        Raises:
            SettingsError: The set has no split `unseen`, shares a class with the training, or has
                fewer pairs than asked for. Or `data.load` refuses it.
        """
        if self.off or not self.verified:
            return None
        found = load_images(
            self.verified, "unseen", root, size=size, budget=budget, workers=workers
        )
        if shared := sorted(set(found.classes) & set(train.classes)):
            more = f" and {len(shared) - 1} other classes" if len(shared) > 1 else ""
            raise SettingsError(
                f"{shared[0]}{more} of {self.verified} are trained on by {train.name}. Verify a "
                "set of other classes."
            )
        try:
            pairs(found.labels, self.verified_pairs, folds=self.folds, seed=self.seed)
            pairs(found.labels, self.far_pairs, folds=1, seed=self.seed)
        except ValueError as error:
            raise SettingsError(f"{self.verified} cannot be verified so: {error}") from error
        return found

    def verify(self, method: Encoder, unseen: ImageSet, epoch: int) -> list[Row]:
        """Verify pairs of these images by the method as it is; its mode is put back afterwards."""
        with evaluating(method):
            encoded = encode_images(method, unseen.images, device_of(method))
        rows = []
        for space, features in encoded.items():
            labels = unseen.labels.to(features.device)
            found = verify(
                features,
                labels,
                n=self.verified_pairs,
                folds=self.folds,
                far_pairs=self.far_pairs,
                fars=self.fars,
                seed=self.seed,
            )
            rows.append(Row(epoch, space, "verification_accuracy", "", *found.accuracy))
            rows += [
                Row(epoch, space, "tar_at_far", f"{far:g}", *rate)
                for far, rate in found.tar.items()
            ]
        return rows

    def __call__(
        self,
        method: Encoder,
        augmentation: Augmentation,
        train: ImageSet,
        test: ImageSet,
        epoch: int,
        *,
        last: bool,
        bank: list[Labelled] | None = None,
    ) -> list[Row]:
        """Measure the method as it is, in evaluation mode; its mode is put back afterwards.

        `bank` takes the embeddings of the bank's training images, as the loss sees them.
        """
        if self.off:
            return []
        if self.augmentation:
            augmentation = settings.make(self.augmentation, augment, Augmentation)
        with evaluating(method):
            device = device_of(method)
            rows, seen = self._rows(method, augmentation, train, test, epoch, device, last=last)
        if bank is not None:
            bank.append(seen)
        return rows

    def _rows(
        self,
        method: Encoder,
        augmentation: Augmentation,
        train: ImageSet,
        test: ImageSet,
        epoch: int,
        device: torch.device,
        *,
        last: bool,
    ) -> tuple[list[Row], Labelled]:
        rows: list[Row] = []
        classes = len(train.classes)
        own_train, own_test = self._watched(train), self._watched(test)
        few = len(own_train.classes)
        seen: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        clean: dict[str, dict[str, Tensor]] = {}
        # an image of every class for its center, and a second for its length without bias
        watched = max(self.images, 2 * few)
        for split, images in (
            ("train", own_train.subset(watched, self.seed)),
            ("test", own_test.subset(watched, self.seed)),
        ):
            encoded = encode_views(
                method, augmentation, images, self.views, seed=self.seed, device=device, split=split
            )
            seen[split] = {space: (encoded[space], images.labels.to(device)) for space in encoded}
            clean[split] = encode_images(method, images.images, device) if self.bounds else {}
        bank, queries = train.subset(self.bank, self.seed), test.subset(self.bank, self.seed)
        banked, asked = (encode_images(method, s.images, device) for s in (bank, queries))
        bank_labels, query_labels = bank.labels.to(device), queries.labels.to(device)
        near, near_labels = asked, query_labels
        if few < classes:
            own = own_test.subset(self.bank, self.seed)
            near, near_labels = encode_images(method, own.images, device), own.labels.to(device)
        for space in banked:
            features, labels = seen["test"][space]
            rows += geometry(features, labels, few, space, epoch, self.epsilons)
            for text in self.measures:
                made = self._measure(text, classes=few, dim=features.shape[-1]).to(device)
                rows += measured(made, features, labels, space, epoch)
            if self.bounds:
                fitted, fresh = (
                    with_images(clean[split][space], *seen[split][space])
                    for split in ("train", "test")
                )
                # a ReLU can leave a feature without direction
                if all(bool((f.norm(dim=-1) > 0).all()) for f, _ in (fitted, fresh)):
                    rows += [
                        *theorems(*fresh, space, epoch),
                        *certified(fitted, fresh, space, epoch),
                    ]
            error = 1 - knn_accuracy(
                banked[space], bank_labels, asked[space], query_labels, k=self.k
            )
            rows.append(rate(epoch, space, "knn_error", error, len(query_labels)))
            centers, center_labels = seen["train"][space]
            wrong = nearest_center_error(centers, center_labels, near[space], near_labels)
            rows.append(rate(epoch, space, "nearest_center_error", wrong.error, len(near_labels)))
        if (last or epoch == 0) and classes <= self.probe_classes:
            error = 1 - linear_probe_accuracy(
                banked["backbone"], bank_labels, asked["backbone"], query_labels
            )
            rows.append(rate(epoch, "backbone", "linear_error", error, len(query_labels)))
        return rows, (banked.get("projector", banked["backbone"]), bank_labels)

    @staticmethod
    def _measure(text: settings.Choice[Measure], classes: int, dim: int) -> Measure:
        offered = {"num_classes": classes, "dim": dim}
        return settings.make(text, measures, Measure, offered=offered)

    def _watched(self, images: ImageSet) -> ImageSet:
        """Return the images of the watched classes only, or all images if there are no more.

        The watched classes are numbered anew, in their old order.
        """
        n = len(images.classes)
        if not 0 < self.classes < n:
            return images
        chosen = (
            Key(self.seed).named("monitor", "classes").permutation(n)[: self.classes].sort().values
        )
        labels = images.labels.cpu()
        kept = torch.isin(labels, chosen)
        some, place = images.at(kept.nonzero()[:, 0]), torch.searchsorted(chosen, labels[kept])
        return replace(
            some,
            labels=place.to(images.labels.device),
            classes=tuple(images.classes[k] for k in chosen.tolist()),
        )
