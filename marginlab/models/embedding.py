"""The layer between backbone and classifier: its output is the embedding, which is kept after training.

    x = BN(W f),    BN per dimension with mean and variance of the batch, scale fixed at 1, shift learned

A large angular margin on features that come straight from a pooled ReLU, all in one orthant, can end with all classes in one direction: with few
classes ArcFace(0.5) did. Batch normalisation centres them first. Its scale is fixed because cosines do not see a common one.

Sources: Deng et al. 2022 (ArcFace), section 4.1 (batch normalisation, dropout, a linear layer, batch normalisation); the fixed scale is the custom
of published face backbones.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class EmbeddingLayer(nn.Module):
    """A linear layer without bias and batch normalisation: features (B, D) to embeddings (B, E), in float32 also inside autocast.

    In training mode a batch has at least two rows (ValueError, from torch).

    >>> EmbeddingLayer(512, 128)(torch.rand(4, 512)).shape
    torch.Size([4, 128])
    """

    def __init__(self, dim: int, out: int):
        super().__init__()
        if dim < 1 or out < 1:
            raise ValueError(f"An embedding layer goes from at least 1 feature to at least 1, not from {dim} to {out}.")
        self.linear, self.norm = nn.Linear(dim, out, bias=False), nn.BatchNorm1d(out)
        self.norm.weight.requires_grad_(False)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        """Embeddings, not of length 1: the classifier divides by the length, and margins such as MagFace's look at it."""
        with torch.autocast(features.device.type, enabled=False):  # rounded to bfloat16 an embedding turns by up to 0.1 degrees
            wide = features.to(self.linear.weight.dtype)
            out: Tensor = self.norm(self.linear(wide))
        return out
