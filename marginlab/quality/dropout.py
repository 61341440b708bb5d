"""SER-FIQ: an image is good if dropout hardly moves its embedding.

    q = 2 sigmoid( - mean over i < j of | x_i - x_j | ),   x_i = unit vector of head(mask_i f)

f is the input of the network's last layers, mask_i the i-th of T random masks, which set a part p
of f to zero and divide the rest by 1 - p. Only the last layers are computed T times. q lies between
2 sigmoid(-2) = 0.238 and 1.

The published code draws masks anew for each image. Here the T masks are the same for all images, so
that a score does not depend on where an image stands, and differences between images are not those
of their masks.

Source: Terhörst et al. 2020 (CVPR), in the variant that takes the recognition network itself, and
its code (T = 100, p = 1/2).
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from marginlab.encoding import Encoder, Images, encode, evaluating
from marginlab.kernels import BUDGET
from marginlab.methods import Method
from marginlab.models import IResNet
from marginlab.quality.score import QualityScore
from marginlab.rng import Key
from marginlab.statistics import unit_vectors

Head = Callable[[Tensor], Tensor]


class SerFiq(QualityScore):
    """Stochastic embedding robustness of the last layers.

    Args:
        model: A method of marginlab with a head, whose backbone features are f; or one on an
            `IResNet`, whose flattened map is f; or any encoder that returns f.
        head: The last layers, from f to embeddings, where the model is an encoder.
        passes: Number T of masks.
        dropout: Part p of f that a mask sets to zero.
        seed: Seed of the masks.
        budget: Bytes of the masked features that are held.

    Raises:
        ValueError: Fewer than 2 passes, a dropout outside (0, 1), or no last layers are known.

    Example:
        >>> head = torch.nn.Linear(12, 4)
        >>> score = SerFiq(torch.nn.Flatten(), head, passes=10)
        >>> found = score.quality(torch.rand(5, 3, 2, 2))
        >>> found.shape, bool((found < 1).all())
        (torch.Size([5]), True)
    """

    def __init__(
        self,
        model: Encoder,
        head: Head | None = None,
        *,
        passes: int = 100,
        dropout: float = 0.5,
        seed: int = 0,
        budget: int = BUDGET,
    ):
        if passes < 2 or not 0 < dropout < 1:
            raise ValueError(
                f"Two or more passes drop a part in (0, 1), such as 100 and 0.5, not {passes} and "
                f"{dropout}."
            )
        self.body, self.head = _parts(model) if head is None else (model, head)
        self.passes, self.dropout, self.seed, self.budget = passes, dropout, seed, budget

    @torch.no_grad()
    def quality(self, images: Images, *, batch: int = 512) -> Float[Tensor, " N"]:
        """Return the robustness of the embeddings."""
        features = encode(self.body, images, batch=batch).flatten(1)
        T, F = self.passes, features.shape[1]
        keep = self.masks(F).to(features)
        rows = max(1, self.budget // (features.element_size() * T * (F + T)))
        parts = []
        with _evaluating(self.head):
            for some in features.split(rows):
                masked = (some[:, None] * keep / (1 - self.dropout)).flatten(0, 1)
                x = unit_vectors(self.head(masked)).unflatten(0, (-1, T))
                apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
                parts.append(2 * torch.sigmoid(-apart.sum((1, 2)) / (T * (T - 1))))
        return torch.cat(parts)

    def masks(self, features: int) -> Bool[Tensor, "T F"]:
        """Return the masks of so many features: true for what stays."""
        one, other = torch.arange(self.passes)[:, None], torch.arange(features)
        return ~Key(self.seed).named("ser_fiq").at(one, other).bernoulli(self.dropout)


def _parts(model: Any) -> tuple[Encoder, Head]:
    """Return the body and the last layers of a method."""
    backbone = getattr(model, "backbone", None)
    if isinstance(model, Method) and not isinstance(model.head, nn.Identity):
        return model.encode, model.project
    if isinstance(backbone, IResNet):
        net: Any = backbone.net
        layers = nn.Sequential(net.fc, net.features)
        return nn.Sequential(_Map(backbone), net.bn2, nn.Flatten()), layers
    raise ValueError(
        f"The last layers of {type(model).__name__} are not known. Give what comes before them as "
        "the model, and the layers as head."
    )


class _Map(nn.Module):
    """The feature map of a backbone, as a layer."""

    def __init__(self, backbone: IResNet):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.feature_map(images)


def _evaluating(head: Any) -> contextlib.AbstractContextManager[None]:
    """Put the last layers into evaluation mode, where they are modules or a method's."""
    owner = getattr(head, "__self__", head)
    return evaluating(owner) if isinstance(owner, nn.Module) else contextlib.nullcontext()
