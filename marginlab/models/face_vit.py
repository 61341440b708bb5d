"""The transformers of arcface_torch: tokens of patches, all of which make the embedding.

    tokens   = conv(image) + position                 patches of 9 x 9 pixels: 12 x 12 of 112 x 112
    block(x) = x + attention(LN(x)),  x + linear(ReLU6(linear(LN(x))))
    features = BN(linear(BN(linear(flatten(LN(tokens))))))

There is no token of a class. In training a random part of the tokens may be hidden from the blocks.
Behind them a learned token stands in the place of each hidden one.

    size            width  blocks  heads  width within  patch
    "t"               256      12      8    x 4           9
    "s"               512      12      8    x 4           9
    "b"               512      24      8    x 4           9
    "l"               768      24      8    x 4           9
    "cvlface_small"   512      12      8    x 5           8
    "cvlface_base"    512      24     16    x 3           8

With patches of 9 pixels the last 4 rows and columns of an image of 112 x 112 are not seen, as
published.

Source: insightface's `recognition/arcface_torch` (An et al. 2022); CVLface's `vit`.
"""

import torch
from jaxtyping import Float
from timm.layers import PatchEmbed, calculate_drop_path_rates
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from marginlab.models.face import FaceBackbone, FaceNet, check_sizes, in_float32
from marginlab.settings import describe, nearest

# width, blocks, heads, factor on the width within a block, side of a patch
SIZES = {
    "t": (256, 12, 8, 4.0, 9),
    "s": (512, 12, 8, 4.0, 9),
    "b": (512, 24, 8, 4.0, 9),
    "l": (768, 24, 8, 4.0, 9),
    "cvlface_small": (512, 12, 8, 5.0, 8),
    "cvlface_base": (512, 24, 16, 3.0, 8),
}
EPS = 2e-5  # of the head's batch normalisations


class FaceViT(FaceBackbone):
    """A vision transformer of face recognition, from aligned faces to embeddings.

    Training draws the hidden tokens and dropped blocks by torch's generator. A recipe seeds it at
    every step.

    Args:
        size: One of the names above.
        dim: D, the number of features.
        mask: Part of the tokens that training hides.
        drop_path: Probability that training leaves out the last block's branches. It rises from 0
            at the first block.
        recompute: Keep only the inputs of the blocks for the backward pass, and run them again
            there: less memory, a third more work. insightface does so for "b" and "l".
        image_size: Side of the images.

    Raises:
        ValueError: The size is unknown, or a number is outside its range.

    Example:
        >>> backbone = FaceViT("t", image_size=27)
        >>> backbone(torch.rand(2, 3, 27, 27)).shape
        torch.Size([2, 512])
        >>> backbone.eval().feature_map(torch.rand(2, 3, 27, 27)).shape
        torch.Size([2, 256, 3, 3])
    """

    def __init__(
        self,
        size: str = "s",
        *,
        dim: int = 512,
        mask: float = 0.1,
        drop_path: float = 0.1,
        recompute: bool = False,
        image_size: int = 112,
    ):
        if size not in SIZES:
            raise ValueError(f"There is no FaceViT {size!r}: {nearest(size, SIZES)}")
        check_sizes(f"FaceViT({size!r})", image_size, SIZES[size][-1], dim)
        for name, part in (("mask", mask), ("drop_path", drop_path)):
            if not 0 <= part < 1:
                raise ValueError(f"{name} is a part from 0 to below 1, not {part}.")
        net = FaceViTLayers(size, dim, mask, drop_path, image_size)
        super().__init__(net, dim=dim, image_size=image_size)
        net.recompute = recompute
        self.size, self.mask, self.drop_path, self.recompute = size, mask, drop_path, recompute

    def __repr__(self) -> str:
        own = {
            name: getattr(self, name)
            for name in ("size", "dim", "mask", "drop_path", "recompute", "image_size")
        }
        return describe("FaceViT", **own)


class FaceViTLayers(FaceNet):
    """The layers under insightface's names, with their initial weights.

    The learned token is there only if tokens are hidden.
    """

    def __init__(self, size: str, dim: int, mask: float, drop_path: float, image_size: int):
        super().__init__()
        width, depth, heads, factor, patch = SIZES[size]
        self.recompute = False
        self.patch_embed = PatchEmbed(image_size, patch, 3, width)
        count = self.patch_embed.num_patches
        self.shown = max(1, int(count * (1 - mask)))
        self.pos_embed = nn.Parameter(torch.zeros(1, count, width))
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                mlp_ratio=factor,
                qkv_bias=False,
                drop_path=rate,
                act_layer=nn.ReLU6,
                norm_layer=nn.LayerNorm,
            )
            for rate in calculate_drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * count, width, bias=False),
            nn.BatchNorm1d(width, eps=EPS),
            nn.Linear(width, dim, bias=False),
            nn.BatchNorm1d(dim, eps=EPS),
        )
        self.mask_token: nn.Parameter | None = None
        if mask > 0:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
            nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def maps(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C h w"]:
        """Return the normalised tokens where their patches are."""
        tokens: Tensor = self.patch_embed(images) + self.pos_embed
        shown: Tensor | None = None
        if self.training and self.mask_token is not None:
            order = torch.rand(tokens.shape[:2], device=tokens.device).argsort(1)
            shown = order[:, : self.shown, None].expand(-1, -1, tokens.shape[2])
            tokens = tokens.gather(1, shown)
        for block in self.blocks:
            if self.recompute and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        with in_float32(tokens):
            tokens = self.norm(tokens.to(self.norm.weight.dtype))
        if shown is not None:
            assert self.mask_token is not None
            hidden = self.mask_token.expand(len(tokens), self.pos_embed.shape[1], -1)
            tokens = hidden.scatter(1, shown, tokens)
        patched: Tensor = tokens.mT.unflatten(2, tuple(self.patch_embed.grid_size))
        return patched

    def embed(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D"]:
        """Return the embedding of all tokens, one after the other."""
        with in_float32(maps):
            out: Tensor = self.feature(maps.flatten(2).mT.flatten(1))
        return out
