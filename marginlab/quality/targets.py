"""Qualities of labelled images, by which regressors of quality are fitted.

    CCS    = cos(v, w_y),   NNCCS = max over c != y of cos(v, w_c)      own and nearest other class
    CR-FIQA    CCS / (NNCCS + 1 + eps)
    TransFIRA  CCS,  and  CCAS = CCS - NNCCS
    SDD-FIQA   mean over draws of  100 (W - min W) / (max W - min W),
               W = Wasserstein distance between an image's similarities with images of its class and
                   those with images of others, up to 24 of each

min and max are over all images. w are class centers: those of the classifier (CR-FIQA), or mean
embeddings of classes (TransFIRA). The Wasserstein distance of two samples is the area between their
distribution functions.

Sources: Boutros et al. 2023 (CR-FIQA, CVPR), where the 1 keeps the denominator positive; its
published code divides by NNCCS alone. Tu et al. 2026 (TransFIRA, FG), eq. 3 to 6, and its code. Ou
et al. 2021 (SDD-FIQA, CVPR), and its code, where each of 12 draws takes other images.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from marginlab.measures.functional import recognizability_distances
from marginlab.rng import Key
from marginlab.statistics import unit_vectors

EPS = 1e-7
_NUMBERS = 1 << 22  # embedding entries that are gathered at a time


class CenterCosines(NamedTuple):
    """Cosines with the own class center (CCS) and with the nearest other one (NNCCS)."""

    own: Float[Tensor, " N"]
    nearest: Float[Tensor, " N"]


def center_cosines(
    embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"], centers: Float[Tensor, "C *K D"]
) -> CenterCosines:
    """Return CCS and NNCCS of embeddings.

    Args:
        embeddings: (N, D), of any length.
        labels: (N,) in 0..C-1.
        centers: (C, D), or (C, K, D) with sub-centers, of which the nearest counts.

    Raises:
        ValueError: Shapes do not fit, there are fewer than two classes, or a label is outside.

    Example:
        >>> center_cosines(torch.eye(3)[:1], torch.tensor([0]), torch.eye(3))
        CenterCosines(own=tensor([1.]), nearest=tensor([0.]))
    """
    # the third distance, to unrecognizable images, is not needed: any direction will do
    found = recognizability_distances(embeddings, labels, centers, embeddings[:1])
    return CenterCosines(1 - found.own, 1 - found.negative)


def class_means(
    embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"]
) -> tuple[Float[Tensor, "C D"], Int64[Tensor, " N"]]:
    """Return the mean embedding of each class that occurs, and labels that count these classes.

    Raises:
        ValueError: A class has one image, which would be its own center.

    Example:
        >>> means, numbers = class_means(torch.eye(4), torch.tensor([7, 7, 9, 9]))
        >>> means, numbers
        (tensor([[0.5000, 0.5000, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.5000, 0.5000]]), tensor([0, 0, 1, 1]))
    """
    classes, number, count = labels.long().unique(return_inverse=True, return_counts=True)
    if len(count) and int(count.min()) < 2:
        alone = int(classes[count.argmin()])
        raise ValueError(
            f"Class {alone} has one image, which would be its own center. Give centers of a "
            "gallery, or leave such classes out."
        )
    total = embeddings.new_zeros(len(classes), embeddings.shape[1])
    return total.index_add_(0, number, embeddings) / count[:, None], number


def cr_fiqa_target(cosines: CenterCosines, *, eps: float = EPS) -> Float[Tensor, " N"]:
    """Return the certainty ratio CCS / (NNCCS + 1 + eps).

    Example:
        >>> cr_fiqa_target(CenterCosines(torch.tensor([0.6]), torch.tensor([0.2])))
        tensor([0.5000])
    """
    return cosines.own / (cosines.nearest + 1 + eps)


def transfira_targets(cosines: CenterCosines) -> Float[Tensor, "N 2"]:
    """Return CCS and CCAS = CCS - NNCCS of each image.

    Example:
        >>> transfira_targets(CenterCosines(torch.tensor([0.75]), torch.tensor([0.25])))
        tensor([[0.7500, 0.5000]])
    """
    return torch.stack([cosines.own, cosines.own - cosines.nearest], 1)


def sdd_fiqa_target(
    embeddings: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    *,
    pairs: int = 24,
    draws: int = 12,
    seed: int = 0,
) -> Float[Tensor, " N"]:
    """Return similarity distribution distances, from 0 to 100 within each draw.

    Args:
        embeddings: (N, D), of any length.
        labels: (N,) classes; numbers may be left out.
        pairs: Images of the own class, and of others, that an image is compared with; all of them
            where there are fewer.
        draws: Number of draws of these images.
        seed: Seed of the draws.

    Raises:
        ValueError: There is one class, a class has one image, or all distances are equal.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.6, 0.8], [0.0, 1.0], [0.1, 1.0]])
        >>> sdd_fiqa_target(x, torch.tensor([0, 0, 0, 1, 1])).round().tolist()
        [100.0, 89.0, 0.0, 91.0, 75.0]
    """
    if pairs < 1 or draws < 1:
        raise ValueError(f"pairs and draws are at least 1, not {pairs} and {draws}.")
    x, N = unit_vectors(embeddings), len(embeddings)
    order = labels.long().argsort(stable=True)
    _, number, count = labels.long()[order].unique(return_inverse=True, return_counts=True)
    if len(count) < 2 or int(count.min()) < 2:
        raise ValueError(
            f"The {N} images are of {len(count)} classes, the smallest of "
            f"{int(count.min()) if N else 0} images. Give two or more of each of two or more "
            "classes."
        )
    x, size, start = x[order], count[number], (count.cumsum(0) - count)[number]
    place = torch.arange(N, device=x.device)
    total = x.new_zeros(N)
    for draw in range(draws):
        key = Key(seed).named("sdd_fiqa", draw)
        own, there = subsets(key.named("own"), size - 1, pairs)
        own = start[:, None] + own
        own += own >= place[:, None]  # the image itself is left out
        others, those = subsets(key.named("others"), N - size, pairs)
        others += torch.where(others >= start[:, None], size[:, None], 0)
        apart = wasserstein(_cosines(x, own), there, _cosines(x, others), those)
        low, high = apart.aminmax()
        if not bool(high > low):
            raise ValueError(
                f"All {N} images have the distance {float(low):g}, which tells none from another."
            )
        total += 100 * (apart - low) / (high - low)
    return torch.empty_like(total).index_copy_(0, order, total / draws)


def subsets(
    key: Key, sizes: Int64[Tensor, " N"], k: int
) -> tuple[Int64[Tensor, "N k"], Bool[Tensor, "N k"]]:
    """Draw k different numbers below a size for each row; all of them where there are fewer.

    Each set is as likely as any other (Floyd's algorithm: at each step a new number, or the largest
    so far where it has been drawn), to 24 bits of each draw.

    Returns:
        The numbers, and which of them count; the others are 0.

    Example:
        >>> numbers, count = subsets(Key(0), torch.tensor([2, 5]), 3)
        >>> numbers[0].tolist(), count.tolist()
        ([0, 1, 0], [[True, True, False], [True, True, True]])
    """
    found = torch.arange(k, device=sizes.device).expand(len(sizes), k).clone()
    counts = found < sizes[:, None]
    found[~counts] = 0
    many = (sizes > k).nonzero()[:, 0]
    chosen = torch.full((len(many), k), -1, device=sizes.device)
    for step in range(k):
        last = sizes[many] - k + step
        drawn = (key.at(many, step).uniform().double() * (last + 1)).long()
        taken = (chosen == drawn[:, None]).any(1)
        chosen[:, step] = torch.where(taken, last, drawn)
    found[many] = chosen
    return found, counts


def wasserstein(
    a: Float[Tensor, "N k"],
    of_a: Bool[Tensor, "N k"],
    b: Float[Tensor, "N m"],
    of_b: Bool[Tensor, "N m"],
) -> Float[Tensor, " N"]:
    """Return the distance between two samples of each row, of which the marked entries count.

    Example:
        >>> a, count = torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
        >>> wasserstein(a, count, a + 2, count)
        tensor([2.])
    """
    values, counts = torch.cat([a, b], 1), torch.cat([of_a, of_b], 1)
    # an entry that does not count weighs 0, and stands where one that counts does
    first = values.gather(1, counts.int().argmax(1, keepdim=True))
    values = torch.where(counts, values, first)
    shares = [of.to(values) / of.sum(1, keepdim=True) for of in (of_a, of_b)]
    weights = torch.cat([shares[0], -shares[1]], 1)
    values, order = values.sort(1)
    between = weights.gather(1, order).cumsum(1)[:, :-1]
    return (between.abs() * values.diff(dim=1)).sum(1)


def _cosines(x: Float[Tensor, "N D"], others: Int64[Tensor, "N k"]) -> Float[Tensor, "N k"]:
    """Return the cosines of each unit vector with some others."""
    rows = max(1, _NUMBERS // (x.shape[1] * others.shape[1]))
    return torch.cat(
        [
            torch.einsum("nd,nkd->nk", some, x[at])
            for some, at in zip(x.split(rows), others.split(rows), strict=True)
        ]
    )
