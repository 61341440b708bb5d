"""Omniglot as an open-set recognition set: learn some alphabets, verify characters of others.

    class of character c turned by k quarters (anticlockwise) = 4 c + k

    characters      964 -> 3,856 classes;   659 -> 2,636;   together 6,492

    train    background alphabets, the drawings 1 to 16 of each character
    test     the same classes, the drawings 17 to 20: a closed set, and drawers that training has
             not seen (a number is one drawer of an alphabet)
    unseen   evaluation alphabets, all 20 drawings: none of its classes is in train or test

Source: Lake, Salakhutdinov and Tenenbaum, Science 350, 2015. Quarter turns as classes: Santoro
et al., ICML 2016. If a turn maps a character onto itself or onto another one, the turned characters
are still several classes. `omniglot-upright` has no turns, so its impostor pairs are different
characters.
"""

import functools
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from marginlab.data.arrays import read_part
from marginlab.data.decoding import decoded
from marginlab.data.images import ImageSet
from marginlab.data.pixels import afford, resized
from marginlab.data.published import absent, torchvision_set

OMNIGLOT = ("omniglot", "omniglot-upright")
_LEARNT = 16  # drawings of each character that are for training
_SIDE = 105


def read_omniglot(name: str, split: str, root: Path, *, size: int, budget: int) -> ImageSet:
    """Read a split of an Omniglot set from ROOT/omniglot.npz, else from torchvision's folder.

    The npz file has the parts `background` and `evaluation`. torchvision's folder lies under ROOT.
    """
    part = "evaluation" if split == "unseen" else "background"
    file = root / "omniglot.npz"
    state = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)
    whole = _upright(root.absolute(), part, size, budget, state)
    if split != "unseen":
        learnt = _number(whole.labels) < _LEARNT
        chosen = learnt if split == "train" else ~learnt
        whole = whole.at(chosen.nonzero()[:, 0])
    if name == "omniglot-upright":
        return replace(whole, name=name)
    height, width = whole.images.shape[2:]
    afford(4 * len(whole), height, width, budget, name)
    if height != width:
        raise ValueError(
            f"{name}: images of {height} x {width} have no quarter turns. Give a size, or take "
            "omniglot-upright."
        )
    assert isinstance(whole.images, Tensor), "a file of drawings is held"
    images = torch.stack([whole.images.rot90(k, (2, 3)) for k in range(4)], 1).flatten(0, 1)
    labels = (4 * whole.labels[:, None] + torch.arange(4)).flatten()
    return ImageSet(
        images, labels, tuple(f"{of}@{90 * k}" for of in whole.classes for k in range(4)), name
    )


@functools.lru_cache(maxsize=2)
def _upright(root: Path, part: str, size: int, budget: int, state: tuple[int, int]) -> ImageSet:
    """Read all drawings of a part, sorted by character.

    The result is cached: resizing takes seconds, and a study loads its images for every cell.
    """
    if state[1]:
        found = read_part(root / "omniglot.npz", part, "omniglot", size=size, budget=budget)
        order = found.labels.argsort(stable=True)
        return replace(found, images=found.images[order], labels=found.labels[order])
    try:
        torchvision_set("omniglot", "unseen" if part == "evaluation" else "train", root)
    except RuntimeError as error:
        raise absent("omniglot", root, error) from error
    return _folder(root / "omniglot-py" / f"images_{part}", size, budget)


def _folder(path: Path, size: int, budget: int) -> ImageSet:
    """Read torchvision's folder of a part: ALPHABET/CHARACTER/NUMBER_DRAWER.png, black on white."""
    characters = sorted(
        child
        for alphabet in path.iterdir()
        if alphabet.is_dir()
        for child in alphabet.iterdir()
        if child.is_dir()
    )
    files = [sorted(character.glob("*.png")) for character in characters]
    n = sum(len(own) for own in files)
    afford(n, size or _SIDE, size or _SIDE, budget, "omniglot")
    images = torch.empty(n, 3, size or _SIDE, size or _SIDE, dtype=torch.uint8)
    for at, file in enumerate(file for own in files for file in own):
        images[at] = resized(decoded(file, "omniglot", size, budget)[None], size)[0]
    labels = torch.arange(len(files)).repeat_interleave(torch.tensor([len(own) for own in files]))
    return ImageSet(
        images,
        labels,
        tuple(f"{character.parent.name}/{character.name}" for character in characters),
        "omniglot",
    )


def _number(labels: Tensor) -> Tensor:
    """Number the drawings of each class from 0; labels are sorted."""
    counts = torch.bincount(labels)
    return torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels]
