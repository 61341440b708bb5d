"""Spectral contrastive learning: the spectral loss of embeddings that are held in a ball.

    y    = head(backbone(view))
    z    = y min(1, sqrt(mu) / |y|)
    loss = ( -2 mean z1_i . z2_i + mean_{i != j} (z1_i . z2_j)^2 ) / mu

The loss is of the fourth power in the length of y. Without the ball, a batch of long embeddings
throws a training off. The radius sqrt(mu) and the division by mu are those of the published code.

Source: HaoChen, Wei, Gaidon and Ma 2021.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab import losses
from marginlab.losses.pair import widened
from marginlab.losses.spectral_contrastive import Negatives
from marginlab.methods.method import Method
from marginlab.models import Backbone, Projector
from marginlab.settings import describe
from marginlab.statistics import unit_vectors


class SpectralContrastive(Method):
    """Spectral contrastive learning over the global batch, in a ball of radius sqrt(mu).

    The head is D - hidden - hidden - dim with batch normalisation.

    Args:
        backbone: The backbone, with features of dimension D.
        mu: Square of the radius of the ball.
        negatives: "other_view", as published, or "both_views": see
            `marginlab.losses.SpectralContrastive`.
        hidden: Width of the head's two hidden layers.
        dim: Dimension of the embedding.

    Raises:
        ValueError: mu is not positive, or the word for the negatives is unknown.

    Example:
        >>> from marginlab.models import Backbone
        >>> backbone = Backbone("resnet18", stem="strided", width=0.25)
        >>> method = SpectralContrastive(backbone, hidden=64, dim=64)
        >>> sorted(method.loss(torch.rand(4, 2, 3, 32, 32), torch.zeros(4, dtype=torch.long)))
        ['loss']
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        mu: float = 1.0,
        negatives: Negatives = "other_view",
        hidden: int = 1024,
        dim: int = 1024,
    ):
        super().__init__(backbone, Projector((backbone.dim, hidden, hidden, dim), batch_norm=True))
        if not mu > 0:
            raise ValueError(
                "The embeddings' ball has the radius sqrt(mu), and mu is positive, such as 1.0, "
                f"not {mu}."
            )
        self.criterion = losses.SpectralContrastive(negatives)
        self.mu, self.hidden, self.dim = mu, hidden, dim

    def loss(
        self, views: Float[Tensor, "B 2 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the spectral contrastive loss between the two views of every image."""
        embeddings = self.embed(views)
        with torch.autocast(views.device.type, enabled=False):
            z = widened(embeddings, torch.promote_types(embeddings.dtype, torch.float32))
            length = torch.linalg.vector_norm(z, dim=2, keepdim=True)
            long = unit_vectors(z) * self.mu**0.5  # by its own scale: squares of 1e19 overflow
            one, two = torch.where(length > self.mu**0.5, long, z).unbind(1)
            return {"loss": self.criterion(one, two) / self.mu}

    def __repr__(self) -> str:
        return describe(
            "SpectralContrastive",
            mu=self.mu,
            negatives=self.criterion.negatives,
            hidden=self.hidden,
            dim=self.dim,
        )
