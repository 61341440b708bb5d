"""Training by the triplet loss on angles alone, without class centers.

    embedding = BN(W backbone(view))
    loss      = marginlab.losses.AngularTriplet of the embeddings of all views

A batch that draws images at random holds few images of one class, where there are many classes. Two
views of an image make sure that every row has a positive.

Source: Deng et al. 2022 (ArcFace, TPAMI), section 3.1 and the row "Triplet" of Table 2.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from marginlab import losses
from marginlab.methods.method import Method
from marginlab.models import Backbone, EmbeddingLayer
from marginlab.settings import describe


class AngularTriplet(Method):
    """A backbone and an embedding layer D - dim under the triplet loss on angles.

    Args:
        backbone: The backbone, with features of dimension D.
        margin: m, in radians, as in `marginlab.losses.AngularTriplet`.
        dim: Dimension of the embedding. 0 leaves the embedding layer out.

    Raises:
        ValueError: The margin is outside [0, pi).

    Example:
        >>> import torch
        >>> from marginlab.models import Backbone
        >>> method = AngularTriplet(Backbone("resnet18", stem="strided", width=0.25))
        >>> sorted(method.loss(torch.rand(4, 2, 3, 32, 32), torch.arange(4)))
        ['loss']
    """

    def __init__(self, backbone: Backbone, *, margin: float = 0.35, dim: int = 128):
        super().__init__(backbone, EmbeddingLayer(backbone.dim, dim) if dim else nn.Identity())
        self.criterion = losses.AngularTriplet(margin)
        self.dim = dim

    def loss(
        self, views: Float[Tensor, "B V 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the triplet loss over all views of all images."""
        rows = self.embed(views).flatten(0, 1)
        return {"loss": self.criterion(rows, labels.repeat_interleave(views.shape[1]))}

    def __repr__(self) -> str:
        return describe("AngularTriplet", margin=self.criterion.margin, dim=self.dim)
