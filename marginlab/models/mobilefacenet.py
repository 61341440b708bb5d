"""MobileFaceNet: narrow residual units of separable convolutions, and a learned weighted pooling.

    unit(x)  = BN(conv1x1(PReLU(BN(depthwise3x3(PReLU(BN(conv1x1(x))))))))     [+ x at stride 1]
    stem     conv 3x3, stride 2 - BN - PReLU
    first    one grouped convolution, or residual units
    stages   a unit with stride 2, then residual units, three times
    head     conv 1x1 to 512 - depthwise convolution as large as the map - linear - BN

    size      residual units    channels of the stem
    "base"    1 4 6 2           128     (of the first one only a grouped convolution, 64 groups)
    "large"   2 8 12 4          256

Sources: Chen et al. 2018 (MobileFaceNets); insightface's `recognition/arcface_torch`, whose "mbf"
is twice as wide as the paper's, and whose "mbf_large" is four times as wide.
"""

from jaxtyping import Float
from torch import Tensor, nn

from marginlab.models.face import FaceBackbone, FaceNet, check_sizes, in_float32
from marginlab.models.iresnet import initial
from marginlab.settings import describe, nearest

SIZES = {"base": ((1, 4, 6, 2), 128), "large": ((2, 8, 12, 4), 256)}
LAST = 512


class MobileFaceNet(FaceBackbone):
    """A small network for faces, from aligned faces to embeddings.

    Args:
        size: "base", insightface's `mbf`, or "large", its `mbf_large`.
        dim: D, the number of features.
        image_size: Side of the images.

    Raises:
        ValueError: The size is unknown, or a number too small.

    Example:
        >>> import torch
        >>> MobileFaceNet(image_size=32)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 512])
    """

    def __init__(self, size: str = "base", *, dim: int = 512, image_size: int = 112):
        if size not in SIZES:
            raise ValueError(f"There is no MobileFaceNet {size!r}: {nearest(size, SIZES)}")
        check_sizes("MobileFaceNet", image_size, 1, dim)
        side = image_size
        for _ in range(4):
            side = (side + 1) // 2
        super().__init__(
            MobileFaceNetLayers(*SIZES[size], side, dim), dim=dim, image_size=image_size
        )
        self.size = size

    def __repr__(self) -> str:
        return describe("MobileFaceNet", size=self.size, dim=self.dim, image_size=self.image_size)


class MobileFaceNetLayers(FaceNet):
    """The layers under insightface's names, with their initial weights."""

    def __init__(self, units: tuple[int, ...], channels: int, side: int, dim: int):
        super().__init__()
        first: nn.Module = Block(channels, channels, 3, padding=1, groups=64)
        if units[0] > 1:
            first = Residuals(channels, units[0], 128)
        self.layers = nn.ModuleList(
            (
                Block(3, channels, 3, stride=2, padding=1),
                first,
                Separable(channels, channels, 128, stride=2),
                Residuals(channels, units[1], 128),
                Separable(channels, 2 * channels, 256, stride=2),
                Residuals(2 * channels, units[2], 256),
                Separable(2 * channels, 2 * channels, 512, stride=2),
                Residuals(2 * channels, units[3], 256),
            )
        )
        self.conv_sep = Block(2 * channels, LAST, 1)
        self.features = Pooling(side, dim)
        self.apply(initial)

    def maps(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C h w"]:
        """Return the map of 512 channels before its pooling."""
        out = images
        for layer in self.layers:
            out = layer(out)
        with in_float32(out):
            last: Tensor = self.conv_sep(out.to(next(self.conv_sep.parameters()).dtype))
        return last

    def embed(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D"]:
        """Return the embedding, by a weighted pooling, a linear layer and batch normalisation."""
        with in_float32(maps):
            out: Tensor = self.features(maps)
        return out


class Layers(nn.Module):
    """Layers in a row, under the name `layers`."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.layers(input)
        return out


class Block(Layers):
    """Convolution, batch normalisation, and PReLU."""

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ):
        super().__init__(
            nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(after),
            nn.PReLU(after),
        )


class Linear(Layers):
    """Convolution and batch normalisation, without padding, and with nothing that bends."""

    def __init__(self, before: int, after: int, kernel: int, *, groups: int = 1):
        super().__init__(
            nn.Conv2d(before, after, kernel, groups=groups, bias=False), nn.BatchNorm2d(after)
        )


class Separable(Layers):
    """A convolution in three: to `middle` channels, within each of them, and to `after`."""

    def __init__(self, before: int, after: int, middle: int, *, stride: int = 1):
        super().__init__(
            Block(before, middle, 1),
            Block(middle, middle, 3, stride=stride, padding=1, groups=middle),
            Linear(middle, after, 1),
        )


class Residual(Separable):
    """A separable convolution beside an identity."""

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


class Residuals(Layers):
    """Residual units in a row."""

    def __init__(self, channels: int, count: int, middle: int):
        super().__init__(*(Residual(channels, channels, middle) for _ in range(count)))


class Pooling(Layers):
    """A weight for each channel and place of a map, then a linear layer and batch normalisation."""

    def __init__(self, side: int, dim: int):
        super().__init__(
            Linear(LAST, LAST, side, groups=LAST),
            nn.Flatten(),
            nn.Linear(LAST, dim, bias=False),
            nn.BatchNorm1d(dim),
        )
