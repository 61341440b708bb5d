"""SimSiam: a view's prediction points where the other view's embedding does.

There are no negatives and no momentum encoder.

    loss = -( mean cos(p1, z2) + mean cos(p2, z1) ) / 2
    p    = predictor(z),     z taken as a constant in the loss

Two things keep the embeddings from falling onto one point: no gradient goes through z, and there is
a predictor.

Source: Chen and He 2021, eqs. 1 to 4. Sizes of Huang et al. 2023: head 512 - 2048 - 2048, predictor
2048 - 512 - 2048, SGD(lr=0.05) at batch 512. The normalisation at the end of the head has neither
scale nor shift, as in Chen and He's published code.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from marginlab import ranks
from marginlab.losses.pair import directions, widened
from marginlab.methods.method import Method
from marginlab.models import Backbone, Predictor, Projector
from marginlab.settings import describe


class SimSiam(Method):
    """SimSiam: a backbone, a head, a predictor, and the cosine between predictions and embeddings.

    The head is D - hidden - dim, with batch normalisation also at its end. The predictor is dim -
    bottleneck - dim.

    Besides `loss`, `loss()` returns `spread`: sqrt(dim) times the mean deviation of the coordinates
    of embeddings of length 1, over all rows and ranks. It is near 1 where embeddings spread over
    the sphere, and 0 where they have collapsed onto a point (the loss is -1 there too).

    Example:
        >>> from marginlab.models import Backbone
        >>> backbone = Backbone("resnet18", stem="strided", width=0.25)
        >>> method = SimSiam(backbone, hidden=64, dim=64, bottleneck=16)
        >>> sorted(method.loss(torch.rand(4, 2, 3, 32, 32), torch.zeros(4, dtype=torch.long)))
        ['loss', 'spread']
    """

    def __init__(
        self, backbone: Backbone, *, hidden: int = 2048, dim: int = 2048, bottleneck: int = 512
    ):
        head = nn.Sequential(
            Projector((backbone.dim, hidden, dim), batch_norm=True),
            nn.BatchNorm1d(dim, affine=False),
        )
        super().__init__(backbone, head)
        self.predictor = Predictor(dim, bottleneck)
        self.hidden, self.dim, self.bottleneck = hidden, dim, bottleneck

    def loss(
        self, views: Float[Tensor, "B 2 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the symmetric negative cosine of predictions and fixed embeddings, and the spread.

        Both are over the rows of all ranks.
        """
        embeddings = self.embed(views).flatten(0, 1)
        predictions = self.predictor(embeddings)
        with torch.autocast(views.device.type, enabled=False):
            wide = torch.promote_types(embeddings.dtype, torch.float32)
            z, p = (
                directions(widened(embeddings.detach(), wide)),
                directions(widened(predictions, wide)),
            )
            rows = sum(ranks.rows_per_rank(len(z), device=z.device))
            cosine = (p.unflatten(0, (-1, 2)) * z.unflatten(0, (-1, 2)).flip(1)).sum()
            mean, square = ranks.all_reduce(torch.stack((z.sum(0), z.square().sum(0)))) / rows
            spread = (square - mean.square()).clamp_min(0).sqrt().mean() * self.dim**0.5
            return {"loss": ranks.all_reduce(-cosine / rows, grads="mean"), "spread": spread}

    def __repr__(self) -> str:
        return describe("SimSiam", hidden=self.hidden, dim=self.dim, bottleneck=self.bottleneck)
