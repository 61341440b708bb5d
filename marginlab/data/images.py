"""An image set: images as bytes with their labels, and the choice of subsets and splits.

    place(i) = number of images of i's class with a draw below i's
    draw(i)  = bits(seed, "subset", i)

Images are held on the training device, or read when they are asked for.

The place of an image in its own class decides every choice. The first n images in the order of
(place, class) are a class-balanced subset, and a larger n gives a superset. For a source without
a split, the images with a place below one fifth of their class are the test split.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int, Int64, UInt8
from torch import Tensor

from marginlab.data.labels import check_labels, places
from marginlab.data.streaming import Streamed
from marginlab.rng import Key


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images: bytes in [0, 255], which stand for values in [0, 1].

    Args:
        images: (N, 3, H, W) uint8. `Streamed` where the images take more bytes than their budget
            and `load` was asked to stream them.
        labels: (N,) int64 in [0, C).
        classes: The C class names.
        name: The spec that the set was loaded from.
        fingerprints: (N,) int64 that tell streamed images apart without reading their pixels.

    Raises:
        TypeError: Images that are not uint8, or labels that are not int64.
        ValueError: A wrong shape, lengths that differ, labels outside [0, C), no images, images of
            one class only, or streamed images without fingerprints.

    Example:
        >>> images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
        >>> some = ImageSet(images, torch.tensor([0, 0, 0, 0, 1, 1]), ("cat", "dog"), "pets")
        >>> len(some), some.subset(4).labels.tolist()
        (6, [0, 0, 1, 1])
    """

    images: UInt8[Tensor, "N 3 H W"] | Streamed
    labels: Int64[Tensor, "N"]
    classes: tuple[str, ...]
    name: str
    fingerprints: Int64[Tensor, "N"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.images, Tensor) and self.images.dtype != torch.uint8:
            remedy = "Turn values in [0, 1] into (255 * images).round().to(torch.uint8)."
            raise TypeError(f"{self.name}: images are uint8, not {self.images.dtype}. {remedy}")
        if len(self.images.shape) != 4 or self.images.shape[1] != 3:
            raise ValueError(
                f"{self.name}: images are (N, 3, H, W), not {tuple(self.images.shape)}. Permute "
                "the axes, or repeat a grey channel."
            )
        if self.labels.dtype != torch.int64:
            raise TypeError(
                f"{self.name}: labels are int64, not {self.labels.dtype}. Convert integers with "
                ".long()."
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"{self.name}: {len(self.images)} images need labels of shape "
                f"({len(self.images)},), not {tuple(self.labels.shape)}."
            )
        prints = 0 if self.fingerprints is None else len(self.fingerprints)
        if prints != len(self.labels) and (prints or isinstance(self.images, Streamed)):
            raise ValueError(
                f"{self.name}: {len(self.images)} images have {prints} fingerprints. Give one for "
                "each; held images need none."
            )
        if 0 in self.images.shape:
            raise ValueError(
                f"{self.name}: there are no images, but the shape {tuple(self.images.shape)}."
            )
        check_labels(self.labels, len(self.classes), self.name)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, n: int, seed: int = 0) -> "ImageSet":
        """Choose n images by a seed, as equally many of each class as there are.

        A smaller subset of the same seed is contained in a larger one.

        Args:
            n: The number of images; all of them for n = 0 or n >= N.
            seed: The seed of the choice.

        Returns:
            The chosen images in their old order.

        Raises:
            ValueError: A negative n, or n = 1, which would leave one class.
        """
        if n < 0 or n == 1:
            raise ValueError(
                f"{self.name}: a subset of {n} images cannot hold two classes. Ask for at least 2, "
                "or for 0, which means all."
            )
        if n == 0 or n >= len(self):
            return self
        return self.at(self._turns(seed)[:n])

    def blocks(self, n: int, count: int, seed: int = 0) -> tuple["ImageSet", ...]:
        """Choose `count` disjoint sets of n images of each class, each in their old order.

        The first block is `subset(n * C, seed)`. A larger `count` does not change the blocks
        before.

        Args:
            n: The number of images of each class in a block.
            count: The number of blocks.
            seed: The seed of the choice.

        Raises:
            ValueError: A class of fewer than n * count images, or n or count below 1.

        Example:
            >>> images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
            >>> pets = ImageSet(images, torch.arange(8) % 2, ("cat", "dog"), "pets")
            >>> [block.labels.tolist() for block in pets.blocks(2, 2)]
            [[1, 1, 0, 0], [0, 0, 1, 1]]
        """
        fewest = int(torch.bincount(self.labels, minlength=len(self.classes)).min())
        if n < 1 or count < 1 or n * count > fewest:
            raise ValueError(
                f"{self.name}: {count} blocks of {n} images of each class are asked for, but the "
                f"smallest class has {fewest}. Ask for fewer."
            )
        return tuple(
            self.at(part)
            for part in self._turns(seed)[: n * count * len(self.classes)].split(
                n * len(self.classes)
            )
        )

    def _turns(self, seed: int) -> Int64[Tensor, " N"]:
        """Return the order in which images are chosen: one of each class in turn."""
        labels, key = self.labels.cpu(), Key(seed).named("subset")
        # which classes have one more where n is no multiple of C
        turn = key.named("class").permutation(len(self.classes))
        return torch.argsort(places(labels, key) * len(self.classes) + turn[labels])

    def at(self, index: Int64[Tensor, " M"]) -> "ImageSet":
        """Select the images at these indices, in their old order.

        Args:
            index: (M,) integers in [0, N).

        Returns:
            The images with their labels. Of a streamed set, images that fit its budget are read
            now; otherwise the result is streamed as well.

        Raises:
            ValueError: Indices that leave one class only. Reading the images may raise errors of
                its own.
        """
        return self.rows(index.sort().values)

    def rows(self, index: Int[Tensor, " M"]) -> "ImageSet":
        """Select images by their numbers, in the order given; a number may come twice.

        Args:
            index: (M,) integers in [0, N).

        Returns:
            The images with their labels, and the same classes. Of a streamed set, images that fit
            its budget are read now; otherwise the result is streamed as well.

        Raises:
            IndexError: A number outside [0, N).
            TypeError: An index that is not (M,) integers. For a mask, use `where`.
            ValueError: No image is left, or images of one class only.

        Example:
            >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
            >>> pets = ImageSet(images, torch.tensor([0, 0, 1, 1]), ("cat", "dog"), "pets")
            >>> pets.rows(torch.tensor([3, 0, 3])).labels.tolist()
            [1, 0, 1]
        """
        index = torch.as_tensor(index)
        if index.ndim != 1 or index.dtype == torch.bool or index.is_floating_point():
            got = f"{index.dtype} of shape {tuple(index.shape)}"
            raise TypeError(
                f"{self.name}: rows are (M,) integers, not {got}. A mask goes to `where`."
            )
        index = index.long()
        wrong = index[(index < 0) | (index >= len(self))]
        if len(wrong):
            raise IndexError(
                f"{self.name}: there is no image {int(wrong[0])}. The {len(self)} images are "
                f"numbered from 0 to {len(self) - 1}."
            )
        there = index.to(self.images.device)
        images = self.images[there] if isinstance(self.images, Tensor) else self.images.at(there)
        labels = self.labels[index.to(self.labels.device)]
        prints = None if self.fingerprints is None else self.fingerprints[index.cpu()]
        return replace(self, images=images, labels=labels, fingerprints=prints)

    def where(self, mask: Bool[Tensor, " N"], *, dense: bool = False) -> "ImageSet":
        """Select the images for which a mask is true, in their old order.

        Args:
            mask: (N,) booleans, such as `images.labels < 10`.
            dense: Number the classes that are left anew, in their old order, and drop the names
                of the others. By default labels and class names stay as they are.

        Returns:
            The images with their labels, held or streamed as by `rows`.

        Raises:
            TypeError: A mask that is not boolean, or not of shape (N,).
            ValueError: No image is left, or images of one class only.

        Example:
            >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
            >>> pets = ImageSet(images, torch.arange(4), ("cat", "dog", "fish", "horse"), "pets")
            >>> some = pets.where(pets.labels % 2 == 1, dense=True)
            >>> some.labels.tolist(), some.classes
            ([0, 1], ('dog', 'horse'))

        """
        mask = torch.as_tensor(mask)
        if mask.dtype != torch.bool or mask.shape != (len(self),):
            got = f"{mask.dtype} of shape {tuple(mask.shape)}"
            raise TypeError(
                f"{self.name}: a mask of {len(self)} images is ({len(self)},) booleans, not {got}."
            )
        some = self.rows(mask.nonzero()[:, 0])
        if not dense:
            return some
        present, labels = some.labels.unique(return_inverse=True)
        names = tuple(self.classes[k] for k in present.tolist())
        return replace(some, labels=labels, classes=names)

    def with_labels(
        self, labels: Int[Tensor, " N"], classes: Sequence[str] | None = None
    ) -> "ImageSet":
        """Give the same images other labels.

        Args:
            labels: (N,) integers in [0, C).
            classes: The C class names; by default those of this set.

        Returns:
            The images with these labels, on the device of the old ones. The pixels are shared.

        Raises:
            TypeError: Labels that are no integers.
            ValueError: A number of labels other than N, labels outside [0, C), or of one class.

        Example:
            >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
            >>> pets = ImageSet(images, torch.tensor([0, 0, 1, 1]), ("cat", "dog"), "pets")
            >>> pets.with_labels(torch.tensor([0, 1, 0, 1]), ("tame", "wild")).classes
            ('tame', 'wild')

        """
        labels = torch.as_tensor(labels)
        if labels.dtype == torch.bool or labels.is_floating_point():
            raise TypeError(
                f"{self.name}: labels are integers, not {labels.dtype}. Give the class numbers."
            )
        names = self.classes if classes is None else tuple(classes)
        return replace(self, labels=labels.to(self.labels.device, torch.int64), classes=names)

    def absent(self) -> tuple[str, ...]:
        """Name the classes that have no image."""
        counts = torch.bincount(self.labels, minlength=len(self.classes))
        return tuple(self.classes[k] for k in (counts == 0).nonzero()[:, 0].tolist())

    def digest(self) -> str:
        """Return 16 hexadecimal digits that are equal for equal images, labels and class names.

        The digest does not depend on where a set was read from. Where a set has fingerprints, they
        are hashed in place of the pixels, so the digest is the same for a held and a streamed set.
        """
        found = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        contents = self.fingerprints if self.fingerprints is not None else self.images
        assert isinstance(contents, Tensor), "streamed images have fingerprints"
        for part in (self.labels, contents):
            found.update(part.cpu().contiguous().numpy().data)
        return found.hexdigest()[:16]

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the same set on a device.

        Only the labels of a streamed set move: its images are read into the machine's memory.
        """
        images = self.images.to(device) if isinstance(self.images, Tensor) else self.images
        return replace(self, images=images, labels=self.labels.to(device))


def warn_of_absent(images: ImageSet, split: str) -> None:
    """Warn of classes without an image in this split: no class metric can cover them.

    Args:
        images: The images of the split, of N images and C classes.
        split: Its name, for the message.
    """
    if not (absent := images.absent()):
        return
    names = ", ".join(repr(name) for name in absent[:5])
    names += f" and {len(absent) - 5:,} more" if len(absent) > 5 else ""
    lacking, classes = f"{len(absent):,}", f"{len(images.classes):,}"
    remedy = "Add images of them, or leave out the classes that have none to train on: the spec "
    remedy += f"`{images.name.partition('?')[0]}?min_per_class=1` numbers the others from 0."
    verb = "has" if len(absent) == 1 else "have"
    warnings.warn(
        f"{images.name}: {lacking} of {classes} classes {verb} no {split} image: {names}. What is "
        f"measured of classes leaves them out. {remedy}",
        stacklevel=3,
    )
