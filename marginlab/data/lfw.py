"""Labelled Faces in the Wild: people to learn from, other people, and the pairs of its protocol.

    train, test      the people of the list for development's training (View 1); one fifth of each
                     person's images is the test
    unseen           the people of the list for development's test; none is in train or test
    `lfw_protocol`   all images, and the 6,000 pairs of View 2 in ten folds whose people differ

The spec `lfw-fold-3` is for the third fold of View 2: unseen are the people of its pairs, train and
test are all others.

View 2's pairs are of all people, so they must not judge an encoder that was trained on `lfw`. Train
on another set, train on View 1's people and verify `unseen`, or train ten times, on the people of
no pair in the fold that is judged.

Source: Huang, Ramesh, Berg and Learned-Miller, University of Massachusetts report 07-49, 2007.
ROOT/lfw.npz holds images (N, H, W, 3), labels (N,), classes (C,), pairs (M, 3) of first image,
second image and 1 for one person, fold (M,), and dev_train and dev_test, the images of View 1.
"""

import functools
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from marginlab.data.images import ImageSet
from marginlab.data.labels import in_split
from marginlab.data.lists import read_all
from marginlab.data.pixels import BUDGET
from marginlab.data.published import root_folder
from marginlab.evaluation import Pairs

FOLDS = 10  # of View 2
FOLD_SPECS = tuple(f"lfw-fold-{fold}" for fold in range(1, FOLDS + 1))
_LISTS = ("pairs", "fold", "dev_train", "dev_test")


class LFW(NamedTuple):
    """All images, the pairs of View 2 fold by fold, the number of folds, and View 1's images."""

    images: ImageSet
    pairs: Pairs
    folds: int
    dev_train: Tensor
    dev_test: Tensor


def lfw_protocol(root: str | Path | None = None, *, size: int = 0, budget: int = BUDGET) -> LFW:
    """Read all faces with the lists of pairs and people on which published numbers are measured.

    Args:
        root: The folder of lfw.npz; by default the environment's MARGINLAB_DATA, else `data`.
        size: Pixels to which images are resized; 0 keeps their own.
        budget: Bytes that the images may take in memory.

    Returns:
        The images; `pairs`, which `verification_accuracy(features[pairs.first],
        features[pairs.second], pairs.same, folds)` takes as they stand; the image numbers of
        View 1's two lists of people.

    Raises:
        FileNotFoundError: No lfw.npz under the root.
        ValueError: Lists that do not fit the images, or folds of different sizes.
    """
    file = root_folder(root).absolute() / "lfw.npz"
    if not file.is_file():
        raise FileNotFoundError(
            f"lfw: there is no {file}. Put it there, with the arrays images, labels, classes, "
            f"{', '.join(_LISTS)}, or set MARGINLAB_DATA to the folder that has it."
        )
    stat = file.stat()
    return _read(file, size, budget, (stat.st_mtime_ns, stat.st_size))


def read_lfw(spec: str, split: str, root: Path, *, size: int, budget: int) -> ImageSet:
    """Read a split of View 1's people, or of a fold of View 2."""
    found = lfw_protocol(root, size=size, budget=budget)
    if spec == "lfw":
        listed = found.dev_test if split == "unseen" else found.dev_train
        mask = _mask(listed, len(found.images))
    else:
        pairs = fold_pairs(found, int(spec.rpartition("-")[2]))
        judged = found.images.labels[torch.cat([pairs.first, pairs.second])].unique()
        mask = torch.isin(found.images.labels, judged)
        mask = mask if split == "unseen" else ~mask
    people = replace(found.images.where(mask, dense=True), name=spec)
    if split == "unseen":
        return people
    chosen = in_split(people.labels, split)
    if not bool(chosen.any()):
        raise ValueError(f"lfw: no person has two images, so none is left for the {split} split.")
    return people.where(chosen)


def fold_pairs(lfw: LFW, fold: int) -> Pairs:
    """Return the pairs of a fold of View 2, counted from 1.

    Raises:
        ValueError: There is no such fold.
    """
    if not 1 <= fold <= lfw.folds:
        raise ValueError(f"lfw: there are the folds 1 to {lfw.folds}, and no fold {fold}.")
    size = len(lfw.pairs.same) // lfw.folds
    rows = slice((fold - 1) * size, fold * size)
    return Pairs(lfw.pairs.first[rows], lfw.pairs.second[rows], lfw.pairs.same[rows])


def _mask(index: Tensor, n: int) -> Tensor:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[index] = True
    return mask


@functools.lru_cache(maxsize=1)
def _read(file: Path, size: int, budget: int, state: tuple[int, int]) -> LFW:
    """Read lfw.npz, cached: it takes seconds, and a study loads its images for every cell."""
    images, lists = read_all(file, "lfw", _LISTS, size=size, budget=budget)
    for key in ("pairs", "dev_train", "dev_test"):
        numbers = lists[key][:, :2] if lists[key].ndim == 2 else lists[key]
        low, high = (int(bound) for bound in numbers.aminmax()) if numbers.numel() else (0, -1)
        if low < 0 or high >= len(images) or high < low:
            told = f"{key} of {file} name the images {low} to {high}"
            raise ValueError(f"lfw: {told}; there are {len(images)}, numbered from 0.")
    listed = lists["pairs"]
    fold = lists["fold"]
    if listed.ndim != 2 or listed.shape[1] != 3 or fold.shape != listed.shape[:1]:
        told = f"pairs of {file} are of shape {tuple(listed.shape)}, fold of {tuple(fold.shape)}"
        raise ValueError(f"lfw: {told}. They are (M, 3) and (M,).")
    same = images.labels[listed[:, 0]] == images.labels[listed[:, 1]]
    wrong = (same != (listed[:, 2] != 0)).nonzero()[:, 0]
    if len(wrong):
        told = f"pair {int(wrong[0])} of {file} is not what the labels of its images say"
        raise ValueError(f"lfw: {told}: 1 for one person, 0 for two.")
    sizes = fold.unique(return_counts=True)[1]
    if len(sizes) < 2 or bool((sizes != sizes[0]).any()):
        raise ValueError(f"lfw: the folds of {file} have {sizes.tolist()} pairs. Make them equal.")
    listed = listed[fold.argsort(stable=True)]
    pairs = Pairs(listed[:, 0], listed[:, 1], listed[:, 2] != 0)
    images = replace(images, name="lfw")
    return LFW(images, pairs, len(sizes), lists["dev_train"], lists["dev_test"])
