"""A module of your own in the place of a backbone."""

from jaxtyping import Float
from torch import Tensor, nn

from marginlab.models.backbone import Backbone


class OwnBackbone(Backbone):
    """Any module from images to features, as a backbone; it normalises its images by itself.

    Args:
        net: A module from images (B, 3, H, W) in [0, 1] to features (B, D).
        dim: D. None takes the attribute `dim` of the module.

    Raises:
        ValueError: The module has no attribute `dim` that is a positive number, and none is given.
            Or, when called, the features have another shape than (B, D).

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
        >>> OwnBackbone(net, dim=5)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(self, net: nn.Module, dim: int | None = None):
        nn.Module.__init__(self)
        found = getattr(net, "dim", None) if dim is None else dim
        if type(found) is not int or found < 1:
            raise ValueError(
                f"{type(net).__name__} says no number of features: give it an attribute dim = D, a "
                f"positive integer, not {found!r}."
            )
        self.net, self.dim = net, found

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return features of images."""
        features: Tensor = self.net(images)
        if features.shape != (len(images), self.dim):
            raise ValueError(
                f"{type(self.net).__name__} gives {tuple(features.shape)} of {len(images)} images, "
                f"and its dim says {(len(images), self.dim)}. Pool and flatten, or change dim."
            )
        return features

    def feature_map(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Return the last feature map, by the module's own method `feature_map`.

        Raises:
            ValueError: The module has no such method, or it gives no maps (B, C, h, w).
        """
        own = getattr(self.net, "feature_map", None)
        name = type(self.net).__name__
        if own is None:
            raise ValueError(
                f"{name} has no feature map: give it a method feature_map, from images (B, 3, H, "
                "W) to maps (B, C, h, w)."
            )
        found: Tensor = own(images)
        if found.ndim != 4 or len(found) != len(images):
            raise ValueError(
                f"{name}.feature_map gives {tuple(found.shape)} of {len(images)} images, not "
                f"({len(images)}, C, h, w). Leave out its pooling."
            )
        return found

    def map_and_features(
        self, images: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B D"]]:
        """Return `feature_map` and features of images, from a pass for each.

        A module that can do both in one pass has a method `map_and_features` of its own.
        """
        own = getattr(self.net, "map_and_features", None)
        if own is None:
            return self.feature_map(images), self(images)
        found: tuple[Tensor, Tensor] = own(images)
        return found

    def __repr__(self) -> str:
        return f"OwnBackbone({self.net!r}, dim={self.dim})"
