"""Pairs of images for verification, drawn in folds whose identities differ, as those of LFW do.

    genuine: two images of one identity;     impostor: one image of each of two identities

Source: the restricted protocol of LFW, Huang et al. 2007: ten folds of 600 pairs whose people
differ.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor

from marginlab.evaluation.check import Array, as_tensor
from marginlab.rng import Key


class Pairs(NamedTuple):
    """Indices of the images of each pair, and whether it is genuine."""

    first: Int64[Tensor, " n"]
    second: Int64[Tensor, " n"]
    same: Bool[Tensor, " n"]


def pairs(labels: Integer[Array, " N"], n: int, *, seed: int = 0, folds: int = 10) -> Pairs:
    """Draw n different pairs of images, half of them genuine, in folds whose identities differ.

    LFW's folds differ in the same way. The identities are dealt out to the folds. A fold's genuine
    pairs are a uniform choice of all pairs of two images of one of its identities. Its impostor
    pairs are a uniform choice of all pairs of images of two of its identities. So an identity of m
    images occurs in genuine pairs in proportion to m (m - 1). Pairs stand fold by fold, genuine and
    impostor in turn. Nothing quadratic is held: pairs are numbered, and the numbers are drawn.

    Args:
        labels: The identity of each image.
        n: Number of pairs, a multiple of 2 folds.
        seed: Seed of the dealing and the drawing.
        folds: Number of folds; 1 draws from all pairs of images, for a TAR at a small FAR.

    Raises:
        ValueError: n is no positive multiple of 2 folds, or a fold has fewer pairs of a kind than
            asked for, or more than 2**32.

    Example:
        >>> labels = torch.arange(40) // 4
        >>> drawn = pairs(labels, 20, folds=5)
        >>> genuine = labels[drawn.first] == labels[drawn.second]
        >>> drawn.same[:4].tolist(), bool((genuine == drawn.same).all())
        ([True, False, True, False], True)
    """
    if folds < 1 or n < 2 * folds or n % (2 * folds):
        raise ValueError(
            "Pairs are half genuine in each of at least 1 fold: n is a positive multiple of "
            f"{2 * folds}, not {n}."
        )
    labels = as_tensor("labels", labels)
    if labels.ndim != 1 or labels.is_floating_point():
        given = f"{labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"Labels are (N,) integers, the identity of each image, not {given}.")
    identities, identity = labels.cpu().unique(return_inverse=True)
    fold_of = Key(seed).named("pairs", "folds").permutation(len(identities)) % folds
    firsts, seconds = [], []
    for fold in range(folds):
        own = (fold_of[identity] == fold).nonzero().flatten()
        own = own[identity[own].argsort(stable=True)]  # an identity's images stand together
        for genuine in (True, False):
            low, high = _drawn(
                identity[own],
                n // (2 * folds),
                genuine,
                Key(seed).named("pairs", "genuine" if genuine else "impostor", fold),
                fold,
            )
            firsts.append(own[low])
            seconds.append(own[high])
    # (folds, 2, n / 2 folds) -> genuine and impostor in turn
    first, second = (
        torch.stack(part).unflatten(0, (folds, 2)).transpose(1, 2).flatten()
        for part in (firsts, seconds)
    )
    device = labels.device
    return Pairs(first.to(device), second.to(device), (torch.arange(n) % 2 == 0).to(device))


def _drawn(
    identity: Int64[Tensor, " M"], n: int, genuine: bool, key: Key, fold: int
) -> tuple[Tensor, Tensor]:
    """Return two places for each of n pairs, drawn among all pairs of a kind.

    The images are sorted by identity. As genuine partners, image i has the images after it in its
    identity. As impostor partners, it has all images after the end of its identity.
    """
    place = torch.arange(len(identity))
    end = torch.searchsorted(identity, identity, right=True)
    partners = end - place - 1 if genuine else len(identity) - end
    total = partners.cumsum(0)
    count, kind = int(total[-1]) if len(total) else 0, "genuine" if genuine else "impostor"
    if count < n:
        raise ValueError(
            f"Fold {fold} holds {count} {kind} pairs, fewer than the {n} asked for. Ask for fewer "
            "pairs or folds, or add images."
        )
    if count > 1 << 32:
        raise ValueError(
            f"Fold {fold} holds {count} {kind} pairs, and numbers are drawn up to 2**32. Take more "
            "folds, or fewer images."
        )
    number = key.shuffle(torch.arange(n), count)
    low = torch.searchsorted(total, number, right=True)
    start = place + 1 if genuine else end
    return low, start[low] + number - (total - partners)[low]
