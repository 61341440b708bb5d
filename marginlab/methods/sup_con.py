"""Supervised contrastive learning: the views of all images of a class are each other's positives.

Source: Khosla et al. 2020.
"""

from jaxtyping import Float, Int
from torch import Tensor

from marginlab import losses
from marginlab.losses.sup_con import Variant
from marginlab.methods.method import Method
from marginlab.models import Backbone, Projector
from marginlab.settings import describe


class SupCon(Method):
    """Supervised contrastive learning: SupCon of both views and labels, over the global batch.

    The head is D - hidden - dim with ReLU and no batch normalisation.

    Args:
        backbone: The backbone, with features of dimension D.
        temperature: As in `marginlab.losses.SupCon`.
        variant: As in `marginlab.losses.SupCon`.
        hidden: Width of the head's hidden layer.
        dim: Dimension of the embedding.

    Example:
        >>> from marginlab.models import Backbone
        >>> method = SupCon(Backbone("resnet18", stem="strided", width=0.25))
        >>> sorted(method.loss(torch.rand(4, 2, 3, 32, 32), torch.zeros(4, dtype=torch.long)))
        ['loss']
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        temperature: float = 0.1,
        variant: Variant = "out",
        hidden: int = 512,
        dim: int = 128,
    ):
        super().__init__(backbone, Projector((backbone.dim, hidden, dim)))
        self.criterion = losses.SupCon(temperature, variant)
        self.hidden, self.dim = hidden, dim

    def loss(
        self, views: Float[Tensor, "B V 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the supervised contrastive loss over all views of all images."""
        return {
            "loss": self.criterion(
                self.embed(views).flatten(0, 1), labels.repeat_interleave(views.shape[1])
            )
        }

    def __repr__(self) -> str:
        kept = self.criterion
        return describe(
            "SupCon",
            temperature=kept.temperature,
            variant=kept.variant,
            hidden=self.hidden,
            dim=self.dim,
        )
