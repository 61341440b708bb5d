"""The ResNet of ArcFace: a stem that keeps the image's size, and batch normalisation first.

    unit(x) = BN(conv(PReLU(BN(conv(BN(x)))))) + shortcut(x)      3x3; the second has the stride

    stem      conv 3x3 - BN - PReLU                      64 channels   112 x 112
    stages    units, the first of each with stride 2     64 128 256 512    56 28 14 7
    head      BN - flatten - dropout - linear - BN       D features

    units     18: 2 2 2 2    34: 3 4 6 3    50: 3 4 14 3    100: 3 13 30 3    200: 6 26 60 6

Two families of published weights differ in their details, and `variant` names the family:

                                        "insightface"            "cvlface" (and AdaFace)
    shortcut of the first unit          1x1 convolution - BN     every second pixel
    scale and shift of the last BN      1, learned               none
    initial convolutions                N(0, 0.1^2)              He et al. 2015, by the outputs
    dropout                             0                        0.4, as in the ArcFace paper

Sources: Deng et al. 2022 (ArcFace), section 4.1; insightface's `recognition/arcface_torch`;
CVLface's `iresnet`.
"""

import itertools

from jaxtyping import Float
from torch import Tensor, nn

from marginlab.models.face import FaceBackbone, FaceNet, check_sizes, in_float32
from marginlab.settings import describe, nearest

UNITS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}
DROPOUT = {"insightface": 0.0, "cvlface": 0.4}
STAGES = (64, 128, 256, 512)


class IResNet(FaceBackbone):
    """The ResNet of ArcFace, from aligned faces to embeddings.

    Args:
        depth: 18, 34, 50, 100 or 200. The papers of AdaFace and CVLface say 101 for 100.
        variant: "insightface" or "cvlface" (see above). CVLface has other units at depth 200.
        dim: D, the number of features.
        dropout: Part of the flattened map that training sets to zero. None takes the variant's.
        width: Factor on the channels. 1 is the published one.
        image_size: Side of the images.

    Raises:
        ValueError: The depth or variant is unknown, or a size is too small.

    Example:
        >>> import torch
        >>> backbone = IResNet(18, width=0.25, image_size=32)
        >>> backbone(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 512])
        >>> backbone.feature_map(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 128, 2, 2])
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        variant: str = "insightface",
        dim: int = 512,
        dropout: float | None = None,
        width: float = 1.0,
        image_size: int = 112,
    ):
        if variant not in DROPOUT:
            raise ValueError(f"There is no variant {variant!r}: {nearest(variant, DROPOUT)}")
        known = [number for number in UNITS if variant == "insightface" or number < 200]
        if depth not in known:
            raise ValueError(
                f"There is no IResNet of depth {depth} in the variant {variant!r}. There are: "
                f"{', '.join(map(str, known))}."
            )
        if not width >= 1 / 16:
            raise ValueError(f"A width is a factor of at least 1/16, not {width}.")
        check_sizes("IResNet", image_size, 1, dim)
        rate = DROPOUT[variant] if dropout is None else dropout
        if not 0 <= rate < 1:
            raise ValueError(f"A dropout is a part from 0 to below 1, not {dropout}.")
        channels = tuple(int(number * width) for number in STAGES)
        side = image_size
        for _ in STAGES:
            side = (side + 1) // 2
        net = IResNetLayers(UNITS[depth], channels, side, dim, rate, variant)
        super().__init__(net, dim=dim, image_size=image_size)
        self.depth, self.variant, self.dropout, self.width = depth, variant, rate, width

    def __repr__(self) -> str:
        own = {
            name: getattr(self, name)
            for name in ("depth", "variant", "dim", "dropout", "width", "image_size")
        }
        return describe("IResNet", **own)


class IResNetLayers(FaceNet):
    """The layers under insightface's names, with their initial weights."""

    def __init__(
        self,
        units: tuple[int, ...],
        channels: tuple[int, ...],
        side: int,
        dim: int,
        dropout: float,
        variant: str,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(channels[0]), nn.PReLU(channels[0])
        stages = zip(units, itertools.pairwise((channels[0], *channels)), strict=True)
        for number, (count, (before, after)) in enumerate(stages, start=1):
            pixels = variant == "cvlface" and before == after
            first = Unit(before, after, stride=2, shortcut=_shortcut(before, after, pixels))
            rest = [Unit(after, after) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
        self.bn2, self.dropout = nn.BatchNorm2d(channels[-1]), nn.Dropout(dropout)
        self.fc = nn.Linear(channels[-1] * side * side, dim)
        self.features = nn.BatchNorm1d(dim, affine=variant == "insightface")
        if variant == "insightface":
            self.features.weight.requires_grad_(False)
        for layer in self.modules():
            if variant == "insightface":
                if isinstance(layer, nn.Conv2d):
                    nn.init.normal_(layer.weight, 0, 0.1)
            else:
                initial(layer)

    def maps(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C h w"]:
        """Return the output of the last stage."""
        out: Tensor = self.prelu(self.bn1(self.conv1(images)))
        for number in range(1, 5):
            out = getattr(self, f"layer{number}")(out)
        return out

    def embed(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D"]:
        """Return the embedding; its linear layer and batch normalisation compute in float32."""
        flat: Tensor = self.dropout(self.bn2(maps).flatten(1))
        with in_float32(flat):
            out: Tensor = self.features(self.fc(flat.to(self.fc.weight.dtype)))
        return out


class Unit(nn.Module):
    """Two 3x3 convolutions between batch normalisations, and a shortcut."""

    def __init__(
        self, before: int, after: int, *, stride: int = 1, shortcut: nn.Module | None = None
    ):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn2, self.prelu = nn.BatchNorm2d(after), nn.PReLU(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride=stride, padding=1, bias=False)
        self.bn3, self.downsample = nn.BatchNorm2d(after), shortcut

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C_out H_out W_out"]:
        inner = self.prelu(self.bn2(self.conv1(self.bn1(input))))
        out: Tensor = self.bn3(self.conv2(inner))
        return out + (input if self.downsample is None else self.downsample(input))


def initial(layer: nn.Module) -> None:
    """Draw weights of a convolution or linear layer by He et al. 2015, for the backward pass."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _shortcut(before: int, after: int, pixels: bool) -> nn.Module:
    """Make the shortcut of a unit with stride 2."""
    if pixels:
        return nn.MaxPool2d(1, 2)
    return nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after))
