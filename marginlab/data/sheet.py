"""Contact sheets: many small pictures in one, row by row."""

import io
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

_GAP = 2  # pixels between pictures
_LETTERS = 11  # height of a line of text


def contact_sheet(
    images: UInt8[Tensor, "N 3 H W"] | Float[Tensor, "N 3 H W"],
    captions: Sequence[str] = (),
    *,
    columns: int = 0,
    enlarge: int = 1,
) -> UInt8[Tensor, "3 h w"]:
    """Lay pictures out in rows on a white ground, each with a caption below it.

    Args:
        images: Bytes, or numbers in [0, 1]; what lies outside is cut.
        captions: One for each picture, or none. A caption that is wider than its picture is cut.
        columns: Pictures in a row; 0 makes the sheet about square.
        enlarge: Each pixel becomes a square of this side.

    Raises:
        ValueError: There are no images, another number of captions, or a negative number.

    Example:
        >>> contact_sheet(torch.zeros(4, 3, 8, 8), columns=2).shape
        torch.Size([3, 22, 22])
    """
    N = len(images)
    if N < 1 or columns < 0 or enlarge < 1:
        raise ValueError(
            f"A sheet has at least 1 picture, columns from 0 and an enlargement from 1, not {N}, "
            f"{columns} and {enlarge}."
        )
    if captions and len(captions) != N:
        raise ValueError(f"{N} pictures have {N} captions or none, not {len(captions)}.")
    if images.is_floating_point():
        images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    images = images.cpu().repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    height, width = images.shape[2] + (_LETTERS if captions else 0), images.shape[3]
    columns = min(columns or math.ceil(math.sqrt(N)), N)
    rows = math.ceil(N / columns)
    down, across = height + _GAP, width + _GAP
    sheet = torch.full((3, rows * down + _GAP, columns * across + _GAP), 255, dtype=torch.uint8)
    for place, image in enumerate(images):
        top = place // columns * down + _GAP
        left = place % columns * across + _GAP
        sheet[:, top : top + image.shape[1], left : left + width] = image
        if captions:
            text = _written(captions[place], width)
            sheet[:, top + image.shape[1] : top + height, left : left + width] = text
    return sheet


def _written(text: str, width: int) -> Tensor:
    """Return a line of black text on white, (h, width)."""
    from PIL import Image, ImageDraw, ImageFont

    line = Image.new("L", (width, _LETTERS), 255)
    ImageDraw.Draw(line).text((1, 0), text, fill=0, font=ImageFont.load_default(9))
    return torch.frombuffer(bytearray(line.tobytes()), dtype=torch.uint8).view(_LETTERS, width)


def encode_picture(picture: UInt8[Tensor, "3 h w"], format: str = "png", **options: int) -> bytes:
    """Return the bytes of a picture file: "png", or "jpeg" with Pillow's options, as `quality`.

    Example:
        >>> encode_picture(torch.zeros(3, 4, 4, dtype=torch.uint8))[1:4]
        b'PNG'
    """
    from PIL import Image

    held = io.BytesIO()
    pixels = picture.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(held, format=format, **options)
    return held.getvalue()
