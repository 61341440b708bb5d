"""Ten silhouettes as signed distances, all of one area.

    distance(p) < 0 inside, > 0 outside
    coverage of a pixel = clamp(1/2 - distance in pixels, 0, 1)
    polygon: the least distance to an edge, negative where a ray to the right crosses an odd number
        of edges
    union, cut: min(d1, d2), max(d1, -d2)

Each silhouette is scaled to the area of the unit disc, pi, so that the mean colour of an image says
nothing of its class. Each is symmetric under x -> -x, so that a mirrored image is the image of the
mirrored rotation and position. x points to the right, y up.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]


def _polygon(*right: tuple[float, float]) -> Distance:
    """Make a polygon from its right half's vertices, top to bottom; the left half mirrors them."""
    vertices = [*right, *((-x, y) for x, y in reversed(right) if x)]
    edges = list(pairwise([*vertices, vertices[0]]))

    def distance(x: Tensor, y: Tensor) -> Tensor:
        squared = torch.full_like(x, torch.inf)
        inside = torch.zeros_like(x, dtype=torch.bool)
        for (ax, ay), (bx, by) in edges:
            ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
            along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
            squared = torch.minimum(
                squared, (wx - ex * along).square() + (wy - ey * along).square()
            )
            if ey:
                inside ^= ((y < ay) != (y < by)) & (wx < wy * (ex / ey))
        return squared.sqrt() * torch.where(inside, -1.0, 1.0)

    return distance


def _disc(radius: float, height: float = 0.0, aside: float = 0.0) -> Distance:
    return lambda x, y: ((x - aside).square() + (y - height).square()).sqrt() - radius


def _union(*parts: Distance) -> Distance:
    return lambda x, y: torch.stack([part(x, y) for part in parts]).amin(0)


def _cut(whole: Distance, part: Distance) -> Distance:
    return lambda x, y: torch.maximum(whole(x, y), -part(x, y))


def _turn(radius: float, degrees: float) -> tuple[float, float]:
    """Return the point at an angle from the top, clockwise."""
    return radius * math.sin(math.radians(degrees)), radius * math.cos(math.radians(degrees))


_S = math.sqrt(0.5)
_OUTLINES: dict[str, Distance] = {
    "disc": _disc(1.0),
    "ring": _cut(_disc(1.0), _disc(0.6)),
    "square": _polygon((1.0, 1.0), (1.0, -1.0)),
    "triangle": _polygon((0.0, 1.1), (1.1, -0.8)),
    "star": _polygon(
        (0.0, 1.0), _turn(0.4, 36), _turn(1.0, 72), _turn(0.4, 108), _turn(1.0, 144), (0.0, -0.4)
    ),
    "cross": _polygon((0.3, 1.0), (0.3, 0.3), (1.0, 0.3), (1.0, -0.3), (0.3, -0.3), (0.3, -1.0)),
    # a square on its tip, with a half disc on each upper edge
    "heart": _union(
        _polygon((0.0, 2 * _S), (2 * _S, 0.0), (0.0, -2 * _S)),
        _disc(1.0, _S, _S),
        _disc(1.0, _S, -_S),
    ),
    "crescent": _cut(_disc(1.0), _disc(0.8, 0.5)),
    "arrow": _polygon((0.0, 1.0), (0.8, 0.1), (0.27, 0.1), (0.27, -1.0)),
    "bar": _polygon((1.0, 0.3), (1.0, -0.3)),
}
SILHOUETTES = tuple(_OUTLINES)


@cache
def _unit(name: str) -> float:
    """Return the factor that gives a silhouette the area pi, by counting points of a fine grid.

    The left half is the mirror of the right, and no outline reaches 1.75.
    """
    step = 1 / 256
    y = torch.arange(-1.75 + step / 2, 1.75, step)
    x = y[len(y) // 2 :]
    inside = _OUTLINES[name](x.expand(len(y), -1), y[:, None].expand(-1, len(x))) < 0
    return math.sqrt(math.pi / (2 * int(inside.sum()) * step**2))


def distance(name: str, x: Float[Tensor, "*P"], y: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
    """Return the signed distance of points from a silhouette's outline; y points up.

    The unit is the radius of the disc of the silhouette's area.

    Example:
        >>> distance("disc", torch.tensor([0.0, 3.0]), torch.zeros(2)).round(decimals=2)
        tensor([-1.,  2.])
    """
    unit = _unit(name)
    return _OUTLINES[name](x / unit, y / unit) * unit
