"""A backbone of timm behind a normalisation, with its stem named.

    features = pool(net((images - mean) / std))     images (B, 3, H, W) in [0, 1] -> features (B, D)

The stem decides what a ResNet does with 32 x 32 images. More than one published figure could not be
reached because its stem was not named:

    "cifar"     3x3 convolution, stride 1, no pooling     the paper's, for 32 x 32
    "strided"   3x3 convolution, stride 2, no pooling     a quarter of the work, for small machines
    "imagenet"  as timm makes it: 7x7, stride 2, pooling, for 224 x 224

The norm decides whether training depends on the number of ranks. Batch normalisation takes its
statistics over the rank's own images, so that training on two ranks is not training on one. Group
normalisation (Wu and He, ECCV 2018), over 16 or more channels of an image, is alike on any number.

The activation decides how far rounding goes. The gradient of a ReLU jumps at 0. Of millions of
activations some lie within rounding of 0. One that changes sides moves the gradient of a bias over
n places by the order of 1 / sqrt(n), which is no rounding any more. SiLU, x sigmoid(x) (Elfwing,
Uchibe and Doya 2018), has no such place. In margin training of Omniglot on one process and on two,
in float32, the first 20 losses differed by 0.02 to 0.16 with ReLU and by at most 2e-5 with SiLU,
over three seeds at two sampling rates. In float64 they agree with both.
"""

import difflib
from typing import Any

import torch
from jaxtyping import Float
from timm import create_model, list_models
from torch import Tensor, nn

from marginlab.models.convolution import Convolution
from marginlab.settings import describe, nearest

STEMS = ("cifar", "strided", "imagenet")
NORMS = ("batch", "group")
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """Any timm model without its classifier, behind a normalisation of images in [0, 1].

    `dim` is the number of features D. Initial weights are drawn by the generators of torch: seed
    them, or make the backbone through a `Recipe`.

    Args:
        name: A model of timm, such as "resnet18".
        stem: "cifar", "strided" or "imagenet" (see above). The first two need a model with timm's
            ResNet stem.
        width: Factor on the channels of a ResNet's four stages. 1 is timm's own.
        norm: "batch", as timm makes it, or "group" (see above), for ResNets.
        activation: "relu", as timm makes a ResNet, or "silu" (see above). Other models keep their
            own activation unless it is "silu".
        image_size: Side of the images, for models that are made for one (transformers of patches).
            0 leaves timm's, often 224.

    Raises:
        ValueError: A model, stem, norm or activation is unknown, a width is below 1/16, or the
            model does not know one of these settings.

    Example:
        >>> backbone = Backbone("resnet18", stem="strided", width=0.25)
        >>> backbone(torch.rand(2, 3, 32, 32)).shape, backbone.dim
        (torch.Size([2, 128]), 128)
    """

    def __init__(
        self,
        name: str = "resnet18",
        *,
        stem: str = "cifar",
        width: float = 1.0,
        norm: str = "batch",
        activation: str = "relu",
        image_size: int = 0,
    ):
        super().__init__()
        for what, given, known in (
            ("stem", stem, STEMS),
            ("norm", norm, NORMS),
            ("activation", activation, tuple(ACTIVATIONS)),
        ):
            if given not in known:
                raise ValueError(f"There is no {what} {given!r}: {nearest(given, known)}")
        if not width >= 1 / 16:
            raise ValueError(f"A width is a factor of at least 1/16, not {width}.")
        if name not in list_models():
            near = difflib.get_close_matches(name, list_models(), n=4, cutoff=0.5)
            raise ValueError(
                f"timm has no model {name!r}; near it are: "
                f"{', '.join(near) or 'none, see timm.list_models()'}."
            )
        self.name, self.stem, self.width, self.norm, self.activation, self.image_size = (
            name,
            stem,
            width,
            norm,
            activation,
            image_size,
        )
        options: dict[str, Any] = {}
        if width != 1.0:
            options["channels"] = tuple(int(channels * width) for channels in (64, 128, 256, 512))
        if norm == "group":
            options["norm_layer"] = _group_norm
        if activation != "relu":
            options["act_layer"] = ACTIVATIONS[activation]
        if image_size:
            options["img_size"] = image_size
        try:
            net = create_model(name, pretrained=False, num_classes=0, **options)
        except TypeError as error:
            remedy = "leave width at 1, norm at 'batch', activation at 'relu' and image_size at 0"
            raise ValueError(
                f"{name} has no width, norm, activation or image size to change; {remedy}. "
                f"({error})"
            ) from error
        except AssertionError as error:  # such as for an image size that is not a number of patches
            raise ValueError(f"timm does not make {name} with {options}: {error}.") from error
        if norm == "group" and not isinstance(getattr(net, "bn1", None), nn.GroupNorm):
            raise ValueError(
                f"{name} has no batch normalisation of a ResNet to replace; use norm='batch'."
            )
        if stem != "imagenet":
            if not isinstance(getattr(net, "conv1", None), nn.Conv2d) or not hasattr(
                net, "maxpool"
            ):
                raise ValueError(
                    f"{name} has no single first convolution and pooling to replace; use "
                    "stem='imagenet'."
                )
            old = net.conv1
            net.conv1 = nn.Conv2d(
                3, old.out_channels, 3, stride=1 if stem == "cifar" else 2, padding=1, bias=False
            )
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
            net.maxpool = nn.Identity()
        Convolution.within(net)
        self.net = net
        # MobileNetV3 and others end in a layer that is wider than their features
        self.dim = int(getattr(net, "head_hidden_size", net.num_features))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return features of images, pooled and not normalised in length."""
        features: Tensor = self.net((images - self.mean) / self.std)
        return features

    def feature_map(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Return the last feature map, before its pooling: C channels at h x w places of the image.

        For a transformer these are the tokens of the patches, where the patches are. Tokens of the
        class and registers are left out.

        Raises:
            ValueError: The network has no map, but tokens without a grid.

        Example:
            >>> backbone = Backbone("resnet18", stem="cifar", width=0.25)
            >>> backbone.feature_map(torch.rand(2, 3, 32, 32)).shape
            torch.Size([2, 128, 4, 4])
        """
        return self._on_grid(self.net.forward_features((images - self.mean) / self.std))

    def map_and_features(
        self, images: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B D"]]:
        """Return `feature_map` and features of images, from one pass through the network.

        Example:
            >>> backbone = Backbone("resnet18", stem="cifar", width=0.25).eval()
            >>> images = torch.rand(2, 3, 32, 32)
            >>> found, features = backbone.map_and_features(images)
            >>> found.shape, bool((features == backbone(images)).all())
            (torch.Size([2, 128, 4, 4]), True)
        """
        found: Tensor = self.net.forward_features((images - self.mean) / self.std)
        return self._on_grid(found), self.net.forward_head(found)

    def _on_grid(self, found: Tensor) -> Float[Tensor, "B C h w"]:
        """Return what a network gives before its pooling as a map; `feature_map` raises for it."""
        if found.ndim == 3:
            patches = getattr(self.net, "patch_embed", getattr(self.net, "stem", None))
            grid = getattr(patches, "grid_size", None)
            extra = getattr(self.net, "num_prefix_tokens", 0)
            if grid is not None and grid[0] * grid[1] == found.shape[1] - extra:
                patched: Tensor = found[:, extra:].mT.unflatten(2, tuple(grid))
                return patched
        if found.ndim != 4:
            raise ValueError(
                f"{self.name} gives features {tuple(found.shape)}, and no grid that they lie on. "
                "Take a model with a feature map, or with tokens of equal patches."
            )
        return found.movedim(3, 1) if getattr(self.net, "output_fmt", "NCHW") == "NHWC" else found

    def __repr__(self) -> str:
        own = {
            name: getattr(self, name)
            for name in ("name", "stem", "width", "norm", "activation", "image_size")
        }
        return describe("Backbone", **own)


def _group_norm(channels: int, **options: Any) -> nn.GroupNorm:
    """Make group normalisation with 16 channels a group, or the next larger divisor."""
    groups = max(1, channels // 16)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, **options)
