"""Perceptibility attention, and the quality head: two readers of the last feature map F (C, h, w).

    channel   F1 = F  * sigmoid( mlp(mean over places) + mlp(max over places) )
    spatial   F2 = F1 * sigmoid( conv7x7(mean over channels, max over channels) )
    v_a       = linear(flatten F2)              an embedding of what can be recognised
    xi^       = linear(dropout(flatten F))      the predicted recognizability index

The paper (Chai et al. 2023, CVPR) draws the order and the flattening, not the blocks. These are
those of CBAM (Woo et al., ECCV 2018), with a reduction of 16, or 8 below 128 channels. The dropout
of 0.4 is ours, too, after ArcFace's networks.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

KERNEL = 7


class ChannelAttention(nn.Module):
    """A weight between 0 and 1 for each channel of a map, from its mean and its maximum.

    Args:
        channels: C.
        reduction: The hidden layer has C / reduction units. None: 16, or 8 below 128 channels.

    Example:
        >>> ChannelAttention(32)(torch.rand(2, 32, 4, 4)).shape
        torch.Size([2, 32, 1, 1])
    """

    def __init__(self, channels: int, reduction: int | None = None):
        super().__init__()
        if reduction is None:
            reduction = 16 if channels >= 128 else 8
        if channels < 1 or reduction < 1:
            raise ValueError(
                f"Channels and reduction are at least 1, not {channels} and {reduction}."
            )
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C 1 1"]:
        """Return the weights."""
        both = self.mlp(maps.mean((2, 3))) + self.mlp(maps.amax((2, 3)))
        weights: Tensor = both.sigmoid()[:, :, None, None]
        return weights


class SpatialAttention(nn.Module):
    """A weight between 0 and 1 for each place of a map, from the mean and maximum of its channels.

    Example:
        >>> SpatialAttention()(torch.rand(2, 32, 4, 4)).shape
        torch.Size([2, 1, 4, 4])
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, KERNEL, padding=KERNEL // 2, bias=False)

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 1 h w"]:
        """Return the weights."""
        both = torch.cat([maps.mean(1, keepdim=True), maps.amax(1, keepdim=True)], 1)
        weights: Tensor = self.convolution(both).sigmoid()
        return weights


class PerceptibilityAttention(nn.Module):
    """Channel attention, spatial attention and a linear layer: feature maps to embeddings.

    It computes in float32 also inside autocast.

    Args:
        channels, size: C and (h, w) of the maps.
        dim: Dimension D of the embeddings.
        reduction: As in `ChannelAttention`.

    Raises:
        ValueError: A size is below 1, or maps of another shape are given.

    Example:
        >>> attention = PerceptibilityAttention(32, (4, 4), 8)
        >>> maps = torch.rand(2, 32, 4, 4)
        >>> attention(maps).shape, attention.heat_map(maps, (64, 64)).shape
        (torch.Size([2, 8]), torch.Size([2, 64, 64]))
    """

    def __init__(
        self, channels: int, size: tuple[int, int], dim: int, reduction: int | None = None
    ):
        super().__init__()
        self.shape = _shape(channels, size)
        if dim < 1:
            raise ValueError(f"An embedding has at least 1 dimension, not {dim}.")
        self.channel, self.spatial = ChannelAttention(channels, reduction), SpatialAttention()
        self.linear = nn.Linear(channels * size[0] * size[1], dim)

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D"]:
        """Return attended embeddings, which are not scaled to length 1."""
        _check(maps, self.shape)
        with torch.autocast(maps.device.type, enabled=False):
            x = maps.to(self.linear.weight.dtype)
            x = x * self.channel(x)
            attended: Tensor = self.linear((x * self.spatial(x)).flatten(1))
        return attended

    def heat_map(
        self, maps: Float[Tensor, "B C h w"], size: tuple[int, int]
    ) -> Float[Tensor, "B H W"]:
        """Return the spatial attention, between 0 and 1, enlarged bilinearly to the images' size.

        Args:
            maps: The last feature maps.
            size: (H, W) of the images.
        """
        _check(maps, self.shape)
        with torch.autocast(maps.device.type, enabled=False):
            x = maps.to(self.linear.weight.dtype)
            found = self.spatial(x * self.channel(x))
            large = F.interpolate(found, size=size, mode="bilinear", align_corners=False)
        return large[:, 0]


class QualityHead(nn.Module):
    """Predicted recognizability indices from feature maps: flatten, dropout, one linear layer.

    It computes in float32 also inside autocast.

    Args:
        channels, size: C and (h, w) of the maps.
        dropout: Part of the map that training sets to zero.

    Raises:
        ValueError: A size is below 1, the dropout is outside [0, 1), or maps of another shape are
            given.

    Example:
        >>> QualityHead(32, (4, 4))(torch.rand(2, 32, 4, 4)).shape
        torch.Size([2])
    """

    def __init__(self, channels: int, size: tuple[int, int], dropout: float = 0.4):
        super().__init__()
        self.shape = _shape(channels, size)
        if not 0 <= dropout < 1:
            raise ValueError(f"A dropout is a part from 0 to below 1, not {dropout}.")
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(channels * size[0] * size[1], 1)

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, " B"]:
        """Return predicted indices; higher is better, and their range is arbitrary."""
        _check(maps, self.shape)
        with torch.autocast(maps.device.type, enabled=False):
            flat = maps.to(self.linear.weight.dtype).flatten(1)
            predicted: Tensor = self.linear(self.dropout(flat))[:, 0]
        return predicted


def _shape(channels: int, size: tuple[int, int]) -> tuple[int, int, int]:
    if min(channels, *size) < 1:
        raise ValueError(f"A map has at least 1 channel and 1 place, not {channels} at {size}.")
    return channels, size[0], size[1]


def _check(maps: Tensor, shape: tuple[int, int, int]) -> None:
    if maps.ndim != 4 or tuple(maps.shape[1:]) != shape:
        raise ValueError(
            f"This layer flattens maps {('B', *shape)}, and is given {tuple(maps.shape)}: images "
            "of another size or another backbone. Resize the images, or make it anew."
        )
