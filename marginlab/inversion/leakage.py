"""A linear map between two spaces of embeddings: it tells much with fewer means than a network.

    W = argmin over W of sum_i ||y_i - W^T x_i||^2 + ridge n ||W||^2

x are embeddings of one encoder and y those of another, of the same n images. Whoever can embed
images with the second encoder reads embeddings of the first through W.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.statistics import unit_vectors


class LinearMap(NamedTuple):
    """A map of embeddings of one space to directions of another.

    Attributes:
        mean: Mean of the source directions.
        weight: The map of centred source directions.
        offset: Mean of the target directions.
    """

    mean: Float[Tensor, " D"]
    weight: Float[Tensor, "D E"]
    offset: Float[Tensor, " E"]

    def __call__(self, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
        """Return directions in the other space."""
        directions = unit_vectors(embeddings).to(self.weight)
        return unit_vectors((directions - self.mean) @ self.weight + self.offset)


def map_between(
    source: Float[Tensor, "n D"], target: Float[Tensor, "n E"], *, ridge: float = 1e-3
) -> LinearMap:
    """Fit the linear map from directions of one space to those of another, from n pairs.

    Args:
        source: Embeddings of n images by one encoder.
        target: Embeddings of the same images by the other.
        ridge: Penalty of the squared weights, for each pair.

    Raises:
        ValueError: There are fewer than two pairs, or their numbers differ, or ridge is not
            positive.

    Example:
        >>> x = torch.randn(200, 4, dtype=torch.float64)
        >>> turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
        >>> found = map_between(x, x @ turn, ridge=1e-9)(x)
        >>> bool((found - unit_vectors(x @ turn)).abs().max() < 1e-4)
        True
    """
    if len(source) != len(target) or len(source) < 2:
        raise ValueError(
            f"A map is fitted to at least 2 pairs of embeddings, not to {len(source)} and "
            f"{len(target)}."
        )
    if not ridge > 0:
        raise ValueError(f"ridge is above 0, not {ridge}: few pairs do not determine a map.")
    x, y = unit_vectors(source.double()), unit_vectors(target.double())
    mean, offset = x.mean(0), y.mean(0)
    x, y = x - mean, y - offset
    penalty = ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    return LinearMap(mean, weight, offset)
