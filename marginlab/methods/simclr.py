"""SimCLR: InfoNCE between two views under a two-layer head.

Source: Chen et al. 2020; settings of Huang et al. 2023.
"""

from marginlab.losses import InfoNCE
from marginlab.methods.pair import PairMethod
from marginlab.models import Backbone, Projector
from marginlab.settings import describe


class SimCLR(PairMethod):
    """SimCLR: a backbone, a two-layer head, and NT-Xent at a temperature over the global batch.

    The head is D - hidden - dim with ReLU and no batch normalisation.

    Example:
        >>> from marginlab.models import Backbone
        >>> method = SimCLR(Backbone("resnet18", stem="strided", width=0.25), temperature=0.5)
        >>> sorted(method.loss(torch.rand(4, 2, 3, 32, 32), torch.zeros(4, dtype=torch.long)))
        ['loss']
    """

    def __init__(
        self, backbone: Backbone, *, temperature: float = 0.5, hidden: int = 512, dim: int = 128
    ):
        super().__init__(backbone, Projector((backbone.dim, hidden, dim)))
        self.criterion = InfoNCE(temperature)
        self.temperature, self.hidden, self.dim = temperature, hidden, dim

    def __repr__(self) -> str:
        return describe("SimCLR", temperature=self.temperature, hidden=self.hidden, dim=self.dim)
