"""The head between backbone and loss: a perceptron, thrown away after training.

    SimCLR        D - hidden - out            ReLU, no batch normalisation
                  512 - 512 - 128
    Barlow Twins  D - hidden - hidden - out   batch normalisation and ReLU between
                  512 - 2048 - 2048 - 2048

Source: Huang et al. 2023, settings of their public code.
"""

import itertools

from jaxtyping import Float
from torch import Tensor, nn


class Projector(nn.Sequential):
    """Linear layers of the given sizes with ReLU between them.

    On request batch normalisation comes before each ReLU.

    Example:
        >>> import torch
        >>> Projector((512, 512, 128))(torch.rand(4, 512)).shape
        torch.Size([4, 128])
    """

    def __init__(self, sizes: tuple[int, ...], *, batch_norm: bool = False):
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"A projector has at least two sizes, all positive, not {sizes}.")
        layers: list[nn.Module] = []
        for here, there in itertools.pairwise(sizes[:-1]):
            normalise = [nn.BatchNorm1d(there)] if batch_norm else []
            layers += [nn.Linear(here, there, bias=not batch_norm), *normalise, nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1], bias=not batch_norm))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        out: Tensor = super().forward(features)
        return out
