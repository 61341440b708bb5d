"""The layer between backbone and classifier; its output is the embedding, kept after training.

    x     = BN(W f)
    BN(y) = (y - mean) / sqrt(var + eps)

per dimension over the batch, with neither scale nor shift of its own.

Features that come straight from a pooled ReLU all lie in one orthant, at small angles to each
other. The layer centres them first. Cosines do not see a scale that all dimensions share, and a
shift would undo the centring.

Sources: Deng et al. 2022 (ArcFace) for the order of the layers (batch normalisation, dropout,
linear, batch normalisation); the published code of Kim et al. 2022 (AdaFace) for batch
normalisation without scale and shift.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from marginlab.models.batch_norm import GlobalBatchNorm1d


class EmbeddingLayer(nn.Module):
    """A linear layer without bias and batch normalisation: features (B, D) to embeddings (B, E).

    It computes in float32 also inside autocast. Statistics are over the rows of all ranks.

    Raises:
        ValueError: A size is below 1. In training mode also fewer than two rows on all ranks.

    Example:
        >>> EmbeddingLayer(512, 128)(torch.rand(4, 512)).shape
        torch.Size([4, 128])
    """

    def __init__(self, dim: int, out: int):
        super().__init__()
        if dim < 1 or out < 1:
            raise ValueError(
                f"An embedding layer goes from at least 1 feature to at least 1, not from {dim} to "
                f"{out}."
            )
        self.linear, self.norm = nn.Linear(dim, out, bias=False), GlobalBatchNorm1d(out)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        """Return embeddings, which are not of length 1.

        The classifier divides by the length, and margins such as MagFace's look at it.
        """
        # rounding to bfloat16 turns an embedding by up to 0.1 degrees
        with torch.autocast(features.device.type, enabled=False):
            wide = features.to(self.linear.weight.dtype)
            out: Tensor = self.norm(self.linear(wide))
        return out
