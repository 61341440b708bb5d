"""Alignment of faces: five points of each are brought to where recognition networks expect them.

    w = a z + b
    a = sum conj(z - mean z) (w - mean w) / sum |z - mean z|^2
    b = mean w - a mean z

A point (x, y) is the complex number x + iy. Multiplication by a turns and scales, and cannot
reflect. These a and b have the least sum of squares |a z + b - w|^2 over the points: in the plane
this is the similarity of Umeyama's theorem.

    template of 112 x 112 pixels          x         y
    eye on the left of the picture     38.2946   51.6963
    eye on the right                   73.5318   51.5014
    tip of the nose                    56.0252   71.7366
    corner of the mouth, left          41.5493   92.3655
    corner of the mouth, right         70.7299   92.2041

The center of the first pixel is (0, 0), in the template as in landmarks. What lies beyond the image
is black.

Sources: Umeyama 1991; the template of insightface (Deng et al. 2022).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

FACE_TEMPLATE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
SIDE = 112  # of the template


def similarity_transform(
    points: Float[Tensor, "N L 2"], targets: Float[Tensor, "... L 2"]
) -> Float[Tensor, "N 2 3"]:
    """Return the similarities that take points closest to their targets, without reflection.

    Args:
        points: L points (x, y) for each of N images, not all in one place.
        targets: Where they should lie: for each image, or (L, 2) for all.

    Returns:
        Matrices [[p, -q, s], [q, p, t]]: a point (x, y) goes to (p x - q y + s, q x + p y + t).

    Raises:
        ValueError: A number is not finite, or the points of an image lie in one place. The message
            names the first such image.

    Example:
        >>> points = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
        >>> turned = torch.tensor([[2.0, 1.0], [2.0, 4.0], [-1.0, 1.0]])
        >>> similarity_transform(points, turned)[0, :, 1:].round()
        tensor([[-3.,  2.],
                [ 0.,  1.]])
    """
    lost = ~points.isfinite().flatten(1).all(1)
    if lost.any():
        raise ValueError(f"The points of image {int(lost.nonzero()[0])} are not all finite.")
    if not targets.isfinite().all():
        raise ValueError("The targets are not all finite.")
    middle, aim = points.mean(-2, keepdim=True), targets.mean(-2, keepdim=True)
    (x, y), (u, v) = (points - middle).unbind(-1), (targets - aim).unbind(-1)
    spread = (x * x + y * y).sum(-1)
    # rounding of points in one place leaves differences of this order
    rounding = torch.finfo(points.dtype).eps * (1 + points.abs().flatten(1).amax(1))
    one = spread <= points.shape[1] * rounding.square()
    if one.any():
        raise ValueError(
            f"The points of image {int(one.nonzero()[0])} lie in one place, which says nothing of "
            "turn and size. Leave the image out."
        )
    p, q = (x * u + y * v).sum(-1) / spread, (x * v - y * u).sum(-1) / spread
    turn = torch.stack((torch.stack((p, -q), -1), torch.stack((q, p), -1)), -2)
    move = aim.mT - turn @ middle.mT
    return torch.cat((turn, move), -1)


def template_to_image(
    landmarks: Float[Tensor, "N 5 2"], size: int = SIDE
) -> tuple[Float[Tensor, "N 2 2"], Float[Tensor, "N 1 2"]]:
    """Return A and t: the pixel w of the aligned image is read at A (w - t).

    Raises:
        ValueError: As `similarity_transform`, or landmarks that fit the template only as a point.
    """
    template = landmarks.new_tensor(FACE_TEMPLATE) * (size / SIDE)
    found = similarity_transform(landmarks, template)
    turn = found[:, :, :2]
    back = turn.mT / turn[:, :1].square().sum(-1, keepdim=True)
    if not back.isfinite().all():
        lost = int((~back.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"The landmarks of image {lost} fit the template only when shrunk to a point. Are they "
            "in the order of the template?"
        )
    return back, found[:, None, :, 2]


def align_faces(
    images: Float[Tensor, "N 3 H W"] | UInt8[Tensor, "N 3 H W"],
    landmarks: Float[Tensor, "N 5 2"],
    *,
    size: int = SIDE,
) -> Float[Tensor, "N 3 S S"] | UInt8[Tensor, "N 3 S S"]:
    """Return images in which five landmarks lie on the template, as closely as a similarity can.

    Pixels are read bilinearly. A face that is much larger than the template is best made smaller
    first, since bilinear reading skips pixels.

    Args:
        images: Images in [0, 1], or uint8 in 0..255. The result has their type, and uint8 is
            rounded.
        landmarks: Positions (x, y) in pixels: the eye on the left of the picture, the eye on the
            right, the tip of the nose, the left and the right corner of the mouth. The center of
            the first pixel is (0, 0).
        size: Side S of the result. The template grows with it, by size / 112.

    Raises:
        ValueError: The size is below 1, or as `similarity_transform`.

    Example:
        >>> landmarks = 2 * torch.tensor([FACE_TEMPLATE])
        >>> align_faces(torch.rand(1, 3, 224, 224), landmarks).shape
        torch.Size([1, 3, 112, 112])
    """
    if size < 1:
        raise ValueError(f"An aligned image has at least 1 pixel on a side, not {size}.")
    precision = torch.promote_types(landmarks.dtype, torch.float32)
    if images.is_floating_point():
        precision = torch.promote_types(precision, images.dtype)
    exact = landmarks.to(precision)
    back, move = template_to_image(exact, size)
    at = torch.arange(size, dtype=exact.dtype, device=exact.device)
    pixels = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).view(1, -1, 2)
    places = (pixels - move) @ back.mT
    height, width = images.shape[-2:]
    extent = torch.tensor((width, height), dtype=exact.dtype, device=exact.device)
    grid = ((2 * places + 1) / extent - 1).view(-1, size, size, 2)
    out = F.grid_sample(
        images.to(precision), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return (out if images.is_floating_point() else out.round().clamp(0, 255)).to(images.dtype)
