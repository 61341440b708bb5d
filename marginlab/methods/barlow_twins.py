"""Barlow Twins: the cross-correlation loss under a three-layer head.

Source: Zbontar et al. 2021; settings of Huang et al. 2023.
"""

from marginlab.losses import CrossCorrelation
from marginlab.methods.pair import PairMethod
from marginlab.models import Backbone, Projector
from marginlab.settings import describe


class BarlowTwins(PairMethod):
    """Barlow Twins: a backbone, a three-layer head, and cross-correlation over the global batch.

    The head is D - hidden - hidden - dim with batch normalisation. The defaults are the paper's:
    lambda = 0.005 and unbiased standard deviations (correction=1). Use SGD(lr=0.11) with them at
    batch 512.

    Example:
        >>> from marginlab.models import Backbone
        >>> backbone = Backbone("resnet18", stem="strided", width=0.25)
        >>> method = BarlowTwins(backbone, hidden=64, dim=64)
        >>> sorted(method.loss(torch.rand(4, 2, 3, 32, 32), torch.zeros(4, dtype=torch.long)))
        ['loss']
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        off_diagonal_weight: float = 5e-3,
        correction: int = 1,
        hidden: int = 2048,
        dim: int = 2048,
    ):
        super().__init__(backbone, Projector((backbone.dim, hidden, hidden, dim), batch_norm=True))
        self.criterion = CrossCorrelation(off_diagonal_weight, correction=correction)
        self.hidden, self.dim = hidden, dim

    def __repr__(self) -> str:
        weight, correction = self.criterion.off_diagonal_weight, self.criterion.correction
        return describe(
            "BarlowTwins",
            off_diagonal_weight=weight,
            correction=correction,
            hidden=self.hidden,
            dim=self.dim,
        )
