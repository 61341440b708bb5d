"""VICReg as a method: variance, invariance and covariance of embeddings under a three-layer head.

Source: Bardes, Ponce and LeCun 2022.
"""

from marginlab import losses
from marginlab.methods.pair import PairMethod
from marginlab.models import Backbone, Projector
from marginlab.settings import describe


class VICReg(PairMethod):
    """VICReg: a backbone, a three-layer head, and the VICReg loss over the global batch.

    The head is D - hidden - hidden - dim with batch normalisation. The weights are the paper's for
    ImageNet, where the head has 8192; here it has 2048, as for Barlow Twins. Published runs use
    LARS.

    Example:
        >>> from marginlab.models import Backbone
        >>> method = VICReg(Backbone("resnet18", stem="strided", width=0.25), hidden=64, dim=64)
        >>> sorted(method.loss(torch.rand(4, 2, 3, 32, 32), torch.zeros(4, dtype=torch.long)))
        ['loss']
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        hidden: int = 2048,
        dim: int = 2048,
    ):
        super().__init__(backbone, Projector((backbone.dim, hidden, hidden, dim), batch_norm=True))
        self.criterion = losses.VICReg(invariance_weight, variance_weight, covariance_weight)
        self.hidden, self.dim = hidden, dim

    def __repr__(self) -> str:
        weights = ("invariance_weight", "variance_weight", "covariance_weight")
        return describe(
            "VICReg",
            **{name: getattr(self.criterion, name) for name in weights},
            hidden=self.hidden,
            dim=self.dim,
        )
