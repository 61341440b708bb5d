"""The monitor: the only place that measures during training.

At epoch 0 (the untrained network), at every `every`-th epoch and at the last one it encodes clean and augmented images in evaluation mode, in
float32, and measures on L2-normalised features (r = 1), named `backbone` or `projector`:

    alignment, R_epsilon[...]            test images: E||f(x_1) - f(x_2)||^2; share of images whose views differ by more than epsilon
    divergence_max, divergence_mean      largest and mean mu_k . mu_l over pairs of classes
    center_norm_min, delta_mu            smallest ||mu_k||; 1 - min_k ||mu_k||^2
    knn_error, nearest_center_error      clean test images against the training images (centers over their augmented views)
    linear_error                         a logistic regression on clean backbone features: first and last epoch only, and not for many classes

Source: Huang et al. 2023, sections 2 to 5.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from marginlab.augment import Augmentation
from marginlab.data import ImageSet
from marginlab.evaluation import knn_accuracy, linear_probe_accuracy, nearest_center_error
from marginlab.measures import Alignment, ClassDivergence
from marginlab.methods import Method
from marginlab.settings import SettingsError


class Row(NamedTuple):
    """One number: value, the bounds of its interval (NaN where there is none), and how many images it rests on."""

    epoch: int
    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0


@dataclass(frozen=True)
class Monitor:
    """What to measure, how often, on how many images.

    every: epochs between measurements; 0 measures the untrained and the trained network only.
    images: class-balanced training and test images whose views are measured; at least two of each class are taken, where the data have them.
    views: views of each of them.
    bank: training images for kNN and linear probe, and as many test images; 0 takes all.
    epsilons: where the curve R_epsilon is recorded.
    probe_classes: the linear probe is left out where there are more classes, as a logistic regression of a thousand takes minutes.
    """

    every: int = 0
    images: int = 500
    views: int = 8
    bank: int = 0
    epsilons: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    seed: int = 0
    probe_classes: int = 200

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("images", 2), ("views", 2), ("seed", 0), ("probe_classes", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"The monitor's {name} is at least {least}, not {getattr(self, name)}.")
        if self.bank < 0 or self.bank == 1:
            raise SettingsError(f"The monitor's bank is 0, which takes all images, or at least 2, not {self.bank}.")

    def due(self, epoch: int, epochs: int) -> bool:
        """Say whether to measure after this epoch."""
        return epoch in (0, epochs) or (self.every > 0 and epoch % self.every == 0)

    def __call__(self, method: Method, augmentation: Augmentation, train: ImageSet, test: ImageSet, epoch: int, *, last: bool) -> list[Row]:
        """Measure the method as it is. The mode (training or evaluation) of its modules is put back afterwards."""
        device = next(method.parameters()).device
        training = method.training
        method.eval()
        rows: list[Row] = []
        classes = len(train.classes)
        seen: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        watched = max(self.images, 2 * classes)  # an image of every class for its center, and a second for its length without bias
        for split, images in (("train", train.subset(watched, self.seed)), ("test", test.subset(watched, self.seed))):
            encoded = encode_views(method, augmentation, images, self.views, seed=self.seed, device=device, split=split)
            seen[split] = {space: (encoded[space], images.labels.to(device)) for space in encoded}
        bank, queries = train.subset(self.bank, self.seed), test.subset(self.bank, self.seed)
        banked, asked = encode_images(method, bank.images, device), encode_images(method, queries.images, device)
        bank_labels, query_labels = bank.labels.to(device), queries.labels.to(device)
        for space in ("backbone", "projector"):
            features, labels = seen["test"][space]
            rows += _geometry(features, labels, classes, space, epoch, self.epsilons)
            error = 1 - knn_accuracy(banked[space], bank_labels, asked[space], query_labels)
            rows.append(_rate(epoch, f"knn_error/{space}", error, len(query_labels)))
            centers, center_labels = seen["train"][space]
            wrong = nearest_center_error(centers, center_labels, asked[space], query_labels)
            rows.append(_rate(epoch, f"nearest_center_error/{space}", wrong.error, len(query_labels)))
        if (last or epoch == 0) and classes <= self.probe_classes:
            error = 1 - linear_probe_accuracy(banked["backbone"], bank_labels, asked["backbone"], query_labels)
            rows.append(_rate(epoch, "linear_error/backbone", error, len(query_labels)))
        method.train(training)
        return rows


def _geometry(features: Tensor, labels: Tensor, classes: int, space: str, epoch: int, epsilons: tuple[float, ...]) -> list[Row]:
    alignment = Alignment(epsilons=torch.tensor(epsilons), sync_on_compute=False).to(features.device)  # rank 0 measures alone
    divergence = ClassDivergence(classes, features.shape[-1], sync_on_compute=False).to(features.device)
    alignment.update(features, labels)
    divergence.update(features, labels)
    aligned, apart = alignment.compute(), divergence.compute()
    n = len(features)

    def row(name: str, value: Tensor, error: Tensor | None = None) -> Row:
        middle, half = float(value), 1.96 * float(error) if error is not None else math.nan
        return Row(epoch, f"{name}/{space}", middle, middle - half, middle + half, n)

    rows = [row("alignment", aligned.L_align, aligned.standard_error)]
    for number, epsilon in enumerate(epsilons):
        low, high = float(aligned.lower[number]), float(aligned.upper[number])
        rows.append(Row(epoch, f"R_epsilon[{epsilon:g}]/{space}", float(aligned.exceeding[number]), low, high, n))
    apart_pairs = ~torch.eye(classes, dtype=torch.bool, device=apart.gram.device)
    largest = apart.gram.masked_fill(~apart_pairs, -math.inf).flatten().argmax()
    rows.append(row("divergence_max", apart.gram.flatten()[largest], apart.error_gram.flatten()[largest]))
    rows.append(row("divergence_mean", apart.gram[apart_pairs].mean()))
    rows.append(row("center_norm_min", apart.norms.min()))
    rows.append(row("delta_mu", apart.Delta_mu, apart.error_Delta_mu))
    return rows


def _rate(epoch: int, name: str, value: float | Tensor, n: int) -> Row:
    """An error rate with its 95 % Wilson interval."""
    p, z = float(value), 1.96
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Row(epoch, name, p, max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n)), n)


@torch.no_grad()
def encode_images(method: Method, images: UInt8[Tensor, "N 3 H W"], device: torch.device, batch: int = 512) -> dict[str, Float[Tensor, "N D"]]:
    """L2-normalised features of clean images, of the backbone and of the projector, in float32."""
    parts = [_both(method, part.to(device).float() / 255) for part in images.split(batch)]
    return {space: torch.cat([part[space] for part in parts]) for space in ("backbone", "projector")}


@torch.no_grad()
def encode_views(
    method: Method, augmentation: Augmentation, images: ImageSet, n_views: int, *, seed: int, device: torch.device, split: str, batch: int = 512
) -> dict[str, Float[Tensor, "N V D"]]:
    """L2-normalised features (N, V, D) of views of images, drawn apart from those of training; the clean image is not among them."""
    per = max(1, batch // n_views)
    parts = []
    offset = 0 if split == "train" else 1 << 31  # other draws for other images: the two splits number their images alike
    for rows in torch.arange(len(images.labels)).split(per):
        views = augmentation.views(images.images[rows].to(device), index=rows + offset, n_views=n_views, seed=seed, first_view=1 << 31)
        parts.append(_both(method, views.flatten(0, 1)))
    return {space: torch.cat([part[space] for part in parts]).unflatten(0, (-1, n_views)) for space in ("backbone", "projector")}


def _both(method: Method, images: Tensor) -> dict[str, Tensor]:
    features = method.encode(images.contiguous(memory_format=torch.channels_last))
    return {"backbone": F.normalize(features, dim=-1), "projector": F.normalize(method.project(features), dim=-1)}
