"""Features to be measured: those of an npz file, or those that an encoder makes of an image set.

    FEATURES.npz    train_features, test_features (N, V, D) or (N, D); train_labels, test_labels
    encoder         f of V views of each image, the image itself first, from its two splits

With V = 1 nothing is measured that needs several views.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from marginlab.augment import Augmentation
from marginlab.data import ImageSet
from marginlab.data.npy import read_blocks, read_header
from marginlab.encoding import Encoder, encode_views
from marginlab.files.untrusted import DamagedError, Entries, shown

_KEYS = ("train_features", "train_labels", "test_features", "test_labels")
_REMEDY = f"Save {', '.join(_KEYS)} with numpy.savez"
_ROWS = 4096


class Split(NamedTuple):
    """Features of V views of N images, the image itself first, and the classes of the images."""

    features: Float[Tensor, "N V D"]
    labels: Int64[Tensor, " N"]


class Features(NamedTuple):
    """Features of training and of test images in one space, with classes from 0 to C - 1."""

    space: str
    train: Split
    test: Split

    @property
    def classes(self) -> int:
        """Number C of classes."""
        return int(max(self.train.labels.max(), self.test.labels.max())) + 1

    @property
    def views(self) -> int:
        """Number V of views of each image."""
        return self.train.features.shape[1]


def read_features(path: Path, space: str = "features") -> Features:
    """Read features and labels from an npz file; nothing is unpickled.

    Args:
        path: The file.
        space: The name of their space in tables.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is no whole npz file, an array that is missing or of another shape
            or type, or features that are not finite.

    Example:
        >>> import tempfile
        >>> made = dict(train_features=np.eye(4), train_labels=np.arange(4) % 2)
        >>> made |= dict(test_features=np.eye(4), test_labels=np.arange(4) % 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/some.npz", **made)
        ...     found = read_features(Path(folder) / "some.npz")
        >>> found.train.features.shape, found.classes
        (torch.Size([4, 1, 4]), 2)
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {shown(path)}. {_REMEDY}.")
    try:
        with Entries(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.names]
            if missing := [key for key in _KEYS if key not in names]:
                there = ", ".join(names) or "nothing"
                raise ValueError(f"{shown(path)} has no {missing[0]}, but {there:.500}. {_REMEDY}.")
            found = {key: _array(archive, key, path) for key in _KEYS}
    except DamagedError as error:
        raise ValueError(f"{shown(path)} is no whole npz file: {error}. {_REMEDY}.") from error
    train, test = (_split(found, side, path) for side in ("train", "test"))
    if train.features.shape[1:] != test.features.shape[1:]:
        told = f"{tuple(train.features.shape)} and {tuple(test.features.shape)}"
        raise ValueError(
            f"{shown(path)}: training and test features have equal V and D, not the shapes {told}."
        )
    return numbered(Features(space, train, test))


def _array(archive: Entries, key: str, path: Path) -> Tensor:
    kinds = "f" if key.endswith("features") else "iu"
    header = read_header(archive, key)
    if header.dtype.kind not in kinds or 0 in header.shape or not header.shape:
        what = "floating-point numbers" if kinds == "f" else "integers"
        raise ValueError(
            f"{shown(path)}: {key} are {what}, at least one, not {header.dtype} of shape "
            f"{header.shape}."
        )
    wide = np.int64 if kinds == "iu" else np.promote_types(header.dtype, np.float32)
    return torch.from_numpy(
        np.concatenate([block.astype(wide) for block in read_blocks(archive, key, _ROWS)])
    )


def _split(found: dict[str, Tensor], side: str, path: Path) -> Split:
    features, labels = found[f"{side}_features"], found[f"{side}_labels"]
    if features.ndim == 2:
        features = features[:, None]
    if features.ndim != 3 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"{shown(path)}: {side}_features are (N, V, D) or (N, D) and {side}_labels (N,), not "
            f"{tuple(found[f'{side}_features'].shape)} and {tuple(labels.shape)}."
        )
    if not bool(features.isfinite().all()):
        wrong = int((~features.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"{shown(path)}: {side}_features of image {wrong} are not finite.")
    return Split(features, labels)


def numbered(features: Features) -> Features:
    """Return the same features with the classes of both splits numbered from 0.

    Raises:
        ValueError: The training images are of one class only.
    """
    labels = torch.cat((features.train.labels, features.test.labels))
    dense = labels.unique(return_inverse=True)[1]
    train, test = dense.split((len(features.train.labels), len(features.test.labels)))
    if len(train.unique()) < 2:
        raise ValueError("All training images are of one class. Give images of at least two.")
    return Features(
        features.space, features.train._replace(labels=train), features.test._replace(labels=test)
    )


def encoded_features(
    encoder: Encoder,
    space: str,
    sets: tuple[ImageSet, ImageSet],
    augmentation: Augmentation,
    *,
    views: int,
    seed: int = 0,
    batch: int = 256,
) -> Features:
    """Encode views of training and test images, the image itself first.

    Args:
        encoder: As in `marginlab.encoding.encode`.
        space: The name of the space of the features.
        sets: Training and test images.
        augmentation: It draws the views.
        views: Number V of views of each image.
        seed: Seed of the views.
        batch: Views that are encoded at a time.

    Raises:
        ValueError: As `encode_views`, or features that are not rows (N, D).
    """
    draw = functools.partial(augmentation.views, seed=seed, identity=True)
    splits = []
    for images in sets:
        found = encode_views(encoder, images.images, draw, n_views=views, batch=batch)
        if found.ndim != 3:
            raise ValueError(
                f"The encoder gives features {tuple(found.shape[2:])} of an image, not (D,). Pool "
                "them."
            )
        splits.append(Split(found.float().cpu(), images.labels.cpu()))
    return numbered(Features(space, *splits))
