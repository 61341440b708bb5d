"""Defences of stored embeddings: changes to them after which they tell less.

The same change is made to embeddings that are compared with the stored ones, but for noise, which
is drawn anew for each row. What a defence costs is measured as verification on changed embeddings.
A network released without its running statistics is a defence as well: the attacker is left with
`batch_norm=0` in `invert`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.rng import Key
from marginlab.statistics import unit_vectors


@dataclass(frozen=True)
class FewerDimensions:
    """Keep the first k coordinates of the directions.

    Coordinates of a trained embedding layer are alike in worth. Give embeddings in their principal
    axes to keep the largest.

    Example:
        >>> FewerDimensions(1)(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000]])
    """

    kept: int

    def __call__(self, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "N k"]:
        """Return the kept coordinates."""
        if not 1 <= self.kept <= embeddings.shape[1]:
            raise ValueError(
                f"Of {embeddings.shape[1]} dimensions 1 to {embeddings.shape[1]} are kept, not "
                f"{self.kept}."
            )
        directions: Tensor = unit_vectors(embeddings)
        return directions[:, : self.kept]


@dataclass(frozen=True)
class Noise:
    """Add normal noise of total length about `length` to the directions, drawn by a seed.

    Example:
        >>> Noise(0.5)(torch.ones(2, 8)).shape
        torch.Size([2, 8])
    """

    length: float
    seed: int = 0

    def __call__(self, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return noisy directions."""
        if not self.length >= 0:
            raise ValueError(f"The length of noise is not negative; {self.length} is.")
        x: Tensor = unit_vectors(embeddings)
        rows, columns = torch.arange(len(x))[:, None], torch.arange(x.shape[1])[None]
        drawn = Key(self.seed).named("inversion", "noise").at(rows, columns).normal()
        noisy: Tensor = x + self.length / x.shape[1] ** 0.5 * drawn.to(x)
        return noisy


@dataclass(frozen=True)
class Quantised:
    """Round each coordinate of the directions to 2^bits levels; one bit keeps the signs.

    Example:
        >>> Quantised(1)(torch.tensor([[3.0, -4.0]]))
        tensor([[ 1., -1.]])
    """

    bits: int

    def __call__(self, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return rounded directions, in units in which the levels are odd numbers."""
        if not 1 <= self.bits <= 16:
            raise ValueError(f"Coordinates are rounded to 1 to 16 bits, not {self.bits}.")
        x = unit_vectors(embeddings) * embeddings.shape[1] ** 0.5
        half = 2 ** (self.bits - 1)
        step = 3.0 / half  # three deviations of a coordinate are covered
        level: Tensor = (x / step).floor().clamp(-half, half - 1)
        return 2 * level + 1


@dataclass(frozen=True)
class SecretRotation:
    """Turn the directions by a rotation that is a secret, drawn by its seed.

    Cosines among turned embeddings stay. Who has n pairs of an embedding and its turned form finds
    the rotation, see `map_between`.

    Example:
        >>> turned = SecretRotation(7)(torch.eye(3))
        >>> torch.allclose(turned @ turned.T, torch.eye(3), atol=1e-6)
        True
    """

    seed: int

    def __call__(self, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return turned directions."""
        x: Tensor = unit_vectors(embeddings)
        axes = torch.arange(x.shape[1])
        key = Key(self.seed).named("inversion", "rotation")
        drawn = key.at(axes[:, None], axes[None]).normal().double()
        q, r = torch.linalg.qr(drawn)
        turned: Tensor = x @ (q * r.diagonal().sign()).to(x)
        return turned
