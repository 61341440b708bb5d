"""The predictor of SimSiam: a perceptron with a narrow middle.

It predicts one view's embedding from the other's:

    p = W2 relu(BN(W1 z)) + b,     D - hidden - D     2048 - 512 - 2048

Source: Chen and He 2021, section 3 and appendix A.
"""

from jaxtyping import Float
from torch import Tensor, nn


class Predictor(nn.Sequential):
    """Embeddings (B, D) to predictions (B, D), by two linear layers.

    Batch normalisation is in the middle, and none at the end.

    Raises:
        ValueError: A size is below 1.

    Example:
        >>> import torch
        >>> Predictor(128, 32)(torch.rand(4, 128)).shape
        torch.Size([4, 128])
    """

    def __init__(self, dim: int, hidden: int):
        if dim < 1 or hidden < 1:
            raise ValueError(f"A predictor has sizes of at least 1, not {dim} and {hidden}.")
        super().__init__(
            nn.Linear(dim, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, dim),
        )

    def forward(self, embeddings: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        out: Tensor = super().forward(embeddings)
        return out
