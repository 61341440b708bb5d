"""The keep rule of sub-center ArcFace: near the dominant sub-center of its class, an image stays.

    nearest_i  = argmax_k cos(x_i, W_{y_i k})                      the vote of image i
    dominant_c = the sub-center of class c with the most votes
    keep_i     = cos(x_i, W_{y_i, dominant}) > cos(max_angle)      strictly

A tie goes to the sub-center with the smaller number, in both lines; a class without images has
dominant sub-center 0. An image whose nearest sub-center is another one stays if it passes the rule,
as in the authors' code. With K = 1 the rule is a threshold on the angle to the class center.

Source: Deng et al. 2022 (ArcFace, TPAMI), section 3.2, and the authors' drop.py.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from marginlab.data import ImageSet
from marginlab.purify.mixture import PUBLISHED, Threshold, mixture_threshold


@dataclass(frozen=True, eq=False)
class Purification:
    """The images that stay, and the reasons: angles, votes and the threshold.

    Attributes:
        keep: (N,) whether an image stays.
        dominant: (C,) the dominant sub-center of each class.
        nearest: (N,) the nearest sub-center of each image, among those of its class.
        angle: (N,) angle in degrees between an image and its class's dominant sub-center.
        votes: (C, K) images of each class that each sub-center is nearest to.
        labels: (N,) the labels that were judged.
        classes: The C class names.
        threshold: The largest angle, and where it is from.
    """

    keep: Bool[Tensor, " N"]
    dominant: Int64[Tensor, " C"]
    nearest: Int64[Tensor, " N"]
    angle: Float64[Tensor, " N"]
    votes: Int64[Tensor, "C K"]
    labels: Int64[Tensor, " N"]
    classes: tuple[str, ...]
    threshold: Threshold

    @property
    def is_dominant(self) -> Bool[Tensor, " N"]:
        """True for an image that is nearest to the dominant sub-center of its class."""
        return self.nearest == self.dominant[self.labels]

    @property
    def counts(self) -> Int64[Tensor, "C 2"]:
        """Images of each class, and those of them that stay."""
        C = len(self.classes)
        before = torch.bincount(self.labels, minlength=C)
        return torch.stack((before, torch.bincount(self.labels[self.keep], minlength=C)), 1)

    @property
    def vanished(self) -> tuple[str, ...]:
        """Names of the classes that had images and keep none."""
        before, after = self.counts.T
        gone = ((before > 0) & (after == 0)).nonzero()[:, 0]
        return tuple(self.classes[c] for c in gone.tolist())

    def apply(self, images: ImageSet) -> ImageSet:
        """Return the images that stay, their classes numbered anew without gaps.

        Args:
            images: The set that was judged. It stays as it is.

        Raises:
            ValueError: Another set, or fewer than two classes are left.
        """
        same = len(images) == len(self.labels) and torch.equal(images.labels.cpu(), self.labels)
        if not same or images.classes != self.classes:
            raise ValueError(
                f"{images.name}: {len(images)} images in {len(images.classes)} classes are not the "
                f"{len(self.labels)} images in {len(self.classes)} classes that were judged. Give "
                "the set that `purify` was given."
            )
        return images.where(self.keep, dense=True)

    def dominant_centers(self, centers: Float[Tensor, "C K D"]) -> Float[Tensor, "R D"]:
        """Return the dominant sub-center of each class that stays: a start of K = 1.

        Args:
            centers: The centers of all classes.

        Returns:
            (R, D), in the order of the classes of `apply`.
        """
        left = (self.counts[:, 1] > 0).nonzero()[:, 0].to(centers.device)
        return centers[left, self.dominant.to(centers.device)[left]]


class Shares(NamedTuple):
    """Shares of the images by sub-center and truth, as in figure 7 of the paper; their sum is 1."""

    dominant_clean: float
    dominant_noisy: float
    other_clean: float
    other_noisy: float


def judged(
    cosines: Float[Tensor, "N K"],
    labels: Int64[Tensor, " N"],
    classes: tuple[str, ...],
    *,
    max_angle: float | Literal["mixture"] = 75.0,
) -> Purification:
    """Judge images by their cosines with the sub-centers of their own classes.

    Args:
        cosines: (N, K), as the classifier's `cosines` gives them.
        labels: (N,) in 0..C-1.
        classes: The C class names.
        max_angle: Largest angle in degrees, or "mixture" to take it from the angles
            (`mixture_threshold`).

    Raises:
        ValueError: Cosines that are not finite, labels that do not fit, or an angle that
            `check_angle` refuses.

    Example:
        >>> cosines = torch.tensor([[0.9, 0.1], [0.8, 0.0], [0.1, 0.9], [0.9, 0.2]])
        >>> found = judged(cosines, torch.tensor([0, 0, 0, 1]), ("ann", "bob"))
        >>> found.dominant.tolist(), found.keep.tolist()
        ([0, 0], [True, True, False, True])
    """
    check_angle(max_angle)
    C, K = len(classes), cosines.shape[1]
    cosines, labels = cosines.detach().cpu().double(), labels.cpu()
    if labels.shape != cosines.shape[:1] or not len(labels):
        raise ValueError(f"{len(cosines)} rows of cosines have as many labels, not {len(labels)}.")
    if int(labels.min()) < 0 or int(labels.max()) >= C:
        raise ValueError(
            f"Labels of {C} classes are from 0 to {C - 1}, not {int(labels.min())} to "
            f"{int(labels.max())}. Renumber them."
        )
    if not bool(cosines.isfinite().all()):
        row = int((~cosines.isfinite()).any(1).int().argmax())
        raise ValueError(f"The cosines of image {row} are not finite. Look for what made them.")
    nearest = cosines.argmax(1)  # of equal ones the first
    votes = torch.bincount(labels * K + nearest, minlength=C * K).view(C, K)
    dominant = votes.argmax(1)
    own = cosines.gather(1, dominant[labels][:, None])[:, 0]
    angle = torch.rad2deg(own.clamp(-1, 1).acos())
    if max_angle == "mixture":
        threshold = mixture_threshold(angle)
    else:
        threshold = Threshold(float(max_angle), "the angle that was asked for", separated=None)
    keep = own > math.cos(math.radians(threshold.value))
    return Purification(keep, dominant, nearest, angle, votes, labels, classes, threshold)


def check_angle(max_angle: float | str) -> None:
    """Refuse a largest angle that is neither "mixture" nor between 0 and 180 degrees.

    Raises:
        ValueError: Such an angle.
    """
    if max_angle == "mixture":
        return
    if isinstance(max_angle, str) or not 0 < max_angle < 180:
        raise ValueError(
            f"max_angle is between 0 and 180 degrees, such as {PUBLISHED:g}, or 'mixture', not "
            f"{max_angle!r}."
        )


def noise_shares(found: Purification, noisy: Bool[Tensor, " N"]) -> Shares:
    """Return the shares of dominant and other images that are clean and noisy.

    Args:
        found: The purification.
        noisy: (N,) whether an image's label is wrong.

    Example:
        >>> cosines = torch.tensor([[0.9, 0.1], [0.8, 0.0], [0.1, 0.9], [0.9, 0.2]])
        >>> found = judged(cosines, torch.tensor([0, 0, 0, 1]), ("ann", "bob"))
        >>> noise_shares(found, torch.tensor([False, False, True, False]))
        Shares(dominant_clean=0.75, dominant_noisy=0.0, other_clean=0.0, other_noisy=0.25)
    """
    if noisy.shape != found.labels.shape:
        raise ValueError(f"Noise is marked for {len(found.labels)} images, not {len(noisy)}.")
    dominant, noisy = found.is_dominant, noisy.cpu()
    parts = (dominant & ~noisy, dominant & noisy, ~dominant & ~noisy, ~dominant & noisy)
    return Shares(*(float(part.double().mean()) for part in parts))
