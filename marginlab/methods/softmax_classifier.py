"""Training by a plain softmax classifier: the baseline that margins are held against.

    embedding = BN(W backbone(view))
    loss      = cross entropy of (V embedding + b) on the label

Neither embeddings nor the class weights V are normalised, so lengths count as well as angles.
Afterwards embeddings are compared by angle, as those of a margin classifier are.

Source: the row "Softmax" of Deng et al. 2022 (ArcFace, TPAMI), Table 2.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from marginlab import ranks
from marginlab.methods.method import Method
from marginlab.models import Backbone, EmbeddingLayer
from marginlab.settings import SettingsError, describe


class SoftmaxClassifier(Method):
    """A backbone, an embedding layer D - dim, and a linear layer with a bias under cross entropy.

    `loss()` also returns `target_angle`: the mean angle in degrees between embeddings and the
    weights of their class.

    Every rank holds all class weights. `MarginClassifier(margin="NoMargin()")` is the normalised
    softmax, spread over ranks.

    Args:
        backbone: The backbone, with features of dimension D.
        num_classes: C, the number of classes of the data. Training passes it, and a recipe does not
            name it.
        dim: Dimension of the embedding. 0 leaves the embedding layer out.

    Raises:
        SettingsError: There are fewer than two classes.

    Example:
        >>> from marginlab.models import Backbone
        >>> method = SoftmaxClassifier(Backbone("resnet18", stem="strided", width=0.25), 10)
        >>> sorted(method.loss(torch.rand(4, 1, 3, 32, 32), torch.arange(4)))
        ['loss', 'target_angle']
    """

    n_views: int = 1

    def __init__(self, backbone: Backbone, num_classes: int, *, dim: int = 128):
        if num_classes < 2:
            raise SettingsError(f"A classifier has at least 2 classes, not {num_classes}.")
        super().__init__(backbone, EmbeddingLayer(backbone.dim, dim) if dim else nn.Identity())
        self.classifier = nn.Linear(dim or backbone.dim, num_classes)
        self.dim = dim

    def loss(
        self, views: Float[Tensor, "B V 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the cross entropy over all views of all images, and the mean target angle."""
        embeddings = self.embed(views).flatten(0, 1)
        labels = labels.repeat_interleave(views.shape[1])
        # sums over classes take float32 also inside autocast
        with torch.autocast(embeddings.device.type, enabled=False):
            wide = embeddings.to(self.classifier.weight.dtype)
            total = F.cross_entropy(self.classifier(wide), labels, reduction="sum")
            cosine = F.cosine_similarity(wide.detach(), self.classifier.weight.detach()[labels])
        n = ranks.all_reduce(total.new_full((), len(labels)))
        loss = ranks.with_gradients(ranks.all_reduce(total) / n)
        degrees = torch.rad2deg(cosine.clamp(-1, 1).acos()).sum()
        return {"loss": loss, "target_angle": ranks.all_reduce(degrees) / n}

    @torch.no_grad()
    def class_weights(self) -> Float[Tensor, "C 1 D"]:
        """Return the weights of all classes, without the bias."""
        return self.classifier.weight.detach()[:, None]

    def __repr__(self) -> str:
        return describe("SoftmaxClassifier", dim=self.dim)
