"""Published sets: scikit-learn's digits, and CIFAR-10, CIFAR-100, STL-10 and Omniglot.

    a set NAME is looked for as ROOT/NAME.npz, then as torchvision's own folder under ROOT

None is downloaded without being asked for. All but the digits come from torchvision.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marginlab.data.arrays import read_npz
from marginlab.data.images import ImageSet
from marginlab.data.labels import in_split
from marginlab.data.pixels import afford, resized

# our spec, torchvision's class
TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "stl10": "STL10",
    "omniglot": "Omniglot",
}


def read_digits(split: str, *, size: int, budget: int) -> ImageSet:
    """Read scikit-learn's 1,797 grey digits of 8 x 8; one fifth of each class is the test."""
    from sklearn.datasets import load_digits

    source = load_digits()  # part of scikit-learn: nothing is downloaded
    labels = torch.from_numpy(source.target).long()
    chosen = in_split(labels, split)
    afford(int(chosen.sum()), size or 8, size or 8, budget, "digits")
    grey = torch.from_numpy(np.rint(source.images * (255 / 16)).astype(np.uint8))[chosen]
    images = grey[:, None].expand(-1, 3, -1, -1).contiguous()
    return ImageSet(
        resized(images, size),
        labels[chosen],
        tuple(str(name) for name in source.target_names),
        "digits",
    )


def read_published(name: str, split: str, root: Path, *, size: int, budget: int) -> ImageSet:
    """Read CIFAR-10, CIFAR-100 or STL-10 from ROOT/NAME.npz, else from torchvision's folder."""
    file = root / f"{name}.npz"
    if file.exists():
        return read_npz(file, split, name, size=size, budget=budget)
    try:
        source = torchvision_set(name, split, root)
    except RuntimeError as error:  # torchvision's word for absent, incomplete and changed files
        raise absent(name, root, error) from error
    labels = torch.as_tensor(
        np.asarray(source.labels if name == "stl10" else source.targets)
    ).long()
    images = torch.from_numpy(source.data)
    if name != "stl10":
        images = images.permute(0, 3, 1, 2)
    afford(len(images), size or images.shape[2], size or images.shape[3], budget, name)
    return ImageSet(resized(images.contiguous(), size), labels, tuple(source.classes), name)


def absent(name: str, root: Path, error: Exception) -> FileNotFoundError:
    """Make the error for a published set that is neither an npz file nor torchvision's folder."""
    return FileNotFoundError(
        f"{name} is not in the folder {root} ({error}). Put {name}.npz there, or set "
        f"MARGINLAB_DATA to the folder that has it, or run `python -m marginlab.data inspect "
        f"{name} --root {root}`, which downloads it."
    )


def torchvision_set(name: str, split: str, root: Path, *, download: bool = False) -> Any:
    """Open torchvision's data set for one of our names."""
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION[name])
    which: dict[str, Any] = {"train": split == "train"}
    if name == "stl10":
        which = {"split": split}
    elif name == "omniglot":
        which = {"background": split != "unseen"}
    with warnings.catch_warnings():
        # numpy 2.4.0 to 2.4.4 mind that CIFAR's pickles, which are older, say align=0 and not False
        # (numpy pull request 31177)
        warnings.filterwarnings(
            "ignore", message=".*align should be passed as Python or NumPy boolean.*"
        )
        return kind(str(root), **which, download=download)


def root_folder(root: str | Path | None) -> Path:
    """Return the folder of the published sets: `root`, else MARGINLAB_DATA, else `data`."""
    given = root if root is not None else os.environ.get("MARGINLAB_DATA") or "data"
    return Path(given).expanduser()
