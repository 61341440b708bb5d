"""Distances of generated images from real ones, measured on features.

    Frechet distance   ||m - m'||^2 + tr(S + S' - 2 (S S')^(1/2))      of means and covariances
    kernel distance    the unbiased squared MMD with k(x, y) = (x . y / D + 1)^3
    rank               1 + the number of identities that are nearer than the right one

The features are those of the encoder that is given, not of an Inception network, so the values
compare with each other and with no published FID or KID.

Sources: Heusel et al. 2017 (FID); Binkowski et al. 2018 (KID).
"""

import warnings

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from marginlab.evaluation.neighbours import Bank
from marginlab.statistics import unit_vectors

_BUDGET = 64 * 2**20  # bytes of a block of similarities


def frechet_distance(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"]) -> float:
    """Return the Frechet distance of two sets of features, by torchmetrics.

    Raises:
        ValueError: A set has fewer than two rows.

    Example:
        >>> x = torch.randn(50, 4, dtype=torch.float64)
        >>> abs(frechet_distance(x, x + 1) - 4) < 1e-3
        True
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    _check(x, y)

    class _Features(nn.Module):
        num_features = x.shape[1]

        def forward(self, rows: Tensor) -> Tensor:
            return rows

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the memory of a buffer that is not used
        metric = FrechetInceptionDistance(feature=_Features())
    metric.set_dtype(torch.float64)
    metric.update(x.double(), real=True)
    metric.update(y.double(), real=False)
    return max(0.0, float(metric.compute()))


def kernel_distance(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"]) -> float:
    """Return the unbiased squared maximum mean discrepancy of two sets; it may be below 0.

    Raises:
        ValueError: A set has fewer than two rows.

    Example:
        >>> x = torch.randn(50, 4)
        >>> kernel_distance(x, x + 3) > kernel_distance(x, x + 1)
        True
    """
    _check(x, y)
    return _mean(x, x, own=True) + _mean(y, y, own=True) - 2 * _mean(x, y, own=False)


def _mean(x: Tensor, y: Tensor, *, own: bool) -> float:
    """Return the mean of the kernel over pairs of rows, without a row and itself, in blocks."""
    dim = x.shape[1]
    others = y.double()
    total = 0.0
    for block in x.double().split(_rows_within_budget(len(y))):
        total += float((block @ others.T / dim + 1).pow(3).sum())
    if not own:
        return total / (len(x) * len(y))
    total -= float((others.square().sum(1) / dim + 1).pow(3).sum())
    return total / (len(x) * (len(x) - 1))


def _check(x: Tensor, y: Tensor) -> None:
    if min(len(x), len(y)) < 2:
        raise ValueError(f"Each set has at least 2 rows of features, not {len(x)} and {len(y)}.")


def _rows_within_budget(columns: int) -> int:
    return max(1, _BUDGET // (8 * max(columns, 1)))


def identity_ranks(
    embeddings: Float[Tensor, "N D"],
    gallery: Float[Tensor, "C D"],
    identity: Int64[Tensor, " N"],
) -> Int64[Tensor, " N"]:
    """Return the rank of the right identity of each embedding among all of a gallery, from 1.

    An identity that is exactly as near as the right one counts as nearer, so equal embeddings do
    not look like a success.

    Args:
        embeddings: Embeddings that are looked up, by cosine.
        gallery: One embedding for each of C identities.
        identity: The right identity of each embedding.

    Example:
        >>> identity_ranks(torch.tensor([[1.0, 0.1]]), torch.eye(2), torch.tensor([1]))
        tensor([2])
    """
    wide = torch.promote_types(embeddings.dtype, gallery.dtype)
    x, centers = (
        unit_vectors(embeddings.to(wide)),
        unit_vectors(gallery.to(embeddings.device, wide)),
    )
    ranks, step = [], _rows_within_budget(len(centers))
    for rows, right in zip(x.split(step), identity.to(x.device).split(step), strict=True):
        cosines = rows @ centers.T
        own = cosines.gather(1, right[:, None])
        ranks.append((cosines >= own).sum(1))
    return torch.cat(ranks)


def nearest_rows(
    features: Float[Tensor, "N D"], bank: Float[Tensor, "M D"], *, budget: int = _BUDGET
) -> tuple[Int64[Tensor, " N"], Float[Tensor, " N"]]:
    """Return the nearest row of a bank for each row, with its cosine: is an image a memorised one?

    Example:
        >>> nearest_rows(torch.tensor([[0.0, 2.0]]), torch.eye(2))
        (tensor([1]), tensor([1.]))
    """
    held = Bank(bank, features, budget)
    found = [held.nearest(rows, 1) for rows in torch.arange(len(features)).split(held.rows(1))]
    index = torch.cat([each.indices[:, 0] for each in found])
    return index, torch.cat([each.values[:, 0] for each in found])
